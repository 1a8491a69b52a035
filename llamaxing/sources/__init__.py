"""Where models.json and identities.json come from. A source is one module here, and the word
before the colon of a setting such as `file:models.json` names it."""

from typing import Protocol


class Source(Protocol):
    name: str
    """What faults call it."""

    async def read(self) -> bytes:
        """The whole of it. Raises OSError when it cannot be had."""
