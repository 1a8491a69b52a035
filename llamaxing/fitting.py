"""A record that is too large for a sink: its largest texts are cut to one length, and say so."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import msgspec

# Bytes that are left of a text at the least. Where that does not suffice, it is not the texts.
_LEAST = 1024
# Bytes that the mark at the end of a cut text takes at the most.
_MARK = 64


def fitted(record: dict[str, Any], excess: Callable[[dict[str, Any]], int]) -> dict[str, Any]:
    """The record, `truncated` where it had to be. `excess`: by how many bytes one is too large."""
    over = excess(record)
    if over <= 0:
        return record
    level = _level([len(text.encode()) for text in _texts(record)], over)
    if level < _LEAST:
        # Not long texts but many values: as JSON they take less, and can be cut.
        record = record | {
            name: _flat(record[name]) for name in ("request", "response", "metadata")
        }
        level = _level([len(text.encode()) for text in _texts(record)], excess(record))
    return {name: _cut(value, level) for name, value in record.items()} | {"truncated": True}


def _level(lengths: Sequence[int], over: int) -> int:
    """The length to cut to, so that at least so many bytes go."""
    longest = sorted(lengths, reverse=True)
    total = level = 0
    for number, length in enumerate(longest, 1):
        total += length
        level = (total - over) // number - _MARK
        if number == len(longest) or level >= longest[number]:
            break
    return max(0, level)


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from _texts(item)
    elif isinstance(value, list):
        for item in value:
            yield from _texts(item)


def _cut(value: Any, level: int) -> Any:
    if isinstance(value, str):
        raw = value.encode()
        if len(raw) <= level + _MARK:
            return value
        return raw[:level].decode("utf-8", "ignore") + f"… [cut, of {len(raw):,} bytes]"
    if isinstance(value, dict):
        return {name: _cut(item, level) for name, item in value.items()}
    if isinstance(value, list):
        return [_cut(item, level) for item in value]
    return value


def _flat(value: Any) -> Any:
    if not isinstance(value, dict | list):
        return value
    return msgspec.json.encode(value).decode()
