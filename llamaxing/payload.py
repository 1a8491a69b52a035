"""A JSON request: read once, edited member by member, every other byte left as the caller wrote it.

Decoding and encoding again would turn `1e2` into `100.0` and lose duplicate keys, so an edit cuts
and joins the caller's own bytes.
"""

import codecs
import itertools
import operator
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import msgspec

from llamaxing.errors import InvalidJSON, InvalidType
from llamaxing.http import Buffer

REMOVE: Any = object()

# OpenAI's endpoints have some forty; each costs a hundred times its bytes, and is looked at often.
_MOST_MEMBERS = 1000
# Bytes in which there cannot be more: `"":0,`.
_FEW_MEMBERS = 5 * _MOST_MEMBERS
# As much for all objects in one member, the items of a conversation, and for those themselves.
_MOST_WITHIN = 100_000
# What is read here are names, flags and metadata: whatever is large is only passed on.
_READ_UP_TO = 256 * 1024
# Above this, text is checked without an object being made of it: it may be a 20 MB image.
_DECODE_UP_TO = 1024 * 1024
_SPACE = rb"[ \t\n\r]*+"
_EMPTY = re.compile(_SPACE)
_OPEN = re.compile(_SPACE + rb"\{" + _SPACE)
_OPEN_LIST = re.compile(rb"\[" + _SPACE)
_COMMA = re.compile(_SPACE + rb"," + _SPACE)
_NAME = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"' + _SPACE + rb":" + _SPACE, re.DOTALL)


class _Name(str):
    """A member's. Two of them are never equal, so a decoded object keeps its duplicates."""

    __slots__ = ()
    __eq__ = object.__eq__
    __hash__ = object.__hash__


_value = msgspec.json.Decoder()
_few = msgspec.json.Decoder(dict[_Name, msgspec.Raw], dec_hook=operator.call)
_items = msgspec.json.Decoder(list[msgspec.Raw])


class _Span(msgspec.Struct, frozen=True):
    """Where a member stands: its name from `start`, its value from `value` to before `end`."""

    name: str
    start: int
    value: int
    end: int


class Payload:
    """A JSON object of a caller's. Raises `InvalidJSON` or `InvalidType` where it is none."""

    def __init__(
        self,
        body: Buffer | memoryview,
        *,
        checked: bool = False,
        keeps: bool = False,
        one: "One | None" = None,
    ) -> None:
        """`checked`: it is known to be JSON. `keeps`: what it says is left in `said`, where it has
        been decoded for being checked: it is not large. `one` is called for each member."""
        self.body = body
        said, self._members = (None, _members(body, one)) if checked else _decode(body)
        self.said: Any = said if keeps else None
        self._named = {str(name): raw for name, raw in self._members.items()}
        self._repeats = len(self._named) < len(self._members)

    def __contains__(self, name: str) -> bool:
        return name in self._named

    def get(self, name: str) -> Any:
        """A member's value; None without it.

        Raises `InvalidJSON` for one that stands twice, `InvalidType` for one that is very large.
        """
        found = self._named.get(name)
        if found is None:
            return None
        if self._repeats:
            self._check_once(name)
        if len(found) > _READ_UP_TO:
            raise InvalidType(
                f"The parameter '{name}' is larger than the {_READ_UP_TO:,} bytes allowed here.",
                name,
            )
        return _value.decode(found)

    def within(self, name: str, edit: "Edit") -> Mapping[str, Any]:
        """The edit of this member that comes of editing the object in it, or each of a list's."""
        if self._repeats:
            self._check_once(name)
        raw = self._named.get(name)
        edited = raw and _edited(raw, edit, _at_most(_MOST_WITHIN))
        return {} if edited is None else {name: edited}

    def edited(self, edits: Mapping[str, Any]) -> Sequence[bytes | memoryview]:
        """The body in parts, with these members set, or gone where the value is `REMOVE`.

        A member that was not there becomes the last; one that goes takes one comma along.
        """
        view = memoryview(self.body)
        if not edits:
            return [view]
        parts = _Parts(view)
        spans = list(self._spans())
        parts.keep(0, spans[0].start if spans else self._opening())
        before, first = 0, True
        for span in spans:
            if edits.get(span.name) is not REMOVE:
                if not first:
                    parts.keep(before, span.start)
                parts.keep(span.start, span.value if span.name in edits else span.end)
                if span.name in edits:
                    parts.add(msgspec.json.encode(edits[span.name]))
                first = False
            before = span.end
        for name, value in edits.items():
            if value is not REMOVE and name not in self:
                comma = b"" if first else b","
                parts.add(comma + msgspec.json.encode(name) + b":" + msgspec.json.encode(value))
                first = False
        parts.keep(spans[-1].end if spans else self._opening(), len(view))
        return parts.all

    def _check_once(self, name: str) -> None:
        times = sum(str(it) == name for it in self._members)
        if times > 1:
            raise InvalidJSON(f"The parameter '{name}' stands {times} times in the body.")

    def _opening(self) -> int:
        """The position after the opening brace."""
        return _after(_OPEN, self.body, 0)

    def _spans(self) -> Iterator[_Span]:
        position = self._opening()
        for index, (name, raw) in enumerate(self._members.items()):
            start = _after(_COMMA, self.body, position) if index else position
            value = _after(_NAME, self.body, start)
            position = value + len(raw)
            yield _Span(str(name), start, value, position)


Edit = Callable[[Payload], Mapping[str, Any]]
"""What to set in an object; nothing to leave it as it is."""


One = Callable[[], None]


def _at_most(most: int) -> One:
    """To be called for each of so many; it raises `InvalidJSON` for one more."""
    seen = itertools.count(1)

    def one() -> None:
        if next(seen) > most:
            raise InvalidJSON(f"The body has more than the {most:,} members allowed here.")

    return one


def _edited(raw: msgspec.Raw, edit: Edit, one: One) -> msgspec.Raw | None:
    """None: nothing changes, since it is no object, or `edit` wants nothing."""
    first = bytes(memoryview(raw)[:1])
    if first == b"{":
        inner = Payload(memoryview(raw), checked=True, one=one)
        edits = edit(inner)
        return msgspec.Raw(b"".join(inner.edited(edits))) if edits else None
    if first == b"[":
        return _edited_list(memoryview(raw), edit, one)
    return None


def _edited_list(raw: memoryview, edit: Edit, one: One) -> msgspec.Raw | None:
    _count(raw, one)
    items = _items.decode(raw)
    edited = [_edited(item, edit, one) for item in items]
    if not any(edited):
        return None
    parts = _Parts(raw)
    reach = 0
    for index, (new, old) in enumerate(zip(edited, items, strict=True)):
        start = _after(_COMMA if index else _OPEN_LIST, raw, reach)
        parts.keep(reach, start)
        reach = start + len(old)
        if new is None:
            parts.keep(start, reach)
        else:
            parts.add(bytes(new))
    parts.keep(reach, len(raw))
    return msgspec.Raw(b"".join(parts.all))


def _count(raw: memoryview, one: One) -> None:
    """Calls `one` for each item, before there is an object for each: where it may be very many."""
    windows = range(0, len(raw), _DECODE_UP_TO)
    if sum(bytes(raw[at : at + _DECODE_UP_TO]).count(b",") for at in windows) < _MOST_WITHIN:
        return

    def counted(_: type, __: Any) -> _Item:
        one()
        return _ITEM

    msgspec.json.Decoder(list[_Item], dec_hook=counted).decode(raw)


class _Item:
    __slots__ = ()


_ITEM = _Item()


def _after(pattern: re.Pattern[bytes], text: Buffer | memoryview, position: int) -> int:
    found = pattern.match(text, position)
    assert found is not None, "the decoder has read the same bytes"  # noqa: S101
    return found.end()


class _Parts:
    """Pieces of the original and of new text, in order; neighbours in the original stay one."""

    def __init__(self, original: memoryview) -> None:
        self._original = original
        self._reach: int | None = None
        self._from = 0
        self.all: list[bytes | memoryview] = []

    def keep(self, start: int, end: int) -> None:
        if start == self._reach and self.all:
            self.all[-1] = self._original[self._from : end]
        elif end > start:
            self._from = start
            self.all.append(self._original[start:end])
        else:
            return
        self._reach = end

    def add(self, text: bytes) -> None:
        self.all.append(text)
        self._reach = None


def _decode(body: Buffer | memoryview) -> tuple[Any, dict[_Name, msgspec.Raw]]:
    try:
        value = None
        if len(body) <= _DECODE_UP_TO:
            value = _value.decode(body)
        else:
            _check_text(body)
        return value, _members(body)
    except msgspec.ValidationError as error:
        if "`object`" in str(error):
            raise InvalidType("The body has to be a JSON object.") from error
        raise InvalidJSON(f"The body is not valid JSON: {error}.") from error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidJSON(f"The body is not valid JSON: {_reason(body, error)}.") from error


def _members(body: Buffer | memoryview, one: One | None = None) -> dict[_Name, msgspec.Raw]:
    if one is None and len(body) < _FEW_MEMBERS:
        return _few.decode(body)
    count = one or _at_most(_MOST_MEMBERS)

    def counted(_: type, name: str) -> _Name:
        count()
        return _Name(name)

    return msgspec.json.Decoder(dict[_Name, msgspec.Raw], dec_hook=counted).decode(body)


def _reason(body: Buffer | memoryview, error: Exception) -> str:
    if _EMPTY.fullmatch(body):
        return "it is empty"
    if isinstance(error, RecursionError):
        return "it is nested too deeply"
    return str(error).removeprefix("JSON is malformed: ")


def _check_text(body: Buffer | memoryview) -> None:
    """Raises UnicodeDecodeError for what is not UTF-8, a window at a time."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    with memoryview(body) as view:
        for start in range(0, len(view), _DECODE_UP_TO):
            decoder.decode(view[start : start + _DECODE_UP_TO])
        decoder.decode(b"", final=True)
