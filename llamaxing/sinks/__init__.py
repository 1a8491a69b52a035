"""Where records go. A sink is one module here: a class of `Sink`, named by `PLUGIN`.

Its constructor takes its `Options` and the `plugins.Surroundings`. It neither blocks nor connects,
and raises ValueError for options that cannot be used.
"""

from collections.abc import Collection, Mapping, Sequence
from typing import Any, Protocol

Record = dict[str, Any]
"""Plain JSON values. `id` is the key: a second delivery of an id changes nothing."""


class Partly(Exception):
    """`later`: the ids of records that may go better later. The others it has taken; those in
    `refused` can never be delivered, and why."""

    def __init__(self, later: Collection[str], refused: Mapping[str, str], why: str) -> None:
        super().__init__(why)
        self.later = later
        self.refused = refused


class Sink(Protocol):
    """One with `takes_json` is given each record as it is kept: in JSON, as `bytes`."""

    batch: int
    """How many records it takes at once at the most."""

    async def deliver(self, records: Sequence[Record]) -> Mapping[str, str]:
        """Takes the records for good.

        Returns those that can never be delivered, by id, and why. Raises for what may go better
        later: `Partly`, or anything else, and then none of them counts as delivered.
        """

    async def aclose(self) -> None:
        """Ends what is open. Nothing is delivered afterwards."""
