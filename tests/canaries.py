"""Secrets that are recognised wherever they turn up, also in part."""

import secrets
from collections.abc import Iterable, Iterator

# So much of one is told from chance, and is of use to whoever finds it.
_PART = 16


class Canaries:
    """The secrets of a test, by what they are."""

    def __init__(self) -> None:
        self._known: dict[str, str] = {}

    def new(self, name: str) -> str:
        return self.keep(name, f"{secrets.token_hex(8)}-{secrets.token_hex(8)}")

    def keep(self, name: str, *found: str) -> str:
        """One or several that were made elsewhere."""
        for number, it in enumerate(found):
            self._known[f"{name} {number}" if number else name] = it
        return found[0]

    def found_in(self, text: str) -> list[str]:
        """What the secrets are that it holds, or parts of them."""
        return [name for name, it in self._known.items() if any(p in text for p in _parts(it))]


def _parts(secret: str) -> Iterator[str]:
    pieces: Iterable[str] = (secret,)
    if secret.count(".") == 2:
        # Everybody's tokens begin alike; what is signed, and the signature, do not.
        pieces = (part for part in secret.split(".")[1:] if part)
        yield from (piece[-3 * _PART :] for piece in pieces)
        return
    for piece in pieces:
        yield piece[:_PART]
        yield piece[-_PART:]
