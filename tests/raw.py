"""Servers that write byte by byte what a test says, and asking them."""

import asyncio
import socket
import ssl
import struct
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, suppress
from pathlib import Path
from typing import Protocol

import pytest
import trustme

from llamaxing.pool import Place
from llamaxing.upstream import Asked, Content, Upstreams

OK = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"
CHUNKED = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"

Talk = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


class Server:
    """`talk` is what it does with each connection; `opened` counts them."""

    def __init__(self, talk: Talk, tls: ssl.SSLContext | None = None) -> None:
        self._talk = talk
        self._tls = tls
        self._open: set[asyncio.StreamWriter] = set()
        self.opened = 0
        self.gone = asyncio.Event()

    async def __aenter__(self) -> "Server":
        self._server = await asyncio.start_server(self._connected, "127.0.0.1", 0, ssl=self._tls)
        port = self._server.sockets[0].getsockname()[1]
        self.url = f"http{'s' if self._tls else ''}://127.0.0.1:{port}/v1"
        self.place = Place("127.0.0.1", port, tls=self._tls is not None)
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


class Serve(Protocol):
    async def __call__(self, talk: Talk, tls: ssl.SSLContext | None = None) -> Server: ...


@pytest.fixture
async def wire() -> AsyncIterator[Serve]:
    async with AsyncExitStack() as stack:

        async def start(talk: Talk, tls: ssl.SSLContext | None = None) -> Server:
            return await stack.enter_async_context(Server(talk, tls))

        yield start


@pytest.fixture
async def upstreams() -> AsyncIterator[Upstreams]:
    async with Upstreams(10) as door:
        yield door


@pytest.fixture
def tls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ssl.SSLContext:
    """A server's, of an authority that SSL_CERT_FILE names."""
    authority = trustme.CA()
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ca.pem"))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1", "upstream.example").configure_cert(context)
    return context


def _loops() -> dict[str, Callable[[], asyncio.AbstractEventLoopPolicy]]:
    found: dict[str, Callable[[], asyncio.AbstractEventLoopPolicy]] = {
        "asyncio": asyncio.DefaultEventLoopPolicy
    }
    with suppress(ImportError):
        # The shim's, where there is one.
        import uvloop

        found["uvloop"] = uvloop.EventLoopPolicy
    return found


# Of pytest-asyncio: what shall replace it would name a loop in the id of each test there is.
ON_EVERY_LOOP = pytest.mark.filterwarnings("ignore:Overriding the .event_loop_policy. fixture")


@pytest.fixture(params=(found := _loops()).values(), ids=found)
def every_loop(request: pytest.FixtureRequest) -> asyncio.AbstractEventLoopPolicy:
    """`event_loop_policy` of a module whose tests run on each of the loops that there are."""
    return request.param()


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
