"""Commits: what the loop does by itself, and what it leaves to the thread."""

import asyncio
import json
import sqlite3
import threading
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import pytest

from llamaxing.commits import Commits


class Numbers:
    """A table of numbers, and who has added to it: the loop's thread or another."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "numbers.db"
        self.by_loop: list[bool] = []
        self.fails: Callable[[bool], bool] = lambda by_loop: False
        self.time = 0.0
        self.takes = 0.0
        self.size = 100
        self.thread_is_at_it = asyncio.Event()
        self._loop = threading.get_ident()
        self._call = asyncio.get_running_loop().call_soon_threadsafe

    def commits(self, *, syncs: bool = False) -> Commits[int]:
        return Commits(
            self._connect,
            self._add,
            lambda number: self.size,
            added=lambda: None,
            failed=lambda error: error,
            syncs=syncs,
            timer=lambda: self.time,
        )

    def there(self) -> list[int]:
        connection = self._connect()
        found = [row[0] for row in connection.execute("SELECT n FROM numbers ORDER BY n")]
        connection.close()
        return found

    def _connect(self) -> sqlite3.Connection:
        # A loop that waited for a lock would do so for good.
        connection = sqlite3.connect(
            self.path, timeout=3600, isolation_level=None, check_same_thread=False
        )
        connection.execute("PRAGMA journal_mode = wal")
        connection.execute("CREATE TABLE IF NOT EXISTS numbers (n)")
        return connection

    def _add(self, connection: sqlite3.Connection, entries: Sequence[int]) -> None:
        by_loop = threading.get_ident() == self._loop
        if self.fails(by_loop):
            raise OSError("the disk is full")
        if not by_loop:
            self._call(self.thread_is_at_it.set)
        added = json.dumps(entries)
        connection.execute("INSERT INTO numbers SELECT value FROM json_each(?)", [added])
        self.by_loop.append(by_loop)
        self.time += self.takes


@pytest.fixture
async def numbers(tmp_path: Path) -> Numbers:
    return Numbers(tmp_path)


async def opened(commits: Commits[int]) -> Commits[int]:
    await commits.do(lambda _: None)
    return commits


async def test_the_loop_commits_what_is_small(numbers: Numbers) -> None:
    commits = await opened(numbers.commits())

    await asyncio.gather(*(commits.add(partial(int, number)) for number in range(10)))

    assert numbers.by_loop == [True]
    assert numbers.there() == list(range(10))
    await commits.aclose()


async def test_what_cannot_be_made_takes_nothing_along(numbers: Numbers) -> None:
    def broken() -> int:
        raise ValueError("no number")

    commits = await opened(numbers.commits())

    first, second, third = (commits.add(it) for it in (lambda: 1, broken, lambda: 3))
    await asyncio.gather(first, third)

    with pytest.raises(ValueError, match="no number"):
        await second
    assert numbers.there() == [1, 3]
    await commits.aclose()


async def test_a_commit_is_full_and_the_next_has_the_rest(numbers: Numbers) -> None:
    commits = await opened(numbers.commits())
    numbers.size = 50_000

    await asyncio.gather(*(commits.add(partial(int, number)) for number in range(10)))

    assert numbers.by_loop == [True] * 4
    assert numbers.there() == list(range(10))
    await commits.aclose()


async def test_what_is_large_or_waits_for_the_disk_is_the_threads(numbers: Numbers) -> None:
    commits = await opened(numbers.commits())
    syncing = await opened(numbers.commits(syncs=True))

    numbers.size = 10**6
    await commits.add(lambda: 1)
    numbers.size = 100
    await syncing.add(lambda: 2)

    assert numbers.by_loop == [False, False]
    assert numbers.there() == [1, 2]
    await commits.aclose()
    await syncing.aclose()


async def test_a_loop_that_has_lost_time_with_a_commit_leaves_the_next_to_the_thread(
    numbers: Numbers,
) -> None:
    commits = await opened(numbers.commits())
    numbers.takes = 0.1

    for number in range(3):
        await commits.add(partial(int, number))
    numbers.time += 60
    await commits.add(lambda: 3)

    assert numbers.by_loop == [True, False, False, True]
    assert numbers.there() == [0, 1, 2, 3]
    await commits.aclose()


async def test_the_loop_runs_on_while_another_program_has_the_file(numbers: Numbers) -> None:
    commits = await opened(numbers.commits())
    other = sqlite3.connect(numbers.path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")

    adding = commits.add(lambda: 1)
    await numbers.thread_is_at_it.wait()
    assert not adding.done()
    other.execute("ROLLBACK")
    await adding

    assert numbers.by_loop == [False]
    assert numbers.there() == [1]
    other.close()
    await commits.aclose()


async def test_nobody_waits_longer_than_their_own_limit_for_another_program(
    numbers: Numbers, monkeypatch: pytest.MonkeyPatch
) -> None:
    commits = await opened(numbers.commits())
    other = sqlite3.connect(numbers.path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")

    monkeypatch.setattr("llamaxing.commits._WITHIN", 0.05)
    begun = commits.add(lambda: 1)
    await numbers.thread_is_at_it.wait()
    behind = [commits.add(partial(int, number)) for number in range(2, 200)]
    monkeypatch.setattr("llamaxing.commits._WITHIN", 60)
    last = commits.add(lambda: 200)
    told = await asyncio.gather(begun, *behind, return_exceptions=True)
    assert not last.done()
    other.execute("ROLLBACK")
    await last

    assert {type(it) for it in told} == {TimeoutError}
    # What was begun could not be taken back.
    assert numbers.there() == [1, 200]
    other.close()
    await commits.aclose()


async def test_who_comes_when_all_others_have_been_told_is_told_in_time_as_well(
    numbers: Numbers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("llamaxing.commits._WITHIN", 0.05)
    commits = await opened(numbers.commits())
    other = sqlite3.connect(numbers.path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")

    for _ in range(3):
        with pytest.raises(TimeoutError, match="not kept"):
            await commits.add(lambda: 1)

    other.execute("ROLLBACK")
    other.close()
    await commits.aclose()


@pytest.mark.parametrize("both", [False, True])
async def test_where_the_loop_fails_the_thread_has_the_last_word(
    numbers: Numbers, both: bool
) -> None:
    commits = await opened(numbers.commits())
    numbers.fails = lambda by_loop: by_loop or both

    if both:
        with pytest.raises(OSError, match="the disk is full"):
            await commits.add(lambda: 1)
    else:
        await commits.add(lambda: 1)
    numbers.fails = lambda _: False
    await commits.add(lambda: 2)
    await commits.add(lambda: 3)

    assert numbers.there() == ([2, 3] if both else [1, 2, 3])
    assert numbers.by_loop[-1]
    await commits.aclose()


async def test_who_is_not_there_any_more_has_nothing_added(numbers: Numbers) -> None:
    commits = await opened(numbers.commits())
    gone, stays = (commits.add(partial(int, number)) for number in (1, 2))
    gone.cancel()
    await stays

    assert numbers.there() == [2]
    await commits.aclose()


async def test_what_has_been_asked_before_it_closes_is_still_done(numbers: Numbers) -> None:
    commits = numbers.commits()
    adding = [commits.add(partial(int, number)) for number in range(5)]

    await commits.aclose()

    await asyncio.gather(*adding)
    assert numbers.there() == list(range(5))


async def test_one_that_is_closed_leaves_no_thread_and_still_takes_what_comes_late(
    numbers: Numbers,
) -> None:
    before = set(threading.enumerate())
    commits = await opened(numbers.commits())
    await commits.add(lambda: 1)
    threads = [it for it in set(threading.enumerate()) - before if it.name.startswith("outbox")]

    await commits.aclose()
    for thread in threads:
        await asyncio.to_thread(thread.join, 5)
    await commits.add(lambda: 2)

    assert not any(thread.is_alive() for thread in threads)
    assert numbers.there() == [1, 2]
    await commits.aclose()
