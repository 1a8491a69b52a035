"""Where records wait until their sinks have them. An outbox is one module here: a class of
`Outbox`, named by `PLUGIN`.

Its constructor takes its `Options`, the `plugins.Surroundings`, and the deliveries to its sinks by
their names. It neither blocks nor connects, and raises ValueError for options that cannot be used.
"""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Protocol, SupportsBytes

import msgspec


class OutboxFailed(OSError):
    """It cannot take a record, or give one back."""


class Refused(Exception):
    """What can never be delivered, and why."""


class Undelivered(OutboxFailed):
    """`sinks`: the names of those that do not have the record."""

    def __init__(self, sinks: Sequence[str]) -> None:
        super().__init__(f"{', '.join(sinks)} did not take it")
        self.sinks = sinks


class Waiting(msgspec.Struct, frozen=True):
    """What an outbox holds for a sink. `oldest`: the age in seconds of what waits longest, as far
    as this process can know."""

    waiting: int
    poison: int
    oldest: float | None = None


class Trigger(msgspec.Struct, frozen=True):
    """A queue of the platform's, which calls `deliver` with the text of each message and deletes
    those for which it returns. `connection`: the app setting that names the storage. `postpone` has
    a message wait, where it cannot be delivered yet."""

    sink: str
    queue: str
    connection: str
    deliver: Callable[[bytes], Awaitable[None]]
    postpone: Callable[[bytes], Awaitable[None]]


class Outbox(Protocol):
    """At least once: a record stays until its sink has it, or has refused it for good (poison).

    All methods raise `OutboxFailed`.
    """

    triggers: Mapping[str, Trigger]
    """By sink; none where the outbox delivers by itself."""

    async def open(self) -> None:
        """To see, at the start, whether it can be used. What may be away is not asked for."""

    def start(self) -> None:
        """Begins to deliver, what an earlier process has left as well."""

    def put(self, id: str, record: SupportsBytes, intent: Any = None) -> Awaitable[None]:
        """Takes a record for every sink; returns when it is kept. It is written, in JSON, when its
        bytes are asked for. Nobody waits for it longer than 5 s; a future, which costs less to wait
        for than a coroutine, sees to that by itself, with a TimeoutError.

        It replaces what `intend` has put under this id, if that gave `intent`.
        """

    async def intend(self, id: str, record: bytes, age: float) -> Any:
        """Takes what is to be delivered after `age` seconds, if it is not replaced by then."""

    async def status(self) -> Mapping[str, Waiting]:
        """By sink."""

    async def replay(self, sink: str) -> int:
        """Has poison delivered again; returns how much."""

    async def purge(self, sink: str, *, poison: bool) -> int:
        """Drops poison, or what waits; returns how much."""

    async def aclose(self, within: float) -> None:
        """Delivers what it can within so many seconds, and closes."""
