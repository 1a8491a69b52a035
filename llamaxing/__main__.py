"""The command line: `python -m llamaxing serve`."""

import argparse
import asyncio
import logging
import os
import sys
from pathlib import Path

from llamaxing import settings
from llamaxing.build import Build
from llamaxing.errors import ConfigurationError


def main() -> int:
    """Exits with 1 where the configuration has faults; they are on standard error, a line each."""
    parser = argparse.ArgumentParser(prog="python -m llamaxing", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    serve = commands.add_parser("serve", help="run the gateway under uvicorn")
    serve.add_argument("--host", default="127.0.0.1", help="the address to listen on")
    serve.add_argument("--port", type=int, default=8000, help="the port to listen on")
    serve.add_argument("--workers", type=int, default=1, help="how many processes")
    serve.add_argument(
        "--grace", type=int, default=30, help="seconds that open calls get when it is told to end"
    )
    return _serve(parser.parse_args())


def _serve(wanted: argparse.Namespace) -> int:
    logging.basicConfig(format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    logging.getLogger("llamaxing").setLevel(logging.INFO)
    try:
        asyncio.run(_check())
    except ConfigurationError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    import uvicorn

    uvicorn.run(
        "llamaxing.build:application",
        factory=True,
        host=wanted.host,
        port=wanted.port,
        workers=wanted.workers,
        timeout_graceful_shutdown=wanted.grace,
        access_log=False,
        server_header=False,
        log_level="warning",
    )
    return 0


async def _check() -> None:
    gateway, _ = await Build(settings.environment(os.environ, Path.cwd())).gateway()
    await gateway.aclose()


if __name__ == "__main__":
    sys.exit(main())
