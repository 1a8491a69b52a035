"""Connections to upstreams, against servers that write byte by byte what a test says."""

import asyncio
import itertools
import socket
import struct
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llamaxing.http1 import Connection, Reply
from llamaxing.pool import Place, Pool
from llamaxing.upstream import Asked, Content, Upstreams

OK = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"
CHUNKED = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"

Talk = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


class Server:
    """`talk` is what it does with each connection; `opened` counts them."""

    def __init__(self, talk: Talk) -> None:
        self._talk = talk
        self._open: set[asyncio.StreamWriter] = set()
        self.opened = 0
        self.gone = asyncio.Event()

    async def __aenter__(self) -> "Server":
        self._server = await asyncio.start_server(self._connected, "127.0.0.1", 0)
        port = self._server.sockets[0].getsockname()[1]
        self.url = f"http://127.0.0.1:{port}/v1"
        self.place = Place("127.0.0.1", port, tls=False)
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        for writer in self._open:
            writer.close()

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.opened += 1
        self._open.add(writer)
        try:
            await self._talk(reader, writer)
            while await reader.read(65536):
                pass
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            self._open.discard(writer)
            writer.close()
            self.gone.set()


Serve = Callable[[Talk], Awaitable[Server]]


@pytest.fixture
async def serve() -> AsyncIterator[Serve]:
    async with AsyncExitStack() as stack:

        async def start(talk: Talk) -> Server:
            return await stack.enter_async_context(Server(talk))

        yield start


@pytest.fixture
async def upstreams() -> AsyncIterator[Upstreams]:
    async with Upstreams(10) as door:
        yield door


def writes(*pieces: bytes) -> Talk:
    """To each request the next of these; the last again and again."""

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        left = list(pieces)
        while True:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(left.pop(0) if len(left) > 1 else left[0])
            await writer.drain()

    return talk


def writes_and_closes(piece: bytes, *, reset: bool = False) -> Talk:
    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(piece)
        await writer.drain()
        if reset:
            # A close that does not linger is a reset.
            linger = struct.pack("ii", 1, 0)
            writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            writer.transport.abort()
        else:
            writer.close()

    return talk


async def ask(
    door: Upstreams, url: str, method: str = "GET", content: Sequence[bytes] = (), **more: float
) -> tuple[int, bytes]:
    body = Content(content)
    headers = {"content-length": str(body.length)} if content else {}
    answered = await door.send(Asked(method, url, headers, body, 5, **more))
    try:
        return answered.status, b"".join([piece async for piece in answered.stream])
    finally:
        await answered.stream.aclose()


@pytest.mark.parametrize(
    ("raw", "body"),
    {
        "with a length": (OK, b"ok"),
        "in chunks": (CHUNKED + b"2\r\nok\r\n0\r\n\r\n", b"ok"),
        "in chunks, with extensions and trailers": (
            CHUNKED + b"1;a=b\r\no\r\n1\r\nk\r\n0\r\nx-sum: 1\r\n\r\n",
            b"ok",
        ),
        "empty": (b"HTTP/1.1 204 No Content\r\n\r\n", b""),
        "of length nought": (b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n", b""),
        "behind interim heads": (
            b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nlink: </a>\r\n\r\n" + OK,
            b"ok",
        ),
        "with a reason of no ASCII": (OK.replace(b"OK", b"f\xfcr"), b"ok"),
    }.values(),
    ids=str,
)
async def test_a_reply_is_whole_and_its_connection_is_used_again(
    raw: bytes, body: bytes, serve: Serve, upstreams: Upstreams
) -> None:
    server = await serve(writes(raw))

    replies = [await ask(upstreams, server.url) for _ in range(3)]

    assert replies == [(204 if not raw.find(b"HTTP/1.1 204") else 200, body)] * 3
    assert server.opened == 1


@given(cuts=st.sets(st.integers(1, 120)))
def test_a_reply_may_be_cut_anywhere(cuts: set[int]) -> None:
    raw = CHUNKED + b"5\r\nhello\r\n6\r\n world\r\n0\r\nx-sum: 1\r\n\r\n"
    edges = [0, *sorted(it for it in cuts if it < len(raw)), len(raw)]

    async def read() -> tuple[int, bytes]:
        freed: list[Connection] = []
        connection = Connection(freed.append, lambda _: None)
        connection.connection_made(Wire())
        asking = asyncio.create_task(connection.ask("GET", b"", Content([]), None, None))
        await asyncio.sleep(0)
        for start, end in itertools.pairwise(edges):
            connection.data_received(raw[start:end])
        reply = await asking
        assert freed == [connection]
        return reply.status, b"".join([piece async for piece in reply])

    assert asyncio.run(read()) == (200, b"hello world")


class Wire:
    """A transport that leads nowhere."""

    def write(self, data: bytes) -> None: ...

    def abort(self) -> None: ...


@pytest.mark.parametrize(
    ("raw", "body"),
    [
        (b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 2\r\n\r\nok", b"ok"),
        (b"HTTP/1.0 200 OK\r\ncontent-length: 2\r\n\r\nok", b"ok"),
        # RFC 9112 section 6.3: it ends with the connection.
        (b"HTTP/1.1 200 OK\r\n\r\nok", b"ok"),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nokHTTP/1.1 200 OK\r\n", b"ok"),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok and more", b"ok"),
    ],
    ids=["said so", "1.0", "no length", "another reply behind it", "garbage behind it"],
)
async def test_a_connection_that_is_over_is_not_used_again(
    raw: bytes, body: bytes, serve: Serve, upstreams: Upstreams
) -> None:
    server = await serve(writes_and_closes(raw))

    replies = [await ask(upstreams, server.url) for _ in range(2)]

    assert replies == [(200, body)] * 2
    assert server.opened == 2


async def test_what_comes_unasked_on_a_free_connection_is_nobodys_reply(
    serve: Serve, upstreams: Upstreams
) -> None:
    sent = asyncio.Event()

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(OK)
        await sent.wait()
        writer.write(OK.replace(b"ok", b"no"))

    server = await serve(talk)
    await ask(upstreams, server.url)
    sent.set()
    await server.gone.wait()

    assert await ask(upstreams, server.url) == (200, b"ok")
    assert server.opened == 2


@pytest.mark.parametrize(
    ("raw", "kind"),
    {
        "nothing": (b"", httpx.ReadError),
        "half a head": (b"HTTP/1.1 200 OK\r\ncontent-", httpx.ReadError),
        "less than announced": (OK[:-1], httpx.RemoteProtocolError),
        "no last chunk": (CHUNKED + b"2\r\nok\r\n", httpx.RemoteProtocolError),
        "half a chunk": (CHUNKED + b"9\r\nok", httpx.RemoteProtocolError),
        "no chunk size": (CHUNKED + b"zz\r\nok\r\n", httpx.RemoteProtocolError),
        "no HTTP": (b"SSH-2.0-x\r\n\r\n", httpx.RemoteProtocolError),
        "two lengths": (
            OK.replace(b"\r\n\r\n", b"\r\ncontent-length: 3\r\n\r\n"),
            httpx.RemoteProtocolError,
        ),
        "a length and chunks": (
            CHUNKED.replace(b"\r\n\r\n", b"\r\ncontent-length: 2\r\n\r\n") + b"2\r\nok\r\n",
            httpx.RemoteProtocolError,
        ),
        "another protocol": (
            b"HTTP/1.1 101 Switching Protocols\r\nupgrade: x\r\nconnection: upgrade\r\n\r\n",
            httpx.RemoteProtocolError,
        ),
        "a head without an end": (
            b"HTTP/1.1 200 OK\r\n" + b"a: b\r\n" * 30_000,
            httpx.RemoteProtocolError,
        ),
    }.values(),
    ids=str,
)
async def test_what_is_no_whole_reply_is_an_error_of_httpxs(
    raw: bytes, kind: type[Exception], serve: Serve, upstreams: Upstreams
) -> None:
    server = await serve(writes_and_closes(raw))

    with pytest.raises(kind) as caught:
        await ask(upstreams, server.url)

    assert type(caught.value) is kind


async def test_a_body_that_ends_in_a_reset_is_not_whole(serve: Serve, upstreams: Upstreams) -> None:
    server = await serve(writes_and_closes(b"HTTP/1.1 200 OK\r\n\r\nok", reset=True))

    with pytest.raises(httpx.TransportError):
        await ask(upstreams, server.url)


async def test_a_head_has_no_body_whatever_it_announces(serve: Serve, upstreams: Upstreams) -> None:
    server = await serve(writes(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n"))

    assert await ask(upstreams, server.url, "HEAD") == (200, b"")


async def test_an_upstream_that_answers_early_gets_no_more_of_the_body(
    serve: Serve, upstreams: Upstreams
) -> None:
    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 413 No\r\ncontent-length: 2\r\n\r\nno")
        await asyncio.Event().wait()

    server = await serve(talk)
    large = [b"x" * 10_000_000] * 3

    replies = [await ask(upstreams, server.url, "POST", large) for _ in range(2)]

    assert replies == [(413, b"no")] * 2
    assert server.opened == 2


async def test_a_silent_body_is_told_and_at_last_an_error(
    serve: Serve, upstreams: Upstreams
) -> None:
    server = await serve(writes(OK[:-1]))
    answered = await upstreams.send(Asked("GET", server.url, {}, Content([]), 5, 0.05, 0.02))
    body = aiter(answered.stream)

    assert [await anext(body) for _ in range(3)] == [b"o", b"", b""]
    with pytest.raises(httpx.ReadTimeout):
        await anext(body)
    await answered.stream.aclose()

    await server.gone.wait()


async def test_whoever_stops_waiting_for_a_head_ends_the_connection(
    serve: Serve, upstreams: Upstreams
) -> None:
    arrived = asyncio.Event()

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        arrived.set()

    server = await serve(talk)
    asking = asyncio.create_task(ask(upstreams, server.url))
    await arrived.wait()

    asking.cancel()

    await server.gone.wait()


async def test_whoever_stops_reading_a_body_ends_the_connection(
    serve: Serve, upstreams: Upstreams
) -> None:
    server = await serve(writes(CHUNKED + b"2\r\nok\r\n"))
    answered = await upstreams.send(Asked("GET", server.url, {}, Content([]), 5))
    assert await anext(aiter(answered.stream)) == b"ok"

    await answered.stream.aclose()

    await server.gone.wait()


async def test_a_reply_that_nobody_has_read_yet_does_not_keep_its_connection(
    serve: Serve, upstreams: Upstreams
) -> None:
    server = await serve(writes(OK, OK.replace(b"ok", b"on")))
    first = await upstreams.send(Asked("GET", server.url, {}, Content([]), 5))

    assert await ask(upstreams, server.url) == (200, b"on")
    assert b"".join([it async for it in first.stream]) == b"ok"
    assert server.opened == 1


@pytest.mark.parametrize("value", ["a\r\nx-more: b", "a\nb", "a\rb", "a\0b"])
async def test_no_header_can_be_more_than_one(value: str, upstreams: Upstreams) -> None:
    with pytest.raises(httpx.LocalProtocolError):
        await upstreams.send(Asked("GET", "http://127.0.0.1:9", {"x": value}, Content([])))


# The pool


async def taken(pool: Pool, server: Server, count: int) -> list[Connection]:
    return [await pool.take(server.place, 5) for _ in range(count)]


async def used(connection: Connection) -> Reply:
    return await connection.ask("GET", b"GET / HTTP/1.1\r\n\r\n", Content([]), 5, None)


async def test_whoever_comes_above_the_limit_waits_for_one_that_is_free(serve: Serve) -> None:
    server = await serve(writes(OK))
    pool = Pool(2)
    first, _ = await taken(pool, server, 2)
    waiting = asyncio.create_task(pool.take(server.place, 5))
    await asyncio.sleep(0)
    assert not waiting.done()

    await used(first)

    assert await waiting is first
    pool.close()


async def test_above_the_limit_one_that_is_free_elsewhere_makes_room(serve: Serve) -> None:
    here, there = await serve(writes(OK)), await serve(writes(OK))
    pool = Pool(1)
    await used((await taken(pool, here, 1))[0])

    await taken(pool, there, 1)

    await here.gone.wait()
    pool.close()


async def test_one_who_stops_waiting_leaves_the_place_to_the_next(serve: Serve) -> None:
    server = await serve(writes(OK))
    pool = Pool(1)
    [only] = await taken(pool, server, 1)
    impatient = asyncio.create_task(pool.take(server.place, 5))
    patient = asyncio.create_task(pool.take(server.place, 5))
    await asyncio.sleep(0)

    await used(only)
    impatient.cancel()

    assert await patient is only
    pool.close()


async def test_a_place_that_refuses_leaves_room_for_the_next(serve: Serve) -> None:
    server = await serve(writes(OK))
    pool = Pool(1)
    for _ in range(3):
        with pytest.raises(httpx.ConnectError):
            await pool.take(Place("127.0.0.1", 9, tls=False), 5)

    assert await taken(pool, server, 1)
    pool.close()


async def test_a_name_that_nobody_has_is_no_connection_and_is_asked_for_again() -> None:
    pool = Pool(1)

    for _ in range(2):
        with pytest.raises(httpx.ConnectError):
            await pool.take(Place("nowhere.invalid", 80, tls=False), 5)


async def test_a_connection_that_nobody_wants_is_closed_in_time(serve: Serve) -> None:
    server = await serve(writes(OK))
    pool = Pool(10, kept=0.01)
    await used((await taken(pool, server, 1))[0])

    await server.gone.wait()
    pool.close()


async def test_of_those_that_are_free_the_last_one_is_used_and_closed_ones_are_not(
    serve: Serve,
) -> None:
    server = await serve(writes(OK))
    pool = Pool(10)
    first, second = await taken(pool, server, 2)
    await used(first)
    await used(second)
    second.abort()

    assert await pool.take(server.place, 5) is first
    pool.close()
