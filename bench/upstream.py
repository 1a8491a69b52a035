"""An OpenAI-compatible upstream that costs little, in a process of its own.

    python -m bench.upstream --keys keys.json --certificate server.pem

What it does with a call stands in its body, as in `bench/d=50/s=1024/n=200/g=10/`: milliseconds
before the reply begins, bytes of a plain reply, chunks of a stream and milliseconds between two of
them (0: as fast as they are read). It is in a message, since every gateway passes those on; a call
without it is answered, and not counted. Each chunk has the time of its writing as its text, so that
a caller on the same machine can tell how long it took.

GET /count tells what has come so far; any other GET the keys. It prints its two ports, of HTTP and
of TLS, and ends when its standard input does.
"""

import argparse
import asyncio
import functools
import json
import re
import ssl
import sys
import time
from pathlib import Path
from typing import Any

import httptools
import uvloop

_ASKED = re.compile(rb"bench/((?:[a-z]=\d+/)*)")
_PART = re.compile(rb"([a-z])=(\d+)/")
_DEFAULTS = {b"d": 0, b"s": 1024, b"n": 200, b"g": 0}
_STREAM = re.compile(rb'"stream"\s*:\s*true')

_USAGE = b'"usage":{"prompt_tokens":120,"completion_tokens":60,"total_tokens":180}'
_REPLY = (
    b'{"id":"chatcmpl-bench","object":"chat.completion","created":1700000000,"model":"bench",'
    b'"choices":[{"index":0,"message":{"role":"assistant","content":"%b"},"finish_reason":"stop"}],'
    + _USAGE
    + b"}"
)
_CHUNK = (
    b'data: {"id":"chatcmpl-bench","object":"chat.completion.chunk","created":1700000000,'
    b'"model":"bench","system_fingerprint":"fp_bench","choices":[{"index":0,"delta":{%b},'
    b'"logprobs":null,"finish_reason":%b}]}\n\n'
)
_CONTENT = _CHUNK % (b'"role":"assistant","content":"t%de"', b"null")
_HEAD = (
    b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\n"
    b"cache-control: no-cache\r\nx-request-id: bench\r\ntransfer-encoding: chunked\r\n\r\n"
)


class Counts:
    """What has come so far: calls, and connections that brought at least one; of TLS besides."""

    def __init__(self) -> None:
        self.calls = self.tls_calls = self.tls_connections = 0

    def document(self) -> bytes:
        return json.dumps(vars(self)).encode()


class Connection(asyncio.Protocol):
    def __init__(self, counts: Counts, keys: bytes, tls: bool) -> None:
        self._counts, self._keys, self._tls = counts, keys, tls
        self._stream: asyncio.Task[None] | None = None
        self._writable = asyncio.Event()
        self._writable.set()
        self._calls = 0

    def connection_made(self, transport: Any) -> None:
        self._transport = transport
        self._parser = httptools.HttpRequestParser(self)
        self._body, self._url = b"", b""

    def connection_lost(self, exc: Exception | None) -> None:
        self._writable.set()
        if self._stream:
            self._stream.cancel()

    def pause_writing(self) -> None:
        self._writable.clear()

    def resume_writing(self) -> None:
        self._writable.set()

    def data_received(self, data: bytes) -> None:
        self._parser.feed_data(data)

    def on_url(self, url: bytes) -> None:
        self._url = url

    def on_body(self, part: bytes) -> None:
        self._body += part

    def on_message_complete(self) -> None:
        body, self._body = self._body, b""
        if self._parser.get_method() == b"POST":
            found = _ASKED.search(body)
            if found:
                self._count()
            self._answer(found[1] if found else b"", body)
        else:
            told = self._counts.document() if self._url == b"/count" else self._keys
            self._transport.write(http(told))

    def _count(self) -> None:
        self._counts.calls += 1
        if self._tls:
            self._counts.tls_calls += 1
            self._counts.tls_connections += self._calls == 0
        self._calls += 1

    def _answer(self, asked: bytes, body: bytes) -> None:
        delay, size, chunks, gap = parts(asked)
        loop = asyncio.get_running_loop()
        if _STREAM.search(body):
            self._stream = loop.create_task(self._send(delay / 1000, chunks, gap / 1000))
        elif delay:
            loop.call_later(delay / 1000, self._transport.write, reply(size))
        else:
            self._transport.write(reply(size))

    async def _send(self, delay: float, chunks: int, gap: float) -> None:
        await asyncio.sleep(delay)
        loop = asyncio.get_running_loop()
        head, due = _HEAD, loop.time()
        for _ in range(chunks):
            await self._writable.wait()
            self._transport.write(head + framed(_CONTENT % time.monotonic_ns()))
            head, due = b"", due + gap
            await asyncio.sleep(max(0, due - loop.time()) if gap else 0)
        last = framed(_CHUNK % (b"", b'"stop"')) + framed(b"data: [DONE]\n\n")
        self._transport.write(last + b"0\r\n\r\n")


@functools.lru_cache(maxsize=100)
def parts(asked: bytes) -> tuple[int, int, int, int]:
    """Delay in milliseconds, size in bytes, chunks, and the gap between them in milliseconds."""
    given = {name: int(value) for name, value in _PART.findall(asked)}
    delay, size, chunks, gap = (_DEFAULTS | given).values()
    return delay, size, chunks, gap


@functools.cache
def reply(size: int) -> bytes:
    return http(_REPLY % (b"x" * max(1, size - len(_REPLY % b""))))


def http(body: bytes) -> bytes:
    head = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\nx-request-id: bench\r\n"
    return head + b"content-length: %d\r\n\r\n" % len(body) + body


def framed(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


async def serve(keys: bytes, certificate: Path) -> None:
    counts, loop = Counts(), asyncio.get_running_loop()
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate)
    ports = []
    for tls in (None, context):
        make = functools.partial(Connection, counts, keys, tls is not None)
        server = await loop.create_server(make, "127.0.0.1", 0, ssl=tls, backlog=4096)
        ports.append(server.sockets[0].getsockname()[1])
    print(*ports, flush=True)
    await loop.run_in_executor(None, sys.stdin.read)


if __name__ == "__main__":
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--keys", type=Path, required=True)
    options.add_argument("--certificate", type=Path, required=True)
    wanted = options.parse_args()
    uvloop.run(serve(wanted.keys.read_bytes(), wanted.certificate))
