"""An SQLite database in a thread of its own: rows that are added at one time share a commit.

Each step of a statement gives up Python's lock, and a busy event loop gives it back only after
milliseconds. So whatever is done often is one statement of one step, however many rows it is about.
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
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
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
            self._jobs.put(None)
            await asyncio.to_thread(self._thread.join)
            self._thread = None

    async def _done(self, loop: asyncio.AbstractEventLoop, job: _Job) -> Any:
        if self._thread is None:
            # It keeps no process from its end: what has been committed is safe.
            self._thread = threading.Thread(target=self._run, args=(loop,), daemon=True)
            self._thread.start()
        self._jobs.put(job)
        return await job.told

    def _run(self, loop: asyncio.AbstractEventLoop) -> None:
        connection: sqlite3.Connection | None = None
        while jobs := self._next():
            together = [job for job in jobs if job.rows and job.wanted]
            alone = [[job] for job in jobs if job.work and job.wanted]
            for group in [together, *alone]:
                if group:
                    connection = self._attempt(connection, group)
            with contextlib.suppress(RuntimeError):  # the loop has ended, and who waited there
                loop.call_soon_threadsafe(_tell, jobs)
        _close(connection)

    def _next(self) -> list[_Job]:
        """What waits; nothing when it is over."""
        jobs: list[_Job] = []
        while (job := self._jobs.get()) is not None:
            jobs.append(job)
            if len(jobs) == _SHARE or self._jobs.empty():
                return jobs
        if jobs:
            self._jobs.put(None)
        return jobs

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


def _tell(jobs: Sequence[_Job]) -> None:
    for job in jobs:
        if not job.wanted:
            continue
        if job.error is None:
            job.told.set_result(job.result)
        else:
            job.told.set_exception(job.error)
