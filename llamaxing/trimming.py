"""What records keep of images, of audio and of files: how large they were, and their hash."""

import base64
import binascii
import hashlib
import re
from typing import Any

import msgspec

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
        b";base64," in document
        or document.count(b"{") + document.count(b"[") > _DEEPEST
        or _NAMED.search(document) is not None
    )


def trimmed_text(text: str) -> str:
    """The same of a document that is no whole JSON."""
    return _CUT.sub(lambda found: f"{found[1]}[{len(found[2]):,} characters]", text)


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
