"""`python -m llamaxing serve`, as its users run it: a process of its own."""

import asyncio
import signal
from asyncio.subprocess import PIPE
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import pytest

from tests.conftest import configure, model, openai
from tests.e2e import start_shim, uvicorn_shim
from tests.fakes import CHAT, DONE, Upstream, chunk

STREAM = {**CHAT, "stream": True}


@asynccontextmanager
async def serving(
    environ: dict[str, str], folder: Path, *more: str
) -> AsyncIterator[tuple[asyncio.subprocess.Process, httpx.AsyncClient]]:
    async with (
        uvicorn_shim(environ, folder, *more, stderr=PIPE) as program,
        httpx.AsyncClient(base_url=program.url, timeout=30, verify=False) as client,
    ):
        yield program.process, client


async def call_for_ever(url: httpx.URL) -> None:
    while True:
        async with httpx.AsyncClient(base_url=url, verify=False) as client:
            await client.get("/health/live")


async def test_faults_are_told_a_line_each_and_the_exit_code_is_1(tmp_path: Path) -> None:
    faults = {"AUTH_METHOD": "ldap", "DEBUG_LEVEL": "9"}
    process = await start_shim(faults, tmp_path, stderr=PIPE)

    _, told = await process.communicate()

    assert process.returncode == 1
    assert told.decode().splitlines() == [
        "debug_level: has to be less than or equal to 3",
        "auth_method: 'ldap' is not known; use 'apikey', 'easyauth', 'jwt' or 'none'",
    ]


async def test_at_sigterm_open_streams_finish_and_are_recorded_and_the_exit_code_is_0(
    upstream: Upstream, tmp_path: Path
) -> None:
    environ = configure(tmp_path, [model(openai(upstream, "i1"))])
    streams = [upstream.streams("i1", [chunk("a"), DONE], lock_step=True) for _ in range(5)]
    upstream.streams("i1", [])
    async with serving(environ, tmp_path) as (process, client):
        calls = [
            asyncio.create_task(client.post("/v1/chat/completions", json=STREAM)) for _ in streams
        ]
        await upstream.request(len(streams) - 1)

        process.send_signal(signal.SIGTERM)
        with pytest.raises(httpx.TransportError):
            await call_for_ever(client.base_url)
        for stream in streams:
            stream.release()
            stream.release()
        replies = await asyncio.gather(*calls)
        await process.wait()

    assert [reply.content for reply in replies] == [chunk("a") + DONE] * len(streams)
    assert process.returncode == 0
    records = (tmp_path / "records.jsonl").read_text().splitlines()
    assert len(records) == len(streams)


async def test_several_workers_serve_and_record_to_one_file(
    upstream: Upstream, tmp_path: Path
) -> None:
    environ = configure(tmp_path, [model(openai(upstream, "i1"))])
    async with serving(environ, tmp_path, "--workers", "2") as (_, client):
        replies = await asyncio.gather(
            *(client.post("/v1/chat/completions", json=STREAM) for _ in range(40))
        )

    assert {reply.status_code for reply in replies} == {200}
    records = (tmp_path / "records.jsonl").read_text().splitlines()
    assert len(records) == 40


async def test_the_log_of_the_process_has_a_line_a_call(upstream: Upstream, tmp_path: Path) -> None:
    environ = configure(tmp_path, [model(openai(upstream, "i1"))])
    async with serving(environ, tmp_path) as (process, client):
        await client.post("/v1/chat/completions", json=CHAT, headers={"x-request-id": "r-1"})
        process.send_signal(signal.SIGTERM)
        _, told = await process.communicate()

    lines = told.decode().splitlines()
    assert sum("auth_method is none" in line for line in lines) == 1
    assert sum("chat_completions 200 model='m'" in line for line in lines) == 1
