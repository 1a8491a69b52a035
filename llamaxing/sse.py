"""Server-sent events: where each ends in a stream of bytes, and what is in it.

The format is the HTML standard's (9.2 Server-sent events): a line ends in LF, CRLF or CR, and a
blank line ends an event.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import msgspec

_EVENT_END = re.compile(rb"(?:\r\n|\n|\r(?!\n))(?:\r\n|\n|\r)")
_ONE_EVENT = re.compile(rb"(?:[^\r\n]++\n)++\n")
_LINE_END = re.compile(rb"\r\n|\n|\r")
DONE = b"[DONE]"


class Framer:
    """Finds the ends of events in chunks that are cut anywhere; every byte comes out again."""

    def __init__(self) -> None:
        self._partial = bytearray()
        self._searched = 0

    @property
    def within_event(self) -> bool:
        """Whether what has come so far ends in the middle of an event."""
        return bool(self._partial.strip(b"\r\n"))

    def feed(self, chunk: bytes) -> list[bytes]:
        """The events that are whole now, each with the blank line that ends it."""
        if not self._partial and _ONE_EVENT.fullmatch(chunk):
            return [chunk]
        self._partial += chunk
        events = []
        start = 0
        while end := _EVENT_END.search(self._partial, max(start, self._searched)):
            events.append(bytes(self._partial[start : end.end()]))
            start = self._searched = end.end()
        del self._partial[:start]
        # The last three bytes may begin a blank line whose end is still to come.
        self._searched = max(0, len(self._partial) - 3)
        return events

    def rest(self) -> bytes:
        """What came after the last whole event."""
        return bytes(self._partial)


class Edited:
    """Passes whole events only, each as `edit` has it."""

    def __init__(self, framer: Framer, edit: Callable[[bytes], bytes]) -> None:
        """`framer` is fed with each chunk by somebody else, first."""
        self._framer = framer
        self._edit = edit

    within_event = False

    def feed(self, chunk: bytes, events: Sequence[bytes]) -> bytes:
        """What passes of the events that a chunk has made whole."""
        return b"".join(map(self._edit, events))

    def rest(self) -> bytes:
        """What came of an event that never became whole."""
        return self._framer.rest()


class Uncounted:
    """Keeps from a caller the event that only counts tokens, where we asked for it and they did
    not. Every other byte passes, and when it comes, but for the beginning of an event behind the
    last of the text, which may still turn out to be that one.
    """

    def __init__(self, framer: Framer) -> None:
        """`framer` is fed with each chunk by somebody else, first."""
        self._framer = framer
        # Bytes of the event that has begun which have passed already.
        self._passed = 0
        self._finished = False

    @property
    def within_event(self) -> bool:
        """Whether what has passed ends in the middle of an event."""
        return bool(self._passed) and self._framer.within_event

    def feed(self, chunk: bytes, events: Sequence[bytes]) -> bytes:
        """What passes of a chunk with which these events have become whole."""
        if len(events) == 1 and events[0] is chunk:
            self._finished = self._finished or _FINISHED.search(chunk) is not None
            return b"" if only_counts(chunk) else chunk
        if self._passed and not events:
            self._passed += len(chunk)
            return chunk
        passed = [
            event[self._passed if index == 0 else 0 :]
            for index, event in enumerate(events)
            if (self._passed and index == 0) or not only_counts(event)
        ]
        if events:
            self._passed = 0
        self._finished = self._finished or any(map(_FINISHED.search, events))
        begun = self._framer.rest()
        if not self._finished or not _may_only_count(begun):
            passed.append(begun[self._passed :])
            self._passed = len(begun)
        return b"".join(passed)

    def rest(self) -> bytes:
        """What has been kept back of an event that never became whole."""
        return self._framer.rest()[self._passed :]


# OpenAI's last event before [DONE], with `include_usage`: `"choices": [], "usage": {…}`.
_NO_CHOICES = re.compile(rb'"choices"\s*:\s*\[\s*\]')
_FINISHED = re.compile(rb'"finish_reason"\s*:\s*"')
_CHOICES = re.compile(rb'"choices"\s*:\s*\[\s*[^\s\]]')
_MAY_BEGIN = re.compile(rb"[\r\n]*+d(a(t(a(:\s*(\{.*)?)?)?)?)?", re.DOTALL)
# Bytes that an event of token counts stays far below.
_COUNTS = 8192


def only_counts(event: bytes) -> bool:
    """Whether an event does nothing but count tokens."""
    if len(event) > _COUNTS or b'"usage"' not in event or not _NO_CHOICES.search(event):
        return False
    try:
        found = msgspec.json.decode(data(event))
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return False
    return (
        isinstance(found, dict)
        and isinstance(found.get("usage"), dict)
        and found.get("choices") == []
    )


def _may_only_count(begun: bytes) -> bool:
    return (
        len(begun) <= _COUNTS
        and _MAY_BEGIN.fullmatch(begun) is not None
        and not _CHOICES.search(begun)
    )


def data(event: bytes) -> bytes:
    """The event's data, its lines joined; empty for a comment."""
    line = event.removesuffix(b"\n\n")
    if line.startswith(b"data:") and b"\n" not in line and b"\r" not in line:
        return line[5:].removeprefix(b" ")
    lines = [line for line in _LINE_END.split(event) if line.startswith(b"data:")]
    return b"\n".join(line[5:].removeprefix(b" ") for line in lines)


def with_data(event: bytes, data: bytes) -> bytes:
    """The event with other data; its lines end in LF."""
    kept = [it for it in _LINE_END.split(event) if it and not it.startswith(b"data:")]
    lines = [*kept, *(b"data: " + line for line in data.split(b"\n"))]
    return b"\n".join(lines) + b"\n\n"


def decoded(stream: bytes) -> Iterator[dict[str, Any]]:
    """The JSON objects in a stream's events, in order; anything else is left out."""
    for event in _events(stream):
        try:
            found = msgspec.json.decode(data(event))
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            continue
        if isinstance(found, dict):
            yield found


def _events(stream: bytes) -> Sequence[bytes]:
    if b"\r" not in stream:
        return stream.split(b"\n\n")
    framer = Framer()
    return [*framer.feed(stream), framer.rest()]
