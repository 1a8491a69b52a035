"""The callers, in a process of their own: what they want is a line of JSON, what they saw another.

    python -m bench.load '{"kind": "streams", "url": …, "headers": …, "body": …, "number": 50}'

Each caller keeps its connection. Times are in milliseconds; a chunk's is from the moment that
stands in it, when upstream wrote it, and the first one's from when the call was sent.
"""

import asyncio
import json
import re
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import httptools
import uvloop

_STAMP = re.compile(rb"t(\d{9,20})e")
_LONGEST_STAMP = 22
_PATIENCE = 60
now = time.monotonic_ns


class Connection(asyncio.Protocol):
    """One call after another."""

    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        self._answered: asyncio.Future[int] | None = None

    def connection_lost(self, exc: Exception | None) -> None:
        if self._answered and not self._answered.done():
            self._answered.set_exception(exc or ConnectionError("closed"))

    def call(self, request: bytes) -> "asyncio.Future[int]":
        """Its status, once the reply is whole."""
        self._parser = httptools.HttpResponseParser(self)
        self._answered = asyncio.get_running_loop().create_future()
        self.delays: list[int] = []
        self.first = 0
        self.sent = now()
        self._tail = b""
        self.transport.write(request)
        return self._answered

    def data_received(self, data: bytes) -> None:
        self.arrived = now()
        self._parser.feed_data(data)

    def on_body(self, part: bytes) -> None:
        text = self._tail + part
        end = 0
        for stamp in _STAMP.finditer(text):
            end = stamp.end()
            self.first = self.first or self.arrived - self.sent
            self.delays.append(self.arrived - int(stamp[1]))
        self._tail = text[end:][-_LONGEST_STAMP:]

    def on_message_complete(self) -> None:
        if self._answered and not self._answered.done():
            self._answered.set_result(self._parser.get_status_code())


@dataclass
class Seen:
    """Times in nanoseconds; what is wrong in words."""

    totals: list[int] = field(default_factory=list)
    firsts: list[int] = field(default_factory=list)
    delays: list[int] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)

    def summary(self) -> dict[str, Any]:
        found: dict[str, Any] = {"calls": len(self.totals), "wrong": self.wrong}
        for name, values in (
            ("total", self.totals),
            ("first", self.firsts),
            ("delay", self.delays),
        ):
            if values:
                for percent in (50, 95, 99):
                    found[f"{name}_p{percent}"] = percentile(values, percent) / 1e6
        return found | {"chunks": len(self.delays) + len(self.firsts)}


def percentile(values: Sequence[float], percent: float) -> float:
    """The smallest value that so many percent do not exceed."""
    rank = -(-len(values) * percent // 100)
    return sorted(values)[max(0, int(rank) - 1)]


class Callers:
    def __init__(self, url: str, headers: dict[str, str], body: str, chunks: int = 0) -> None:
        """`chunks`: how many a whole reply has."""
        parts = urlsplit(url)
        assert parts.hostname
        assert parts.port
        self._host, self._port, self._chunks = parts.hostname, parts.port, chunks
        given = {"host": parts.netloc, "content-type": "application/json", **headers}
        given["content-length"] = str(len(body.encode()))
        lines = "".join(f"{name}: {value}\r\n" for name, value in given.items())
        self._request = f"POST {parts.path} HTTP/1.1\r\n{lines}\r\n{body}".encode()
        self._idle: list[Connection] = []
        self.seen = Seen()

    async def paced(self, rate: float, seconds: float) -> None:
        """A call leaves when it is due, whatever has come of those before."""
        loop, calls = asyncio.get_running_loop(), []
        begin = loop.time()
        for number in range(int(rate * seconds)):
            await asyncio.sleep(max(0, begin + number / rate - loop.time()))
            calls.append(loop.create_task(self._call()))
        await asyncio.gather(*calls)

    async def closed(self, callers: int, calls: int) -> None:
        """So many callers, who share the calls and make each when the one before is answered."""
        waiting = iter(range(calls))

        async def caller() -> None:
            for _ in waiting:
                await self._call()

        await asyncio.gather(*(caller() for _ in range(callers)))

    async def streams(self, number: int, rounds: int = 1, within: float = 0) -> None:
        """So many streams at a time, the first of them begun within so many seconds."""

        async def caller(place: int) -> None:
            await asyncio.sleep(within * place / number)
            for _ in range(rounds):
                await self._call()

        await asyncio.gather(*(caller(place) for place in range(number)))

    async def _call(self) -> None:
        began = now()
        try:
            async with asyncio.timeout(_PATIENCE):
                connection = self._idle.pop() if self._idle else await self._connect()
                status = await connection.call(self._request)
        except (OSError, TimeoutError, httptools.HttpParserError) as error:
            self.seen.wrong.append(repr(error))
            return
        self._look(connection, status, began)
        if not connection.transport.is_closing():
            self._idle.append(connection)

    def _look(self, connection: Connection, status: int, began: int) -> None:
        if status != 200:
            self.seen.wrong.append(f"status {status}")
        elif len(connection.delays) != self._chunks:
            self.seen.wrong.append(f"{len(connection.delays)} of {self._chunks} chunks")
        self.seen.totals.append(connection.arrived - began)
        if connection.delays:
            self.seen.firsts.append(connection.first)
            self.seen.delays.extend(connection.delays[1:])

    async def _connect(self) -> Connection:
        loop = asyncio.get_running_loop()
        _, connection = await loop.create_connection(Connection, self._host, self._port)
        return connection


async def main(wanted: dict[str, Any]) -> dict[str, Any]:
    kind = wanted.pop("kind")
    told = {name: wanted.pop(name) for name in ("url", "headers", "body", "chunks")}
    callers = Callers(**told)
    began = time.monotonic()
    await getattr(callers, kind)(**wanted)
    return callers.seen.summary() | {"seconds": time.monotonic() - began}


if __name__ == "__main__":
    print(json.dumps(uvloop.run(main(json.loads(sys.argv[1])))))
