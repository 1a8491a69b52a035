"""The application under uvicorn: faults are told before anything listens, and at SIGTERM the calls
end before their server does."""

import asyncio
import contextlib
import gc
import logging
import os
import signal
import socket
from collections.abc import Coroutine, Iterator
from pathlib import Path
from typing import Any

import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from llamaxing import build, settings
from llamaxing.asgi import Application, Message, Receive, Send
from llamaxing.corked import Corked
from llamaxing.errors import ConfigurationError
from llamaxing.logs import Lines, Spare, Stamped, log


def serve(host: str, port: int, workers: int) -> int:
    """Until it is told to end. Raises `ConfigurationError` before anything listens."""
    options: dict[str, Any] = {"host": host, "port": port, "workers": workers, **_OPTIONS}
    if workers > 1:
        asyncio.run(_try())
        gc.enable()
        _outlive()
        uvicorn.run("llamaxing.shim:application", factory=True, **options)
        return 0
    shim = application()
    with contextlib.suppress(KeyboardInterrupt):
        _Server(shim, options).run()
    return 0


def application() -> "Shim":
    """Of a process that is its own."""
    _log()
    return Shim(build.application())


class Protocol(HttpToolsProtocol):
    """uvicorn's, over connections that are corked."""

    def connection_made(self, transport: Any) -> None:
        corked: Any = Corked(transport)
        super().connection_made(corked)


_OPTIONS: dict[str, Any] = {
    # Named, so that nothing is looked for: websockets are none of ours.
    "interface": "asgi3",
    "http": Protocol,
    "ws": "none",
    "lifespan": "on",
    # When the signal reaches it, the calls have had theirs.
    "timeout_graceful_shutdown": 5,
    "access_log": False,
    # Nothing here asks for a caller's address.
    "proxy_headers": False,
    "server_header": False,
    "log_config": None,
}


def _log() -> None:
    lines = Lines()
    lines.setFormatter(Stamped())
    for logger in (logging.root, log):
        logger.addHandler(lines)
    log.propagate = False
    logging.getLogger("uvicorn").setLevel(logging.WARNING)
    # What no line tells would cost each call a few microseconds for nothing.
    logging.setLogRecordFactory(Spare)
    setattr(logging, "_srcfile", None)  # noqa: B010  as the documentation of logging has it


async def _try() -> None:
    """Before workers are started, which would be started again and again."""
    logging.root.addHandler(logging.NullHandler())
    with _unless_it_heals():
        built = await build.Build(settings.environment(os.environ, Path.cwd())).all()
        await built.gateway.aclose()


@contextlib.contextmanager
def _unless_it_heals() -> Iterator[None]:
    try:
        yield
    except ConfigurationError as error:
        # What is away may come back: until then every call is told so, and looks again.
        if not error.heals:
            raise


def _outlive() -> None:
    """uvicorn ends its calls on SIGTERM and then sends the signal again, to end the process with
    it; that the gateway was told to end is no failure.
    """
    signal.signal(signal.SIGTERM, lambda *_: None)


class _Server(uvicorn.Server):
    """Opens the gateway in the loop that serves it, so that it is made only once."""

    def __init__(self, shim: "Shim", options: dict[str, Any]) -> None:
        super().__init__(uvicorn.Config(shim, **options))
        self._shim = shim

    async def serve(self, sockets: list[socket.socket] | None = None) -> None:
        with _unless_it_heals():
            await self._shim.open()
        _outlive()
        await super().serve(sockets)


class Shim:
    """uvicorn closes its listener at once, and new callers would find nobody: here they are told,
    while the open calls finish. Its own end, with the signal that it waits for, comes after that.
    """

    def __init__(self, application: Application) -> None:
        self._application = application
        self._ending: asyncio.Task[None] | None = None

    async def open(self) -> None:
        """Raises `ConfigurationError`."""
        await self._application.open()

    def __call__(self, scope: Message, receive: Receive, send: Send) -> Coroutine[Any, Any, None]:
        if scope["type"] == "lifespan":
            for signum in (signal.SIGTERM, signal.SIGINT):
                self._take(signum)
            # The garbage collector may look when there is more to find; `serve` had it wait.
            gc.set_threshold(50_000, 20, 100)
            gc.enable()
        return self._application(scope, receive, send)

    def _take(self, signum: int) -> None:
        loop = asyncio.get_running_loop()
        uvicorns: Any = signal.getsignal(signum)

        def begin() -> None:
            if self._ending is None:
                self._ending = asyncio.create_task(self._end(signum, uvicorns))
            else:
                # Whoever asks twice does not wait.
                uvicorns(signum, None)

        signal.signal(signum, lambda *_: loop.call_soon_threadsafe(begin))

    async def _end(self, signum: int, uvicorns: Any) -> None:
        await self._application.end()
        uvicorns(signum, None)
