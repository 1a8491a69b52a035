"""The last good copy of what is read over the network, for a start while that is away."""

import hashlib
import os
import tempfile
from datetime import UTC, datetime
from pathlib import Path

import msgspec

from llamaxing.logs import log


class Copy(msgspec.Struct, frozen=True):
    content: bytes
    written: datetime


class Copies:
    """Files in a folder of this machine that nobody else may read: they may hold keys.

    Its methods block; a folder that cannot be used is said in the log, and nothing is kept.
    """

    def __init__(self, folder: Path | None) -> None:
        """None keeps nothing."""
        self._folder = folder

    def keep(self, source: str, content: bytes) -> None:
        if self._folder is None:
            return
        try:
            self._make(self._folder)
            # Another process may be writing the same, or reading it.
            handle, temporary = tempfile.mkstemp(dir=self._folder)
            with os.fdopen(handle, "wb") as file:
                file.write(content)
            Path(temporary).replace(self._path(self._folder, source))
        except OSError as error:
            log.warning("no copy of the configuration is kept: %s", error.strerror or error)

    def last(self, source: str) -> Copy | None:
        if self._folder is None:
            return None
        try:
            self._make(self._folder)
            path = self._path(self._folder, source)
            written = datetime.fromtimestamp(path.stat().st_mtime, UTC)
            return Copy(path.read_bytes(), written)
        except OSError:
            return None

    def _make(self, folder: Path) -> None:
        """Raises PermissionError for a folder where another user could have put a file."""
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = folder.lstat()
        if os.name == "posix" and (found.st_uid != os.getuid() or found.st_mode & 0o077):
            raise PermissionError(f"{folder} is open to other users of this machine")

    def _path(self, folder: Path, source: str) -> Path:
        return folder / f"{hashlib.sha256(source.encode()).hexdigest()[:32]}.json"


def default_folder() -> Path:
    """In the machine's temporary folder, one for each of its users."""
    user = os.getuid() if os.name == "posix" else "user"
    return Path(tempfile.gettempdir()) / f"llamaxing-{user}"
