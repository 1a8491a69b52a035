"""What the gateway reads and writes: Request, Body, Response. No server, no framework."""

import asyncio
import mmap
import tempfile
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterator, Mapping

import msgspec

from llamaxing.errors import RequestTooLarge

Buffer = bytes | mmap.mmap
Headers = list[tuple[bytes, bytes]]
Pieces = AsyncGenerator[bytes, None]
Outgoing = bytes | Pieces
"""A reply's body: the whole of it, or as it comes."""

# RFC 9110 section 7.6.1, and the names that predate it: they belong to one connection.
HOP_BY_HOP = frozenset(
    {
        "connection",
        "keep-alive",
        "proxy-authenticate",
        "proxy-authorization",
        "proxy-connection",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
    }
)

_PIECE = 256 * 1024


class BodyLimits(msgspec.Struct, frozen=True):
    """In bytes: the largest body that is taken, and the size above which it waits on disk."""

    most: int
    spool_above: int = 1024 * 1024


class Body:
    """A request's body: refused above a limit while it arrives, spooled to disk above a size.

    Once read it can be opened any number of times, for a second try elsewhere.
    """

    def __init__(
        self, receive: Callable[[], Awaitable[bytes]], limits: BodyLimits, *, announced: int = 0
    ) -> None:
        """`receive` gives the next piece of it, and nothing after the last. `announced`: the
        content-length that the caller gave, 0 without one."""
        self._next = receive
        self._limits = limits
        self._announced = announced
        self._content: Buffer | None = None

    async def read(self) -> Buffer:
        """The whole body. Raises `RequestTooLarge` as soon as it is known to be."""
        if self._content is None:
            self._check(self._announced)
            self._content = await self._receive()
        return self._content

    async def open(self) -> AsyncIterator[bytes]:
        """The whole body once more, in pieces."""
        for piece in pieces(await self.read()):
            yield piece

    async def _receive(self) -> Buffer:
        kept: list[bytes] = []
        size = 0
        while piece := await self._next():
            kept.append(piece)
            size += len(piece)
            self._check(size)
            if size > self._limits.spool_above:
                return await self._spool(kept, size)
        return kept[0] if len(kept) == 1 else b"".join(kept)

    async def _spool(self, kept: list[bytes], size: int) -> Buffer:
        with tempfile.TemporaryFile(prefix="llamaxing-") as file:
            written = 0
            while piece := await self._next():
                kept.append(piece)
                size += len(piece)
                self._check(size)
                if size - written > _PIECE:
                    await asyncio.to_thread(file.writelines, kept)
                    written = size
                    kept.clear()
            await asyncio.to_thread(file.writelines, kept)
            file.flush()
            # The map has a handle of its own, and its disk space goes when the map does.
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)

    def _check(self, size: int) -> None:
        if size > self._limits.most:
            raise RequestTooLarge(self._limits.most)


def pieces(content: Buffer | memoryview) -> Iterator[bytes]:
    """The content cut into pieces of a size that a socket takes without much copying."""
    if len(content) <= _PIECE:
        yield bytes(content)
        return
    with memoryview(content) as view:
        for start in range(0, len(view), _PIECE):
            yield bytes(view[start : start + _PIECE])
            if isinstance(view.obj, mmap.mmap) and hasattr(mmap, "MADV_DONTNEED"):
                # What has been read of a file is in its pages, and need not be in ours as well.
                view.obj.madvise(mmap.MADV_DONTNEED)


class Request(msgspec.Struct, frozen=True):
    """One call. Header names are lower-case; a repeated header is joined by a comma."""

    method: str
    path: str
    headers: Mapping[str, str]
    body: Body
    query: str = ""


async def _nothing(_: bool) -> None:
    return None


class Response(msgspec.Struct):
    """What the caller gets. Whoever sends `body` awaits `aclose` afterwards, come what may, and
    says whether all of it was sent: it closes what is behind the body, and hands the record over.
    """

    status: int
    headers: Headers
    body: Outgoing
    aclose: Callable[[bool], Awaitable[None]] = _nothing
