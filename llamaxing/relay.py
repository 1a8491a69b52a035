"""An upstream's reply on its way to the caller: bytes as they come, a bounded copy beside them."""

import time
from collections.abc import AsyncIterator

import httpx

from llamaxing import sse
from llamaxing.answer import Answer
from llamaxing.errors import error_body
from llamaxing.exchange import Exchange
from llamaxing.logs import CHUNKS, log


class BrokenOff(Exception):
    """Upstream broke off within a body that has no way to say so: the connection has to end."""


async def relay(answer: Answer, exchange: Exchange) -> AsyncIterator[bytes]:
    """Every byte of the answer, as it came and when it came; but for the count of tokens that we
    asked for in the caller's stead.

    A stream of events that breaks ends with an error event, and without `[DONE]`; anything else
    that breaks raises `BrokenOff`. `exchange.complete` is set once the last byte, or the event
    that ends the stream, has been taken.
    """
    events = answer.media_type == "text/event-stream" and not answer.header(b"content-encoding")
    framer = sse.Framer() if events else None
    uncounted = sse.Uncounted(framer) if framer and answer.counted else None
    try:
        async for chunk in _chunks(answer):
            if exchange.first_byte is None:
                exchange.first_byte = time.time()
            exchange.reply.add(chunk)
            log.log(CHUNKS, "%s chunk: %r", exchange.request_id, chunk)
            whole = framer.feed(chunk) if framer else []
            if passed := uncounted.feed(chunk, whole) if uncounted else chunk:
                yield passed
            if any(map(_ends_stream, whole)):
                exchange.complete = True
    except httpx.TransportError as error:
        if exchange.complete:
            return
        exchange.error = "upstream_stream_broken"
        if framer is None:
            raise BrokenOff from error
        rest = uncounted.rest() if uncounted else b""
        yield rest + (b"\n\n" if framer.within_event else b"") + _BROKEN
    else:
        if uncounted and (rest := uncounted.rest()):
            yield rest
        exchange.complete = True


async def _chunks(answer: Answer) -> AsyncIterator[bytes]:
    for chunk in answer.held:
        yield chunk
    if not answer.whole:
        async for chunk in answer.stream:
            yield chunk


def _ends_stream(event: bytes) -> bool:
    return sse.DONE in event and sse.data(event) == sse.DONE


_BROKEN = b"data: %s\n\n" % error_body(
    "The model's answer broke off; what came so far may be incomplete.",
    "api_error",
    None,
    "upstream_stream_broken",
)
