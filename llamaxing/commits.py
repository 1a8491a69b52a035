"""An SQLite database in a thread of its own: rows that are added at one time share a commit.

Each step of a statement gives up Python's lock, and a busy event loop gives it back only after
milliseconds. So whatever is done often is one statement of one step, however many rows it is about;
and the thread is handed all that has come since the last time at once, since to wake it costs more
than a commit.
"""

import asyncio
import contextlib
import queue
import sqlite3
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

T = TypeVar("T")
Row = tuple[Any, ...]

# How many pieces of work are taken at once: their rows have to fit into a statement.
_SHARE = 500


@dataclass(slots=True)
class _Job:
    """`rows` to add, or `work` to do."""

    told: "asyncio.Future[Any]"
    rows: Sequence[Row] = ()
    work: Callable[[sqlite3.Connection], Any] | None = None
    result: Any = None
    error: Exception | None = None

    @property
    def wanted(self) -> bool:
        """Who has waited for too long has gone another way."""
        return not self.told.done()


class Commits:
    """The connection is opened when it is first needed, and anew after a failure."""

    def __init__(
        self,
        connect: Callable[[], sqlite3.Connection],
        add: Callable[[sqlite3.Connection, Sequence[Row]], None],
    ) -> None:
        """Both are called in the thread: `connect` for a connection that begins no transaction by
        itself (`isolation_level=None`), and `add` for rows that come together."""
        self._connect = connect
        self._add = add
        self._waiting: list[_Job] = []
        self._busy = False
        self._groups: queue.SimpleQueue[Sequence[_Job]] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None

    async def add(self, rows: Sequence[Row]) -> None:
        """Returns when they are committed. Raises what `add` does, and sqlite3.Error."""
        loop = asyncio.get_running_loop()
        await self._done(loop, _Job(loop.create_future(), rows=rows))

    async def do(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """Runs it in a transaction. Raises what it raises, and sqlite3.Error."""
        loop = asyncio.get_running_loop()
        result: T = await self._done(loop, _Job(loop.create_future(), work=work))
        return result

    async def aclose(self) -> None:
        """What has been asked before is still done."""
        if self._thread is not None:
            with contextlib.suppress(sqlite3.Error, OSError):
                await self.do(_nothing)
            self._groups.put(())
            await asyncio.to_thread(self._thread.join)
            self._thread = None

    async def _done(self, loop: asyncio.AbstractEventLoop, job: _Job) -> Any:
        if self._thread is None:
            # It keeps no process from its end: what has been committed is safe.
            self._thread = threading.Thread(target=self._run, args=(loop,), daemon=True)
            self._thread.start()
        self._waiting.append(job)
        if not self._busy:
            self._busy = True
            # Not at once: other calls may be about to end in this turn of the loop.
            loop.call_soon(self._hand_over)
        return await job.told

    def _hand_over(self) -> None:
        group, self._waiting = self._waiting[:_SHARE], self._waiting[_SHARE:]
        self._busy = bool(group)
        if group:
            self._groups.put(group)

    def _tell(self, group: Sequence[_Job]) -> None:
        self._hand_over()
        for job in group:
            if not job.wanted:
                continue
            if job.error is None:
                job.told.set_result(job.result)
            else:
                job.told.set_exception(job.error)

    # In the thread

    def _run(self, loop: asyncio.AbstractEventLoop) -> None:
        connection: sqlite3.Connection | None = None
        while group := self._groups.get():
            together = [job for job in group if job.rows and job.wanted]
            alone = [[job] for job in group if job.work and job.wanted]
            for jobs in [together, *alone]:
                if jobs:
                    connection = self._attempt(connection, jobs)
            with contextlib.suppress(RuntimeError):  # the loop has ended, and who waited there
                loop.call_soon_threadsafe(self._tell, group)
        _close(connection)

    def _attempt(
        self, connection: sqlite3.Connection | None, jobs: Sequence[_Job]
    ) -> sqlite3.Connection | None:
        """The connection, if it is still good."""
        try:
            connection = connection or self._connect()
            if jobs[0].work is None:
                self._add(connection, [row for job in jobs for row in job.rows])
            else:
                connection.execute("BEGIN IMMEDIATE")
                jobs[0].result = jobs[0].work(connection)
                connection.execute("COMMIT")
        except Exception as error:  # noqa: BLE001  whatever it is, those who wait are told
            for job in jobs:
                job.error = error
            _close(connection)
            return None
        return connection


def _close(connection: sqlite3.Connection | None) -> None:
    """Ends its transaction, too."""
    if connection is not None:
        with contextlib.suppress(sqlite3.Error):
            connection.close()


def _nothing(connection: sqlite3.Connection) -> None:
    """Returns when what came before it is done."""
