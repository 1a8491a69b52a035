"""The outbox of this machine: what it has taken reaches each sink, whatever happens in between."""

import asyncio
import json
import multiprocessing
import sqlite3
import stat
import sys
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, closing
from pathlib import Path
from typing import Any

import httpx
import pytest

from llamaxing.clock import Clock
from llamaxing.delivery import Delivery, Pace
from llamaxing.outbox import OutboxFailed, Waiting
from llamaxing.outbox.sqlite import SQLiteOutbox
from llamaxing.plugins import Surroundings
from llamaxing.sinks import Partly, Record
from llamaxing.sinks.jsonl import JsonLines


class Scripted:
    """A sink that takes records, unless it is told otherwise."""

    def __init__(self, batch: int = 10) -> None:
        self.batch = batch
        self.taken: list[Record] = []
        self.batches: list[int] = []
        self.fails: Callable[[Sequence[Record]], bool] = lambda _: False
        self.refuses: Mapping[str, str] = {}
        self.asked = 0
        self._changed = asyncio.Condition()

    async def deliver(self, records: Sequence[Record]) -> Mapping[str, str]:
        self.asked += 1
        async with self._changed:
            self._changed.notify_all()
        if self.fails(records):
            raise ConnectionError("it is away")
        refused = {it["id"]: self.refuses[it["id"]] for it in records if it["id"] in self.refuses}
        self.taken += [it for it in records if it["id"] not in refused]
        self.batches.append(len(records))
        async with self._changed:
            self._changed.notify_all()
        return refused

    async def aclose(self) -> None:
        return None

    @property
    def ids(self) -> list[str]:
        return sorted(it["id"] for it in self.taken)

    async def has(self, number: int) -> None:
        async with self._changed:
            await self._changed.wait_for(lambda: len(self.taken) >= number)

    async def was_asked(self, number: int) -> None:
        async with self._changed:
            await self._changed.wait_for(lambda: self.asked >= number)


class Moving(Clock):
    """Nothing waits: the time of day moves on instead."""

    def __init__(self) -> None:
        self.time = 1_000_000.0

    def now(self) -> float:
        return self.time

    async def wait(self, event: asyncio.Event, seconds: float) -> None:
        if not event.is_set():
            self.time += seconds
        await asyncio.sleep(0)


def made(folder: Path, clock: Clock | None = None, /, **sinks: Any) -> SQLiteOutbox:
    options = SQLiteOutbox.Options(outbox_path=str(folder / "outbox.db"))
    return with_options(options, clock, **sinks)


def with_options(
    options: SQLiteOutbox.Options, clock: Clock | None = None, /, **sinks: Any
) -> SQLiteOutbox:
    deliveries = {name: Delivery(name, sink, 30, Pace()) for name, sink in sinks.items()}
    surroundings = Surroundings({}, httpx.AsyncClient(), clock=clock or Clock())
    return SQLiteOutbox(options, surroundings, deliveries)


@asynccontextmanager
async def running(outbox: SQLiteOutbox) -> AsyncIterator[SQLiteOutbox]:
    await outbox.open()
    outbox.start()
    try:
        yield outbox
    finally:
        await outbox.aclose(30)


def record(number: int) -> tuple[str, bytes]:
    return f"{number:04}", json.dumps({"id": f"{number:04}", "text": "é\n"}).encode()


def ids(number: int) -> list[str]:
    return [record(n)[0] for n in range(number)]


async def put(outbox: SQLiteOutbox, number: int, start: int = 0) -> None:
    await asyncio.gather(*(outbox.put(*record(n)) for n in range(start, start + number)))


async def test_each_sink_gets_each_record_once_and_nothing_waits_afterwards(tmp_path: Path) -> None:
    one, two = Scripted(), Scripted(batch=7)
    async with running(made(tmp_path, one=one, two=two)) as outbox:
        await put(outbox, 100)
        await one.has(100)
        await two.has(100)

    assert one.ids == two.ids == ids(100)
    assert one.taken[0]["text"] == "é\n"
    assert max(two.batches) == 7
    assert await status(tmp_path, "one", "two") == {"one": Waiting(0, 0), "two": Waiting(0, 0)}


async def status(folder: Path, *sinks: str) -> Mapping[str, Waiting]:
    outbox = made(folder, **{name: Scripted() for name in sinks})
    found = await outbox.status()
    await outbox.aclose(0)
    return found


async def test_a_sink_that_is_away_for_ten_minutes_gets_everything_and_starves_no_other(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    clock = Moving()
    back = clock.now() + 600
    away, there = Scripted(), Scripted()
    away.fails = lambda _: clock.now() < back
    async with running(made(tmp_path, clock, away=away, there=there)) as outbox:
        await put(outbox, 100)
        await there.has(100)
        await away.has(100)

    assert away.ids == there.ids == ids(100)
    assert clock.now() >= back
    # Longer and longer pauses, and a line a minute of the machine's own time.
    assert away.asked < 60
    assert [it.getMessage() for it in caplog.records if it.levelname == "ERROR"] == [
        "away takes no records: 'it is away'"
    ]


async def test_a_record_that_spoils_its_batch_holds_up_no_other(tmp_path: Path) -> None:
    sink = Scripted(batch=50)
    sink.fails = lambda records: any(it["id"] == "0007" for it in records)
    async with running(made(tmp_path, Moving(), sink=sink)) as outbox:
        await put(outbox, 50)
        await sink.has(49)

    assert sink.ids == [id for id in ids(50) if id != "0007"]
    assert (await status(tmp_path, "sink"))["sink"].waiting == 1


class Choosy(Scripted):
    """It puts some off, and says when it was asked."""

    def __init__(self, clock: Moving, batch: int) -> None:
        super().__init__(batch)
        self.clock = clock
        self.later: set[str] = set()
        self.times: list[float] = []

    async def deliver(self, records: Sequence[Record]) -> Mapping[str, str]:
        self.times.append(self.clock.time)
        later = [it["id"] for it in records if it["id"] in self.later]
        refused = await super().deliver([it for it in records if it["id"] not in later])
        if later:
            raise Partly(later, refused, "not now")
        return refused


@pytest.mark.parametrize("batch", [1, 5])
async def test_records_that_a_sink_puts_off_wait_alone(tmp_path: Path, batch: int) -> None:
    clock = Moving()
    start = clock.time
    sink = Choosy(clock, batch)
    sink.later = {"0000"}
    sink.refuses = {"0001": "it is too large"}
    outbox = made(tmp_path, clock, sink=sink)
    await outbox.open()
    await put(outbox, 10)
    outbox.start()
    await sink.has(8)
    assert set(sink.times[: 10 // batch]) == {start}
    sink.later = set()
    await sink.has(9)
    await outbox.aclose(30)

    # Each once.
    assert sink.ids == [id for id in ids(10) if id != "0001"]
    assert await status(tmp_path, "sink") == {"sink": Waiting(0, 1)}


async def test_what_a_sink_refuses_is_kept_and_comes_home_once_the_cause_is_mended(
    tmp_path: Path,
) -> None:
    sink = Scripted()
    sink.refuses = {"0003": "it is too large"}
    async with running(made(tmp_path, sink=sink)) as outbox:
        await put(outbox, 5)
        await sink.has(4)
        while (await outbox.status())["sink"].waiting:
            pass
        assert await outbox.status() == {"sink": Waiting(0, 1)}

        sink.refuses = {}
        assert await outbox.replay("sink") == 1
        await sink.has(5)

    assert sink.ids == ids(5)


@pytest.mark.parametrize("text", [b"no JSON", b"{}", b'{"id": "0003"}'])
async def test_what_is_not_this_record_is_poison(tmp_path: Path, text: bytes) -> None:
    sink = Scripted()
    async with running(made(tmp_path, sink=sink)) as outbox:
        await outbox.put("0001", text)
        await outbox.put(*record(2))
        await sink.has(1)

    assert sink.ids == ["0002"]
    assert (await status(tmp_path, "sink"))["sink"].poison == 1


@pytest.mark.parametrize("text", [b"no JSON", b"{}", b'{"id": "0003"}'])
async def test_what_is_not_this_record_is_not_written_down_either(
    tmp_path: Path, text: bytes
) -> None:
    """A file is given records as they are, and has one in each line all the same."""
    path = tmp_path / "records.jsonl"
    options = JsonLines.Options(logging_client_jsonl_filename=str(path))
    sink = JsonLines(options, Surroundings({}, httpx.AsyncClient()))
    delivery = Delivery("jsonl", sink, 30, Pace())
    whole = b'{"id": "0002",\n "text": "a\\nb"}'

    refused = await delivery({"0001": text, "0002": whole})

    assert list(refused) == ["0001"]
    assert [json.loads(line) for line in path.read_bytes().splitlines()] == [json.loads(whole)]


async def test_waiting_records_and_poison_can_be_purged(tmp_path: Path) -> None:
    outbox = made(tmp_path, sink=Scripted(), other=Scripted())
    await put(outbox, 3)

    assert await outbox.purge("sink", poison=True) == 0
    assert await outbox.purge("sink", poison=False) == 3
    found = await outbox.status()
    await outbox.aclose(0)

    assert (found["sink"].waiting, found["other"].waiting) == (0, 3)


async def test_the_age_of_the_oldest_is_told(tmp_path: Path) -> None:
    clock = Moving()
    outbox = made(tmp_path, clock, sink=Scripted())
    await outbox.put(*record(1))
    clock.time += 90
    await outbox.put(*record(2))

    assert await outbox.status() == {"sink": Waiting(2, 0, 90)}
    await outbox.aclose(0)


async def test_what_one_process_has_taken_is_nobody_elses_until_its_lease_ends(
    tmp_path: Path,
) -> None:
    clock = Moving()
    one, two = made(tmp_path, clock, sink=Scripted()), made(tmp_path, clock, sink=Scripted())
    await put(one, 10)

    first = await one.take("sink", 4, 10**6, clock.now() + 35)
    second = await two.take("sink", 100, 10**6, clock.now() + 35)
    assert not first.records.keys() & second.records.keys()
    assert sorted([*first.records, *second.records]) == ids(10)
    assert (await two.take("sink", 100, 10**6, clock.now() + 35)).records == {}

    # The one is slow, and another has taken its records since: it settles nothing of theirs.
    clock.time += 36
    third = await two.take("sink", 100, 10**6, clock.now() + 35)
    assert sorted(third.records) == ids(10)
    await one.settle(first, {})
    assert (await one.status())["sink"].waiting == 10
    await two.settle(third, {})
    assert (await one.status())["sink"].waiting == 0
    for outbox in (one, two):
        await outbox.aclose(0)


async def test_a_record_that_is_replaced_while_it_is_delivered_is_delivered_anew(
    tmp_path: Path,
) -> None:
    clock = Moving()
    outbox = made(tmp_path, clock, sink=Scripted())
    intent = await outbox.intend("0001", b'{"id": "0001", "error": "worker_lost"}', 5)
    assert (await outbox.take("sink", 10, 10**6, clock.now() + 35)).records == {}

    clock.time += 6
    lost = await outbox.take("sink", 10, 10**6, clock.now() + 35)
    await outbox.put("0001", b'{"id": "0001", "error": null}', intent)
    await outbox.settle(lost, {})

    found = await outbox.take("sink", 10, 10**6, clock.now() + 35)
    await outbox.aclose(0)
    assert b"worker_lost" in lost.records["0001"]
    assert found.records == {"0001": b'{"id": "0001", "error": null}'}


async def test_an_intent_that_nobody_completes_is_delivered_after_its_age(tmp_path: Path) -> None:
    clock = Moving()
    sink = Scripted()
    until = clock.now() + 4000
    async with running(made(tmp_path, clock, sink=sink)) as outbox:
        await outbox.intend("0001", b'{"id": "0001", "error": "worker_lost"}', 4000)
        await sink.has(1)

    assert clock.now() >= until
    assert sink.taken == [{"id": "0001", "error": "worker_lost"}]


async def test_what_waited_at_the_end_of_a_process_is_delivered_by_the_next(tmp_path: Path) -> None:
    outbox = made(tmp_path, sink=Scripted())
    await put(outbox, 20)
    await outbox.aclose(0)

    sink = Scripted()
    async with running(made(tmp_path, sink=sink)):
        await sink.has(20)

    assert sink.ids == ids(20)


async def test_at_its_end_it_delivers_what_waits(tmp_path: Path) -> None:
    sink = Scripted()
    async with running(made(tmp_path, sink=sink)) as outbox:
        await put(outbox, 35)

    assert sink.ids == ids(35)


async def test_at_its_end_it_does_not_wait_for_a_sink_that_is_away(tmp_path: Path) -> None:
    sink = Scripted()
    sink.fails = lambda _: True
    async with running(made(tmp_path, sink=sink)) as outbox:
        await put(outbox, 5)
        await sink.was_asked(1)

    assert (await status(tmp_path, "sink"))["sink"].waiting == 5


async def test_a_batch_is_bounded_in_bytes_and_has_one_record_at_least(tmp_path: Path) -> None:
    outbox = made(tmp_path, sink=Scripted())
    for number in range(4):
        await outbox.put(str(number), b'"%s"' % (b"x" * 1000))

    batches = []
    for _ in range(4):
        batch = await outbox.take("sink", 10, 2500, 2**40)
        batches.append((len(batch.records), batch.more))
        await outbox.settle(batch, {})
    await outbox.put("large", b'"%s"' % (b"x" * 9999))
    large = await outbox.take("sink", 10, 2500, 0)
    await outbox.aclose(0)

    assert batches[:2] == [(2, True), (2, False)]
    assert list(large.records) == ["large"]


async def test_a_full_outbox_takes_nothing_and_takes_again_when_it_is_delivered(
    tmp_path: Path,
) -> None:
    path = str(tmp_path / "outbox.db")
    outbox = with_options(
        SQLiteOutbox.Options(outbox_path=path, outbox_limit=300_000), sink=Scripted()
    )
    results = [await attempt(outbox, str(number), 10_000) for number in range(40)]
    taken = results.count(None)
    assert 15 < taken < 30
    assert {str(it) for it in results[taken:]} == {f"{path} is full: outbox_limit is 300000 bytes"}
    assert (tmp_path / "outbox.db").stat().st_size < 400_000

    batch = await outbox.take("sink", 100, 10**6, 0)
    await outbox.settle(batch, {})
    await outbox.put("one more", b"{}")
    await outbox.aclose(0)


async def attempt(outbox: SQLiteOutbox, id: str, size: int) -> OutboxFailed | None:
    try:
        await outbox.put(id, b'"%s"' % (b"x" * size))
    except OutboxFailed as error:
        return error
    return None


async def test_nobody_else_may_read_its_files(tmp_path: Path) -> None:
    outbox = made(tmp_path, sink=Scripted())
    await outbox.put(*record(1))

    files = await asyncio.to_thread(lambda: list(tmp_path.iterdir()))
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in files}
    await outbox.aclose(0)

    assert modes == {"outbox.db": 0o600, "outbox.db-wal": 0o600, "outbox.db-shm": 0o600}


def no_database(path: Path) -> None:
    path.write_text("no database " * 1000)


def newer(path: Path) -> None:
    connection = sqlite3.connect(path)
    connection.execute("PRAGMA user_version = 3")
    connection.close()


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (no_database, "file is not a database"),
        (newer, "it is of version 3, and not 2"),
        (Path.mkdir, "unable to open database file"),
    ],
)
async def test_a_file_that_is_none_of_ours_is_told_and_stays_as_it_is(
    tmp_path: Path, spoil: Callable[[Path], None], told: str
) -> None:
    spoil(tmp_path / "outbox.db")
    outbox = made(tmp_path, sink=Scripted())

    with pytest.raises(OSError, match=told):
        await outbox.open()
    await outbox.aclose(0)


def test_processes_that_begin_a_file_at_the_same_time_wait_for_each_other(tmp_path: Path) -> None:
    """As two workers of an app do at its first start: none is told that the file is locked."""
    context = multiprocessing.get_context("spawn")
    together, told = context.Barrier(4), context.SimpleQueue()
    processes = [
        context.Process(target=begin_files, args=(tmp_path, together, told)) for _ in range(4)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join()

    assert [told.get() for _ in processes] == ["opened all"] * 4


def begin_files(folder: Path, together: Any, told: Any) -> None:
    async def begin() -> None:
        for number in range(30):
            (folder / str(number)).mkdir(exist_ok=True)
            outbox = made(folder / str(number))
            together.wait(60)
            await outbox.open()
            await outbox.aclose(0)

    try:
        asyncio.run(begin())
        told.put("opened all")
    except Exception as error:  # noqa: BLE001  it is told to who waits
        told.put(repr(error))
        together.abort()


async def test_a_file_that_another_program_locks_takes_records_again_when_it_is_free(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("llamaxing.outbox.sqlite._BUSY", 0.01)
    outbox = made(tmp_path, sink=Scripted())
    await outbox.open()
    other = sqlite3.connect(tmp_path / "outbox.db", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")

    with pytest.raises(OutboxFailed, match="locked"):
        await outbox.put(*record(1))
    other.execute("ROLLBACK")
    other.close()
    await outbox.put(*record(2))

    found = await outbox.take("sink", 10, 10**6, 0)
    await outbox.aclose(0)
    assert list(found.records) == ["0002"]


async def test_puts_at_one_time_share_a_commit(tmp_path: Path) -> None:
    outbox = made(tmp_path, sink=Scripted())
    await outbox.open()
    added = []
    insert = outbox._commits._add
    outbox._commits._add = lambda it, entries: (added.append(len(entries)), insert(it, entries))[1]

    await put(outbox, 300)
    await outbox.aclose(0)

    assert sum(added) == 300
    assert len(added) < 100


async def test_records_that_share_a_commit_are_told_apart_again(tmp_path: Path) -> None:
    """A sink that takes a hundred at once is given seven, of which it takes five."""
    clock = Moving()
    outbox = made(tmp_path, clock, sink=Scripted(batch=100))
    await put(outbox, 20)

    batch = await outbox.take("sink", 7, 10**6, clock.now() + 35)
    first, second, *others = batch.records
    await outbox.settle(batch, {first: "it is too large"}, [second], clock.now() + 60)

    assert len(others) == 5
    assert (await outbox.status())["sink"] == Waiting(14, 1, 0)
    rest = await outbox.take("sink", 100, 10**6, clock.now() + 35)
    assert sorted({*rest.records, first, second, *others}) == ids(20)
    assert len(rest.records) == 13
    await outbox.settle(rest, {})
    clock.time += 61
    lease = clock.now() + 35
    assert list((await outbox.take("sink", 100, 10**6, lease)).records) == [second]
    assert await outbox.replay("sink") == 1
    assert list((await outbox.take("sink", 100, 10**6, lease)).records) == [first]
    await outbox.aclose(0)


async def test_an_intent_is_replaced_though_much_else_is_added_with_its_record(
    tmp_path: Path,
) -> None:
    clock = Moving()
    outbox = made(tmp_path, clock, sink=Scripted(batch=100))
    begun = [outbox.intend(id, b'{"error": "worker_lost"}', 60) for id in ids(10)]
    intents = await asyncio.gather(*begun)

    ends = zip(ids(10)[:9], intents, strict=False)
    await asyncio.gather(*(outbox.put(id, b"{}", it) for id, it in ends), put(outbox, 5, 20))

    found = await outbox.take("sink", 100, 10**6, clock.now() + 35)
    assert sorted(found.records) == [*ids(9), *[record(n)[0] for n in range(20, 25)]]
    assert all(b"worker_lost" not in it for it in found.records.values())
    clock.time += 61
    lost = await outbox.take("sink", 100, 10**6, clock.now() + 35)
    assert b"worker_lost" in lost.records["0009"]
    await outbox.aclose(0)


VERSION_1 = """
PRAGMA journal_mode = wal;
CREATE TABLE outbox (
    sink TEXT NOT NULL, id TEXT NOT NULL, added INTEGER NOT NULL, due INTEGER NOT NULL,
    poison TEXT, record BLOB NOT NULL, PRIMARY KEY (sink, id)
);
CREATE INDEX waiting ON outbox (sink, due, added) WHERE poison IS NULL;
CREATE INDEX poison ON outbox (sink) WHERE poison IS NOT NULL;
PRAGMA user_version = 1;
"""


async def test_what_an_earlier_version_has_left_is_delivered(tmp_path: Path) -> None:
    clock = Moving()
    now = int(clock.now() * 1000)
    earlier = sqlite3.connect(tmp_path / "outbox.db")
    earlier.executescript(VERSION_1)
    rows = [("sink", *record(n), now - 90_000, now - 90_000, None) for n in range(20)]
    rows.append(("sink", *record(20), now, now, "it is too large"))
    # An intent, whose record has yet to come.
    rows.append(
        ("sink", "0021", b'{"id": "0021", "error": "worker_lost"}', now, now + 60_000, None)
    )
    rows.append(("other", *record(0), now, now, None))
    earlier.executemany(
        "INSERT INTO outbox (sink, id, record, added, due, poison) VALUES (?, ?, ?, ?, ?, ?)", rows
    )
    earlier.commit()
    earlier.close()

    outbox = made(tmp_path, clock, sink=Scripted(), other=Scripted())
    also = made(tmp_path, clock, sink=Scripted(), other=Scripted())
    await asyncio.gather(outbox.open(), also.open())

    assert await outbox.status() == {"sink": Waiting(21, 1, 90), "other": Waiting(1, 0, 0)}
    found = await outbox.take("sink", 100, 10**6, clock.now() + 35)
    assert found.records == dict(map(record, range(20)))
    await outbox.settle(found, {})
    await also.put("0021", b"{}", True)
    assert await outbox.replay("sink") == 1
    found = await also.take("sink", 100, 10**6, clock.now() + 35)
    assert found.records == {"0020": record(20)[1], "0021": b"{}"}
    # A process of the earlier version fails at once, and hands its records to their sinks.
    with (
        closing(sqlite3.connect(tmp_path / "outbox.db")) as earlier,
        pytest.raises(sqlite3.OperationalError, match="no such table"),
    ):
        earlier.execute("SELECT * FROM outbox")
    await asyncio.gather(outbox.aclose(0), also.aclose(0))


async def test_its_log_of_changes_does_not_grow_without_end(tmp_path: Path) -> None:
    outbox = made(tmp_path, sink=Scripted())
    for number in range(800):
        await outbox.put(str(number), b"x" * 100_000)

    size = (tmp_path / "outbox.db-wal").stat().st_size
    await outbox.aclose(0)

    assert size < 40_000_000


async def test_a_program_that_looks_into_the_file_leaves_it_whole(tmp_path: Path) -> None:
    """To close a file ends a process's locks on it: SQLite then takes it for nobody's, and removes
    the log of changes that others write to."""
    outbox, also = made(tmp_path, sink=Scripted()), made(tmp_path, sink=Scripted())
    await put(outbox, 5)
    await put(also, 5, 5)

    looks = "import sqlite3, sys; sqlite3.connect(sys.argv[1]).execute('SELECT * FROM records')"
    path = str(tmp_path / "outbox.db")
    looking = await asyncio.create_subprocess_exec(sys.executable, "-c", looks, path)
    assert await looking.wait() == 0

    assert (tmp_path / "outbox.db-wal").exists()
    await put(outbox, 5, 10)
    assert (await also.status())["sink"].waiting == 15
    await asyncio.gather(outbox.aclose(0), also.aclose(0))
