"""One call: who, what, tried where, what came back. It is what a record is made of."""

import functools
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any

import msgspec

from llamaxing import replies
from llamaxing.endpoints import Endpoint
from llamaxing.http import Buffer
from llamaxing.identity import Identity
from llamaxing.trimming import shortened, trimmed

SCHEMA = 1
"""The version of what `record` returns: it counts up when a field changes its meaning, or goes."""

# Bytes of the end of a long reply, where it tells what it has cost.
_TAIL = 64 * 1024


class Attempt(msgspec.Struct):
    """One try at one instance: `status` is upstream's, `error` says why there is none."""

    instance: str
    started: float
    status: int | None = None
    error: str | None = None
    finished: float | None = None


class Kept(msgspec.Struct):
    """A copy of the reply, bounded: what comes after `most` bytes is counted, and its end kept."""

    most: int
    chunks: list[bytes] = msgspec.field(default_factory=list)
    size: int = 0
    tail: bytes = b""

    def add(self, chunk: bytes) -> None:
        room = self.most - self.size
        if room > 0:
            self.chunks.append(chunk[:room])
        if room < len(chunk) and self.most:
            self.tail = (self.tail + chunk)[-_TAIL:]
        self.size += len(chunk)

    @property
    def truncated(self) -> bool:
        return self.size > self.most


class Exchange(msgspec.Struct):
    """`id` is ours and unique, `request_id` what the caller calls it. Times are seconds since 1970
    (UTC). `complete`: the caller was given the whole reply. `configuration`: the version it was
    answered by. `said`: what a request in JSON says, where that is known; `form`: gives the fields
    of one that is a form. `caller`: whose it is, the identity or somebody who shares it;
    `credential`: what they showed, by its name. `redacted`: its texts are not recorded. `intent`:
    what the outbox gave for the record of a call that has yet to be answered; `recorded`: the one
    of its end is kept. Its bytes are its record.
    """

    endpoint: Endpoint
    id: str
    request_id: str
    reply: Kept
    configuration: str = ""
    started: float = msgspec.field(default_factory=time.time)
    identity: Identity | None = None
    caller: str | None = None
    credential: str | None = None
    request: Buffer = b""
    said: Any = None
    form: Callable[[], Mapping[str, Any]] | None = None
    metadata: Mapping[str, Any] | None = None
    traceparent: str | None = None
    redacted: bool = False
    model: str | None = None
    streamed: bool = False
    attempts: list[Attempt] = msgspec.field(default_factory=list)
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

    def __bytes__(self) -> bytes:
        """Its record, in JSON."""
        return msgspec.json.encode(self.record())

    def record(self) -> dict[str, Any]:
        """What sinks are given: plain JSON values, no credential among them."""
        request, request_cut = self._request()
        reply = self._reply()
        usage = self._usage(request, reply)
        who = self.identity
        full = not self.redacted and (who is None or who.record == "full")
        return {
            "schema": SCHEMA,
            "id": self.id,
            "request_id": self.request_id,
            "started": _iso(self.started),
            "first_byte": _iso(self.first_byte),
            "finished": _iso(self.finished),
            "configuration": self.configuration,
            "endpoint": self.endpoint.name,
            "model": self.model,
            "instance": self.instance,
            "attempts": [_attempt(attempt) for attempt in self.attempts],
            "identity": who and _who(who, self.caller),
            "credential": self.credential,
            "metadata": self.metadata and trimmed(self.metadata),
            "traceparent": self.traceparent,
            "streamed": self.streamed,
            "status": self.status,
            "request": request if full else None,
            "response": reply if full else None,
            "usage": usage and msgspec.to_builtins(usage),
            "complete": self.complete,
            "truncated": self.reply.truncated or request_cut,
            "error": self.error,
        }

    def _request(self) -> tuple[Any, bool]:
        """What was asked for, and whether some of it is not there."""
        if self.form is not None:
            return self.form(), False
        most = self.reply.most
        if len(self.request) <= most:
            return replies.json_or_text(self.request, most, self.said), False
        # Large for its images, mostly, of which little is left; to read all of it before they go
        # would cost many times its size.
        text = shortened(self.request, most)
        if len(text) > most:
            return text[:most].decode("utf-8", "ignore"), True
        request = replies.json_or_text(text, most)
        return request, isinstance(request, str)

    def _reply(self) -> Any:
        kept = self.reply
        body = b"".join(kept.chunks)
        return replies.read(body, kept.size, self.content_type, self.content_encoding, kept.most)

    def _usage(self, request: Any, reply: Any) -> replies.Usage | None:
        # A reply that is looked at once more, by its id, has cost what it did the first time.
        if not self.endpoint.names_model:
            return None
        found = replies.usage_of(reply) or (
            replies.usage_in(self.reply.chunks[-1] + self.reply.tail) if self.reply.tail else None
        )
        answered = self.status == 200 and self.attempts
        return found or (replies.estimated(request, reply) if answered else None)


def _who(identity: Identity, caller: str | None) -> dict[str, Any]:
    known = {"id": caller or identity.id, "name": identity.name, "info": identity.info}
    # Where several share an entry, the id is a person's.
    return known if known["id"] == identity.id else known | {"entry": identity.id}


def _attempt(attempt: Attempt) -> dict[str, Any]:
    return {
        "instance": attempt.instance,
        "started": _iso(attempt.started),
        "finished": _iso(attempt.finished),
        "status": attempt.status,
        "error": attempt.error,
    }


def _iso(seconds: float | None) -> str | None:
    if seconds is None:
        return None
    whole = int(seconds)
    return "%s.%06d+00:00" % (_second(whole), (seconds - whole) * 1e6)  # noqa: UP031  faster


@functools.lru_cache(maxsize=64)
def _second(seconds: int) -> str:
    """A record has five times, and most records of a second the same ones."""
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%dT%H:%M:%S}"
