"""Nobody has the end of a reply before its record is kept, where every record is asked for."""

from contextlib import aclosing

from llamaxing import sse
from llamaxing.closing import closing
from llamaxing.endpoints import Endpoint
from llamaxing.errors import NotRecorded
from llamaxing.exchange import Exchange
from llamaxing.http import Outgoing, Pieces
from llamaxing.recorder import Recorder
from llamaxing.relay import BrokenOff, ends_stream, error_event


def recorded(body: Outgoing, exchange: Exchange, recorder: Recorder) -> Outgoing:
    """The body, bytes or an asynchronous generator; with an audit, the bytes that complete it come
    when the record is kept: the last piece of a plain body, the event that ends a stream.

    Where it cannot be kept a stream ends with an error event, and anything else raises `BrokenOff`.
    """
    if not recorder.audits:
        return body
    if isinstance(body, bytes):
        return _whole(body, exchange, recorder)
    if exchange.content_type == "text/event-stream" and not exchange.content_encoding:
        return _stream(body, exchange, recorder)
    return _plain(body, exchange, recorder)


async def _whole(body: bytes, exchange: Exchange, recorder: Recorder) -> Pieces:
    await _complete(exchange, recorder)
    yield body


async def _plain(body: Pieces, exchange: Exchange, recorder: Recorder) -> Pieces:
    last = b""
    async with aclosing(body):
        async for piece in body:
            if last:
                yield last
            last = piece
    await _complete(exchange, recorder)
    yield last


async def _stream(body: Pieces, exchange: Exchange, recorder: Recorder) -> Pieces:
    framer = sse.Framer()
    endpoint = exchange.endpoint
    held = begun = b""
    async with aclosing(body):
        async for piece in body:
            if not held:
                begun = framer.rest()
            held += piece
            if any(ends_stream(event, endpoint.last) for event in framer.feed(piece)):
                try:
                    await recorder.complete(exchange)
                except NotRecorded as error:
                    exchange.error = error.code
                    yield closing(begun, error.body) + error_event(endpoint, error.body)
                    return
            elif _may_end(framer.rest(), endpoint):
                continue
            yield held
            held = b""
    if exchange.complete:
        # It had no event of its own to say so: the end of the body does.
        await _complete(exchange, recorder)
    if held:
        yield held


async def _complete(exchange: Exchange, recorder: Recorder) -> None:
    try:
        await recorder.complete(exchange)
    except NotRecorded as error:
        if exchange.error is None:
            exchange.error = error.code
            raise BrokenOff from error
        # A refusal is no secret, and what it has cost has an intent.
        exchange.complete = True


def _may_end(begun: bytes, endpoint: Endpoint) -> bool:
    """Whether the beginning of an event may be of one that ends the stream."""
    return sse.DONE in begun or any(name in begun for name in endpoint.last)
