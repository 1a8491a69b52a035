"""The one log, and what each `debug_level` adds to it."""

import asyncio
import contextlib
import functools
import logging
import time
from collections import deque
from collections.abc import Mapping
from typing import Any, TextIO

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


class Lines(logging.StreamHandler[TextIO]):
    """What one turn of the event loop has logged, in one write: a line for each of many calls would
    cost them a tenth. What is worse than information is written at once.
    """

    def __init__(self) -> None:
        super().__init__()
        self._lines: deque[str] = deque()
        self._due = False

    def handle(self, record: logging.LogRecord) -> bool:
        # Without the lock, which is for who writes: a line is added as a whole.
        try:
            self._lines.append(self.format(record))
        except Exception:  # noqa: BLE001  as other handlers do: nobody's call ends with its line
            self.handleError(record)
        if record.levelno > logging.INFO:
            self.flush()
        elif not self._due:
            self._due = True
            self._flush_soon()
        return True

    def flush(self) -> None:
        # Before any is taken: what comes after that is due again.
        self._due = False
        with self.lock or contextlib.nullcontext(), contextlib.suppress(OSError):
            lines = []
            while self._lines:
                lines.append(self._lines.popleft())
            if lines:
                self.stream.write("\n".join([*lines, ""]))
            self.stream.flush()

    def _flush_soon(self) -> None:
        try:
            asyncio.get_running_loop().call_soon(self.flush)
        except RuntimeError:
            # Another thread, or before there is a loop.
            self.flush()


_name_of = functools.cache(logging.getLevelName)


class Spare(logging.LogRecord):
    """Of a line that names no thread, process or place in the code: they are not found out."""

    pathname = filename = module = funcName = ""
    thread = threadName = processName = process = taskName = None
    lineno = 0
    msecs = relativeCreated = 0.0

    def __init__(
        self,
        name: str,
        level: int,
        pathname: str,
        lineno: int,
        msg: object,
        args: Any,
        exc_info: Any,
        func: str | None = None,
        sinfo: str | None = None,
    ) -> None:
        self.name, self.levelno, self.levelname = name, level, _name_of(level)
        named = len(args) == 1 and args[0] and isinstance(args[0], Mapping)
        self.msg, self.args = str(msg), args[0] if named else args
        self.exc_info, self.exc_text, self.stack_info = exc_info, None, sinfo
        self.created = time.time()


class Stamped(logging.Formatter):
    """The time to the millisecond; its seconds are written out once for all lines of a second."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(name)s: %(message)s")
        self._stamp = (0, "")

    def format(self, record: logging.LogRecord) -> str:
        if record.exc_info or record.stack_info:
            return super().format(record)
        message = record.getMessage()
        return f"{self.formatTime(record)} {record.levelname} {record.name}: {message}"

    def formatTime(self, record: logging.LogRecord, datefmt: str | None = None) -> str:
        second, text = self._stamp
        now = int(record.created)
        if now != second:
            text = time.strftime(self.default_time_format, time.localtime(now))
            self._stamp = now, text
        return f"{text},{int((record.created - now) * 1000):03d}"
