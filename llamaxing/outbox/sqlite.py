"""A database on this machine's own disk. Several processes may share it: what one has taken to
deliver is nobody else's until its lease ends."""

import asyncio
import contextlib
import os
import secrets
import sqlite3
import tempfile
import time
from collections.abc import Awaitable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, SupportsBytes

from pydantic import BaseModel, Field

from llamaxing import table
from llamaxing.commits import Commits
from llamaxing.delivery import Batch, Delivery, Feed
from llamaxing.hosting import is_azure
from llamaxing.outbox import OutboxFailed, Trigger, Waiting
from llamaxing.plugins import Surroundings
from llamaxing.table import Entry

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
        self._commits = Commits(
            self._connect,
            self._insert,
            lambda entry: len(entry.line),
            added=self._wake,
            failed=self._failed,
            syncs=options.outbox_synchronous == "full",
        )
        # No sink gets more at once than it takes.
        self._together = min((it.batch for it in deliveries.values()), default=1)
        self._room = 0
        self._feeds: list[Feed] = []

    async def open(self) -> None:
        await self._commits.do(_nothing)

    def start(self) -> None:
        self._feeds = [Feed(self, it, self._clock) for it in self._deliveries.values()]

    def put(self, id: str, record: SupportsBytes, intent: Any = None) -> Awaitable[None]:
        now = self._now()
        replaced = id if intent else None
        return self._commits.add(lambda: Entry(table.line(id, bytes(record)), now, now, replaced))

    async def intend(self, id: str, record: bytes, age: float) -> Any:
        now = self._now()
        due = now + int(age * 1000)
        await self._commits.add(lambda: Entry(table.line(id, record), now, due, id))
        return True

    async def status(self) -> Mapping[str, Waiting]:
        now = self._now()

        def work(connection: sqlite3.Connection) -> Mapping[str, Waiting]:
            found = {}
            for sink in self._deliveries:
                waiting, added = table.waiting(connection, sink)
                oldest = None if added is None else max(0, now - added) / 1000
                found[sink] = Waiting(waiting, table.poison(connection, sink), oldest)
            return found

        return await self._commits.do(work)

    async def replay(self, sink: str) -> int:
        now = self._now()
        return await self._commits.do(lambda it: table.replay(it, sink, now))

    async def purge(self, sink: str, *, poison: bool) -> int:
        return await self._commits.do(lambda it: table.purge(it, sink, poison=poison))

    async def aclose(self, within: float) -> None:
        await asyncio.gather(*(feed.aclose(within) for feed in self._feeds))
        await self._commits.aclose()

    # What feeds ask for

    async def take(self, sink: str, most: int, size: int, lease: float) -> Batch:
        now = self._now()
        taken = sink, int(lease * 1000), secrets.randbits(62)

        def work(connection: sqlite3.Connection) -> Batch:
            records = table.take(connection, taken, now, most, size)
            due = table.next_due(connection, sink)
            return Batch(records, taken, more=due <= now, next_due=due / 1000)

        return await self._commits.do(work)

    async def settle(
        self,
        batch: Batch,
        refused: Mapping[str, str],
        later: Collection[str] = (),
        due: float = 0,
    ) -> None:
        until = int(due * 1000)
        await self._commits.do(lambda it: table.settle(it, batch.taken, refused, later, until))

    async def give_back(self, batch: Batch, due: float) -> None:
        until = int(due * 1000)
        await self._commits.do(lambda it: table.give_back(it, batch.taken, until))

    def _now(self) -> int:
        return int(self._clock.now() * 1000)

    def _wake(self) -> None:
        for feed in self._feeds:
            feed.wake()

    def _failed(self, error: Exception) -> Exception:
        if isinstance(error, OutboxFailed) or not isinstance(error, sqlite3.Error | OSError):
            return error
        why = error.strerror if isinstance(error, OSError) else error
        return OutboxFailed(f"{self._path}: {why}")

    def _connect(self) -> sqlite3.Connection:
        # It holds prompts: nobody else may read it, nor the files that SQLite makes beside it. One
        # that is there is not touched: to close it would end the locks of other connections to it.
        with contextlib.suppress(FileExistsError):
            os.close(os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600))
        connection = sqlite3.connect(
            self._path, timeout=_BUSY, isolation_level=None, check_same_thread=False
        )
        try:
            # Of a new file. A page has several records, and what moves them on writes fewer pages.
            connection.execute("PRAGMA page_size = 8192")
            if _with_log(connection) != "wal":
                raise sqlite3.OperationalError("processes cannot share a file on this disk (WAL)")
            connection.execute(f"PRAGMA synchronous = {self._synchronous}")
            # After 16 MB; what is checkpointed seldom is often not there any more.
            connection.execute("PRAGMA wal_autocheckpoint = 2000")
            # As it is but in Debian's SQLite, which would write over what is dropped: half of all
            # that is written.
            connection.execute("PRAGMA secure_delete = off")
            table.upgrade(connection)
        except BaseException:
            connection.close()
            raise
        return connection

    def _insert(self, connection: sqlite3.Connection, entries: Sequence[Entry]) -> None:
        size = len(self._deliveries) * sum(len(entry.line) for entry in entries)
        if size > self._room:
            self._room = min(_UNSEEN, self._limit - table.used(connection))
            if size > self._room:
                raise OutboxFailed(f"{self._path} is full: outbox_limit is {self._limit} bytes")
        table.put(connection, self._deliveries, entries, self._together)
        self._room -= size


def _path(given: str | None, on_azure: bool) -> Path:
    """Raises ValueError for one on the share that all instances of an app have in common."""
    if given is None:
        return Path(tempfile.gettempdir() if on_azure else "", "llamaxing-outbox.db")
    path = Path(given).absolute()
    if on_azure and path.parts[1:2] == ("home",):
        raise ValueError("outbox_path is below /home, a network share on Azure; choose another")
    return path


def _with_log(connection: sqlite3.Connection) -> str:
    """The mode that the file has then. SQLite does not wait for another process that turns the same
    new file into one with a write-ahead log: it is locked, at once."""
    until = time.monotonic() + _BUSY
    while True:
        try:
            return str(connection.execute("PRAGMA journal_mode = wal").fetchone()[0])
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode != sqlite3.SQLITE_BUSY or time.monotonic() > until:
                raise
            time.sleep(0.01)


def _nothing(connection: sqlite3.Connection) -> None:
    """To see whether it can be opened."""


PLUGIN = SQLiteOutbox
