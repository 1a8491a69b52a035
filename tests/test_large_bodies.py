"""A body that is too large is refused while it arrives; one that is not waits on disk.

Memory is what Linux says of a gateway that runs as a program.
"""

import asyncio
import contextlib
import hashlib
import json
import re
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import pytest

from tests.conftest import Serve, configure, model, openai
from tests.e2e import Program, uvicorn_shim
from tests.fakes import CHAT, Upstream

MB = 1_000_000
LIMIT = 64 * 1024 * 1024  # what the setting says by default
PATH = "/v1/chat/completions"
PIECE = b"x" * 256 * 1024
# What a call takes by itself: buffers of sockets, a reply, what the allocator keeps.
# A record holds 2 MB, in several shapes on its way to a sink.
SOME = 12 * MB
IMAGE = b'"messages": [{"role": "user", "content": "data:image/png;base64,%b"}]}' % (b"A" * 20 * MB)

on_linux = pytest.mark.skipif(
    not sys.platform.startswith("linux"), reason="only Linux tells a program's memory in /proc"
)


class Sending:
    """A caller on a bare socket, who decides when to send what, and when to look for a reply."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    async def head(self, *headers: str) -> None:
        lines = [f"POST {PATH} HTTP/1.1", "host: x", "content-type: application/json", *headers]
        self._writer.write("\r\n".join([*lines, "", ""]).encode())
        await self._writer.drain()

    async def chunks(self, size: int) -> None:
        """At least so many bytes in chunks, and not the one that ends them."""
        for _ in range(-(-size // len(PIECE))):
            self._writer.write(b"%x\r\n%b\r\n" % (len(PIECE), PIECE))
            await self._writer.drain()

    async def end_of_chunks(self) -> None:
        self._writer.write(b"0\r\n\r\n")
        await self._writer.drain()

    async def reply(self) -> tuple[int, dict[str, str]]:
        """Its status, and the error that it tells."""
        head = await self._reader.readuntil(b"\r\n\r\n")
        found = re.search(rb"content-length: (\d+)", head)
        assert found is not None
        body = await self._reader.readexactly(int(found[1]))
        return int(head.split()[1]), json.loads(body)["error"]


@asynccontextmanager
async def sending(url: str) -> AsyncIterator[Sending]:
    host, port = url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    try:
        yield Sending(reader, writer)
    finally:
        writer.close()


def memory(program: Program, what: str) -> int:
    """In bytes: `VmRSS` is what it has in memory now, `VmHWM` the most that it ever had."""
    status = Path(f"/proc/{program.pid}/status").read_text()
    found = re.search(rf"^{what}:\s+(\d+) kB$", status, re.MULTILINE)
    assert found is not None
    return int(found[1]) * 1024


def unnamed_files(program: Program) -> set[str]:
    """The files without a name that it has open, or mapped into memory: bodies that wait."""
    folder = Path(f"/proc/{program.pid}")
    found = set((folder / "maps").read_text().splitlines())
    for link in (folder / "fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # a connection that ended meanwhile
            found.add(f"{link.name} {link.readlink()}")
    return {it for it in found if it.endswith("(deleted)")}


@pytest.mark.parametrize("expect", [(), ("expect: 100-continue",)], ids=["plain", "asks first"])
async def test_a_body_that_is_announced_too_large_is_refused_before_any_of_it_is_sent(
    serve: Serve, upstream: Upstream, expect: tuple[str, ...]
) -> None:
    gateway = await serve()
    async with sending(gateway.url) as caller:
        await caller.head(f"content-length: {100 * MB}", *expect)

        status, error = await caller.reply()

    assert (status, error["code"]) == (413, "request_too_large")
    assert f"{LIMIT} bytes that app_request_body_limit allows" in error["message"]
    assert upstream.asked == []
    [record] = await gateway.recorded()
    assert (record["status"], record["error"]) == (413, "request_too_large")


async def test_a_body_of_just_the_limit_passes_and_one_byte_more_does_not(
    serve: Serve, upstream: Upstream
) -> None:
    body = json.dumps(CHAT).encode()
    gateway = await serve(APP_REQUEST_BODY_LIMIT=str(len(body)))

    passes = await gateway.post(PATH, content=body)
    refused = await gateway.post(PATH, content=body + b" ")

    assert (passes.status_code, refused.status_code) == (200, 413)
    assert [asked.body for asked in upstream.journal] == [body]


@on_linux
@pytest.mark.parametrize("limit", [LIMIT, 3 * MB], ids=["by default", "small"])
async def test_a_body_of_100_mb_is_refused_while_it_arrives_and_not_held(
    upstream: Upstream, tmp_path: Path, limit: int
) -> None:
    settings = configure(tmp_path, [model(openai(upstream, "i1"))])
    async with uvicorn_shim(
        {**settings, "APP_REQUEST_BODY_LIMIT": str(limit)}, tmp_path
    ) as gateway:
        await warm(gateway)
        before, files = memory(gateway, "VmRSS"), unnamed_files(gateway)
        async with sending(gateway.url) as caller:
            await caller.head("transfer-encoding: chunked")
            await caller.chunks(limit + 1)

            # It is not over: the reply comes nevertheless.
            status, error = await caller.reply()
            # What the caller goes on sending is not held either.
            await caller.chunks(100 * MB - limit)
            await caller.end_of_chunks()
            # The connection is good for the next call, which is answered after all of that.
            await caller.head(f"content-length: {100 * MB}")
            again, _ = await caller.reply()
        grown, left = memory(gateway, "VmHWM") - before, unnamed_files(gateway)

    assert (status, error["code"]) == (413, "request_too_large")
    assert f"{limit} bytes" in error["message"]
    assert left == files
    assert again == 413
    assert grown < SOME


@on_linux
@pytest.mark.parametrize("logging", ["none", "jsonl"])
async def test_a_body_of_20_mb_passes_and_memory_grows_by_less_than_twice_of_it(
    upstream: Upstream, tmp_path: Path, logging: str
) -> None:
    settings = configure(tmp_path, [model(openai(upstream, "i1"), aliases=["alias"])])
    body = b'{"model": "alias", ' + IMAGE
    async with uvicorn_shim({**settings, "LOGGING_CLIENT": logging}, tmp_path) as gateway:
        await warm(gateway)
        before, files = memory(gateway, "VmRSS"), unnamed_files(gateway)
        async with httpx.AsyncClient(base_url=gateway.url, timeout=30, verify=False) as client:
            reply = await client.post(PATH, content=body)
            grown = memory(gateway, "VmHWM") - before
            # A reply is here before its call has ended, but not before the call in front of it.
            await client.post(PATH, json=CHAT)
            left = unnamed_files(gateway)

    assert reply.status_code == 200
    assert digest(upstream.journal[1].body) == digest(b'{"model": "m", ' + IMAGE)
    assert left == files
    assert grown < len(body) + SOME < 2 * len(body)


@on_linux
async def test_a_recording_of_25_mb_fails_over_with_the_same_bytes_and_memory_grows_by_less_than_it(
    upstream: Upstream, tmp_path: Path
) -> None:
    upstream.replies("i1", 503)
    upstream.replies("i2", 200, {"text": "Hello"})
    models = [model(openai(upstream, "i1"), openai(upstream, "i2", priority=1), aliases=["alias"])]
    recording = bytes(range(256)) * 100 * 1024
    async with uvicorn_shim(configure(tmp_path, models), tmp_path) as gateway:
        await warm(gateway)
        before, tries = memory(gateway, "VmRSS"), len(upstream.journal)
        async with httpx.AsyncClient(base_url=gateway.url, timeout=30, verify=False) as client:
            reply = await client.post(
                "/v1/audio/transcriptions",
                data={"model": "alias"},
                files={"file": ("a.mp3", recording)},
            )
        grown = memory(gateway, "VmHWM") - before

    assert reply.json() == {"text": "Hello"}
    first, second = upstream.journal[tries:]
    assert (first.instance, second.instance) == ("i1", "i2")
    assert digest(first.body) == digest(second.body)
    assert recording in first.body
    # Pages of the file that it lies in count, of which the kernel maps as many as it likes.
    assert grown < len(recording)


HOSTILE = {
    "many members": b'{"model": "m"%b}' % (b', "a": 1' * (5 * MB // 2)),
    "a name of 20 MB": b'{"model": "%b"}' % (b"A" * 20 * MB),
    "metadata of 20 MB": b'{"model": "m", "observation_metadata": {"a": [0%b]}}'
    % (b",0" * 10 * MB),
}


@on_linux
@pytest.mark.parametrize("body", HOSTILE.values(), ids=HOSTILE)
async def test_a_body_that_would_cost_many_times_its_size_is_refused_for_less_than_twice_of_it(
    upstream: Upstream, tmp_path: Path, body: bytes
) -> None:
    settings = configure(tmp_path, [model(openai(upstream, "i1"))])
    async with uvicorn_shim(settings, tmp_path) as gateway:
        await warm(gateway)
        before = memory(gateway, "VmRSS")
        async with httpx.AsyncClient(base_url=gateway.url, timeout=30, verify=False) as client:
            reply = await client.post(PATH, content=body)
            await client.post(PATH, json=CHAT)
        grown = memory(gateway, "VmHWM") - before

    assert reply.status_code == 400
    assert len(reply.content) < 1000
    assert grown < len(body) + SOME < 2 * len(body)


EDITS = {
    "untouched": (b'{"model": "m", ', b'{"model": "m", '),
    "alias": (b'{"model": "alias", ', b'{"model": "m", '),
    "metadata": (b'{"observation_metadata": {"a": [1]}, "model": "m", ', b'{"model": "m", '),
    "both": (b'{"model":"alias","observation_metadata":{}, ', b'{"model":"m", '),
}


@pytest.mark.parametrize("failure", ["status 500", "reset"])
@pytest.mark.parametrize(("start", "sent"), EDITS.values(), ids=EDITS)
async def test_a_body_that_waited_on_disk_is_sent_again_to_the_byte(
    serve: Serve, upstream: Upstream, start: bytes, sent: bytes, failure: str
) -> None:
    if failure == "reset":
        upstream.fails("i1", "reset")
    else:
        upstream.replies("i1", 500)
    gateway = await serve()

    reply = await gateway.post(PATH, content=start + IMAGE)

    assert reply.status_code == 200
    assert upstream.asked == ["i1", "i2"]
    assert {digest(asked.body) for asked in upstream.journal} == {digest(sent + IMAGE)}


async def test_a_body_is_sent_again_after_a_connection_that_ended_within_it(
    serve: Serve, upstream: Upstream
) -> None:
    async def leave(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readexactly(MB)
        writer.transport.abort()

    leaving = await asyncio.start_server(leave, "127.0.0.1", 0)
    async with leaving:
        port = leaving.sockets[0].getsockname()[1]
        there = openai(upstream, "i1", openai_base_url=f"http://127.0.0.1:{port}/v1")
        gateway = await serve([model(there, openai(upstream, "i2", priority=1))])

        reply = await gateway.post(PATH, content=b'{"model": "m", ' + IMAGE)

    assert reply.status_code == 200
    assert [digest(asked.body) for asked in upstream.journal] == [
        digest(b'{"model": "m", ' + IMAGE)
    ]
    [record] = await gateway.recorded()
    assert [attempt["instance"] for attempt in record["attempts"]] == ["i1", "i2"]


async def warm(gateway: Program) -> None:
    """The first call pays for what is made only once."""
    async with httpx.AsyncClient(base_url=gateway.url, verify=False) as client:
        assert (await client.post(PATH, json=CHAT)).status_code == 200


def digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
