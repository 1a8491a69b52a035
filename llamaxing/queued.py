"""A record as the message of a queue."""

from typing import Self

import msgspec


class Queued(msgspec.Struct, frozen=True):
    """`added`: seconds since 1970. `blob`: where the record is that is too large for a message."""

    id: str
    added: float
    attempts: int = 0
    blob: str = ""
    record: msgspec.Raw = msgspec.Raw()

    @classmethod
    def read(cls, text: bytes) -> Self | None:
        """None for what is no such message."""
        try:
            return msgspec.json.decode(text, type=cls)
        except (msgspec.DecodeError, UnicodeDecodeError):
            return None

    def encoded(self) -> bytes:
        head = {"id": self.id, "added": self.added, "attempts": self.attempts}
        rest = {"blob": self.blob} if self.blob else {"record": self.record}
        return msgspec.json.encode(head | rest)

    def tried(self, attempts: int) -> Self:
        """The same, after so many attempts to deliver it."""
        return msgspec.structs.replace(self, attempts=attempts)
