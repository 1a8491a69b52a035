"""One reply out of a stream's events, as the same call without a stream would have had it.

What the events look like says how they go together, so a new endpoint needs nothing here.
"""

from collections.abc import Iterable, Sequence
from typing import Any

Event = dict[str, Any]

# The ends of the names of events that carry the whole of a reply, or the last of it.
_LAST = ("completed", "incomplete", "failed", "done")
# Members that each chunk repeats whole; every other text is a piece of one.
_REPEATED = frozenset(
    {"id", "object", "model", "type", "role", "finish_reason", "system_fingerprint"}
    | {"service_tier", "name", "obfuscation", "status", "format"}
)
# Where a delta of the Responses API goes, by the word before `delta`; `text` for every other.
_PIECES = {
    "function_call_arguments": "arguments",
    "mcp_call_arguments": "arguments",
    "custom_tool_call_input": "input",
    "code_interpreter_call_code": "code",
    "refusal": "refusal",
}


def merged(events: Iterable[Event]) -> Event:
    listed = list(events)
    if any("choices" in event for event in listed) or not any("type" in it for it in listed):
        return _chunks(listed)
    if any(str(event.get("type")).startswith("response.") for event in listed):
        return _response(listed)
    return _typed(listed)


def _chunks(events: Sequence[Event]) -> Event:
    """Chat and text completions: text joined, choices and tool calls by their index.

    A chat stream's `delta` becomes the `message` that a plain reply has.
    """
    reply: Event = {}
    for event in events:
        _add(reply, event)
    choices = reply.get("choices")
    for choice in choices if isinstance(choices, list) else ():
        if isinstance(choice, dict) and "delta" in choice:
            choice["message"] = choice.pop("delta")
    if str(reply.get("object", "")).endswith(".chunk"):
        reply["object"] = reply["object"].removesuffix(".chunk")
    return reply


def _add(whole: Event, part: Event) -> None:
    for name, value in part.items():
        kind = type(value)
        known = whole.get(name)
        if kind is str and type(known) is str:
            whole[name] = value if name in _REPEATED else known + value
        elif known is None or kind is not type(known):
            if value is not None or name not in whole:
                whole[name] = _by_index([], value) if kind is list else value
        elif kind is list:
            _by_index(known, value)
        elif kind is dict and "filter" not in name:
            _add(known, value)
        else:
            whole[name] = value


def _by_index(known: list[Any], parts: list[Any]) -> list[Any]:
    """Parts of what has an index go to where that stands; what has none comes behind."""
    for part in parts:
        index = part.get("index") if isinstance(part, dict) else None
        if isinstance(index, int):
            _add(_at(known, index), part)
        else:
            known.append(part)
    return known


def _at(known: list[Any], index: int) -> Event:
    for same in known:
        if isinstance(same, dict) and same.get("index") == index:
            return same
    made: Event = {}
    known.append(made)
    return made


def _response(events: Sequence[Event]) -> Event:
    """The Responses API: what its last event says, or the pieces where there is none."""
    reply: Event = {}
    items: dict[int, Event] = {}
    for event in events:
        if isinstance(event.get("response"), dict):
            reply |= event["response"]
        elif "error" in event or event.get("type") == "error":
            reply["error"] = event.get("error", event)
        elif isinstance(index := event.get("output_index"), int):
            _into(items, index, event)
    if not reply.get("output"):
        reply["output"] = [items[index] for index in sorted(items)]
    return reply


def _into(items: dict[int, Event], index: int, event: Event) -> None:
    kind, _, what = str(event.get("type")).removeprefix("response.").rpartition(".")
    if kind == "output_item":
        items[index] = item if isinstance(item := event.get("item"), dict) else {}
        return
    whole = items.setdefault(index, {})
    for name in ("content", "summary"):
        if isinstance(at := event.get(f"{name}_index"), int):
            whole = _part(whole, name, at)
    if isinstance(part := event.get("part"), dict):
        whole |= part
    elif what == "delta" and isinstance(delta := event.get("delta"), str):
        piece = _PIECES.get(kind, "text")
        whole[piece] = (whole.get(piece) or "") + delta


def _part(whole: Event, name: str, at: int) -> Event:
    parts = whole.get(name)
    if not isinstance(parts, list):
        parts = whole[name] = []
    if at == len(parts):
        parts.append({})
    found = parts[at] if 0 <= at < len(parts) else None
    return found if isinstance(found, dict) else {}


def _typed(events: Sequence[Event]) -> Event:
    """Images, speech and transcriptions: the pieces of a text or of audio, and the last event."""
    reply: Event = {}
    for event in events:
        for name, into in (("delta", "text"), ("audio", "audio")):
            if isinstance(piece := event.get(name), str):
                reply[into] = reply.get(into, "") + piece
        if str(event.get("type")).endswith(_LAST) or "error" in event:
            reply |= {name: value for name, value in event.items() if name != "type"}
    return reply or events[-1]
