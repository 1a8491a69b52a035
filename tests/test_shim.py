"""`python -m llamaxing serve`, as its users run it: a process of its own."""

import asyncio
import json
import os
import signal
import sys
from asyncio.subprocess import PIPE
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import pytest

from tests.conftest import configure, model, openai
from tests.e2e import start_shim, uvicorn_shim
from tests.fakes import CHAT, DONE, Upstream, chunk
from tests.services import PROJECT, free_port

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


@pytest.mark.parametrize("workers", ["1", "2"])
async def test_faults_are_told_a_line_each_and_the_exit_code_is_1(
    tmp_path: Path, workers: str
) -> None:
    faults = {"AUTH_METHOD": "ldap", "DEBUG_LEVEL": "9"}
    process = await start_shim(faults, tmp_path, "--workers", workers, stderr=PIPE)

    _, told = await process.communicate()

    assert process.returncode == 1
    assert told.decode().splitlines() == [
        "debug_level: has to be less than or equal to 3",
        "auth_method: 'ldap' is not known; use 'apikey', 'easyauth', 'jwt' or 'none'",
    ]


async def until_ending(client: httpx.AsyncClient) -> httpx.Response:
    """What a new caller gets once the gateway has been told to end."""
    while True:
        reply = await client.get("/health/ready")
        if reply.status_code != 200:
            return reply


async def test_at_sigterm_open_streams_finish_new_calls_get_503_and_all_are_recorded(
    upstream: Upstream, tmp_path: Path
) -> None:
    """Sixty streams; the exit code is 0, and what has waited is delivered."""
    outbox = {"OUTBOX": "sqlite", "APP_GRACE_PERIOD": "60"}
    environ = configure(tmp_path, [model(openai(upstream, "i1"))]) | outbox
    streams = [upstream.streams("i1", [chunk("a"), DONE], lock_step=True) for _ in range(60)]
    upstream.streams("i1", [])
    async with serving(environ, tmp_path) as (process, client):
        calls = [
            asyncio.create_task(client.post("/v1/chat/completions", json=STREAM)) for _ in streams
        ]
        await upstream.request(len(streams) - 1)

        process.send_signal(signal.SIGTERM)
        refused = await until_ending(client)
        late = await client.post("/v1/chat/completions", json=STREAM)
        live = await client.get("/health/live")
        for stream in streams:
            stream.release()
            stream.release()
        replies = await asyncio.gather(*calls)
        _, told = await process.communicate()

    assert [reply.content for reply in replies] == [chunk("a") + DONE] * len(streams)
    for reply in (refused, late):
        assert (reply.status_code, reply.json()["error"]["code"]) == (503, "shutting_down")
        assert (reply.headers["retry-after"], reply.headers["connection"]) == ("1", "close")
    assert live.status_code == 200
    assert process.returncode == 0, told
    records = [json.loads(it) for it in (tmp_path / "records.jsonl").read_text().splitlines()]
    assert [it["complete"] for it in records] == [True] * len(streams)
    assert len({it["id"] for it in records}) == len(streams)


async def test_a_stream_that_outlasts_the_grace_period_is_cut_off_and_recorded(
    upstream: Upstream, tmp_path: Path
) -> None:
    environ = configure(tmp_path, [model(openai(upstream, "i1"))]) | {"APP_GRACE_PERIOD": "0.1"}
    upstream.streams("i1", [chunk("a")], ends="silent-after")
    async with serving(environ, tmp_path) as (process, client):
        async with client.stream("POST", "/v1/chat/completions", json=STREAM) as reply:
            arriving = reply.aiter_raw()
            await anext(arriving)
            process.send_signal(signal.SIGTERM)
            with pytest.raises(httpx.RemoteProtocolError):
                await anext(arriving)
        await process.communicate()

    assert process.returncode == 0
    [record] = [json.loads(it) for it in (tmp_path / "records.jsonl").read_text().splitlines()]
    assert (record["complete"], record["error"]) == (False, "shutting_down")


async def test_an_outbox_that_cannot_be_opened_is_told_and_the_exit_code_is_1(
    upstream: Upstream, tmp_path: Path
) -> None:
    environ = configure(tmp_path, [model(openai(upstream, "i1"))])
    nowhere = {"OUTBOX": "sqlite", "OUTBOX_PATH": str(tmp_path / "none" / "outbox.db")}
    process = await start_shim(environ | nowhere, tmp_path, stderr=PIPE)

    _, told = await process.communicate()

    assert process.returncode == 1
    assert told.decode().splitlines()[-1] == (
        f"outbox: {tmp_path}/none/outbox.db: No such file or directory"
    )


@pytest.mark.parametrize("outbox", ["none", "sqlite"])
async def test_several_workers_serve_and_record_to_one_file(
    upstream: Upstream, tmp_path: Path, outbox: str
) -> None:
    environ = configure(tmp_path, [model(openai(upstream, "i1"))]) | {"OUTBOX": outbox}
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
    # A start reads what is configured once.
    assert sum("auth_method is none" in line for line in lines) == 1
    assert sum("configuration" in line for line in lines) == 1
    assert sum("chat_completions 200 model='m'" in line for line in lines) == 1


_WATCHED = """
import gc, os, signal, sys, threading, time, urllib.error, urllib.request
from llamaxing.__main__ import main

def watch():
    while True:
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{sys.argv[-1]}/health/live").close()
        except urllib.error.URLError:
            time.sleep(0.01)
        else:
            break
    print(gc.isenabled(), gc.get_freeze_count() > 0, flush=True)
    os.kill(os.getpid(), signal.SIGTERM)

threading.Thread(target=watch).start()
sys.exit(main())
"""


async def test_garbage_is_looked_for_again_once_it_serves(
    upstream: Upstream, tmp_path: Path
) -> None:
    """And not among what the start has made."""
    environ = configure(tmp_path, [model(openai(upstream, "i1"))])
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", _WATCHED, "serve", "--port", str(free_port())),
        cwd=tmp_path,
        env={"PATH": os.environ["PATH"], "PYTHONPATH": str(PROJECT), **environ},
        stdout=PIPE,
    )

    shown, _ = await process.communicate()

    assert (process.returncode, shown.split()) == (0, [b"True", b"True"])
