"""A file with one record a line, in JSON. Several processes may write to one file."""

import asyncio
import os
from typing import Any

import msgspec
from pydantic import BaseModel, Field


class JsonLines:
    class Options(BaseModel, frozen=True):
        logging_client_jsonl_filename: str = Field(
            default="apicalls.jsonl", description="The file that `jsonl` appends a line a call to."
        )

    def __init__(self, options: Options) -> None:
        self._path = options.logging_client_jsonl_filename

    async def record(self, record: dict[str, Any]) -> None:
        await asyncio.to_thread(self._append, msgspec.json.encode(record) + b"\n")

    async def aclose(self) -> None:
        return None

    def _append(self, line: bytes) -> None:
        # One write in append mode: lines of several processes do not mix.
        file = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        try:
            os.write(file, line)
        finally:
            os.close(file)


PLUGIN = JsonLines
