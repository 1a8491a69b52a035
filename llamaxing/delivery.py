"""Records on their way to one sink: tried once, or fed from a store until it has them all."""

import asyncio
import math
import random
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Protocol

import msgspec

from llamaxing.clock import Clock
from llamaxing.exchange import SCHEMA
from llamaxing.logs import Seldom, log
from llamaxing.sinks import Partly, Record, Sink

# Bytes that are decoded before streams on the same loop have waited noticeably.
_DECODED_ON_THE_LOOP = 64 * 1024
# Bytes of records that are in memory for one sink at the most; but one record always may be.
_AT_ONCE = 8 * 1024 * 1024
# Seconds that a record waits for others to be delivered with.
_LINGER = 0.2
# Seconds after which a feed looks for what another process has left.
_LOOK = 5.0
# Seconds that records stay taken beyond the time that a delivery may last.
_SPARE = 5.0


class _Named(msgspec.Struct):
    """A record that is not looked into."""

    id: Any = None


_decoder = msgspec.json.Decoder(Record)
_named = msgspec.json.Decoder(_Named)


class Later(Exception):
    """A sink does not take records now; it may later. Where it is for `some` of them alone, it has
    taken the others, but for those that it has `refused` for good."""

    def __init__(
        self,
        why: str,
        some: Collection[str] = (),
        refused: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        super().__init__(why)
        self.some = some
        self.refused = refused


@dataclass(frozen=True, slots=True)
class Pace:
    """How long a sink that fails is left alone, in seconds: longer each time, spread by chance."""

    first: float = 1
    longest: float = 60

    def after(self, failures: int) -> float:
        """`failures`: how many in a row there have been before this one."""
        pause = min(self.longest, self.first * 2.0 ** min(failures, 30))
        return pause * random.uniform(0.5, 1)


class Delivery:
    """One sink, and how long it may take for a batch."""

    def __init__(self, name: str, sink: Sink, timeout: float, pace: Pace) -> None:
        """`timeout`: in seconds."""
        self.name = name
        self.timeout = timeout
        self.pace = pace
        self.batch = sink.batch
        self._sink = sink
        self._decode = _as_json if getattr(sink, "takes_json", False) else _as_record
        self._failing = False
        self._log = Seldom()

    async def __call__(
        self, records: Mapping[str, bytes], timeout: float | None = None
    ) -> Mapping[str, str]:
        """Hands over records in JSON, by their ids.

        Returns those that can never be delivered, and why. Raises `Later`.
        """
        found, refused = await _decoded(records, self._decode)
        if found:
            try:
                async with asyncio.timeout(timeout or self.timeout):
                    refused |= await self._sink.deliver(found)
            except Partly as error:
                self._log.error("%s does not take some records: %s", self.name, ascii(str(error)))
                raise Later(str(error), error.later, {**refused, **error.refused}) from error
            except Exception as error:
                self._failing = True
                reason = str(error) or type(error).__name__
                self._log.error("%s takes no records: %s", self.name, ascii(reason))
                raise Later(reason) from error
        if self._failing:
            self._failing = False
            self._log.over()
            log.info("%s takes records again", self.name)
        if refused:
            why = next(iter(refused.values()))
            self._log.error("%s refuses records for good: %s", self.name, ascii(why))
        return refused

    async def aclose(self) -> None:
        await self._sink.aclose()


def _as_record(id: str, text: bytes) -> Record | None:
    record = _decoder.decode(text)
    return record if record.get("id") == id else None


def _as_json(id: str, text: bytes) -> bytes | None:
    # What begins like ours is ours, and need not be read to its end.
    ours = text.startswith(b'{"schema":%d,"id":"%b"' % (SCHEMA, id.encode()))
    return text if ours or _named.decode(text).id == id else None


async def _decoded(
    records: Mapping[str, bytes], decode: Callable[[str, bytes], Any]
) -> tuple[list[Any], dict[str, str]]:
    """The records, and why the others are none, by their ids."""

    def decode_all() -> tuple[list[Any], dict[str, str]]:
        found, refused = [], {}
        for id, text in records.items():
            try:
                record = decode(id, text)
            except (msgspec.DecodeError, UnicodeDecodeError):
                refused[id] = "it cannot be read"
                continue
            if record is None:
                refused[id] = "it is the record of something else"
            else:
                found.append(record)
        return found, refused

    if sum(map(len, records.values())) < _DECODED_ON_THE_LOOP:
        return decode_all()
    return await asyncio.to_thread(decode_all)


@dataclass(frozen=True, slots=True)
class Batch:
    """Records that are taken from a store, by their ids; by `taken` the store knows them again.

    `more`: others are due. `next_due`: when the next one is, by a `Clock`.
    """

    records: Mapping[str, bytes]
    taken: Any
    more: bool = False
    next_due: float = math.inf


class Store(Protocol):
    """What a feed takes from. Its methods raise OSError, and have then changed nothing."""

    async def take(self, sink: str, most: int, size: int, lease: float) -> Batch:
        """Those that are due: `most` of them, and about `size` bytes, at the most. Nobody else has
        them before `lease`."""

    async def settle(
        self,
        batch: Batch,
        refused: Mapping[str, str],
        later: Collection[str] = (),
        due: float = 0,
    ) -> None:
        """Drops what is delivered, keeps what is refused as poison, and has what is for `later`
        wait until `due`."""

    async def give_back(self, batch: Batch, due: float) -> None:
        """All of it waits again, until `due`."""


class Feed:
    """Hands one sink all that a store has for it, in batches, until it is closed."""

    def __init__(self, store: Store, delivery: Delivery, clock: Clock) -> None:
        self._store = store
        self._delivery = delivery
        self._clock = clock
        self._new = asyncio.Event()
        self._closing = asyncio.Event()
        self._failures = 0
        self._in_part = 0
        self._most = delivery.batch
        self._task = asyncio.create_task(self._run())

    def wake(self) -> None:
        """There is something new."""
        self._new.set()

    async def aclose(self, within: float) -> None:
        """Delivers what is due, as far as the sink takes it within so many seconds."""
        self._closing.set()
        self._new.set()
        await asyncio.wait({self._task}, timeout=within)
        self._task.cancel()
        await asyncio.wait({self._task})

    async def _run(self) -> None:
        last = False
        while not last:
            # What has come before it is told to end is still delivered.
            last = self._closing.is_set()
            while await self._fed():
                pass

    async def _fed(self) -> bool:
        try:
            return await self._feed()
        except OSError as error:
            log.error("records for %s cannot be taken: %s", self._delivery.name, error)
            await self._clock.wait(self._closing, self._pause())
            return False

    async def _feed(self) -> bool:
        """Whether more is due, and the sink takes it."""
        name = self._delivery.name
        lease = self._clock.now() + self._delivery.timeout + _SPARE
        self._new.clear()
        batch = await self._store.take(name, self._most, _AT_ONCE, lease)
        if not batch.records:
            if batch.next_due == math.inf:
                self._in_part = 0
            if not self._closing.is_set():
                await self._clock.wait(self._new, self._until(batch.next_due))
                await self._clock.wait(self._closing, _LINGER)
            return False
        try:
            refused = await self._delivery(batch.records)
        except Later as error:
            if not error.some:
                return await self._postponed(batch)
            # Nothing waits for these.
            due = self._clock.now() + self._delivery.pace.after(self._in_part)
            self._in_part += 1
            await self._store.settle(batch, error.refused, error.some, due)
        else:
            await self._store.settle(batch, refused)
        self._failures = 0
        self._most = min(self._delivery.batch, self._most * 2)
        if not batch.more:
            await self._clock.wait(self._closing, _LINGER)
        return True

    async def _postponed(self, batch: Batch) -> bool:
        # What spoils a batch is soon alone in its own, and then waits longer than the others.
        self._most = max(1, self._most // 2)
        pause = self._pause()
        await self._store.give_back(batch, self._clock.now() + pause)
        await self._clock.wait(self._closing, pause)
        return False

    def _until(self, due: float) -> float:
        return max(0.0, min(_LOOK, due - self._clock.now()))

    def _pause(self) -> float:
        self._failures += 1
        return self._delivery.pace.after(self._failures - 1)
