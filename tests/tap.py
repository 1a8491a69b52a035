"""Between a client, of whatever kind, and a server: the net looks at each byte that comes back."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import httpx

from tests.canaries import LONGEST_PART, NET


@asynccontextmanager
async def tapped(url: str) -> AsyncIterator[str]:
    """A URL as good as this one."""
    there = httpx.URL(url)
    look = NET.lookout("a reply")
    connections: set[Any] = set()

    async def connection(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connections.add(asyncio.current_task())
        writers = [writer]
        try:
            from_there, to_there = await asyncio.open_connection(there.host, there.port)
            writers.append(to_there)
            await asyncio.gather(_pass(reader, to_there), _pass(from_there, writer, look))
        except OSError:
            writer.transport.abort()
        finally:
            for it in writers:
                it.close()
            connections.discard(asyncio.current_task())

    server = await asyncio.start_server(connection, "127.0.0.1", 0)
    try:
        yield f"{there.scheme}://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()
        for task in connections:
            task.cancel()
        await asyncio.gather(*connections, return_exceptions=True)


async def _pass(
    reader: asyncio.StreamReader,
    writer: asyncio.StreamWriter,
    look: Callable[[str], None] = lambda _: None,
) -> None:
    """Until one of the two ends; what has an end of its own is passed on as that."""
    before = b""
    try:
        while piece := await reader.read(2**16):
            look((before + piece).decode("latin-1"))
            before = (before + piece)[-LONGEST_PART:]
            writer.write(piece)
            await writer.drain()
        writer.write_eof()
    except OSError:
        writer.transport.abort()
