"""Azure Storage queues, one a sink. A function that each of them triggers hands its records on."""

import asyncio
import re
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from typing import Any, SupportsBytes, TypeVar

import msgspec
from pydantic import BaseModel, Field, field_validator

from llamaxing.credentials.storage import Connection
from llamaxing.delivery import Delivery, Later
from llamaxing.logs import Seldom, log
from llamaxing.outbox import OutboxFailed, Refused, Trigger, Waiting
from llamaxing.plugins import Surroundings
from llamaxing.queued import Queued
from llamaxing.storage import MESSAGE, Message, Queue, Receipt, Storage, StorageFailed

T = TypeVar("T")

# Seconds that a message is nobody else's while it moves out of the poison queue.
_MOVED_WITHIN = 60
# Each record waits by itself, so that all together ask a sink this much less often.
_PATIENCE = 10
# How often it is tried to have a record wait again, with a second between.
_TRIES = 3
# Seconds after which a record that has to wait again is late. While it waits nobody sees it in its
# queue, so it is told here how old it is.
_LATE = 600
_PREFIX = re.compile(r"[a-z0-9](?:-?[a-z0-9])*")


class AzureQueueOutbox:
    class Options(BaseModel, frozen=True):
        outbox_connection: str = Field(
            default="AzureWebJobsStorage",
            description="The storage connection of the outbox `azure_queue`, named as Functions "
            "name theirs: an app setting with a connection string, or the NAME of "
            "`NAME__accountName`, `NAME__credential` and so on.",
        )
        outbox_queue_prefix: str = Field(
            default="llamaxing",
            max_length=30,
            description="What the names of its queues and of its container begin with: "
            "`llamaxing-mongodb`, `llamaxing-mongodb-poison`, `llamaxing-outbox`.",
        )

        @field_validator("outbox_queue_prefix")
        @classmethod
        def _prefix(cls, value: str) -> str:
            if not _PREFIX.fullmatch(value):
                raise ValueError("has to be of lower-case letters, digits and single hyphens")
            return value

    def __init__(
        self, options: Options, surroundings: Surroundings, deliveries: Mapping[str, Delivery]
    ) -> None:
        name, prefix = options.outbox_connection, options.outbox_queue_prefix
        try:
            connection = Connection(name, surroundings.environ)
        except ValueError as error:
            raise ValueError(f"the connection {name} {error}") from None
        if not connection.queues or not connection.blobs:
            raise ValueError(f"the connection {name} names no storage account; set {name}")
        storage = Storage(connection, surroundings.web)
        self._clock = surroundings.clock
        self._deliveries = deliveries
        self._queues = {it: storage.queue(_queue(prefix, it)) for it in deliveries}
        self._poison = {it: storage.queue(f"{_queue(prefix, it)}-poison") for it in deliveries}
        self._blobs = storage.container(f"{prefix}-outbox")
        self._log = Seldom()
        # By sink: when the oldest was added that this process has sent back, and until when it
        # certainly waits. Nobody may look at such a message.
        self._sent_back: dict[str, tuple[float, float]] = {}
        self.triggers = {
            it: Trigger(
                it,
                _queue(prefix, it),
                name,
                partial(self._deliver, it),
                partial(self._postpone, it),
            )
            for it in deliveries
        }

    async def open(self) -> None:
        return None

    def start(self) -> None:
        return None

    async def put(self, id: str, record: SupportsBytes, intent: Any = None) -> None:
        text = bytes(record)
        await self._all(lambda sink: self._put(sink, id, text, intent or {}))

    async def intend(self, id: str, record: bytes, age: float) -> Any:
        return await self._all(lambda sink: self._intend(sink, id, record, age))

    async def status(self) -> Mapping[str, Waiting]:
        return await self._all(self._status)

    async def replay(self, sink: str) -> int:
        """Storage that fails in between leaves a record in both places rather than in none."""
        queue, poison = self._queues[sink], self._poison[sink]

        async def move(message: Message) -> None:
            found = Queued.read(message.text)
            await queue.put(found.tried(0).encoded() if found else message.text)
            await poison.delete(message.receipt)

        return await _told(_each(poison, move))

    async def purge(self, sink: str, *, poison: bool) -> int:
        queue = self._poison[sink] if poison else self._queues[sink]

        async def drop(message: Message) -> None:
            found = Queued.read(message.text)
            if found and found.blob:
                await self._blobs.delete(found.blob)
            await queue.delete(message.receipt)

        async def drop_all() -> int:
            number = await queue.length()
            await _each(queue, drop)
            # Those that wait to be tried again cannot be taken.
            await queue.clear()
            return number

        return await _told(drop_all())

    async def aclose(self, within: float) -> None:
        return None

    async def _put(self, sink: str, id: str, record: bytes, intents: Mapping[str, Receipt]) -> None:
        text = await self._text(sink, id, record)
        if sink in intents:
            try:
                return await self._queues[sink].replace(intents[sink], text)
            except StorageFailed as error:
                # It is not there any more, or somebody has it now.
                if error.status not in (400, 404):
                    raise
        await self._queues[sink].put(text)
        return None

    async def _intend(self, sink: str, id: str, record: bytes, age: float) -> Receipt:
        return await self._queues[sink].put(await self._text(sink, id, record), age)

    async def _text(self, sink: str, id: str, record: bytes) -> bytes:
        """Of a message, with the record in it or in a blob."""
        message = Queued(id, self._clock.now(), record=msgspec.Raw(record))
        text = message.encoded()
        if len(text) <= MESSAGE:
            return text
        blob = f"{sink}/{id}"
        await self._blobs.put(blob, record)
        return Queued(id, message.added, blob=blob).encoded()

    async def _status(self, sink: str) -> Waiting:
        queue = self._queues[sink]
        waiting, poison, seen = await asyncio.gather(
            queue.length(), self._poison[sink].length(), queue.peek()
        )
        now = self._clock.now()
        added = [found.added for it in seen if (found := Queued.read(it.text))]
        oldest, until = self._sent_back.get(sink, (now, now))
        if until > now:
            added.append(oldest)
        return Waiting(waiting, poison, max(0.0, now - min(added)) if added else None)

    async def _all(self, does: Callable[[str], Awaitable[T]]) -> dict[str, T]:
        """For each sink at once."""
        found = await _told(asyncio.gather(*(does(sink) for sink in self._deliveries)))
        return dict(zip(self._deliveries, found, strict=True))

    # What the platform calls, with a message of a sink's queue

    async def _deliver(self, sink: str, text: bytes) -> None:
        """Raises `Refused` for what can never be delivered; and `StorageFailed`, where a record
        that has to wait cannot. The platform tries both again, and then calls them poison."""
        message = _understood(sink, text)
        try:
            await self._hand_over(sink, message)
        except (Later, StorageFailed):
            await self._again(sink, message)

    async def _hand_over(self, sink: str, message: Queued) -> None:
        record = await self._blobs.get(message.blob) if message.blob else bytes(message.record)
        if record is None:
            log.warning("record %s: its blob is gone, so %s has it", ascii(message.id), sink)
            return
        refused = await self._deliveries[sink]({message.id: record})
        if refused:
            raise Refused(f"{sink} refuses record {message.id!a}: {refused[message.id]!a}")
        if message.blob:
            await self._blobs.delete(message.blob)

    async def _postpone(self, sink: str, text: bytes) -> None:
        """Raises as `_deliver` does."""
        await self._again(sink, _understood(sink, text))

    async def _again(self, sink: str, message: Queued) -> None:
        """Another message takes its place, later; the platform then deletes this one."""
        age = self._clock.now() - message.added
        if age > _LATE:
            self._log.error(f"outbox sink={sink} oldest=%d", age)
        pause = _PATIENCE * self._deliveries[sink].pace.after(message.attempts)
        text = message.tried(message.attempts + 1).encoded()
        for tries in range(1, _TRIES + 1):
            try:
                await self._queues[sink].put(text, pause)
            except StorageFailed:
                if tries == _TRIES:
                    raise
                await self._clock.wait(asyncio.Event(), 1)
            else:
                self._remember(sink, message.added, pause)
                return

    def _remember(self, sink: str, added: float, pause: float) -> None:
        now = self._clock.now()
        oldest, until = self._sent_back.get(sink, (added, now))
        if until <= now or added <= oldest:
            self._sent_back[sink] = added, now + pause


async def _each(queue: Queue, does: Callable[[Message], Awaitable[None]]) -> int:
    """With all that may be taken; returns how many there were."""
    number = 0
    while messages := await queue.take(_MOVED_WITHIN):
        await asyncio.gather(*map(does, messages))
        number += len(messages)
    return number


def _queue(prefix: str, sink: str) -> str:
    return f"{prefix}-{sink.replace('_', '-')}"


def _understood(sink: str, text: bytes) -> Queued:
    message = Queued.read(text)
    if message is None:
        raise Refused(f"{sink}: the message cannot be read")
    return message


async def _told(asked: Awaitable[T]) -> T:
    try:
        return await asked
    except StorageFailed as error:
        raise OutboxFailed(str(error)) from error


PLUGIN = AzureQueueOutbox
