"""The one door to upstreams: what is asked, in; status, headers and chunks of bytes, out.

Over connections of our own: the pools of httpx and of aiohttp cost several times more under load
than all else that happens to a call, and a gateway needs little of what they can do. The errors are
httpx's, and so is the second door beside it, for whoever wants an httpx.AsyncClient.
"""

import functools
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import NamedTuple, Protocol

import httpx
import msgspec

from llamaxing.http import Headers, pieces
from llamaxing.http1 import Unseen
from llamaxing.pool import Place, Pool

# A body up to this size goes out in one write.
_ONE_WRITE = 64 * 1024
# Characters of a URL of which it is remembered where it leads.
_SHORT = 1024
_PORTS = {"http": 80, "https": 443}


class Timeouts(msgspec.Struct, frozen=True):
    """In seconds. `first_header` holds for streams, `total` for a plain call until it is whole
    and for all tries of a call until one has answered, `idle` between two chunks. After
    `keep_alive` of silence a stream's caller is told that it goes on."""

    connect: float = 5
    first_header: float = 60
    total: float = 300
    idle: float = 120
    keep_alive: float | None = None


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


class Asked(msgspec.Struct):
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


class Answered(msgspec.Struct):
    """What an upstream says: the head, its names in lower case, and the stream of its body, which
    somebody has to close. `body`: all of it, where that has come with the head."""

    status: int
    headers: Headers
    stream: httpx.AsyncByteStream
    body: bytes | None = None


class Door(Protocol):
    """Redirects are not followed, bodies not decoded. Raises httpx.TransportError's kinds."""

    async def send(self, asked: Asked) -> Answered: ...

    async def aclose(self) -> None: ...


class Upstreams(httpx.AsyncBaseTransport):
    """Both doors, over one pool of connections."""

    def __init__(self, connections: int) -> None:
        """`connections`: how many there may be at once, to all upstreams together."""
        self._pool = Pool(connections)

    async def send(self, asked: Asked) -> Answered:
        target = _target(asked.url)
        head = _head(asked, target)
        fresh = False
        while True:
            connection = await self._pool.take(target.place, asked.connect, fresh=fresh)
            fresh = not connection.used
            try:
                reply = await connection.ask(
                    asked.method, head, asked.content, asked.idle, asked.tick
                )
            except Unseen as error:
                # Upstream had closed this idle connection before it saw the request: RFC 9110
                # section 9.2.2 lets a client try again then. Once, and on a fresh one: what it has
                # seen and died of, it does not get over and over.
                if fresh:
                    raise httpx.ReadError(str(error)) from error
                fresh = True
            else:
                return Answered(reply.status, reply.headers, reply, reply.whole())

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        timeout: Mapping[str, float | None] = request.extensions.get("timeout", {})
        given = request.stream
        content = given if isinstance(given, Content) else Content([await request.aread()])
        headers = {
            name: value for name, value in request.headers.items() if name not in _OF_CONNECTION
        }
        if content.length or request.method in ("POST", "PUT", "PATCH"):
            headers["content-length"] = str(content.length)
        asked = Asked(
            request.method,
            str(request.url),
            headers,
            content,
            timeout.get("connect"),
            timeout.get("read"),
        )
        answered = await self.send(asked)
        return httpx.Response(answered.status, headers=answered.headers, stream=answered.stream)

    async def aclose(self) -> None:
        self._pool.close()


# What httpx says of the connection and of the body's length, which is for us to say.
_OF_CONNECTION = frozenset({"host", "connection", "content-length", "transfer-encoding"})


class _Target(NamedTuple):
    """What a URL means for a connection and the line of the request on it."""

    place: Place
    host: str
    path: str


def _target(url: str) -> _Target:
    """Raises httpx.UnsupportedProtocol where no upstream is reached by such a URL."""
    # A caller's query may be long, and never comes again.
    return _known(url) if len(url) <= _SHORT else _parsed(url)


def _parsed(url: str) -> _Target:
    try:
        parsed = httpx.URL(url)
    except httpx.InvalidURL as error:
        raise httpx.UnsupportedProtocol("no URL") from error
    host = parsed.raw_host.decode("ascii")
    port = _PORTS.get(parsed.scheme, 0) if parsed.port is None else parsed.port
    if parsed.scheme not in _PORTS or not host or not 0 < port < 65536:
        raise httpx.UnsupportedProtocol("no upstream is reached by such a URL")
    place = Place(host, port, parsed.scheme == "https")
    return _Target(place, parsed.netloc.decode("ascii"), parsed.raw_path.decode("ascii"))


_known = functools.lru_cache(maxsize=1024)(_parsed)


def _head(asked: Asked, target: _Target) -> bytes:
    """Raises httpx.LocalProtocolError where a header would be more than one."""
    headers = map(": ".join, asked.headers.items())
    lines = [f"{asked.method} {target.path} HTTP/1.1", f"host: {target.host}", *headers, "", ""]
    head = "\r\n".join(lines).encode("latin-1")
    if not head.count(b"\r") == head.count(b"\n") == len(lines) - 1 or b"\0" in head:
        raise httpx.LocalProtocolError("a header with a line end in it")
    return head
