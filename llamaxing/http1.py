"""HTTP/1.1 on one connection to an upstream: a request at a time, replies parsed by llhttp.

The parser is the one that Node and uvicorn have; what is here is when to send, to read and to stop.
"""

import asyncio
import math
import ssl
from collections.abc import AsyncIterator, Callable
from typing import Any, Protocol

import httptools
import httpx

from llamaxing.corked import Corked
from llamaxing.http import Headers
from llamaxing.patience import Patience

# Bytes of a reply's head, of its trailers, and of what else comes between two pieces of its body.
# A page's policy or a cookie of a proxy on the way may be large.
_LONGEST_HEAD = 128 * 1024
# Bytes that wait for a slow caller before the upstream has to.
_MOST_WAITING = 256 * 1024


class Unseen(httpx.ReadError):
    """The connection ended before a byte of a reply."""


class Sent(Protocol):
    """What goes out: `head` with the line of the request, and a body that is sent piece by piece
    where it is not small enough to be `in_one`."""

    def in_one(self) -> bytes | None: ...

    def __aiter__(self) -> AsyncIterator[bytes]: ...


class Reply(httpx.AsyncByteStream):
    """A reply: its head, once it is there, and each piece of its body as soon as it is.

    `idle` is the longest wait for a piece, and an empty one says that `tick` has passed without.
    In seconds. Raises httpx.TransportError's kinds.
    """

    def __init__(self, connection: "Connection", idle: float | None, tick: float | None) -> None:
        self.status = 0
        self.headers: Headers = []
        self.begun = self.ended = False
        self._connection = connection
        self._idle = math.inf if idle is None else idle
        self._tick = math.inf if tick is None else tick
        self._pieces: list[bytes] = []
        self._waiting = 0
        self._error: httpx.TransportError | None = None
        self._waiter: asyncio.Future[None] | None = None

    async def head(self) -> None:
        while not self.begun:
            if self._error is not None:
                raise self._error
            await self._news()

    def whole(self) -> bytes | None:
        """The body, where all of it has come, and nothing of it was taken."""
        return b"".join(self._pieces) if self.ended else None

    async def __aiter__(self) -> AsyncIterator[bytes]:
        patience: Patience | None = None
        silent = 0.0
        try:
            while True:
                if self._pieces:
                    silent = 0.0
                    yield self._take()
                elif self._error is not None:
                    raise self._error
                elif self.ended:
                    return
                else:
                    patience = patience or Patience()
                    wait = min(self._tick, self._idle - silent)
                    try:
                        await patience.within(wait, self._news())
                    except TimeoutError as error:
                        silent += wait
                        # Where the loop was late, news may have come along with the timer.
                        if silent >= self._idle and not (self._pieces or self.ended):
                            raise httpx.ReadTimeout(f"silent for {silent:g} s") from error
                        yield b""
        finally:
            if patience is not None:
                patience.end()

    async def aclose(self) -> None:
        """Within a body this ends the connection; after one it has gone back already."""
        if not self.ended:
            self._connection.abort()

    # Of the connection

    def begin(self, status: int, headers: Headers) -> None:
        self.status, self.headers, self.begun = status, headers, True
        self._wake()

    def add(self, piece: bytes) -> None:
        self._pieces.append(piece)
        self._waiting += len(piece)
        if self._waiting > _MOST_WAITING:
            self._connection.pause()
        self._wake()

    def end(self) -> None:
        self.ended = True
        self._wake()

    def fail(self, error: httpx.TransportError) -> None:
        if not self.ended:
            self._error = self._error or error
            self._wake()

    def _take(self) -> bytes:
        pieces, self._pieces = self._pieces, []
        if self._waiting > _MOST_WAITING and not self.ended:
            self._connection.resume()
        self._waiting = 0
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    async def _news(self) -> None:
        self._waiter = self._connection.loop.create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)


class Connection(asyncio.Protocol):
    """`used`: whether it has been asked before. `closed`: whether it can be asked again.

    `on_free` is told when it can, and `on_lost` once, at its end.
    """

    def __init__(
        self, on_free: "Callable[[Connection], None]", on_lost: "Callable[[Connection], None]"
    ) -> None:
        self.used = self.closed = False
        self.loop = asyncio.get_running_loop()
        self._on_free = on_free
        self._on_lost = on_lost
        self._parser = httptools.HttpResponseParser(self)
        self._reply: Reply | None = None
        self._headers: Headers = []
        self._overhead = 0
        self._head_only = self._sending = self._paused = self._interim = False
        self._writable: asyncio.Future[None] | None = None

    async def ask(
        self, method: str, head: bytes, content: Sent, idle: float | None, tick: float | None
    ) -> Reply:
        """The reply, once its head is there. Raises `Unseen` where the connection was gone before
        a byte of it, and httpx.TransportError's other kinds."""
        if self.closed:
            raise Unseen("closed before it was asked")
        self.used = True
        self._overhead = 0
        self._head_only = method == "HEAD"
        reply = self._reply = Reply(self, idle, tick)
        body = content.in_one()
        try:
            self._transport.write(head if body is None else head + body)
            if body is None:
                await self._send(content, reply)
            await reply.head()
        except BaseException:
            # It may be somebody else's already.
            if self._reply is reply:
                self.abort()
            raise
        return reply

    async def _send(self, content: Sent, reply: Reply) -> None:
        """As much of it as the upstream takes: one that answers earlier wants no more."""
        self._sending = True
        async for piece in content:
            # What has come meanwhile is seen first: an early reply, or the connection's end.
            await (self._writable or asyncio.sleep(0))
            if reply.begun or self.closed:
                return
            self._transport.write(piece)
        self._sending = False

    def pause(self) -> None:
        if not self.closed and not self._paused:
            self._paused = True
            self._transport.pause_reading()

    def resume(self) -> None:
        if not self.closed and self._paused:
            self._paused = False
            self._transport.resume_reading()

    def abort(self) -> None:
        if not self.closed:
            self.closed = True
            self._transport.abort()

    # Of asyncio

    def connection_made(self, transport: Any) -> None:
        self._transport = Corked(transport)

    def data_received(self, data: bytes) -> None:
        reply = self._reply
        if reply is None:
            # Nobody has asked for it.
            self.abort()
            return
        self._overhead += len(data)
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            reply.fail(httpx.RemoteProtocolError(f"no HTTP: {error}"))
            self.abort()
        else:
            if self._overhead > _LONGEST_HEAD:
                reply.fail(httpx.RemoteProtocolError("a head or trailers without an end"))
                self.abort()

    def eof_received(self) -> None:
        # What is still to be sent would keep the transport open, and nobody answers it any more.
        reply = self._reply
        if reply is not None and _ends_with_connection(reply) and not self._is_cut_off():
            self._end()
        self.abort()

    def connection_lost(self, error: Exception | None) -> None:
        self.closed = True
        self._go_on()
        if self._reply is not None:
            self._reply.fail(self._broken_off(self._reply, error))
        self._on_lost(self)

    def pause_writing(self) -> None:
        self._writable = self.loop.create_future()

    def resume_writing(self) -> None:
        self._go_on()

    # Of the parser

    def on_message_begin(self) -> None:
        self._headers = []
        if self._reply is None:
            self.abort()

    def on_header(self, name: bytes, value: bytes) -> None:
        self._headers.append((name.lower(), value.rstrip(b" \t")))

    def on_headers_complete(self) -> None:
        status = self._parser.get_status_code()
        # RFC 9110 section 15.2: after an interim one another head follows.
        self._interim = 100 <= status < 200
        if self._interim or self._reply is None:
            return
        self._overhead = 0
        self._reply.begin(status, self._headers)
        # Trailers are no headers: RFC 9110 section 6.5.1.
        self._headers = []
        # Whoever still sends may stop.
        self._go_on()
        if self._head_only:
            self._end()
            self.abort()

    def on_body(self, piece: bytes) -> None:
        # What an interim reply has of it is nothing of ours.
        if self._reply is not None and self._reply.begun:
            self._overhead = 0
            self._reply.add(piece)

    def on_message_complete(self) -> None:
        if self._interim or self._reply is None:
            return
        self._end()
        # An upstream that answers early may never read the rest, and the next would wait for that.
        unsent = self._sending or self._transport.unsent
        if unsent or not self._parser.should_keep_alive():
            self.abort()
        elif not self.closed:
            self._on_free(self)

    def _is_cut_off(self) -> bool:
        """RFC 9112 section 9.8: anybody on the way can end a connection, and over TLS only the
        other side's own word of it is the end of a body."""
        tls = self._transport.get_extra_info("ssl_object")
        try:
            return tls is not None and tls.read(1) != b""
        except ssl.SSLError:
            return True

    def _end(self) -> None:
        reply, self._reply = self._reply, None
        if reply is not None:
            self.resume()
            reply.end()

    def _broken_off(self, reply: Reply, error: Exception | None) -> httpx.TransportError:
        if reply.begun:
            return httpx.RemoteProtocolError(f"closed within the body: {error}")
        if self._overhead:
            return httpx.ReadError(f"closed within the head: {error}")
        return Unseen(f"closed: {error}")

    def _go_on(self) -> None:
        writable, self._writable = self._writable, None
        if writable is not None and not writable.done():
            writable.set_result(None)


def _ends_with_connection(reply: Reply) -> bool:
    """RFC 9112 section 6.3: a body of no announced length ends with its connection."""
    headers = {name: value.lower() for name, value in reply.headers}
    chunked = headers.get(b"transfer-encoding", b"").endswith(b"chunked")
    return reply.begun and b"content-length" not in headers and not chunked
