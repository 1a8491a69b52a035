"""An upstream's reply on its way to the caller: bytes as they come, a bounded copy beside them."""

import asyncio
import json
import math
import time
from collections.abc import Coroutine
from typing import Any

import httpx
import msgspec

from llamaxing import sse
from llamaxing.answer import Answer
from llamaxing.closing import closing
from llamaxing.endpoints import Endpoint
from llamaxing.errors import GatewayError, StreamBroken, StreamTooOld, UpstreamBadResponse
from llamaxing.exchange import Exchange
from llamaxing.http import Headers, Pieces
from llamaxing.logs import CHUNKS, log

KEEP_ALIVE = b": keep-alive\n\n"
EVENT_STREAM: Headers = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
]


class Streams(msgspec.Struct, frozen=True):
    """In seconds. A stream of events is given its status after `commit_after`, whether or not an
    instance has answered by then; a comment passes after each `keep_alive` of silence; and it ends
    at the age of `longest`. None is never.
    """

    commit_after: float | None = None
    keep_alive: float | None = 15
    longest: float = math.inf


class BrokenOff(Exception):
    """Upstream broke off within a body that has no way to say so: the connection has to end."""


def whole(answer: Answer, exchange: Exchange) -> bytes | None:
    """The body of an answer that has come as a whole, and is no stream of events."""
    if not answer.whole or answer.media_type == "text/event-stream":
        return None
    body = b"".join(answer.held)
    # Once in memory is enough.
    answer.held = [body]
    if body:
        _note(exchange, body, time.time())
    return body


async def relay(answer: Answer, exchange: Exchange, longest: float = math.inf) -> Pieces:
    """Every byte of the answer, as it came and when it came; but for what `answer.edit` changes,
    and the count of tokens that we asked for in the caller's stead. Comments while it is silent.

    A stream of events that breaks ends with an error event, and without `[DONE]`; anything else
    that breaks raises `BrokenOff`. `exchange.complete` is set once the last byte, or the event
    that ends the stream, has been taken.
    """
    events = answer.media_type == "text/event-stream" and not answer.header(b"content-encoding")
    framer = sse.Framer() if events else None
    passing = _passing(answer, framer) if framer else None
    last = exchange.endpoint.last
    ends = exchange.started + longest
    broken: GatewayError
    try:
        async for chunk in _chunks(answer):
            now = time.time()
            if chunk:
                _note(exchange, chunk, now)
                whole = framer.feed(chunk) if framer else []
                if passed := passing.feed(chunk, whole) if passing else chunk:
                    yield passed
                for event in whole:
                    if ends_stream(event, last):
                        exchange.complete = True
            elif framer and not framer.within_event:
                yield KEEP_ALIVE
            if now > ends:
                raise StreamTooOld
        if framer and answer.status < 400 and exchange.first_byte is None:
            # A stream without a byte is an empty reply: its caller would take it for an answer.
            raise StreamBroken
    except (httpx.TransportError, StreamBroken, StreamTooOld) as error:
        if exchange.complete:
            return
        broken = error if isinstance(error, GatewayError) else StreamBroken()
        exchange.error = broken.code
        if framer is None:
            raise BrokenOff from error
        # Of an event that was kept until it is whole, nothing is told: it would hide the error.
        begun = framer.rest() if (passing or framer).within_event else b""
        yield closing(begun, broken.body) + error_event(exchange.endpoint, broken.body)
    else:
        if passing and (rest := passing.rest()):
            yield rest
        exchange.complete = True


def _note(exchange: Exchange, chunk: bytes, now: float) -> None:
    if exchange.first_byte is None:
        exchange.first_byte = now
    exchange.reply.add(chunk)
    if log.isEnabledFor(CHUNKS):
        log.log(CHUNKS, "%s chunk: %r", exchange.request_id, chunk)


async def within(answering: Coroutine[Any, Any, Answer], seconds: float) -> Any:
    """The answer, or after so many seconds the task that still waits for it."""
    task = asyncio.create_task(answering)
    try:
        await asyncio.wait({task}, timeout=seconds)
    except asyncio.CancelledError:
        await _abandoned(task)
        raise
    return task.result() if task.done() else task


async def committed(
    answering: "asyncio.Task[Answer]", exchange: Exchange, streams: Streams
) -> Pieces:
    """A stream whose status has gone out before there is an answer: comments until there is one.

    What would have been another status is then an error event.
    """
    try:
        while not answering.done():
            yield KEEP_ALIVE
            await asyncio.wait({answering}, timeout=streams.keep_alive)
        try:
            answer = answering.result()
        except GatewayError as error:
            exchange.error = error.code
            body = error.body
        else:
            if answer.status < 400 and answer.media_type == "text/event-stream":
                async for piece in relay(answer, exchange, streams.longest):
                    yield piece
                return
            exchange.error = f"upstream_status_{answer.status}"
            body = b"".join(answer.held)
            if not _tells_an_error(body):
                what = f"status {answer.status}" if answer.status >= 400 else "what is no stream"
                body = UpstreamBadResponse(exchange.model or "", what).body
        exchange.reply.add(body)
        yield error_event(exchange.endpoint, body)
        exchange.complete = True
    finally:
        await _abandoned(answering)


async def _abandoned(answering: "asyncio.Task[Answer]") -> None:
    answering.cancel()
    await asyncio.wait({answering})
    if not answering.cancelled() and answering.exception() is None:
        await answering.result().aclose()


def _tells_an_error(body: bytes) -> bool:
    """Whether it is one in OpenAI's shape: within a stream nothing else is understood."""
    try:
        return bool(json.loads(body)["error"])
    except (ValueError, KeyError, TypeError, RecursionError):
        return False


def error_event(endpoint: Endpoint, body: bytes) -> bytes:
    """The body of an error as the last event of a stream, in the shape of the endpoint's own."""
    if endpoint.capability != "responses":
        return sse.with_data(b"", body)
    try:
        error = json.loads(body)["error"]
        told = {name: error.get(name) for name in ("code", "message", "param")}
    except (ValueError, KeyError, TypeError, AttributeError):
        return sse.with_data(b"event: error", body)
    event = {"error": error, "type": "error", **told, "sequence_number": 0}
    return sse.with_data(b"event: error", json.dumps(event).encode())


def _passing(answer: Answer, framer: sse.Framer) -> sse.Edited | sse.Uncounted | None:
    if answer.edit:
        return sse.Edited(framer, answer.edit)
    return sse.Uncounted(framer) if answer.counted else None


async def _chunks(answer: Answer) -> Pieces:
    for chunk in answer.held:
        yield chunk
    if not answer.whole:
        async for chunk in answer.stream:
            yield chunk


class _Typed(msgspec.Struct):
    type: str = ""


_typed = msgspec.json.Decoder(_Typed)


def ends_stream(event: bytes, last: frozenset[bytes]) -> bool:
    """Whether it is `[DONE]`, or of one of the types that end a stream of its endpoint."""
    if sse.DONE in event:
        return sse.data(event) == sse.DONE
    if not any(name in event for name in last):
        return False
    try:
        return _typed.decode(sse.data(event)).type.encode() in last
    except (msgspec.DecodeError, UnicodeDecodeError):
        return False
