"""What records keep of images, of audio and of files: how large they were, and their hash."""

import base64
import binascii
import hashlib
import re
from typing import Any

import msgspec

from llamaxing.http import Buffer

# Levels of nesting that every reader of a record can take: MongoDB's limit is 100.
_DEEPEST = 80
# Members that hold base64. A text of somebody's own is never taken for it.
_BINARY = frozenset(
    {"b64_json", "partial_image_b64", "data", "file_data", "image", "audio", "embedding", "result"}
)
_NAMED = re.compile(f'"(?:{"|".join(sorted(_BINARY))})"'.encode())
_BASE64 = re.compile(r"(?=.*[a-z])(?=.*[A-Z])[A-Za-z0-9+/_=\r\n-]{256,}", re.DOTALL)
_DATA_URL = re.compile(r"(data:[^,\s]{0,200};base64,)([A-Za-z0-9+/_=-]{64,})")
# The same in the beginning of a document that has been cut off.
_CUT = re.compile(r'(b64_json"\s*:\s*"|;base64,)([A-Za-z0-9+/_=-]{64,})')


def trimmed(value: Any, name: str = "", depth: int = 1) -> Any:
    """The value with a mark in place of each text of base64, and with what is nested very deeply
    as text. `name` is the member it stands in.
    """
    if isinstance(value, dict | list) and depth > _DEEPEST:
        return msgspec.json.encode(value).decode()
    if isinstance(value, dict):
        return {key: trimmed(item, key, depth + 1) for key, item in value.items()}
    if isinstance(value, list):
        return [
            trimmed(item, name, depth + 1) if isinstance(item, str | dict | list) else item
            for item in value
        ]
    if not isinstance(value, str):
        return value
    if name in _BINARY and _BASE64.fullmatch(value):
        return _mark(value)
    if ";base64," in value:
        return _DATA_URL.sub(lambda found: found[1] + _mark(found[2]), value)
    return value


def needs_trimming(document: bytes) -> bool:
    """Whether JSON may have something to trim in it, told by its bytes; most has not."""
    return (
        # One byte is found many times faster than several.
        (b";" in document and b";base64," in document)
        # To take them away is several times faster than to count them.
        or 2 * len(document) - len(document.replace(b"{", b"")) - len(document.replace(b"[", b""))
        > _DEEPEST
        or _NAMED.search(document) is not None
    )


def trimmed_text(text: str) -> str:
    """The same of a document that is no whole JSON."""
    return _CUT.sub(lambda found: f"{found[1]}[{len(found[2]):,} characters]", text)


def shortened(document: Buffer, most: int) -> bytes:
    """A large document in JSON with a mark in place of the base64 of each data URL; what comes
    after a little more than `most` bytes is left out.
    """
    parts: list[bytes] = []
    size = reach = 0
    with memoryview(document) as view:
        while size <= most and reach < len(view):
            start, end = _next_data(document, reach, reach + most)
            kept = bytes(view[reach : min(start, reach + most + 1 - size)])
            mark = _mark_of(view[start:end]) if start < end else b""
            parts += [kept, mark] if mark else [kept]
            size += len(kept) + len(mark)
            reach = end
    return parts[0] if len(parts) == 1 else b"".join(parts)


def _next_data(document: Buffer, begin: int, most: int) -> tuple[int, int]:
    """Where the next long run of base64 begins and ends, if it begins before `most`; otherwise the
    end of it all, twice."""
    for found in _BEFORE_DATA.finditer(document, begin, most):
        if run := _RUN.match(document, found.end()):
            return run.span()
    return len(document), len(document)


def _mark_of(base64_text: memoryview) -> bytes:
    """As `_mark`, a piece at a time."""
    hashed, size = hashlib.sha256(), 0
    try:
        for at in range(0, len(base64_text), _PIECE):
            plain = base64.b64decode(base64_text[at : at + _PIECE], validate=True)
            hashed.update(plain)
            size += len(plain)
    except binascii.Error:
        return b"[%d characters]" % len(base64_text)
    return f"[{size:,} bytes, sha256:{hashed.hexdigest()}]".encode()


_BEFORE_DATA = re.compile(rb';base64,|"(?:%b)"\s*:\s*"' % "|".join(sorted(_BINARY)).encode())
_RUN = re.compile(rb"[A-Za-z0-9+/_=-]{64,}+")
# Characters of base64 that are decoded at once: a multiple of four.
_PIECE = 256 * 1024


def digest(content: bytes | memoryview) -> dict[str, Any]:
    return {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}


def _mark(text: str) -> str:
    """The length and the hash are those of what the base64 stands for, where it is whole."""
    plain = "".join(text.split()).replace("-", "+").replace("_", "/")
    try:
        found = digest(base64.b64decode(plain + "=" * (-len(plain) % 4), validate=True))
    except binascii.Error:
        return f"[{len(text):,} characters]"
    return f"[{found['bytes']:,} bytes, sha256:{found['sha256']}]"
