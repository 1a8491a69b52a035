"""Where records go. A sink is one module here: a class of `Sink`, named by `PLUGIN`."""

from typing import Any, Protocol


class Sink(Protocol):
    async def record(self, record: dict[str, Any]) -> None:
        """Takes a record for good, or raises. The same id may come twice; it counts once."""

    async def aclose(self) -> None:
        """Ends what is open. Nothing is recorded afterwards."""
