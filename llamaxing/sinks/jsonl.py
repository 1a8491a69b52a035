"""A file with one record a line, in JSON. Several processes may write to one file."""

import asyncio
import errno
import os
from collections.abc import Mapping, Sequence

from pydantic import BaseModel, Field

from llamaxing.plugins import Surroundings


class JsonLines:
    """What is delivered a second time, after a crash, stands in the file a second time."""

    class Options(BaseModel, frozen=True):
        logging_client_jsonl_filename: str = Field(
            default="apicalls.jsonl", description="The file that `jsonl` appends a line a call to."
        )

    batch = 1000
    takes_json = True

    def __init__(self, options: Options, surroundings: Surroundings) -> None:
        self._path = options.logging_client_jsonl_filename
        self._torn = False

    async def deliver(self, records: Sequence[bytes]) -> Mapping[str, str]:
        await asyncio.to_thread(self._append, records)
        return {}

    async def aclose(self) -> None:
        return None

    def _append(self, records: Sequence[bytes]) -> None:
        # Of another's hand a record may have several lines: in JSON their ends are white space.
        lines = b"\n".join([*(record.replace(b"\n", b" ") for record in records), b""])
        # One write in append mode: lines of several processes do not mix.
        file = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        try:
            written = os.write(file, b"\n" + lines if self._torn else lines)
        finally:
            os.close(file)
        # The disk is full: what has been written of a line is one by itself.
        self._torn = written < len(lines)
        if self._torn:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


PLUGIN = JsonLines
