"""No outbox: each record goes to its sinks at once, and what they do not take is told."""

import asyncio
from collections.abc import Mapping
from typing import Any, SupportsBytes

from pydantic import BaseModel

from llamaxing.delivery import Delivery, Later
from llamaxing.outbox import OutboxFailed, Trigger, Undelivered, Waiting
from llamaxing.plugins import Surroundings

# Seconds that a call waits for a sink; the recorder waits a little longer.
_WITHIN = 4.0


class NoOutbox:
    class Options(BaseModel, frozen=True):
        pass

    triggers: Mapping[str, Trigger] = {}

    def __init__(
        self, options: Options, surroundings: Surroundings, deliveries: Mapping[str, Delivery]
    ) -> None:
        self._deliveries = deliveries

    async def open(self) -> None:
        return None

    def start(self) -> None:
        return None

    async def put(self, id: str, record: SupportsBytes, intent: Any = None) -> None:
        """Raises `Undelivered`."""
        text = bytes(record)
        found = await asyncio.gather(
            *(self._delivered(it, id, text) for it in self._deliveries.values())
        )
        missing = [name for name, good in zip(self._deliveries, found, strict=True) if not good]
        if missing:
            raise Undelivered(missing)

    async def intend(self, id: str, record: bytes, age: float) -> Any:
        raise OutboxFailed("there is none")

    async def status(self) -> Mapping[str, Waiting]:
        return {}

    async def replay(self, sink: str) -> int:
        return 0

    async def purge(self, sink: str, *, poison: bool) -> int:
        return 0

    async def aclose(self, within: float) -> None:
        """Closes the sinks as well: nothing is delivered after it."""
        for delivery in self._deliveries.values():
            await delivery.aclose()

    async def _delivered(self, delivery: Delivery, id: str, record: bytes) -> bool:
        try:
            return not await delivery({id: record}, _WITHIN)
        except Later:
            return False


PLUGIN = NoOutbox
