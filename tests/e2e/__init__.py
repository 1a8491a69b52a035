"""The gateway from outside, as its users run it: programs on sockets, real clients, real models."""

import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from llamaxing.settings import every_setting
from tests.services import PROJECT, free_port, wait_until_answers


@dataclass(frozen=True)
class Program:
    """A gateway that runs in a process of its own."""

    url: str
    pid: int


@contextmanager
def uvicorn_shim(settings: Mapping[str, str], folder: Path) -> Iterator[Program]:
    """`python -m llamaxing serve`, in `folder` and with these settings, until it is told to end."""
    port = free_port()
    command = [sys.executable, "-m", "llamaxing", "serve", "--port", str(port), "--grace", "5"]
    environ = {**without_settings(os.environ), "PYTHONPATH": str(PROJECT), **settings}
    with subprocess.Popen(command, cwd=folder, env=environ) as server:
        try:
            url = f"http://127.0.0.1:{port}"
            wait_until_answers(f"{url}/health/ready")
            yield Program(url, server.pid)
        finally:
            server.terminate()
            try:
                server.wait(15)
            except subprocess.TimeoutExpired:
                server.kill()


def without_settings(environ: Mapping[str, str]) -> dict[str, str]:
    """What a developer's own gateway is set to must not reach one that is tested."""
    known = every_setting()
    return {name: value for name, value in environ.items() if name.lower() not in known}
