"""A gateway that is measured: a whole program, and the way through it to the upstream."""

import json
import time
import urllib.error
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from bench.process import Program
from bench.rig import post

PATH = "/v1/chat/completions"
_PATIENCE = 120


class Missing(Exception):
    """Why something cannot be measured here."""


@dataclass(frozen=True)
class Route:
    """How a caller reaches an upstream through a gateway."""

    url: str
    headers: Mapping[str, str] = field(default_factory=dict)
    model: str = "bench"

    def body(self, wanted: str, stream: bool = False) -> str:
        """A call of one kilobyte; `wanted`: what upstream is to do, as its module says."""
        messages = [
            {"role": "system", "content": f"You are a helpful assistant. bench/{wanted}"},
            {"role": "user", "content": ("lorem ipsum dolor sit amet " * 100)[:700]},
        ]
        asked = {"model": self.model, "temperature": 0.2}
        return json.dumps({**asked, "messages": messages, **({"stream": True} if stream else {})})


@dataclass
class Gateway:
    """Without a command it is the upstream itself. `tls` leads to the same upstream over TLS.

    `is_peer`: it is somebody else's, and may be too slow for the longest scenarios. `uncompiled`:
    what its environment has besides, to start without its .pyc files. `only_starts`: nothing else
    is measured of it.
    """

    name: str
    folder: Path
    plain: Route
    tls: Route | None = None
    command: Sequence[str] = ()
    environ: Mapping[str, str] = field(default_factory=dict)
    is_peer: bool = False
    uncompiled: Mapping[str, str] | None = None
    only_starts: bool = False
    program: Program | None = None

    def start(self, **more: str) -> float:
        """Seconds from its `exec` to its first answer; `more` is in its environment."""
        if not self.command:
            return 0
        began = time.monotonic()
        environ = {**self.environ, **more}
        self.program = Program(self.command, environ, self.folder, self.folder / "log")
        while not self._answers():
            if self.program.ended or time.monotonic() - began > _PATIENCE:
                self.stop()
                raise Missing(f"it did not start: {self._last_words()}")
            time.sleep(0.005)
        return time.monotonic() - began

    def stop(self) -> None:
        if self.program:
            self.program.stop()
            self.program = None

    def _last_words(self) -> str:
        lines = (self.folder / "log").read_text(errors="replace").splitlines()
        return lines[-1] if lines else "it said nothing"

    def _answers(self) -> bool:
        try:
            return post(self.plain.url, self.plain.body("s=1024/"), self.plain.headers) == 200
        except (urllib.error.URLError, ConnectionError, TimeoutError):
            return False
