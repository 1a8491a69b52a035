"""What a reply says, read from a copy of its bytes; and the tokens that it cost."""

import json
import re
import zlib
from collections.abc import Iterator
from typing import Any

import msgspec

from llamaxing import sse
from llamaxing.http import Buffer
from llamaxing.merging import merged
from llamaxing.trimming import digest, needs_trimming, trimmed, trimmed_text

# Types that are text, beside text/… itself.
_TEXTS = ("", "application/json", "application/problem+json", "application/xml")
_USAGE = re.compile(rb'"usage"\s*:\s*(?=\{)')
# What tokens are counted under: those of a request, their details, and the same of a reply.
_COUNTED = [
    (f"{asked}_tokens", f"{asked}_tokens_details", f"{said}_tokens", f"{said}_tokens_details")
    for asked, said in (("prompt", "completion"), ("input", "output"))
]
_ASKED = ("messages", "prompt", "input", "instructions", "tools", "functions")
_SAID = ("choices", "output")
# Bytes of a document of which it is soon told that nothing is to be trimmed.
_SMALL = 64 * 1024
# Bytes of UTF-8 that a token stands for, about, in what OpenAI's tokenizers make of prose.
_BYTES_A_TOKEN = 4


class Usage(msgspec.Struct, frozen=True):
    """Tokens, as upstream counted them; `exact` is false where they are estimated."""

    input: int
    output: int
    cached: int = 0
    reasoning: int = 0
    exact: bool = True


def read(body: bytes, size: int, media_type: str, encoding: str, most: int) -> Any:
    """What a reply of this `size` says, of which `body` is the beginning: JSON, a stream's events
    as one reply, text, or of anything else how large it was. `most`: bytes that a compressed one
    may come to, and a text that is no JSON."""
    if encoding in ("gzip", "deflate"):
        body = _inflated(body, most)
    if media_type == "text/event-stream":
        return _stream(body, most)
    if media_type.startswith("text/") or media_type in _TEXTS:
        return json_or_text(body, most)
    whole = digest(body) if len(body) >= size else {"bytes": size}
    return {"content_type": media_type, **whole}


def _stream(body: bytes, most: int) -> Any:
    events = list(sse.decoded(body))
    try:
        return trimmed(merged(events)) if events else json_or_text(body, most)
    except RecursionError:
        return trimmed_text(str(body[:most], "utf-8", "replace"))


def json_or_text(body: Buffer, most: int, said: Any = None) -> Any:
    """None for an empty one. `said`: what it says, where that is known."""
    if not len(body):
        return None
    try:
        value = msgspec.json.decode(body) if said is None else said
        if len(body) < _SMALL and not needs_trimming(bytes(body)):
            return value
        return trimmed(value)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return trimmed_text(str(body[:most], "utf-8", "replace"))


def usage_of(reply: Any) -> Usage | None:
    """The token counts in a reply, in the words of chat completions or of responses."""
    found = reply.get("usage") if isinstance(reply, dict) else None
    return _usage(found)


def usage_in(tail: bytes) -> Usage | None:
    """The last token counts in the end of a reply whose beginning is not at hand."""
    for found in reversed(list(_USAGE.finditer(tail))):
        text = tail[found.end() :].decode("utf-8", "replace")
        try:
            usage = _usage(json.JSONDecoder().raw_decode(text)[0])
        except (ValueError, RecursionError):
            continue
        if usage:
            return usage
    return None


def estimated(request: Any, reply: Any) -> Usage | None:
    """About how many tokens the texts of a generation come to; None for what is not one."""
    if not isinstance(request, dict) or not isinstance(reply, dict):
        return None
    if not any(name in reply for name in _SAID):
        return None
    asked = sum(_size(request.get(name)) for name in _ASKED)
    said = sum(_size(reply.get(name)) for name in _SAID)
    return Usage(-(-asked // _BYTES_A_TOKEN), -(-said // _BYTES_A_TOKEN), exact=False)


def _usage(found: Any) -> Usage | None:
    if not isinstance(found, dict):
        return None
    for asked, asked_details, said, said_details in _COUNTED:
        if asked in found or said in found:
            return Usage(
                _count(found, asked),
                _count(found, said),
                _count(found.get(asked_details), "cached_tokens"),
                _count(found.get(said_details), "reasoning_tokens"),
            )
    return None


def _count(found: Any, name: str) -> int:
    count = found.get(name) if isinstance(found, dict) else None
    return count if isinstance(count, int) and count > 0 else 0


# Members that say what a text is, and are none.
_LABELS = frozenset({"role", "type", "id", "index", "finish_reason", "status", "object"})


def _size(value: Any) -> int:
    return sum(len(text.encode()) for text in _texts(value))


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, list):
        for item in value:
            yield from _texts(item)
    elif isinstance(value, dict):
        for name, item in value.items():
            if name not in _LABELS:
                yield from _texts(item)


def _inflated(body: bytes, most: int) -> bytes:
    try:
        return zlib.decompressobj(zlib.MAX_WBITS | 32).decompress(body, most)
    except zlib.error:
        return body
