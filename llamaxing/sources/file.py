"""A file, relative to the folder that the gateway runs in."""

import asyncio
import time
from pathlib import Path

from pydantic import BaseModel

from llamaxing.plugins import Surroundings
from llamaxing.sources import MOST, Reading

# A file may change again within one tick of its clock: until it is this old, it is read each time.
_SETTLED = 2.0


class FileSource:
    class Options(BaseModel, frozen=True):
        pass

    copied_as = None

    def __init__(self, where: str, options: Options, surroundings: Surroundings) -> None:
        self.name = Path(where).name or where
        self._path = Path(where)

    async def read(self, known: str | None) -> Reading | None:
        return await asyncio.to_thread(self._read, known)

    def _read(self, known: str | None) -> Reading | None:
        found = self._path.stat()
        tag = f"{found.st_mtime_ns}-{found.st_size}-{found.st_ino}"
        if tag == known:
            return None
        settled = time.time() - found.st_mtime > _SETTLED
        with self._path.open("rb") as file:
            content = file.read(MOST + 1)
        if len(content) > MOST:
            raise OSError(f"it is larger than {MOST} bytes")
        return Reading(content, tag if settled else None)


PLUGIN = FileSource
