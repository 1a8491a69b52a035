"""The one door to upstreams: an httpx.Request in; status, headers and chunks of bytes out.

httpx's transport interface is called directly, over aiohttp: the requests are httpx's, and so are
the errors, while httpx's own connection pool costs many times more under load. Any
`httpx.AsyncBaseTransport` can stand behind the door.
"""

import asyncio
import functools
import math
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import aiohttp
import httpx
from yarl import URL

from llamaxing.http import pieces

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


class Content(httpx.AsyncByteStream):
    """A request's body in parts that stay as they are; it can be sent any number of times."""

    def __init__(self, parts: Sequence[bytes | memoryview]) -> None:
        self._parts = parts
        self.length = sum(len(part) for part in parts)

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for part in self._parts:
            for piece in pieces(part):
                yield piece

    def in_one(self) -> bytes | None:
        """The whole of it, where it is small."""
        return b"".join(self._parts) if self.length <= _ONE_WRITE else None


class AiohttpTransport(httpx.AsyncBaseTransport):
    """httpx's transport interface over one aiohttp session, opened on the loop that first asks.

    Redirects are not followed and bodies are not decoded. Of the request's timeouts, `connect`
    holds for connecting and `read` for each piece of the body; how long to wait for the head is
    the caller's to say. With the extension `tick` a body has an empty piece after each so many
    seconds of silence. Raises httpx.TransportError's kinds.
    """

    def __init__(self, connections: int) -> None:
        """`connections`: how many there may be at once, to all upstreams together."""
        self._connections = connections
        self._session: aiohttp.ClientSession | None = None
        # One for all connections, made when the first needs it: it costs tens of milliseconds.
        self._tls = functools.cache(httpx.create_ssl_context)

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        session = self._session or self._open()
        content = request.stream
        data = content.in_one() if isinstance(content, Content) else await request.aread()
        timeout: dict[str, float | None] = request.extensions.get("timeout", {})
        limits = aiohttp.ClientTimeout(total=None, sock_connect=timeout.get("connect"))
        url = URL(str(request.url), encoded=True)
        while True:
            trace: dict[str, bool] = {}
            try:
                answer = await session.request(
                    request.method,
                    url,
                    data=content if data is None else data,
                    headers=request.headers.multi_items(),
                    allow_redirects=False,
                    timeout=limits,
                    ssl=self._tls() if url.scheme == "https" else True,
                    trace_request_ctx=trace,
                )
            except _CLOSED as error:
                # Upstream had closed this idle connection before it saw the request: RFC 9110
                # section 9.2.2 lets a client try again then, and a fresh one ends the loop.
                if "reused" not in trace or _has_begun(error):
                    raise _as_httpx(error) from error
            except (aiohttp.ClientError, TimeoutError) as error:
                raise _as_httpx(error) from error
            else:
                return httpx.Response(
                    answer.status,
                    headers=list(answer.raw_headers),
                    stream=_Chunks(answer, timeout.get("read"), request.extensions.get("tick")),
                )

    async def aclose(self) -> None:
        if self._session is not None:
            await self._session.close()
            self._session = None

    def _open(self) -> aiohttp.ClientSession:
        tracing = aiohttp.TraceConfig()
        tracing.on_connection_reuseconn.append(_mark_reused)
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=self._connections, keepalive_timeout=60),
            auto_decompress=False,
            cookie_jar=aiohttp.DummyCookieJar(),
            skip_auto_headers=("User-Agent", "Accept", "Accept-Encoding", "Content-Type"),
            trace_configs=[tracing],
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
        silent = 0.0
        while True:
            wait = min(self._tick, self._idle - silent)
            chunk = await self._next(wait, last=silent + wait >= self._idle)
            if chunk == b"":
                return
            silent = 0.0 if chunk else silent + wait
            yield chunk or b""

    async def _next(self, wait: float, *, last: bool) -> bytes | None:
        """None: nothing came, and it is not the last wait."""
        try:
            async with asyncio.timeout(None if wait == math.inf else wait):
                return await self._answer.content.readany()
        except TimeoutError as error:
            if last:
                raise _as_httpx(error) from error
            return None
        except (aiohttp.ClientError, ConnectionError) as error:
            raise _as_httpx(error) from error

    async def aclose(self) -> None:
        # Within a body this ends the connection; after one it goes back to the pool.
        self._answer.release()


def _has_begun(error: Exception) -> bool:
    """Whether the connection ended within a reply's head: then upstream had seen the request."""
    return isinstance(getattr(error, "message", None), aiohttp.http.RawResponseMessage)


async def _mark_reused(_: aiohttp.ClientSession, context: SimpleNamespace, __: Any) -> None:
    context.trace_request_ctx["reused"] = True


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
