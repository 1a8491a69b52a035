"""Where records go. A sink is one module here: a class of `Sink`, named by `PLUGIN`.

Its constructor takes its `Options` and the `plugins.Surroundings`. It neither blocks nor connects,
and raises ValueError for options that cannot be used.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

Record = dict[str, Any]
"""Plain JSON values. `id` is the key: a second delivery of an id changes nothing."""


class Sink(Protocol):
    batch: int
    """How many records it takes at once at the most."""

    async def deliver(self, records: Sequence[Record]) -> Mapping[str, str]:
        """Takes the records for good.

        Returns those that can never be delivered, by id, and why. Raises for what may go better
        later: then none of them counts as delivered.
        """

    async def aclose(self) -> None:
        """Ends what is open. Nothing is delivered afterwards."""
