"""The one door to upstreams: what is asked, in; status, headers and chunks of bytes, out.

Over aiohttp, since httpx's own connection pool costs many times more under load, and without an
httpx.Request and Response on the way, which cost as much as the rest of the pipeline. The errors
are httpx's, and so is the second door beside it, for whoever wants an httpx.AsyncClient.
"""

import functools
import math
import socket
from collections.abc import AsyncIterator, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Protocol

import aiohttp
import httpx
from yarl import URL

from llamaxing.http import Headers, pieces
from llamaxing.patience import Patience

# A body up to this size goes out in one write.
_ONE_WRITE = 64 * 1024
# A page's policy or a cookie of a proxy on the way may be larger than aiohttp's 8 KiB.
_LONGEST_HEADER = 64 * 1024


@dataclass(frozen=True, slots=True)
class Timeouts:
    """In seconds. `first_header` holds for streams, `total` for a plain call until it is whole
    and for all tries of a call until one has answered, `idle` between two chunks. After
    `keep_alive` of silence a stream's caller is told that it goes on."""

    connect: float = 5
    first_header: float = 60
    total: float = 300
    idle: float = 120
    keep_alive: float | None = None


# How a connection shows that the other side has closed it.
_CLOSED = (aiohttp.ClientOSError, aiohttp.ServerDisconnectedError, ConnectionError)
# The sockets that were opened for the request that is being sent: none on a connection that is used
# again.
_opened: ContextVar[list[socket.socket]] = ContextVar("opened")


class Content(httpx.AsyncByteStream):
    """A request's body in parts that stay as they are; it can be sent any number of times."""

    def __init__(self, parts: Sequence[bytes | memoryview]) -> None:
        self._parts = parts
        self.length = sum(map(len, parts))

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for part in self._parts:
            for piece in pieces(part):
                yield piece

    def in_one(self) -> bytes | None:
        """The whole of it, where it is small."""
        return b"".join(self._parts) if self.length <= _ONE_WRITE else None


@dataclass(slots=True)
class Asked:
    """What goes to an upstream. In seconds, and None for ever: `connect` to connect, `idle` for
    each piece of the reply's body, which has an empty piece after each `tick` of silence. How long
    to wait for the reply's head is for whoever asks to say.
    """

    method: str
    url: str
    headers: Mapping[str, str]
    content: Content
    connect: float | None = None
    idle: float | None = None
    tick: float | None = None


@dataclass(slots=True)
class Answered:
    """What an upstream says: the head, and the stream of its body, which somebody has to close."""

    status: int
    headers: Headers
    stream: httpx.AsyncByteStream


class Door(Protocol):
    """Redirects are not followed, bodies not decoded. Raises httpx.TransportError's kinds."""

    async def send(self, asked: Asked) -> Answered: ...

    async def aclose(self) -> None: ...


class AiohttpTransport(httpx.AsyncBaseTransport):
    """Both doors over one aiohttp session, opened on the loop that first asks."""

    def __init__(self, connections: int) -> None:
        """`connections`: how many there may be at once, to all upstreams together."""
        self._connections = connections
        self._session: aiohttp.ClientSession | None = None
        # One for all connections, made when the first needs it: it costs tens of milliseconds.
        self._tls = functools.cache(httpx.create_ssl_context)

    async def send(self, asked: Asked) -> Answered:
        session = self._session or self._open()
        data = asked.content.in_one()
        url = _parsed(asked.url)
        while True:
            opened: list[socket.socket] = []
            _opened.set(opened)
            try:
                answer = await session.request(
                    asked.method,
                    url,
                    data=asked.content if data is None else aiohttp.BytesPayload(data),
                    headers=asked.headers,
                    allow_redirects=False,
                    timeout=_limits(asked.connect),
                    ssl=self._tls() if url.scheme == "https" else True,
                )
            except _CLOSED as error:
                # Upstream had closed this idle connection before it saw the request: RFC 9110
                # section 9.2.2 lets a client try again then, and a fresh one ends the loop.
                if opened or _has_begun(error):
                    raise _as_httpx(error) from error
            except (aiohttp.ClientError, TimeoutError) as error:
                raise _as_httpx(error) from error
            else:
                chunks = _Chunks(answer, asked.idle, asked.tick)
                return Answered(answer.status, list(answer.raw_headers), chunks)

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        timeout: Mapping[str, float | None] = request.extensions.get("timeout", {})
        answered = await self.send(
            Asked(
                request.method,
                str(request.url),
                request.headers,
                Content([await request.aread()]),
                timeout.get("connect"),
                timeout.get("read"),
            )
        )
        return httpx.Response(answered.status, headers=answered.headers, stream=answered.stream)

    async def aclose(self) -> None:
        if self._session is not None:
            await self._session.close()
            self._session = None

    def _open(self) -> aiohttp.ClientSession:
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(
                limit=self._connections, keepalive_timeout=60, socket_factory=_open_socket
            ),
            auto_decompress=False,
            cookie_jar=aiohttp.DummyCookieJar(),
            skip_auto_headers=("User-Agent", "Accept", "Accept-Encoding", "Content-Type"),
            max_field_size=_LONGEST_HEADER,
        )
        return self._session


class _Chunks(httpx.AsyncByteStream):
    """A reply's bytes, each piece as soon as it is there; `idle` is the longest wait for one, and
    an empty piece says that `tick` has passed without one. In seconds.
    """

    def __init__(
        self, answer: aiohttp.ClientResponse, idle: float | None, tick: float | None
    ) -> None:
        self._answer = answer
        self._idle = math.inf if idle is None else idle
        self._tick = math.inf if tick is None else tick

    async def __aiter__(self) -> AsyncIterator[bytes]:
        content = self._answer.content
        patience = Patience()
        silent = 0.0
        try:
            while True:
                # What is there already is not waited for.
                if chunk := content.read_nowait():
                    silent = 0.0
                    yield chunk
                elif content.at_eof():
                    return
                else:
                    wait = min(self._tick, self._idle - silent)
                    try:
                        chunk = await patience.within(wait, content.readany())
                    except TimeoutError:
                        silent += wait
                        if silent >= self._idle:
                            raise
                        yield b""
                    else:
                        if chunk:
                            silent = 0.0
                            yield chunk
        except (aiohttp.ClientError, ConnectionError, TimeoutError) as error:
            raise _as_httpx(error) from error
        finally:
            patience.end()

    async def aclose(self) -> None:
        # Within a body this ends the connection; after one it goes back to the pool.
        self._answer.release()


def _has_begun(error: Exception) -> bool:
    """Whether the connection ended within a reply's head: then upstream had seen the request."""
    return isinstance(getattr(error, "message", None), aiohttp.http.RawResponseMessage)


def _open_socket(address: aiohttp.AddrInfoType) -> socket.socket:
    family, kind, protocol, _, _ = address
    made = socket.socket(family, kind, protocol)
    _opened.get([]).append(made)
    return made


@functools.lru_cache(maxsize=16)
def _limits(connect: float | None) -> aiohttp.ClientTimeout:
    return aiohttp.ClientTimeout(total=None, sock_connect=connect)


@functools.lru_cache(maxsize=1024)
def _parsed(url: str) -> URL:
    return URL(url, encoded=True)


def _as_httpx(error: Exception) -> httpx.TransportError:
    """The kind tells what may be tried again; the text stays out of callers' sight."""
    kinds: tuple[tuple[type[Exception], type[httpx.TransportError]], ...] = (
        (aiohttp.ConnectionTimeoutError, httpx.ConnectTimeout),
        (aiohttp.SocketTimeoutError, httpx.ReadTimeout),
        (aiohttp.ClientConnectorError, httpx.ConnectError),
        (TimeoutError, httpx.ReadTimeout),
        (aiohttp.InvalidURL, httpx.UnsupportedProtocol),
        (aiohttp.NonHttpUrlClientError, httpx.UnsupportedProtocol),
        (aiohttp.ClientPayloadError, httpx.RemoteProtocolError),
        (aiohttp.ClientResponseError, httpx.RemoteProtocolError),
    )
    kind = next((ours for theirs, ours in kinds if isinstance(error, theirs)), httpx.ReadError)
    return kind(f"{type(error).__name__}: {error}")
