"""The command line: `python -m llamaxing serve`."""

import argparse
import asyncio
import logging
import os
import signal
import sys
from pathlib import Path
from typing import Any

from llamaxing import settings
from llamaxing.build import Build
from llamaxing.errors import ConfigurationError
from llamaxing.logs import log


def main() -> int:
    """Exits with 1 where the configuration has faults; they are on standard error, a line each."""
    parser = argparse.ArgumentParser(prog="python -m llamaxing")
    commands = parser.add_subparsers(dest="command", required=True)
    serve = commands.add_parser("serve", help="run the gateway under uvicorn")
    serve.add_argument("--host", default="127.0.0.1", help="the address to listen on")
    serve.add_argument("--port", type=int, default=8000, help="the port to listen on")
    serve.add_argument("--workers", type=int, default=1, help="how many processes")
    serve.add_argument(
        "--grace", type=int, default=30, help="seconds that open calls get at the end"
    )
    wanted = parser.parse_args()
    try:
        asyncio.run(_check())
    except ConfigurationError as error:
        # What is only away may come back: until then every call is told, and it is looked again.
        if not error.heals:
            sys.stderr.write(f"{error}\n")
            return 1
    _serve(wanted)
    return 0


async def _check() -> None:
    """Before a server is started, whose workers would be started again and again."""
    log.addHandler(logging.NullHandler())
    built = await Build(settings.environment(os.environ, Path.cwd())).all()
    await built.gateway.aclose()


def _serve(wanted: argparse.Namespace) -> None:
    import uvicorn

    # uvicorn ends its calls on SIGTERM and then sends the signal again, to end the process with
    # it; that the gateway was told to end is no failure.
    signal.signal(signal.SIGTERM, lambda *_: None)
    uvicorn.run(
        "llamaxing.build:application",
        factory=True,
        host=wanted.host,
        port=wanted.port,
        workers=wanted.workers,
        timeout_graceful_shutdown=wanted.grace,
        access_log=False,
        # Nothing here asks for a caller's address.
        proxy_headers=False,
        server_header=False,
        log_config=_LOGGING,
    )


# Each worker sets up its own, so that one process and many log alike.
_LOGGING: dict[str, Any] = {
    "version": 1,
    "disable_existing_loggers": False,
    "formatters": {"line": {"format": "%(asctime)s %(levelname)s %(name)s: %(message)s"}},
    "handlers": {"stderr": {"class": "logging.StreamHandler", "formatter": "line"}},
    "root": {"handlers": ["stderr"]},
    "loggers": {"uvicorn": {"level": "WARNING"}},
}


if __name__ == "__main__":
    sys.exit(main())
