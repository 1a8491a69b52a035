"""The gateway as an ASGI 3 application: bytes in and out, hang-ups, the record in its place."""

import asyncio
from collections.abc import Awaitable, Callable, MutableMapping, Sequence
from itertools import chain
from typing import Any

import msgspec

from llamaxing.errors import (
    CallerGone,
    ConfigurationError,
    InternalError,
    NotConfigured,
    ShuttingDown,
)
from llamaxing.gateway import Gateway, identified, new_id, refusal
from llamaxing.headers import request_id
from llamaxing.http import Body, BodyLimits, Request, Response, pieces
from llamaxing.logs import log
from llamaxing.pages import ok
from llamaxing.relay import BrokenOff

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

# Seconds before a configuration that could not be used is read again.
_TRY_AGAIN_AFTER = 5.0
# Seconds that calls which have been cut off may take to be recorded.
_CUT_OFF = 10.0
# Seconds until a caller is watched: a task for each call would cost a short one a tenth.
_UNWATCHED = 0.05
# Seconds in which waiting records are delivered at the end, however long calls have taken.
_DRAIN = 1.0


class Opened(msgspec.Struct, frozen=True):
    """A gateway, and what its server has to know. `grace`: seconds for open calls at the end."""

    gateway: Gateway
    limits: BodyLimits
    grace: float


class Application:
    """Opens its gateway with the first request, or with a lifespan where the server has one.

    Nothing is raised to the server: it would answer in a shape of its own, or not at all.
    """

    def __init__(self, open_gateway: Callable[[], Awaitable[Opened]]) -> None:
        """`open_gateway` is awaited once; it may raise `ConfigurationError`."""
        self._open = open_gateway
        self._opened: Opened | None = None
        # Who asks for a task without it asks for the process first, with a system call.
        self._loop: asyncio.AbstractEventLoop | None = None
        self._calls: set[asyncio.Task[Any]] = set()
        self._ends_at: float | None = None
        self._fault: ConfigurationError | None = None
        self._fault_until = 0.0
        self._lock = asyncio.Lock()

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            task = asyncio.current_task(self._loop) or asyncio.current_task()
            assert task is not None  # noqa: S101
            self._calls.add(task)
            try:
                await self._call(scope, receive, send, task)
            finally:
                self._calls.discard(task)
        elif scope["type"] == "lifespan":
            await self._lifespan(receive, send)

    async def open(self) -> Opened:
        """Where there is no server yet, and nobody else asks. Raises `ConfigurationError`."""
        opened = self._opened = await self._open()
        self._loop = asyncio.get_running_loop()
        return opened

    async def deliver(self, sink: str, message: bytes) -> None:
        """What waits in a queue of the platform's. Raises `ConfigurationError`, `Refused`, and
        OSError where the queues fail."""
        opened = await self._gateway()
        await opened.gateway.deliver(sink, message)

    async def watch(self) -> None:
        """What waits, into the log. Raises `ConfigurationError`, and OSError as `deliver` does."""
        opened = await self._gateway()
        await opened.gateway.watch()

    async def end(self) -> None:
        """From here on new calls are refused; returns when the open ones have ended, or with the
        grace period, which cuts them off."""
        grace = self._opened.grace if self._opened else 0.0
        self._ends_at = asyncio.get_running_loop().time() + grace
        if self._calls:
            await asyncio.wait(self._calls, timeout=grace)
        if self._opened and self._calls:
            self._opened.gateway.cut_off()
        for call in self._calls:
            call.cancel()

    async def _call(
        self, scope: Message, receive: Receive, send: Send, task: "asyncio.Task[Any]"
    ) -> None:
        caller = _Caller(receive, task)
        response: Response | None = None
        whole = False
        try:
            response = await self._answer(scope, caller)
            await _send(response, send, caller)
            whole = True
        except asyncio.CancelledError:
            if not caller.gone:
                raise
        except (CallerGone, BrokenOff):
            pass
        except Exception:
            log.exception("a call failed at the edge")
            if response is None:
                await _send(identified(refusal(InternalError()), new_id()), send, caller)
                whole = True
        finally:
            caller.release()
            if response is not None:
                await response.aclose(whole)
        if whole:
            # Only now: a caller who waits for the end of the body knows that it is recorded.
            await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _answer(self, scope: Message, caller: "_Caller") -> Response:
        headers = _texts(scope["headers"])
        path = scope["path"].rstrip("/") or "/"
        try:
            opened = self._opened or await self._gateway()
        except ConfigurationError as error:
            # The process lives: to restart it would mend nothing.
            answer = ok() if path == "/health/live" else refusal(NotConfigured(error.settings))
            return identified(answer, request_id(headers, new_id()))
        if self._ends_at is not None and path != "/health/live":
            return identified(refusal(ShuttingDown()), request_id(headers, new_id()))
        length = headers.get("content-length", "")
        announced = int(length) if length.isdecimal() else 0
        body = Body(caller.receive, opened.limits, announced=announced)
        query = scope.get("query_string", b"").decode("latin-1")
        return await opened.gateway.handle(Request(scope["method"], path, headers, body, query))

    async def _gateway(self) -> Opened:
        if self._opened is not None:
            return self._opened
        if self._fault is not None and self._lock.locked():
            # Somebody looks whether it is mended: nobody else waits for that.
            raise self._fault.with_traceback(None)
        async with self._lock:
            now = asyncio.get_running_loop().time()
            if self._fault is not None and now < self._fault_until:
                raise self._fault.with_traceback(None)
            if self._opened is not None:
                return self._opened
            try:
                return await self.open()
            except ConfigurationError as error:
                for fault in error.faults:
                    log.error("%s", fault)
                self._fault, self._fault_until = error, now + _TRY_AGAIN_AFTER
                raise

    async def _lifespan(self, receive: Receive, send: Send) -> None:
        await receive()
        try:
            await self._gateway()
        except ConfigurationError as error:
            if not error.heals:
                await send({"type": "lifespan.startup.failed", "message": str(error)})
                return
        await send({"type": "lifespan.startup.complete"})
        await receive()
        await self._close()
        await send({"type": "lifespan.shutdown.complete"})

    async def _close(self) -> None:
        if self._opened is None:
            return
        if self._calls:
            # Those that were cut off: their records are still to be kept.
            await asyncio.wait(self._calls, timeout=_CUT_OFF)
        now = asyncio.get_running_loop().time()
        left = self._opened.grace if self._ends_at is None else self._ends_at - now
        await self._opened.gateway.aclose(max(_DRAIN, left))


class _Caller:
    """Who is at the other end: the body they send, and whether they are still there.

    Once the body is in, a hang-up cancels the task of the call, until it is released. A reply that
    comes in one piece, and at once, is over before anybody has to watch.
    """

    def __init__(self, receive: Receive, task: "asyncio.Task[Any]") -> None:
        self._receive = receive
        self._more = True
        self._task = task
        self._watcher: asyncio.Task[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self.gone = False

    async def receive(self) -> bytes:
        """The next piece of the body, and nothing after the last. Raises `CallerGone` for a hang-up
        within."""
        while self._more:
            message = await self._receive()
            if message["type"] == "http.disconnect":
                self.gone = True
                raise CallerGone
            self._more = message.get("more_body", False)
            if not self._more:
                self._timer = self._task.get_loop().call_later(_UNWATCHED, self.watch)
            piece: bytes = message.get("body", b"")
            if piece:
                return piece
        return b""

    def watch(self) -> None:
        """From now on, and no later."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
            self._watcher = asyncio.create_task(self._watch())

    def release(self) -> None:
        """From here on the call runs to its end, whoever is there to see it."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._watcher is not None:
            self._watcher.cancel()

    async def _watch(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
        self.gone = True
        self._task.cancel()


def _texts(raw: Sequence[tuple[bytes, bytes]]) -> dict[str, str]:
    """By name, which a server gives in lower case."""
    # All of them at once, which is a few steps, where one by one is a dozen for each.
    lines = b"\n".join(chain.from_iterable(raw)).decode("latin-1").split("\n")
    found = dict(zip(lines[::2], lines[1::2], strict=False))
    if len(found) == len(raw) == len(lines) / 2:
        return found
    several: dict[str, list[str]] = {}
    for name, value in raw:
        several.setdefault(name.decode("latin-1"), []).append(value.decode("latin-1"))
    return {name: ", ".join(values) for name, values in several.items()}


async def _send(response: Response, send: Send, caller: _Caller) -> None:
    """All but the closing chunk."""
    head = {"status": response.status, "headers": response.headers}
    await send({"type": "http.response.start", **head})
    begun = False
    if isinstance(response.body, bytes):
        for piece in pieces(response.body):
            if begun:
                caller.watch()
            begun = True
            await send({"type": "http.response.body", "body": piece, "more_body": True})
        return
    async for piece in response.body:
        if begun:
            caller.watch()
        begun = True
        await send({"type": "http.response.body", "body": piece, "more_body": True})
