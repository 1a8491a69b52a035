"""An app setting that holds the JSON; or its gzip in base64, since a setting ends at 32 KB."""

import base64
import binascii
import zlib

from pydantic import BaseModel

from llamaxing.document import UNRESOLVED, is_unresolved
from llamaxing.plugins import Surroundings
from llamaxing.sources import MOST, Reading

# How the base64 of every gzip begins.
_GZIP = "H4sI"


class EnvSource:
    class Options(BaseModel, frozen=True):
        pass

    copied_as = None

    def __init__(self, where: str, options: Options, surroundings: Surroundings) -> None:
        self.name = where
        self._text = surroundings.environ.get(where, "")

    async def read(self, known: str | None) -> Reading | None:
        if known is not None:
            # The environment of a process does not change.
            return None
        if not self._text.strip():
            raise FileNotFoundError("no such setting, or an empty one")
        if is_unresolved(self._text):
            raise OSError(f"it is {UNRESOLVED}")
        return Reading(_inflated(self._text) or self._text.encode(), "read")


def _inflated(text: str) -> bytes | None:
    if not text.lstrip().startswith(_GZIP):
        return None
    try:
        packed = base64.b64decode("".join(text.split()), validate=True)
        inflater = zlib.decompressobj(zlib.MAX_WBITS | 16)
        content = inflater.decompress(packed, MOST)
    except (binascii.Error, zlib.error) as error:
        raise OSError(f"it is neither JSON nor base64 of gzip ({error})") from error
    if not inflater.eof:
        raise OSError(f"its gzip is cut short, or holds more than {MOST} bytes")
    return content


PLUGIN = EnvSource
