"""Hand-written stand-ins: an upstream on a real socket that does as it is told, and a caller."""

import asyncio
import contextlib
import json
import ssl
from collections import defaultdict, deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

CHAT = {"model": "m", "messages": [{"role": "user", "content": "Hello"}]}
COMPLETION = {
    "id": "chatcmpl-1",
    "object": "chat.completion",
    "created": 1700000000,
    "model": "m",
    "choices": [
        {"index": 0, "message": {"role": "assistant", "content": "Hi"}, "finish_reason": "stop"}
    ],
    "usage": {"prompt_tokens": 5, "completion_tokens": 1, "total_tokens": 6},
}
SSE = {"content-type": "text/event-stream; charset=utf-8"}


def chunk(text: str, **more: Any) -> bytes:
    """One event of a chat stream."""
    event = {
        "id": "chatcmpl-1",
        "object": "chat.completion.chunk",
        "created": 1700000000,
        "model": "m",
        "choices": [{"index": 0, "delta": {"content": text}, "finish_reason": None}],
    }
    return b"data: " + json.dumps({**event, **more}).encode() + b"\n\n"


DONE = b"data: [DONE]\n\n"


class Clock:
    """Stands still until a test moves it on."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@dataclass
class Asked:
    """One request as it arrived, and what became of its connection."""

    instance: str
    method: str
    path: str
    headers: dict[str, str]
    body: bytes
    hung_up: asyncio.Event = field(default_factory=asyncio.Event)
    reply: "Reply | None" = None
    sent: list[bytes] = field(default_factory=list)
    """The chunks of the reply that have been written."""

    @property
    def json(self) -> Any:
        return json.loads(self.body)


@dataclass
class Reply:
    """What to send. `ends` is how: "whole", "cut" (the connection closes in the body), "reset"
    (it closes without an answer), "in-headers" (it closes within them), or "silent" (nothing comes
    until the other side hangs up)."""

    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    chunks: Sequence[bytes] = ()
    chunked: bool = False
    ends: str = "whole"
    gate: asyncio.Semaphore | None = None

    def release(self) -> None:
        """Lets the next chunk of a lock-step reply go."""
        assert self.gate is not None
        self.gate.release()


_ANSWER = Reply(200, {"content-type": "application/json"}, [json.dumps(COMPLETION).encode()])


class Upstream:
    """A server whose first path segment is the instance: give `up.url("i1")` as its base URL.

    It answers what `replies`, `streams` and the like have queued for the instance; the last one
    stays. Without any, a chat completion.
    """

    def __init__(self, tls: ssl.SSLContext | None = None) -> None:
        self.journal: list[Asked] = []
        self.connections = 0
        self._tls = tls
        self._scripts: dict[str, deque[Reply]] = defaultdict(deque)
        self._arrived = asyncio.Condition()
        self._connections: set[asyncio.StreamWriter] = set()
        self._closing = False
        self.written = 0

    async def __aenter__(self) -> "Upstream":
        self._server = await asyncio.start_server(
            self._connection, "127.0.0.1", 0, limit=2**26, ssl=self._tls
        )
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        for writer in list(self._connections):
            writer.transport.abort()

    def url(self, instance: str) -> str:
        scheme = "http" if self._tls is None else "https"
        return f"{scheme}://127.0.0.1:{self.port}/{instance}"

    @property
    def asked(self) -> list[str]:
        return [asked.instance for asked in self.journal]

    def script(self, instance: str, reply: Reply) -> Reply:
        self._scripts[instance].append(reply)
        return reply

    def replies(
        self, instance: str, status: int = 200, body: Any = None, **headers: str
    ) -> "Upstream":
        """JSON, or bytes as they are. Header names are written with underscores."""
        found = COMPLETION if body is None and status == 200 else body
        if found is None:
            found = {"error": {"message": f"upstream says {status}", "type": "t", "code": None}}
        raw = found if isinstance(found, bytes) else json.dumps(found).encode()
        head = {"content-type": "application/json"}
        head |= {name.replace("_", "-"): value for name, value in headers.items()}
        self.script(instance, Reply(status, head, [raw]))
        return self

    def streams(
        self,
        instance: str,
        chunks: Sequence[bytes],
        *,
        lock_step: bool = False,
        ends: str = "whole",
        headers: Mapping[str, str] = SSE,
    ) -> Reply:
        """Sends the chunks as they are; in lock-step, each once `release` has been called."""
        gate = asyncio.Semaphore(0) if lock_step else None
        return self.script(instance, Reply(200, headers, chunks, True, ends, gate))

    def fails(self, instance: str, ends: str) -> "Upstream":
        self.script(instance, Reply(ends=ends))
        return self

    def forget(self, instance: str) -> None:
        """It answers again as it does by default."""
        self._scripts.pop(instance, None)

    def closes_idle_connections(self) -> None:
        """From here on a connection that has answered is closed when its next request comes."""
        self._closing = True

    async def stands_still(self) -> int:
        """How many bytes of replies it could write until nobody took more."""
        while True:
            before = self.written
            await asyncio.sleep(0.3)
            if self.written == before:
                return before

    async def request(self, number: int = 0) -> Asked:
        """The request of this number, once it is there."""
        async with self._arrived:
            await self._arrived.wait_for(lambda: len(self.journal) > number)
        return self.journal[number]

    async def _connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._connections.add(writer)
        self.connections += 1
        used = False
        try:
            while (asked := await _read(reader)) is not None:
                if used and self._closing:
                    return
                used = True
                async with self._arrived:
                    self.journal.append(asked)
                    self._arrived.notify_all()
                if not await self._answer(asked, reader, writer):
                    return
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            self._connections.discard(writer)
            writer.close()

    async def _answer(
        self, asked: Asked, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> bool:
        """Whether the connection is good for another request."""
        reply = asked.reply = self.reply_to(asked)
        sending = asyncio.ensure_future(self._send(reply, writer, asked))
        watching = asyncio.ensure_future(reader.read(1))
        await asyncio.wait({sending, watching}, return_when=asyncio.FIRST_COMPLETED)
        if not sending.done():
            asked.hung_up.set()
            sending.cancel()
        watching.cancel()
        for task in (sending, watching):
            with contextlib.suppress(asyncio.CancelledError, ConnectionError):
                await task
        return reply.ends == "whole" and not asked.hung_up.is_set()

    def reply_to(self, asked: Asked) -> Reply:
        script = self._scripts[asked.instance] or deque([_ANSWER])
        return script.popleft() if len(script) > 1 else script[0]

    def wrote(self, asked: Asked, piece: bytes) -> None:
        self.written += len(piece)
        asked.sent.append(piece)

    async def _send(self, reply: Reply, writer: asyncio.StreamWriter, asked: Asked) -> None:
        if reply.ends == "silent":
            await asyncio.Event().wait()
        if reply.ends == "garbage":
            writer.write(b"SSH-2.0-nothing to do with it\r\n\r\n")
            writer.close()
            return
        if reply.ends == "in-headers":
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: applica")
            writer.close()
            return
        if reply.ends == "reset":
            writer.transport.abort()
            return
        head = dict(reply.headers)
        if reply.chunked:
            head["transfer-encoding"] = "chunked"
        else:
            head.setdefault("content-length", str(sum(map(len, reply.chunks))))
        lines = [f"HTTP/1.1 {reply.status} Scripted", *(f"{k}: {v}" for k, v in head.items())]
        writer.write("\r\n".join([*lines, "", ""]).encode("latin-1"))
        await writer.drain()
        for piece in reply.chunks:
            if reply.gate is not None:
                await reply.gate.acquire()
            writer.write(b"%x\r\n%b\r\n" % (len(piece), piece) if reply.chunked else piece)
            await writer.drain()
            self.wrote(asked, piece)
        if reply.ends == "silent-after":
            await asyncio.Event().wait()
        if reply.ends == "cut":
            writer.close()
        elif reply.chunked:
            writer.write(b"0\r\n\r\n")
            await writer.drain()


async def _read(reader: asyncio.StreamReader) -> Asked | None:
    try:
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
    except asyncio.IncompleteReadError:
        return None
    first, *lines = head.split("\r\n")[:-2]
    method, path, _ = first.split(" ")
    headers = {
        name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)
    }
    body = b""
    if "chunked" in headers.get("transfer-encoding", ""):
        while size := int(await reader.readline(), 16):
            body += (await reader.readexactly(size + 2))[:-2]
        await reader.readline()
    elif length := int(headers.get("content-length", "0")):
        body = await reader.readexactly(length)
    instance, _, rest = path.lstrip("/").partition("/")
    return Asked(instance, method, "/" + rest, headers, body)
