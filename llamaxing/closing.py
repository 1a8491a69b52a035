"""How an event ends that was cut within: so that SDKs find an error in it, and not broken JSON.

Nothing in server-sent events takes back data that has gone out, and an SDK that cannot decode an
event looks at none behind it. So its JSON is closed, with the error as the last member.
"""

import json
import re
from collections.abc import Iterator

from llamaxing import sse

_TOKEN = re.compile(rb'"(?:[^"\\]|\\.)*+(?P<end>"?)|[\[\]{}]', re.DOTALL)
_LINE_END = re.compile(rb"[\r\n]")
_CLOSED_BY = {b"{": b"}", b"[": b"]"}
# What may be missing where JSON is cut within a string, of a character or of an escape, ...
_CHARACTERS = [byte * number for byte in (b"\x80", b"\xa0") for number in (1, 2, 3)]
_ESCAPES = [b"\\", *(b"0" * number for number in (1, 2, 3, 4))]
_IN_STRING = [it + end for end in (b'"', b'": null') for it in (b"", *_CHARACTERS, *_ESCAPES)]
# ... and elsewhere.
_WORDS = [word[at:] for word in (b"true", b"false", b"null") for at in range(1, len(word))]
_ELSEWHERE = [b"", b"null", b": null", b'"": null', b"0", *_WORDS]
# Of members of one name the last counts: who looks for no error here finds no text, whose last
# character may be made up.
_INSTEAD = b'"choices": [], '
# Bytes of an event whose end is looked for: this is done again for each of these.
_SEARCHED = 2**18


def closing(begun: bytes, error: bytes) -> bytes:
    """What goes between the beginning of an event, which may be none, and the event of an error
    with this body, `{"error": ...}`.
    """
    if not begun.strip(b"\r\n"):
        return b""
    data = sse.data(begun)
    if not data.strip():
        # The two become one event: without data of its own this one is no JSON either.
        return b"" if begun.endswith((b"\n", b"\r")) else b"\n"
    if _LINE_END.split(begun)[-1].startswith(b"data:") and len(data) <= _SEARCHED:
        for end in _ends(data, error):
            if _is_json(data + end):
                return end + b"\n\n"
    return b"\n\n"


def _ends(text: bytes, error: bytes) -> Iterator[bytes]:
    """What may make of the beginning of a JSON object a whole one that ends with the error."""
    within, in_string = _open(text)
    if within[:1] != [b"}"]:
        return
    member = _INSTEAD + error.removeprefix(b"{")
    if len(within) == 1:
        yield member
    around = b"".join(reversed(within[1:]))
    for missing in _IN_STRING if in_string else _ELSEWHERE:
        yield missing + around + b", " + member


def _open(text: bytes) -> tuple[list[bytes], bool]:
    """What closes the objects and arrays that are open at the end, and whether a string is."""
    within: list[bytes] = []
    in_string = False
    for token in _TOKEN.finditer(text):
        if closed_by := _CLOSED_BY.get(token[0]):
            within.append(closed_by)
        elif token["end"] is not None:
            in_string = not token["end"]
        elif within:
            within.pop()
    return within, in_string


def _is_json(text: bytes) -> bool:
    try:
        json.loads(text.decode())
    except (ValueError, RecursionError):
        return False
    return True
