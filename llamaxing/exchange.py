"""One call: who, what, tried where, what came back. It is what a record is made of."""

import time
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import msgspec

from llamaxing import sse
from llamaxing.endpoints import Endpoint
from llamaxing.http import Buffer
from llamaxing.identity import Identity


@dataclass(slots=True)
class Attempt:
    """One try at one instance: `status` is upstream's, `error` says why there is none."""

    instance: str
    started: float
    status: int | None = None
    error: str | None = None
    finished: float | None = None


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens, as upstream counted them."""

    input: int
    output: int
    cached: int = 0
    reasoning: int = 0
    exact: bool = True


@dataclass(slots=True)
class Kept:
    """A copy of the reply, bounded: what comes after `most` bytes is only counted."""

    most: int
    chunks: list[bytes] = field(default_factory=list)
    size: int = 0

    def add(self, chunk: bytes) -> None:
        if self.size < self.most:
            self.chunks.append(chunk[: self.most - self.size])
        self.size += len(chunk)

    @property
    def truncated(self) -> bool:
        return self.size > self.most


@dataclass(slots=True)
class Exchange:
    """`id` is ours and unique, `request_id` what the caller calls it. Times are seconds since 1970
    (UTC). `complete`: the caller was given the whole reply. `configuration`: the version it was
    answered by. `form`: the fields of a request that is a form. `intent`: what the outbox gave for
    the record of a call that has yet to be answered; `recorded`: the one of its end is kept.
    """

    endpoint: Endpoint
    id: str
    request_id: str
    reply: Kept
    configuration: str = ""
    started: float = field(default_factory=time.time)
    identity: Identity | None = None
    request: Buffer = b""
    form: Mapping[str, Any] | None = None
    metadata: Mapping[str, Any] | None = None
    model: str | None = None
    streamed: bool = False
    attempts: list[Attempt] = field(default_factory=list)
    status: int | None = None
    content_type: str = ""
    content_encoding: str = ""
    first_byte: float | None = None
    finished: float | None = None
    complete: bool = False
    error: str | None = None
    intent: Any = None
    recorded: bool = False

    @property
    def instance(self) -> str | None:
        return self.attempts[-1].instance if self.attempts else None

    def record(self) -> dict[str, Any]:
        """What sinks are given: plain JSON values, no credential among them."""
        full = self.identity is None or self.identity.record == "full"
        reply = self._reply()
        return {
            "id": self.id,
            "request_id": self.request_id,
            "started": _iso(self.started),
            "first_byte": _iso(self.first_byte),
            "finished": _iso(self.finished),
            "configuration": self.configuration,
            "endpoint": self.endpoint.name,
            "model": self.model,
            "instance": self.instance,
            "attempts": [
                {
                    "instance": attempt.instance,
                    "started": _iso(attempt.started),
                    "finished": _iso(attempt.finished),
                    "status": attempt.status,
                    "error": attempt.error,
                }
                for attempt in self.attempts
            ],
            "identity": self.identity and self.identity.model_dump(include={"id", "name", "info"}),
            "metadata": self.metadata,
            "streamed": self.streamed,
            "status": self.status,
            "request": self._request() if full else None,
            "response": reply if full else None,
            "usage": _usage(reply),
            "complete": self.complete,
            "truncated": self.reply.truncated
            or (self.form is None and len(self.request) > self.reply.most),
            "error": self.error,
        }

    def _request(self) -> Any:
        if self.form is not None:
            return self.form
        if len(self.request) > self.reply.most:
            return _text(self.request[: self.reply.most])
        return _json_or_text(bytes(self.request))

    def _reply(self) -> Any:
        body = b"".join(self.reply.chunks)
        if self.content_encoding in ("gzip", "deflate"):
            body = _inflated(body, self.reply.most)
        if self.content_type.startswith("text/event-stream"):
            return sse.merged(sse.decoded(body))
        return _json_or_text(body)


def usage_of(reply: Any) -> Usage | None:
    """The token counts in a reply, in the words of chat completions or of responses."""
    found = reply.get("usage") if isinstance(reply, dict) else None
    if not isinstance(found, dict):
        return None
    ingoing = found.get("prompt_tokens_details") or found.get("input_tokens_details") or {}
    outgoing = found.get("completion_tokens_details") or found.get("output_tokens_details") or {}
    return Usage(
        input=found.get("prompt_tokens") or found.get("input_tokens") or 0,
        output=found.get("completion_tokens") or found.get("output_tokens") or 0,
        cached=ingoing.get("cached_tokens") or 0,
        reasoning=outgoing.get("reasoning_tokens") or 0,
    )


def _usage(reply: Any) -> dict[str, Any] | None:
    found = usage_of(reply)
    return None if found is None else msgspec.to_builtins(found)


def _json_or_text(body: bytes) -> Any:
    if not body:
        return None
    try:
        return msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return _text(body)


def _text(body: bytes) -> str:
    return body.decode("utf-8", "replace")


def _inflated(body: bytes, most: int) -> bytes:
    try:
        return zlib.decompressobj(zlib.MAX_WBITS | 32).decompress(body, most)
    except zlib.error:
        return body


def _iso(seconds: float | None) -> str | None:
    return None if seconds is None else datetime.fromtimestamp(seconds, UTC).isoformat()
