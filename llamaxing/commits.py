"""An SQLite database beside an event loop: what is added at one time shares a commit.

It is made only then, one after the other: by itself, in the middle of a call, each would take half
as long again. And a commit that does not wait for the disk takes some dozens of microseconds. To
have a thread do it costs several times that: each step of a statement gives up Python's lock, and a
busy loop gives it back only after milliseconds. So the loop commits by itself what is small, for as
long as that is quick. It waits neither for a lock on the file nor for a checkpoint: whatever may
take longer is the thread's.
"""

import asyncio
import contextlib
import sqlite3
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Generic, TypeVar

import msgspec

T = TypeVar("T")
E = TypeVar("E")

# Seconds between two commits, where several have shared one: what comes in between shares the next.
_PACE = 0.002
# How much shares a commit: so many, or bytes.
_SHARE = 100
_FULL = 128 * 1024
# Bytes that the loop commits by itself: at once, and until the thread does it with a checkpoint.
_SMALL = 2 * _FULL
_UNCHECKED = 16 * 1024 * 1024
# Seconds that whoever adds something waits at the most.
_WITHIN = 5.0
# Seconds of a commit that other calls notice; and for how long the thread then does them all.
_SLOW = 0.02
_ASIDE = 60.0


class _Job(msgspec.Struct, Generic[E]):
    told: "asyncio.Future[None]"
    until: float
    make: Callable[[], E]
    entry: E | None = None


class Commits(Generic[E]):
    """Its connections are opened when they are first needed, and anew after a failure."""

    def __init__(
        self,
        connect: Callable[[], sqlite3.Connection],
        add: Callable[[sqlite3.Connection, Sequence[E]], None],
        size: Callable[[E], int],
        *,
        added: Callable[[], None],
        failed: Callable[[Exception], Exception],
        syncs: bool = False,
        timer: Callable[[], float] = time.monotonic,
    ) -> None:
        """`connect` is called in the thread, for a connection that any thread may use and that
        begins no transaction by itself (`isolation_level=None`). `add` adds what comes together, in
        one statement; `size` gives its bytes. `added` is called after each commit. `failed` makes
        of an error what those are told who wait. `syncs`: each commit waits for the disk."""
        self._connect = connect
        self._add = add
        self._size = size
        self._added = added
        self._failed = failed
        self._syncs = syncs
        self._timer = timer
        # In the order in which their time is over: those that are being committed, and the others.
        self._share: Sequence[_Job[E]] = ()
        self._waiting: deque[_Job[E]] = deque()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._task: asyncio.Task[None] | None = None
        self._watch: asyncio.TimerHandle | None = None
        self._next = self._aside_until = 0.0
        self._unchecked = 0
        self._here: sqlite3.Connection | None = None
        self._there: sqlite3.Connection | None = None
        self._thread = ThreadPoolExecutor(1, "outbox")

    def add(self, make: Callable[[], E]) -> "asyncio.Future[None]":
        """Done when what this makes is committed; that it is not in time is a TimeoutError of its
        own, so that nobody needs a timer for what hardly ever takes long."""
        loop = self._loop = self._loop or asyncio.get_running_loop()
        told = loop.create_future()
        self._waiting.append(_Job(told, loop.time() + _WITHIN, make))
        if self._task is None:
            self._task = loop.create_task(self._commit())
        return told

    async def do(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """In the thread."""
        loop = asyncio.get_running_loop()
        try:
            return await loop.run_in_executor(self._thread, self._attempt, work)
        except Exception as error:
            raise self._failed(error) from error

    async def aclose(self) -> None:
        """What has been asked before is still done."""
        if self._task is not None:
            await asyncio.wait({self._task})
        if self._watch is not None:
            self._watch.cancel()
        self._watch = self._loop = None
        here, self._here = self._here, None
        await asyncio.get_running_loop().run_in_executor(self._thread, self._close, here)
        self._thread.shutdown(wait=False)
        # What still comes opens all of it anew.
        self._thread = ThreadPoolExecutor(1, "outbox")

    async def _commit(self) -> None:
        """All that waits."""
        try:
            while self._waiting:
                if (pause := self._next - self._timer()) > 0:
                    await asyncio.sleep(pause)
                share, size = self._made()
                self._share = share
                if not share:
                    continue
                quick = self._committed(share, size)
                error = None if quick else await self._committed_aside(share)
                if len(share) > 1:
                    self._next = self._timer() + _PACE
                _tell(share, error)
                self._added()
        finally:
            self._task, self._share = None, ()

    def _made(self) -> tuple[Sequence[_Job[E]], int]:
        """What is committed next, and how many bytes that is."""
        share: list[_Job[E]] = []
        size = 0
        while self._waiting and len(share) < _SHARE and size < _FULL:
            job = self._waiting.popleft()
            # Who has waited for too long has gone another way.
            if job.told.done():
                continue
            try:
                job.entry = entry = job.make()
            except Exception as error:  # noqa: BLE001  whatever it is, who waits for it is told
                job.told.set_exception(error)
            else:
                share.append(job)
                size += self._size(entry)
        return share, size

    def _committed(self, share: Sequence[_Job[E]], size: int) -> bool:
        """Whether the loop could do it. Where it fails, the thread has the last word."""
        self._unchecked += size
        began = self._timer()
        quick = began >= self._aside_until and size <= _SMALL and self._unchecked <= _UNCHECKED
        if not quick or self._here is None:
            return False
        try:
            self._add_wanted(self._here, share)
        except Exception as error:  # noqa: BLE001  whatever it is, the thread meets it too
            if getattr(error, "sqlite_errorcode", None) != sqlite3.SQLITE_BUSY:
                self._here = None
            return False
        ended = self._timer()
        if ended - began > _SLOW:
            self._aside_until = ended + _ASIDE
        return True

    async def _committed_aside(self, share: Sequence[_Job[E]]) -> Exception | None:
        self._unchecked = 0
        if self._watch is None:
            self._look()
        try:
            await self.do(lambda connection: self._add_wanted(connection, share))
        except Exception as error:  # noqa: BLE001  whatever it is, those who wait are told
            return error
        return None

    def _look(self) -> None:
        """Tells those whose time is over, and comes back for the next: for as long as anybody
        waits, and as the thread has not come back, since others may come meanwhile."""
        loop = asyncio.get_running_loop()
        self._watch = None
        while self._waiting and self._waiting[0].told.done():
            self._waiting.popleft()
        for job in (*self._share, *self._waiting):
            if job.told.done():
                continue
            if job.until > loop.time():
                self._watch = loop.call_at(job.until, self._look)
                return
            job.told.set_exception(TimeoutError(f"not kept in {_WITHIN:g} s"))
        if self._share:
            self._watch = loop.call_at(loop.time() + _WITHIN, self._look)

    def _add_wanted(self, connection: sqlite3.Connection, share: Sequence[_Job[E]]) -> None:
        if entries := [it.entry for it in share if it.entry is not None and not it.told.done()]:
            self._add(connection, entries)

    # In the thread

    def _attempt(self, work: Callable[[sqlite3.Connection], T]) -> T:
        try:
            if self._there is None:
                self._there = self._connect()
            if self._here is None and not self._syncs:
                self._here = _hasty(self._connect())
            return work(self._there)
        except BaseException:
            # Not the loop's, which may be using it: that is closed when nobody has it.
            self._here = None
            self._close()
            raise

    def _close(self, here: sqlite3.Connection | None = None) -> None:
        """Ends its transaction, too. `here`: the loop's own, where it has left that for good."""
        for connection in (here, self._there):
            if connection is not None:
                with contextlib.suppress(sqlite3.Error):
                    connection.close()
        self._there = None


def _hasty(connection: sqlite3.Connection) -> sqlite3.Connection:
    connection.execute("PRAGMA busy_timeout = 0")
    connection.execute("PRAGMA wal_autocheckpoint = 0")
    return connection


def _tell(share: Sequence[_Job[E]], error: Exception | None) -> None:
    for job in share:
        if job.told.done():
            continue
        if error is None:
            job.told.set_result(None)
        else:
            job.told.set_exception(error)
