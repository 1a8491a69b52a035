"""The application under uvicorn: at SIGTERM its calls end before its server does."""

import asyncio
import gc
import logging
import signal
from typing import Any

from llamaxing import build
from llamaxing.asgi import Application, Message, Receive, Send


def application() -> "Shim":
    _spare()
    return Shim(build.application())


def _spare() -> None:
    """What would cost each call a few microseconds for nothing: the process is the gateway's own.

    Log lines tell no thread, process or place in the code, so that is not found out for each; and
    the garbage collector may look when there is more to find.
    """
    for name in ("logThreads", "logProcesses", "logMultiprocessing", "logAsyncioTasks"):
        setattr(logging, name, False)
    setattr(logging, "_srcfile", None)  # noqa: B010  as the documentation of logging has it
    gc.set_threshold(50_000, 20, 100)


class Shim:
    """uvicorn closes its listener at once, and new callers would find nobody: here they are told,
    while the open calls finish. Its own end, with the signal that it waits for, comes after that.
    """

    def __init__(self, application: Application) -> None:
        self._application = application
        self._ending: asyncio.Task[None] | None = None

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            for signum in (signal.SIGTERM, signal.SIGINT):
                self._take(signum)
        await self._application(scope, receive, send)

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
