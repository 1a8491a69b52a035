"""A file, relative to the folder that the gateway runs in."""

import asyncio
from pathlib import Path


class FileSource:
    def __init__(self, where: str) -> None:
        self.name = Path(where).name
        self._path = Path(where)

    async def read(self) -> bytes:
        return await asyncio.to_thread(self._path.read_bytes)


PLUGIN = FileSource
