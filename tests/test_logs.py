"""The shim's log: a write for what one turn of the loop has said, and nothing lost of it."""

import asyncio
import io
import logging
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from llamaxing.logs import Lines, Spare, Stamped


class Writes(io.StringIO):
    """A stream that remembers each write."""

    def __init__(self) -> None:
        super().__init__()
        self.all: list[str] = []

    def write(self, text: str) -> int:
        self.all.append(text)
        return super().write(text)


@pytest.fixture
def writes() -> Writes:
    return Writes()


@pytest.fixture
def log(writes: Writes) -> Iterator[logging.Logger]:
    handler = Lines()
    handler.setStream(writes)
    logger = logging.Logger("of-the-test", logging.INFO)  # noqa: LOG001  nobody else has it
    logger.addHandler(handler)
    yield logger
    handler.close()


async def test_the_lines_of_one_turn_are_one_write(log: logging.Logger, writes: Writes) -> None:
    log.info("one")
    log.info("two")

    await asyncio.sleep(0)

    assert writes.all == ["one\ntwo\n"]


async def test_an_error_does_not_wait_and_nothing_overtakes(
    log: logging.Logger, writes: Writes
) -> None:
    log.info("one")
    log.error("bad")

    assert writes.all == ["one\nbad\n"]


def test_without_a_loop_each_line_is_written_at_once(log: logging.Logger, writes: Writes) -> None:
    log.info("one")

    assert writes.all == ["one\n"]


async def test_lines_of_many_threads_are_all_there(log: logging.Logger, writes: Writes) -> None:
    with ThreadPoolExecutor(8) as threads:
        for number in range(400):
            threads.submit(log.info, "%d", number)
            log.info("%d", number + 400)

    await asyncio.sleep(0)

    assert sorted(map(int, writes.getvalue().split())) == list(range(800))


class Unspeakable:
    def __str__(self) -> str:
        raise RuntimeError


@pytest.mark.parametrize("what", ["%d", "%(name)s", Unspeakable()])
async def test_a_line_that_cannot_be_made_costs_neither_the_others_nor_the_call(
    log: logging.Logger, writes: Writes, monkeypatch: pytest.MonkeyPatch, what: object
) -> None:
    monkeypatch.setattr(logging, "raiseExceptions", False)
    log.info(what, {"no": "number"})
    log.info("one")

    await asyncio.sleep(0)

    assert writes.all == ["one\n"]


async def test_a_log_that_nobody_takes_does_not_disturb_the_calls(log: logging.Logger) -> None:
    class Gone(io.StringIO):
        def write(self, text: str) -> int:
            raise BrokenPipeError

    handler = log.handlers[0]
    assert isinstance(handler, Lines)
    handler.setStream(Gone())

    log.error("bad")


def test_a_stamp_is_what_logging_writes() -> None:
    ours, theirs = Stamped(), logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s")
    records = [logging.LogRecord("n", logging.INFO, "", 0, "m%d", (it,), None) for it in range(3)]
    for record, created in zip(records, (5.25, 5.75, 1_700_000_000.001), strict=True):
        record.created, record.msecs = created, created % 1 * 1000

    assert [ours.format(it) for it in records] == [theirs.format(it) for it in records]


@pytest.mark.parametrize(
    "given",
    [
        ("nothing to fill in: 100%", ()),
        ("%s of %d", ("one", 2)),
        ("%(name)s", ({"name": "by name"},)),
        (ValueError("no text"), ()),
    ],
)
@pytest.mark.parametrize("broken", [None, (ValueError, ValueError("why"), None)])
@pytest.mark.parametrize("stack", [None, "Stack (most recent call last):"])
def test_a_line_of_a_spare_record_reads_as_any_other(
    given: tuple[object, Any], broken: Any, stack: str | None
) -> None:
    rest = ("of-the-test", logging.ERROR, "there.py", 1, *given, broken, "there", stack)
    spare, full = Spare(*rest), logging.LogRecord(*rest)
    spare.created = full.created = 1_800_000_000.125
    full.msecs = 125.0

    told = Stamped().format(spare)

    assert told == logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s").format(full)
