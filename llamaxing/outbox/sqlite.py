"""A database on this machine's own disk. Several processes may share it: what one has taken to
deliver is nobody else's until its lease ends."""

import asyncio
import json
import math
import os
import sqlite3
import tempfile
from collections.abc import Callable, Coroutine, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, Field

from llamaxing.commits import Commits, Row
from llamaxing.delivery import Batch, Delivery, Feed
from llamaxing.hosting import is_azure
from llamaxing.outbox import OutboxFailed, Trigger, Waiting
from llamaxing.plugins import Surroundings

T = TypeVar("T")

# Times are milliseconds since 1970. Who takes a record moves its `due` on, to where the lease ends,
# and by that knows it again: what somebody else has taken since, or replaced, stays as it is.
_SCHEMA = """
CREATE TABLE IF NOT EXISTS outbox (
    sink TEXT NOT NULL,
    id TEXT NOT NULL,
    added INTEGER NOT NULL,
    due INTEGER NOT NULL,
    poison TEXT,           -- why the sink refuses it
    record BLOB NOT NULL,  -- in JSON, in one line
    PRIMARY KEY (sink, id)
);
CREATE INDEX IF NOT EXISTS waiting ON outbox (sink, due, added) WHERE poison IS NULL;
CREATE INDEX IF NOT EXISTS poison ON outbox (sink) WHERE poison IS NOT NULL;
"""
_VERSION = 1
_PUT = """
INSERT INTO outbox (sink, id, added, due, record) VALUES {rows}
ON CONFLICT (sink, id) DO UPDATE SET added = excluded.added, due = excluded.due,
    record = excluded.record, poison = NULL
"""
# What is added up is lengths alone: the records themselves would be copied on the way.
_TAKE = """
SELECT group_concat(id || ' ' || record, char(10)), count(*) FROM (
    SELECT row, length, sum(length) OVER (ORDER BY due, row ROWS UNBOUNDED PRECEDING) AS size FROM (
        SELECT rowid AS row, length(record) AS length, due FROM outbox
        WHERE sink = ? AND poison IS NULL AND due <= ? ORDER BY due LIMIT ?
    )
) JOIN outbox ON outbox.rowid = row WHERE size <= ? OR size = length
"""
_LEASE = """
UPDATE outbox SET due = ? WHERE sink = ? AND id IN (SELECT value FROM json_each(?))
"""
_NEXT = "SELECT min(due) FROM outbox WHERE sink = ? AND poison IS NULL"
_GIVE_BACK = """
UPDATE outbox SET due = ? WHERE sink = ? AND due = ? AND id IN (SELECT value FROM json_each(?))
"""
_DROP = "DELETE FROM outbox WHERE sink = ? AND due = ? AND id IN (SELECT value FROM json_each(?))"
_REFUSE = "UPDATE outbox SET poison = ? WHERE sink = ? AND due = ? AND id = ?"
_WAITING = "SELECT count(*), min(added) FROM outbox WHERE sink = ? AND poison IS NULL"
_POISON = "SELECT count(*) FROM outbox WHERE sink = ? AND poison IS NOT NULL"
_REPLAY = "UPDATE outbox SET poison = NULL, due = ? WHERE sink = ? AND poison IS NOT NULL"
_PURGE = "DELETE FROM outbox WHERE sink = ? AND (poison IS NOT NULL) = ?"
# Seconds that a process waits for the others' commits.
_BUSY = 5.0
# Bytes that are added before the size of the file is looked at again.
_UNSEEN = 16 * 1024 * 1024


class SQLiteOutbox:
    class Options(BaseModel, frozen=True):
        outbox_path: str | None = Field(
            default=None,
            description="The file of the outbox `sqlite`, on a disk of this machine; two files "
            "beside it belong to it. By default `llamaxing-outbox.db` in the folder where the "
            "gateway runs; on Azure, where that is on a network share, in the temporary folder.",
        )
        outbox_limit: int = Field(
            default=1024**3,
            gt=0,
            description="Bytes that wait in it at the most; what comes then goes straight to its "
            "sinks, or into the log.",
        )
        outbox_synchronous: Literal["normal", "full"] = Field(
            default="normal",
            description="`normal`: what it has taken survives the end of the process, however that "
            "comes; `full`: also a power cut, for a write to the disk with each commit.",
        )

    triggers: Mapping[str, Trigger] = {}

    def __init__(
        self, options: Options, surroundings: Surroundings, deliveries: Mapping[str, Delivery]
    ) -> None:
        self._path = _path(options.outbox_path, is_azure(surroundings.environ))
        self._limit = options.outbox_limit
        self._synchronous = options.outbox_synchronous
        self._clock = surroundings.clock
        self._deliveries = deliveries
        self._commits = Commits(self._connect, self._insert)
        self._room = 0
        self._feeds: list[Feed] = []

    async def open(self) -> None:
        await self._do(_nothing)

    def start(self) -> None:
        self._feeds = [Feed(self, it, self._clock) for it in self._deliveries.values()]

    async def put(self, id: str, record: bytes, intent: Any = None) -> None:
        await self._add(id, record, 0)
        for feed in self._feeds:
            feed.wake()

    async def intend(self, id: str, record: bytes, age: float) -> Any:
        await self._add(id, record, age)
        return True

    async def status(self) -> Mapping[str, Waiting]:
        now = self._now()

        def work(connection: sqlite3.Connection) -> Mapping[str, Waiting]:
            found = {}
            for sink in self._deliveries:
                waiting, added = connection.execute(_WAITING, (sink,)).fetchone()
                [poison] = connection.execute(_POISON, (sink,)).fetchone()
                oldest = None if added is None else max(0, now - added) / 1000
                found[sink] = Waiting(waiting, poison, oldest)
            return found

        return await self._do(work)

    async def replay(self, sink: str) -> int:
        now = self._now()
        return await self._do(lambda it: it.execute(_REPLAY, (now, sink)).rowcount)

    async def purge(self, sink: str, *, poison: bool) -> int:
        return await self._do(lambda it: it.execute(_PURGE, (sink, poison)).rowcount)

    async def aclose(self, within: float) -> None:
        await asyncio.gather(*(feed.aclose(within) for feed in self._feeds))
        await self._commits.aclose()

    # What feeds ask for

    async def take(self, sink: str, most: int, size: int, lease: float) -> Batch:
        now, until = self._now(), int(lease * 1000)

        def work(connection: sqlite3.Connection) -> Batch:
            found, count = connection.execute(_TAKE, (sink, now, most, size)).fetchone()
            if not count:
                [due] = connection.execute(_NEXT, (sink,)).fetchone()
                return Batch({}, until, next_due=math.inf if due is None else due / 1000)
            pairs = (line.split(b" ", 1) for line in found.split(b"\n"))
            records = {id.decode(): record for id, record in pairs}
            connection.execute(_LEASE, (until, sink, json.dumps(list(records))))
            [due] = connection.execute(_NEXT, (sink,)).fetchone()
            return Batch(records, until, more=due <= now)

        return await self._do(work)

    async def settle(self, sink: str, batch: Batch, refused: Mapping[str, str]) -> None:
        delivered = json.dumps([id for id in batch.records if id not in refused])

        def work(connection: sqlite3.Connection) -> None:
            connection.execute(_DROP, (sink, batch.lease, delivered))
            for id, why in refused.items():
                connection.execute(_REFUSE, (why, sink, batch.lease, id))

        await self._do(work)

    async def give_back(self, sink: str, batch: Batch, due: float) -> None:
        row = (int(due * 1000), sink, batch.lease, json.dumps(list(batch.records)))
        await self._do(lambda it: it.execute(_GIVE_BACK, row))

    def _now(self) -> int:
        return int(self._clock.now() * 1000)

    async def _add(self, id: str, record: bytes, after: float) -> None:
        now = self._now()
        due = now + int(after * 1000)
        rows = [(sink, id, now, due, record) for sink in self._deliveries]
        await self._told(self._commits.add(rows))

    async def _do(self, work: Callable[[sqlite3.Connection], T]) -> T:
        return await self._told(self._commits.do(work))

    async def _told(self, asked: Coroutine[Any, Any, T]) -> T:
        try:
            return await asked
        except OutboxFailed:
            raise
        except (sqlite3.Error, OSError) as error:
            why = error.strerror if isinstance(error, OSError) else error
            raise OutboxFailed(f"{self._path}: {why}") from error

    # In the thread

    def _connect(self) -> sqlite3.Connection:
        # It holds prompts: nobody else may read it, nor the files that SQLite makes beside it.
        os.close(os.open(self._path, os.O_RDWR | os.O_CREAT, 0o600))
        connection = sqlite3.connect(self._path, timeout=_BUSY, isolation_level=None)
        connection.text_factory = bytes
        try:
            # Of a new file. A page has several records, and what moves them on writes fewer pages.
            connection.execute("PRAGMA page_size = 8192")
            [mode] = connection.execute("PRAGMA journal_mode = wal").fetchone()
            if mode != b"wal":
                raise sqlite3.OperationalError("processes cannot share a file on this disk (WAL)")
            connection.execute(f"PRAGMA synchronous = {self._synchronous}")
            [version] = connection.execute("PRAGMA user_version").fetchone()
            if version not in (0, _VERSION):
                raise sqlite3.OperationalError(f"it is of version {version}, and not {_VERSION}")
            connection.executescript(f"{_SCHEMA} PRAGMA user_version = {_VERSION};")
        except BaseException:
            connection.close()
            raise
        return connection

    def _insert(self, connection: sqlite3.Connection, rows: Sequence[Row]) -> None:
        size = sum(len(row[-1]) for row in rows)
        if size > self._room:
            self._room = min(_UNSEEN, self._limit - _used(connection))
            if size > self._room:
                raise OutboxFailed(f"{self._path} is full: outbox_limit is {self._limit} bytes")
        values = [value for row in rows for value in row]
        connection.execute(_PUT.format(rows=",".join(["(?,?,?,?,?)"] * len(rows))), values)
        self._room -= size


def _path(given: str | None, on_azure: bool) -> Path:
    """Raises ValueError for one on the share that all instances of an app have in common."""
    if given is None:
        return Path(tempfile.gettempdir() if on_azure else "", "llamaxing-outbox.db")
    path = Path(given).absolute()
    if on_azure and path.parts[1:2] == ("home",):
        raise ValueError("outbox_path is below /home, a network share on Azure; choose another")
    return path


def _nothing(connection: sqlite3.Connection) -> None:
    """To see whether it can be opened."""


def _used(connection: sqlite3.Connection) -> int:
    """Bytes."""
    pages, free, size = (
        connection.execute(f"PRAGMA {name}").fetchone()[0]
        for name in ("page_count", "freelist_count", "page_size")
    )
    return int((pages - free) * size)


PLUGIN = SQLiteOutbox
