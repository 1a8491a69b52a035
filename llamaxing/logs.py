"""The one log, and what each `debug_level` adds to it."""

import logging
import time

log = logging.getLogger("llamaxing")

# 0: a line a call, without texts. 1: requests and replies, and why a credential was refused.
# 2: each chunk of a stream. 3: what is sensitive, the credentials of callers among it.
TEXTS = logging.DEBUG
CHUNKS = logging.DEBUG - 1
SENSITIVE = logging.DEBUG - 2
LEVELS = (logging.INFO, TEXTS, CHUNKS, SENSITIVE)

_QUIET = 60.0


class Seldom:
    """Errors that would come with each call: one of a kind a minute."""

    def __init__(self) -> None:
        self._until: dict[str, float] = {}

    def error(self, line: str, *arguments: object) -> None:
        now = time.monotonic()
        if now >= self._until.get(line, 0.0):
            self._until[line] = now + _QUIET
            log.error(line, *arguments)

    def over(self) -> None:
        """What comes next is new."""
        self._until.clear()
