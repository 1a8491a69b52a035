"""The gateway from outside, in each way to run it: programs on sockets, real clients and models."""

import asyncio
import contextlib
import os
import sys
from asyncio.subprocess import PIPE
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import httpx

from llamaxing.settings import every_setting
from tests.canaries import NET
from tests.functions_host import Host
from tests.services import PROJECT, cannot_be_had, free_port
from tests.tap import tapped


@dataclass(frozen=True)
class Program:
    """A gateway that runs in a process of its own."""

    url: str
    process: asyncio.subprocess.Process

    @property
    def pid(self) -> int:
        return self.process.pid


@asynccontextmanager
async def uvicorn_shim(
    settings: Mapping[str, str], folder: Path, *more: str, stderr: int | None = None
) -> AsyncIterator[Program]:
    """`start_shim` on a free port, from when it is ready until it is told to end."""
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    arguments = ("--port", str(port), *more)
    process = await start_shim(settings, folder, *arguments, stderr=stderr)
    try:
        async with asyncio.timeout(30):
            await until_ready(url, process)
        async with tapped(url) as watched:
            yield Program(watched, process)
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.terminate()
        await process.communicate()


_OURS = {"PYTHONPATH": str(PROJECT), "APP_GRACE_PERIOD": "5"}


async def start_shim(
    settings: Mapping[str, str], folder: Path, *more: str, stderr: int | None = None
) -> asyncio.subprocess.Process:
    """`python -m llamaxing serve`, in `folder` and with these settings.

    What it writes to standard error is the test's own, or a pipe's that the test reads.
    """
    NET.know(settings)
    return await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "llamaxing", "serve", *more),
        cwd=folder,
        env={**_without_settings(os.environ), **_OURS, **settings},
        stderr=stderr,
    )


async def command(
    folder: Path, environ: Mapping[str, str], *arguments: str, stdin: str = ""
) -> tuple[int, str, str]:
    """`python -m llamaxing …`: its exit code, standard output and standard error."""
    kept = {name: os.environ[name] for name in os.environ if name.startswith("COV")}
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "llamaxing", *arguments),
        cwd=folder,
        env={"PATH": os.environ["PATH"], "PYTHONPATH": str(PROJECT), **kept, **environ},
        stdin=PIPE,
        stdout=PIPE,
        stderr=PIPE,
    )
    out, err = await process.communicate(stdin.encode())
    assert process.returncode is not None
    return process.returncode, out.decode(), err.decode()


@asynccontextmanager
async def functions_app(
    settings: Mapping[str, str], folder: Path, **more: str
) -> AsyncIterator[Host]:
    """The project's function_app.py in the worker library of Azure Functions."""
    if find_spec("azure_functions_runtime") is None:
        cannot_be_had("azure-functions-runtime is not installed: requirements-dev.txt has it")
    NET.know(settings)
    host = Host(
        PROJECT,
        env={**_without_settings(os.environ), "PYTHON_ENABLE_INIT_INDEXING": "1", **settings},
        **more,
    )
    await host.start()
    try:
        async with tapped(host.url) as host.url:
            yield host
    finally:
        NET.look("the worker's log", host.log)
        await host.stop()


async def until_ready(url: str, server: asyncio.subprocess.Process) -> None:
    """Returns when the gateway that this process is serves there."""
    async with httpx.AsyncClient(base_url=url, trust_env=False, verify=False) as client:
        while True:
            assert server.returncode is None, "the gateway ended at once: its last words say why"
            with contextlib.suppress(httpx.TransportError):
                if (await client.get("/health/ready")).status_code == 200:
                    return
            await asyncio.sleep(0.02)


def _without_settings(environ: Mapping[str, str]) -> dict[str, str]:
    """What a developer's own gateway is set to must not reach one that is tested."""
    known = every_setting()
    return {name: value for name, value in environ.items() if name.lower() not in known}
