"""HTTP/1.1 to upstreams, against servers that write byte by byte what a test says."""

import asyncio
import itertools
import ssl

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llamaxing.http1 import Connection, Unseen
from llamaxing.pool import Pool
from llamaxing.upstream import Answered, Asked, Content, Upstreams
from tests import raw as servers
from tests.raw import CHUNKED, OK, Serve, Talk, ask, writes, writes_and_closes

wire = servers.wire
tls = servers.tls
upstreams = servers.upstreams
event_loop_policy = servers.every_loop
pytestmark = servers.ON_EVERY_LOOP


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
    raw: bytes, body: bytes, wire: Serve, upstreams: Upstreams
) -> None:
    server = await wire(writes(raw))

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


class Wire(asyncio.Transport):
    """A transport that leads nowhere."""

    def __init__(self, unsent: int = 0) -> None:
        self._unsent = unsent

    def write(self, data: object) -> None: ...

    def abort(self) -> None: ...

    def get_write_buffer_size(self) -> int:
        return self._unsent


async def test_a_connection_on_which_a_body_is_still_going_out_is_not_used_again() -> None:
    """The upstream has answered before it has read all of it, and may never."""
    freed: list[Connection] = []
    connection = Connection(freed.append, lambda _: None)
    connection.connection_made(Wire(unsent=1))
    asking = asyncio.create_task(connection.ask("POST", b"", Content([b"x"]), None, None))
    await asyncio.sleep(0)

    connection.data_received(OK)

    assert b"".join([it async for it in await asking]) == b"ok"
    assert (freed, connection.closed) == ([], True)


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
    raw: bytes, body: bytes, wire: Serve, upstreams: Upstreams
) -> None:
    server = await wire(writes_and_closes(raw))

    replies = [await ask(upstreams, server.url) for _ in range(2)]

    assert replies == [(200, body)] * 2
    assert server.opened == 2


async def test_what_comes_unasked_on_a_free_connection_is_nobodys_reply(
    wire: Serve, upstreams: Upstreams
) -> None:
    sent = asyncio.Event()

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(OK)
        await sent.wait()
        writer.write(OK.replace(b"ok", b"no"))

    server = await wire(talk)
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
            b"HTTP/1.1 200 OK\r\n" + b"a: b\r\n" * 150_000,
            httpx.RemoteProtocolError,
        ),
    }.values(),
    ids=str,
)
async def test_what_is_no_whole_reply_is_an_error_of_httpxs(
    raw: bytes, kind: type[Exception], wire: Serve, upstreams: Upstreams
) -> None:
    server = await wire(writes_and_closes(raw))

    with pytest.raises(kind) as caught:
        await ask(upstreams, server.url)

    assert type(caught.value) is kind


async def test_a_body_that_ends_in_a_reset_is_not_whole(wire: Serve, upstreams: Upstreams) -> None:
    server = await wire(writes_and_closes(b"HTTP/1.1 200 OK\r\n\r\nok", reset=True))

    with pytest.raises(httpx.TransportError):
        await ask(upstreams, server.url)


async def test_a_head_has_no_body_whatever_it_announces(wire: Serve, upstreams: Upstreams) -> None:
    server = await wire(writes(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n"))

    assert await ask(upstreams, server.url, "HEAD") == (200, b"")


async def test_an_upstream_that_answers_early_gets_no_more_of_the_body(
    wire: Serve, upstreams: Upstreams
) -> None:
    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 413 No\r\ncontent-length: 2\r\n\r\nno")
        await asyncio.Event().wait()

    server = await wire(talk)
    large = [b"x" * 10_000_000] * 3

    replies = [await ask(upstreams, server.url, "POST", large) for _ in range(2)]

    assert replies == [(413, b"no")] * 2
    assert server.opened == 2


async def test_a_silent_body_is_told_and_at_last_an_error(
    wire: Serve, upstreams: Upstreams
) -> None:
    server = await wire(writes(OK[:-1]))
    answered = await upstreams.send(Asked("GET", server.url, {}, Content([]), 5, 0.05, 0.02))
    body = aiter(answered.stream)

    assert [await anext(body) for _ in range(3)] == [b"o", b"", b""]
    with pytest.raises(httpx.ReadTimeout):
        await anext(body)
    await answered.stream.aclose()

    await server.gone.wait()


async def test_whoever_stops_waiting_for_a_head_ends_the_connection(
    wire: Serve, upstreams: Upstreams
) -> None:
    arrived = asyncio.Event()

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        arrived.set()

    server = await wire(talk)
    asking = asyncio.create_task(ask(upstreams, server.url))
    await arrived.wait()

    asking.cancel()

    await server.gone.wait()


async def test_whoever_stops_reading_a_body_ends_the_connection(
    wire: Serve, upstreams: Upstreams
) -> None:
    server = await wire(writes(CHUNKED + b"2\r\nok\r\n"))
    answered = await upstreams.send(Asked("GET", server.url, {}, Content([]), 5))
    assert await anext(aiter(answered.stream)) == b"ok"

    await answered.stream.aclose()

    await server.gone.wait()


async def test_a_reply_that_nobody_has_read_yet_does_not_keep_its_connection(
    wire: Serve, upstreams: Upstreams
) -> None:
    server = await wire(writes(OK, OK.replace(b"ok", b"on")))
    first = await upstreams.send(Asked("GET", server.url, {}, Content([]), 5))

    assert await ask(upstreams, server.url) == (200, b"on")
    assert b"".join([it async for it in first.stream]) == b"ok"
    assert server.opened == 1


@pytest.mark.parametrize("value", ["a\r\nx-more: b", "a\nb", "a\rb", "a\0b"])
async def test_no_header_can_be_more_than_one(value: str, upstreams: Upstreams) -> None:
    with pytest.raises(httpx.LocalProtocolError):
        await upstreams.send(Asked("GET", "http://127.0.0.1:9", {"x": value}, Content([])))


async def head_of(door: Upstreams, url: str, method: str = "GET") -> Answered:
    answered = await door.send(Asked(method, url, {}, Content([]), 5))
    async for _ in answered.stream:
        pass
    return answered


async def test_a_body_that_has_come_with_its_head_is_there_at_once(
    wire: Serve, upstreams: Upstreams
) -> None:
    rest = asyncio.Event()

    async def slowly(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(OK[:-1])
        await rest.wait()
        writer.write(OK[-1:])

    asked = [
        await upstreams.send(Asked("GET", (await wire(talk)).url, {}, Content([]), 5))
        for talk in (writes(OK), slowly)
    ]
    rest.set()

    assert [it.body for it in asked] == [b"ok", None]
    assert [b"".join([piece async for piece in it.stream]) for it in asked] == [b"ok"] * 2


async def test_trailers_are_no_headers(wire: Serve, upstreams: Upstreams) -> None:
    server = await wire(writes(CHUNKED + b"2\r\nok\r\n0\r\nretry-after: 1\r\n\r\n"))

    answered = await head_of(upstreams, server.url)

    assert answered.headers == [(b"transfer-encoding", b"chunked")]


async def test_white_space_around_a_value_is_not_of_it(wire: Serve, upstreams: Upstreams) -> None:
    server = await wire(writes(b"HTTP/1.1 200 OK\r\nContent-Length: \t0 \t\r\nx:  \r\n\r\n"))

    answered = await head_of(upstreams, server.url)

    assert answered.headers == [(b"content-length", b"0"), (b"x", b"")]


@pytest.mark.parametrize(
    "raw",
    [
        CHUNKED + b"2\r\nok\r\n0\r\n" + b"a: b\r\n" * 150_000,
        CHUNKED + b"2\r\nok\r\n0\r\na: " + b"b" * 900_000,
        CHUNKED + b"2\r\nok\r\n2;a=" + b"b" * 900_000,
        b"HTTP/1.1 100 Continue\r\n\r\n" * 10_000,
    ],
    ids=["trailers", "a trailer", "an extension of a chunk", "interim heads"],
)
async def test_what_is_no_body_and_has_no_end_is_an_error(
    raw: bytes, wire: Serve, upstreams: Upstreams
) -> None:
    """And no memory that grows."""
    server = await wire(writes(raw))

    with pytest.raises(httpx.RemoteProtocolError):
        await ask(upstreams, server.url)


async def test_the_body_of_an_interim_reply_is_not_the_replys(
    wire: Serve, upstreams: Upstreams
) -> None:
    server = await wire(writes(b"HTTP/1.1 104 Odd\r\ncontent-length: 2\r\n\r\nno" + OK))

    assert await ask(upstreams, server.url) == (200, b"ok")


async def test_a_transfer_encoding_that_is_not_chunked_ends_with_the_connection(
    wire: Serve, upstreams: Upstreams
) -> None:
    server = await wire(
        writes_and_closes(b"HTTP/1.1 200 OK\r\ntransfer-encoding: identity\r\n\r\nok")
    )

    assert await ask(upstreams, server.url) == (200, b"ok")


def says_and_hears_no_more(said: bytes) -> Talk:
    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(said)
        writer.write_eof()
        await asyncio.Event().wait()

    return talk


LARGE = [b"x" * 10_000_000] * 3


async def test_an_early_reply_that_ends_with_its_half_of_the_connection_is_whole(
    wire: Serve, upstreams: Upstreams
) -> None:
    """While the rest of what is sent is read by nobody."""
    server = await wire(says_and_hears_no_more(b"HTTP/1.1 413 No\r\n\r\nno"))

    assert await ask(upstreams, server.url, "POST", LARGE) == (413, b"no")


async def test_an_upstream_that_will_not_answer_any_more_is_an_error_at_once(
    wire: Serve, upstreams: Upstreams
) -> None:
    server = await wire(says_and_hears_no_more(b""))

    with pytest.raises(httpx.ReadError):
        await ask(upstreams, server.url, "POST", LARGE)


async def test_a_body_that_we_end_ourselves_is_not_whole(wire: Serve) -> None:
    server = await wire(writes(b"HTTP/1.1 200 OK\r\n\r\nhalf"))
    upstreams = Upstreams(10)
    answered = await upstreams.send(Asked("GET", server.url, {}, Content([]), 5))
    body = aiter(answered.stream)
    assert await anext(body) == b"half"

    await upstreams.aclose()

    with pytest.raises(httpx.TransportError):
        await anext(body)


@pytest.mark.parametrize("said", [True, False], ids=["said so", "cut off"])
async def test_over_tls_a_body_of_no_length_is_whole_when_its_upstream_has_said_so(
    said: bool, wire: Serve, upstreams: Upstreams, tls: ssl.SSLContext
) -> None:
    arrived = asyncio.Event()

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\n\r\nhalf")
        await arrived.wait()
        if not said:
            writer.transport.abort()
        writer.close()

    server = await wire(talk, tls)
    answered = await upstreams.send(Asked("GET", server.url, {}, Content([]), 5))
    body = aiter(answered.stream)
    assert await anext(body) == b"half"
    arrived.set()

    with pytest.raises(StopAsyncIteration if said else httpx.RemoteProtocolError):
        await anext(body)


async def test_a_request_that_ends_the_upstream_is_sent_once_more_and_not_to_each_connection(
    wire: Serve, upstreams: Upstreams
) -> None:
    together = asyncio.Barrier(3)
    seen: list[bytes] = []

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        seen.append(await reader.readuntil(b"\r\n\r\n"))
        if len(seen) <= 3:
            await together.wait()
            writer.write(OK)
            seen.append(await reader.readuntil(b"\r\n\r\n"))
        writer.close()

    server = await wire(talk)
    await asyncio.gather(*(ask(upstreams, server.url) for _ in range(3)))

    with pytest.raises(httpx.ReadError):
        await ask(upstreams, server.url)

    assert len(seen) == 3 + 2


async def test_a_connection_that_is_closed_before_it_is_asked_says_so(wire: Serve) -> None:
    server = await wire(writes(OK))
    pool = Pool(1)
    connection = await pool.take(server.place, 5)
    connection.abort()
    await server.gone.wait()

    with pytest.raises(Unseen):
        await connection.ask("GET", b"GET / HTTP/1.1\r\n\r\n", Content([]), None, None)


@pytest.mark.parametrize("secure", [False, True], ids=["plain", "tls"])
async def test_an_upstream_waits_for_a_caller_who_does_not_read(
    secure: bool, wire: Serve, upstreams: Upstreams, tls: ssl.SSLContext
) -> None:
    total = 64 * 1024 * 1024
    written = 0

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal written
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % total)
        while written < total:
            writer.write(b"x" * 65536)
            await writer.drain()
            written += 65536

    server = await wire(talk, tls if secure else None)
    answered = await upstreams.send(Asked("GET", server.url, {}, Content([]), 5))
    before = -1
    while written > before:
        before = written
        await asyncio.sleep(0.1)
    assert written < total / 2

    assert sum([len(it) async for it in answered.stream]) == total


@pytest.mark.parametrize(
    ("path", "line"),
    [
        ("/a?b=c#d", b"GET /a?b=c HTTP/1.1"),
        ("", b"GET / HTTP/1.1"),
        ("?b=c", b"GET /?b=c HTTP/1.1"),
        ("/a b\u00e9?\u00e9", b"GET /a%20b%C3%A9?%C3%A9 HTTP/1.1"),
        ("/a%0d%0ax:%20y", b"GET /a%0d%0ax:%20y HTTP/1.1"),
        ("/" + "a" * 3000, b"GET /" + b"a" * 3000 + b" HTTP/1.1"),
    ],
)
async def test_of_a_url_only_what_is_asked_for_goes_out(
    path: str, line: bytes, wire: Serve, upstreams: Upstreams
) -> None:
    heads: list[bytes] = []

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heads.append(await reader.readuntil(b"\r\n\r\n"))
        writer.write(OK)

    server = await wire(talk)
    port = server.place.port

    await ask(upstreams, f"http://user:secret@127.0.0.1:{port}{path}")

    assert heads == [line + b"\r\nhost: 127.0.0.1:%d\r\n\r\n" % port]


@pytest.mark.parametrize(
    ("url", "kind"),
    [
        ("http:///a", httpx.UnsupportedProtocol),
        ("http://127.0.0.1:0/", httpx.UnsupportedProtocol),
        ("http://127.0.0.1:65536/", httpx.UnsupportedProtocol),
        ("http://127.0.0.1/\r\nx: y", httpx.UnsupportedProtocol),
        ("http://a..b/", httpx.ConnectError),
        (f"http://{'a' * 64}.invalid/", httpx.ConnectError),
    ],
)
async def test_a_url_that_leads_nowhere_is_an_error_of_httpxs(
    url: str, kind: type[Exception], upstreams: Upstreams
) -> None:
    with pytest.raises(kind):
        await ask(upstreams, url)
