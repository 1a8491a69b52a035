"""An exchange's record as Langfuse knows it: a generation, and the trace that it belongs to.

The attributes and the rule for ids are those of the `langfuse` package, version 5.
"""

import hashlib
import re
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec

from llamaxing.endpoints import BY_NAME
from llamaxing.otlp import Span, Value

_TRACE_ID = re.compile(r"(?!0{32})[0-9a-f]{32}")
_SPAN_ID = re.compile(r"(?!0{16})[0-9a-f]{16}")
# W3C Trace Context, section 3.2: later versions may have more at the end.
_TRACEPARENT = re.compile(
    rf"(?!ff)[0-9a-f]{{2}}-(?P<trace>{_TRACE_ID.pattern})-(?P<parent>{_SPAN_ID.pattern})"
    r"-[0-9a-f]{2}(?:-.*)?"
)
# Langfuse's limit for what a trace is found by.
_LONGEST = 200
_SAFE = 2**53 - 1
# What is asked of a model, rather than how it is to answer.
_INPUTS = ("messages", "prompt", "input")
_BESIDE = ("instructions", "tools", "functions")
_NO_PARAMETERS = {*_INPUTS, *_BESIDE, "model", "observation_metadata", "metadata", "user"}


def span(record: Mapping[str, Any]) -> Span:
    """The same for the same record, whenever it is made."""
    given = {name: value for name, value in (record["metadata"] or {}).items() if value is not None}
    ids = _Ids(record, given)
    level, message = _level(record), _failure(record)
    if (told := given.pop("status_message", None)) is not None:
        message = str(told)
    name = str(given.pop("name", record["endpoint"]))
    attributes: dict[str, Value | None] = {
        "langfuse.internal.is_app_root": True,
        "langfuse.internal.as_root": ids.named or None,
        "langfuse.observation.level": level,
        "langfuse.observation.status_message": message,
        **_trace(record, given, ids),
        **_generation(record),
        **_flat("langfuse.observation.metadata", {**_about(record), **ids.originals, **given}),
    }
    started = _nanoseconds(record["started"])
    return Span(
        ids.trace,
        ids.span,
        ids.parent,
        name,
        started,
        _nanoseconds(record["finished"]) if record["finished"] else started,
        {name: value for name, value in attributes.items() if value is not None},
        failed=(message or "") if level == "ERROR" else None,
    )


class _Ids:
    """Where a generation belongs: by the call's own metadata, or else by its `traceparent`.

    What is no id of OpenTelemetry's is the seed of one, and stays in `originals`.
    """

    def __init__(self, record: Mapping[str, Any], given: dict[str, Any]) -> None:
        self.originals: dict[str, str] = {}
        around = _TRACEPARENT.fullmatch(record.get("traceparent") or "")
        trace = self._id(given, "trace_id", _TRACE_ID)
        self.named = bool(trace or around)
        self.trace = trace or (around["trace"] if around else _derived(record["id"], _TRACE_ID))
        within = around is not None and around["trace"] == self.trace
        parent = self._id(given, "parent_observation_id", _SPAN_ID)
        self.parent = parent or (around["parent"] if around and within else None)
        self.span = self._id(given, "generation_id", _SPAN_ID) or _derived(record["id"], _SPAN_ID)

    def _id(self, given: dict[str, Any], name: str, pattern: re.Pattern[str]) -> str | None:
        original = str(given.pop(name, ""))
        if not original:
            return None
        id = _derived(original, pattern)
        if id != original:
            self.originals[name] = original
        return id


def _derived(seed: str, pattern: re.Pattern[str]) -> str:
    """The rule of the package's `create_trace_id`."""
    if pattern.fullmatch(seed):
        return seed
    digits = 32 if pattern is _TRACE_ID else 16
    return hashlib.sha256(seed.encode()).hexdigest()[:digits]


def _trace(record: Mapping[str, Any], given: dict[str, Any], ids: _Ids) -> dict[str, Value | None]:
    """Takes what is about the trace out of `given`."""
    tags = given.pop("trace_tags", None)
    if tags is not None:
        tags = [_short(tag) or "" for tag in (tags if isinstance(tags, list) else [tags])]
    about = given.pop("trace_metadata", None)
    if "trace_id" in ids.originals and isinstance(about, dict | None):
        about = {"trace_id": ids.originals["trace_id"], **(about or {})}
    return {
        "user.id": _short(record["identity"]["id"]),
        "session.id": _short(given.pop("session_id", None)),
        "langfuse.trace.name": _short(given.pop("trace_name", None)),
        "langfuse.trace.tags": tags,
        **_flat("langfuse.trace.metadata", about),
    }


def _generation(record: Mapping[str, Any]) -> dict[str, Value | None]:
    endpoint = BY_NAME.get(record["endpoint"])
    # What only looks at, or deletes, what has been generated before.
    looks = endpoint is not None and not endpoint.names_model
    first = record["first_byte"]
    parts = {
        "type": "span" if looks else "generation",
        "input": _input(record["request"]),
        "output": _output(record["response"]),
        "model.name": record["model"],
        "model.parameters": _parameters(record["request"]) or None,
        "usage_details": _usage(record["usage"]),
        "completion_start_time": first and _json(first.replace("+00:00", "Z")),
    }
    return {
        f"langfuse.observation.{name}": value if isinstance(value, str) else _json(value)
        for name, value in parts.items()
        if value is not None
    }


def _about(record: Mapping[str, Any]) -> dict[str, Any]:
    names = ("endpoint", "instance", "request_id", "status", "complete", "truncated")
    about = {name: record[name] for name in names}
    about["attempts"] = len(record["attempts"])
    if record["usage"] and not record["usage"]["exact"]:
        about["usage_estimated"] = True
    return about


def _input(request: Any) -> Any:
    if not isinstance(request, dict):
        return request
    for name in _INPUTS:
        if name in request:
            beside = {it: request[it] for it in _BESIDE if request.get(it)}
            return {name: request[name], **beside} if beside else request[name]
    return {name: value for name, value in request.items() if name not in _NO_PARAMETERS}


def _output(response: Any) -> Any:
    if not isinstance(response, dict):
        return response
    if isinstance(choices := response.get("choices"), list):
        said = [it.get("message", it.get("text")) for it in choices if isinstance(it, dict)]
        return said[0] if len(said) == 1 else said
    if "output" in response:
        return response["output"]
    data = response.get("data")
    if isinstance(data, list) and any(isinstance(it, dict) and "embedding" in it for it in data):
        return None  # vectors say nothing to anybody who looks at a trace
    return response


def _parameters(request: Any) -> dict[str, Any]:
    """How the model was to answer: the request's small members."""
    if not isinstance(request, dict):
        return {}
    flat: dict[str, Any] = {}
    for name, value in request.items():
        if name in _NO_PARAMETERS:
            continue
        inner = value if isinstance(value, dict) else {"": value}
        flat |= {f"{name}.{key}" if key else name: item for key, item in inner.items()}
    return {name: value for name, value in flat.items() if _is_small(value)}


def _is_small(value: Any) -> bool:
    if isinstance(value, list):
        return bool(value) and all(isinstance(item, str) for item in value)
    return isinstance(value, str | int | float) and len(str(value)) <= _LONGEST


def _usage(usage: Mapping[str, Any] | None) -> dict[str, int] | None:
    """In Langfuse's words, which count nothing twice: input is without what was cached."""
    if usage is None:
        return None
    cached, reasoning = usage["cached"], usage["reasoning"]
    details = {
        "input": usage["input"] - cached,
        "output": usage["output"] - reasoning,
        "input_cached_tokens": cached,
        "output_reasoning_tokens": reasoning,
        "total": usage["input"] + usage["output"],
    }
    return {name: count for name, count in details.items() if count or name in ("input", "output")}


def _level(record: Mapping[str, Any]) -> str | None:
    if (record["status"] or 0) >= 400 and record["error"] != "caller_hung_up":
        return "ERROR"
    if record["error"] == "caller_hung_up":
        return "WARNING"
    return "ERROR" if record["error"] or not record["complete"] else None


def _failure(record: Mapping[str, Any]) -> str | None:
    if _level(record) is None:
        return None
    response = record["response"]
    error = response.get("error") if isinstance(response, dict) else None
    message = error.get("message") if isinstance(error, dict) else None
    return ": ".join(str(it) for it in (record["error"] or record["status"], message) if it)


def _flat(prefix: str, metadata: Any) -> dict[str, str]:
    if metadata is None:
        return {}
    if not isinstance(metadata, dict):
        return {prefix: _json(metadata)}
    return {f"{prefix}.{name}": _json(it) for name, it in metadata.items() if it is not None}


def _json(value: Any) -> str:
    return msgspec.json.encode(_safe(value)).decode()


def _safe(value: Any) -> Any:
    """JavaScript, in which the server is written, has no integers of more than 53 bits."""
    if isinstance(value, dict):
        return {name: _safe(item) for name, item in value.items()}
    if isinstance(value, list):
        return [_safe(item) for item in value]
    if isinstance(value, int) and not -_SAFE <= value <= _SAFE:
        return str(value)
    return value


def _short(value: Any) -> str | None:
    return None if value is None else str(value)[:_LONGEST]


def _nanoseconds(moment: str) -> int:
    since = datetime.fromisoformat(moment) - datetime(1970, 1, 1, tzinfo=UTC)
    return since // timedelta(microseconds=1) * 1000
