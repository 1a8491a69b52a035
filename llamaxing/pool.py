"""Connections to upstreams: kept when they are free, opened when there is none, bounded in all."""

import asyncio
import functools
import socket
import time
from collections import deque
from collections.abc import Sequence
from typing import Any, NamedTuple

import aiohappyeyeballs
import httpx

from llamaxing.http1 import Connection

# Seconds for which an address is known that was looked up.
_KNOWN = 10.0
# Seconds after which the next of several addresses is tried as well: RFC 8305 section 5.
_NEXT_ADDRESS = 0.25

Address = aiohappyeyeballs.AddrInfoType


class Place(NamedTuple):
    """Where a connection leads."""

    host: str
    port: int
    tls: bool


class Pool:
    """`limit`: how many connections there may be at once, to all places together; whoever comes
    then waits for one. One that is free is kept for `kept` seconds."""

    def __init__(self, limit: int, kept: float = 60.0) -> None:
        self._limit = limit
        self._kept = kept
        self._all: set[Connection] = set()
        self._connecting = 0
        self._free: dict[Place, deque[tuple[float, Connection]]] = {}
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._sweep: asyncio.TimerHandle | None = None
        self._known: dict[Place, tuple[float, asyncio.Task[Sequence[Address]]]] = {}
        # One for all connections, made when the first needs it: it costs tens of milliseconds.
        self._tls = functools.cache(httpx.create_ssl_context)

    async def take(self, place: Place, within: float | None, *, fresh: bool = False) -> Connection:
        """One that nobody else has, which is free again when its reply is whole; a `fresh` one has
        never been asked. `within`: seconds to connect. Raises httpx.ConnectError and
        httpx.ConnectTimeout."""
        waited = False
        while True:
            if not fresh and (found := self._found(place)) is not None:
                return found
            if len(self._all) + self._connecting < self._limit:
                return await self._opened(place, within)
            self._make_room()
            await self._room(first=waited)
            waited = True

    def close(self) -> None:
        for connection in list(self._all):
            connection.abort()
        if self._sweep is not None:
            self._sweep.cancel()

    def _found(self, place: Place) -> Connection | None:
        free = self._free.get(place)
        while free:
            since, connection = free.pop()
            if not connection.closed and _now() - since < self._kept:
                return connection
            connection.abort()
        return None

    def _make_room(self) -> None:
        """Ends one that is free elsewhere."""
        for free in self._free.values():
            while free:
                connection = free.popleft()[1]
                if not connection.closed:
                    connection.abort()
                    return

    async def _room(self, *, first: bool) -> None:
        """Returns when there may be some. `first`: for one to whom somebody else came before."""
        news: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        (self._waiting.appendleft if first else self._waiting.append)(news)
        try:
            await news
        except asyncio.CancelledError:
            if news.done() and not news.cancelled():
                self._tell()
            raise

    def _tell(self) -> None:
        while self._waiting:
            news = self._waiting.popleft()
            if not news.done():
                news.set_result(None)
                return

    async def _opened(self, place: Place, within: float | None) -> Connection:
        self._connecting += 1
        connection: Connection | None = None
        try:
            async with asyncio.timeout(within):
                connection = await self._connect(place)
        except TimeoutError as error:
            raise httpx.ConnectTimeout("no connection in time") from error
        except (OSError, UnicodeError, RuntimeError) as error:
            # A name that cannot be one is a UnicodeError, and uvloop's sockets raise RuntimeError.
            raise httpx.ConnectError(f"no connection: {error}") from error
        else:
            if not connection.closed:
                self._all.add(connection)
            return connection
        finally:
            self._connecting -= 1
            if connection is None or connection.closed:
                self._tell()

    async def _connect(self, place: Place) -> Connection:
        loop = asyncio.get_running_loop()
        tls = self._tls() if place.tls else None
        # The transport closes what was opened, also where it fails: its number may be another
        # connection's by then.
        _, connection = await loop.create_connection(
            lambda: Connection(functools.partial(self._freed, place), self._lost),
            ssl=tls,
            # The dot of a name that is whole is for the look-up alone: no certificate has it.
            server_hostname=place.host.removesuffix(".") if place.tls else None,
            **await self._reached(place),
        )
        return connection

    async def _reached(self, place: Place) -> dict[str, Any]:
        """By what a connection is made: an address, or a socket to the one that answers first."""
        addresses = await self._addresses(place)
        if len(addresses) == 1:
            # What would be raced for costs a call as much again as the connection.
            [(family, _, _, _, (host, port, *_))] = addresses
            return {"host": host, "port": port, "family": family}
        opened = await aiohappyeyeballs.start_connection(
            addresses, happy_eyeballs_delay=_NEXT_ADDRESS, loop=asyncio.get_running_loop()
        )
        return {"sock": opened}

    async def _addresses(self, place: Place) -> Sequence[Address]:
        """Looked up once for all who ask at a time."""
        until, known = self._known.get(place, (0.0, None))
        if known is None or (known.done() and (until < _now() or known.exception())):
            known = asyncio.create_task(_looked_up(place))
            # Nobody may be left to see that it failed.
            known.add_done_callback(lambda it: it.cancelled() or it.exception())
            self._known[place] = (_now() + _KNOWN, known)
        return await asyncio.shield(known)

    def _freed(self, place: Place, connection: Connection) -> None:
        free = self._free.get(place)
        if free is None:
            free = self._free[place] = deque()
        free.append((_now(), connection))
        if self._sweep is None:
            self._sweep = asyncio.get_running_loop().call_later(self._kept, self._sweep_up)
        self._tell()

    def _lost(self, connection: Connection) -> None:
        self._all.discard(connection)
        self._tell()

    def _sweep_up(self) -> None:
        """Ends those that nobody has wanted for long."""
        self._sweep = None
        oldest = _now() - self._kept
        for place, free in list(self._free.items()):
            while free and (free[0][0] <= oldest or free[0][1].closed):
                free.popleft()[1].abort()
            if not free:
                del self._free[place]
        if self._free:
            self._sweep = asyncio.get_running_loop().call_later(self._kept, self._sweep_up)


async def _looked_up(place: Place) -> Sequence[Address]:
    loop = asyncio.get_running_loop()
    return await loop.getaddrinfo(place.host, place.port, type=socket.SOCK_STREAM)


_now = time.monotonic
