"""The command line: `python -m llamaxing`, and what to do."""

import argparse
import asyncio
import gc
import json
import os
import sys
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from llamaxing.errors import ConfigurationError

if TYPE_CHECKING:
    from llamaxing.recording import Recording

# A command imports what it needs when it runs: a start waits for its imports most of all.

# Connections with which storage moves what waits in it.
_CONNECTIONS = 32


def main() -> int:
    """Exits with 1 where the configuration has faults; they are on standard error, a line each."""
    words = sys.argv[1:]
    wanted = _arguments(words).parse_args(words)
    if getattr(wanted, "folder", None):
        os.chdir(wanted.folder)
    try:
        return int(wanted.run(wanted))
    except ConfigurationError as error:
        sys.stderr.write(f"{error}\n")
        return 1


def _arguments(words: Sequence[str]) -> argparse.ArgumentParser:
    """What `words` may say; of a command that they do not name, only that it is there."""
    parser = argparse.ArgumentParser(prog="python -m llamaxing")
    commands = parser.add_subparsers(required=True)
    serve = commands.add_parser("serve", help="run the gateway under uvicorn")
    serve.add_argument("--host", default="127.0.0.1", help="the address to listen on")
    serve.add_argument("--port", type=_port, default=8000, help="the port to listen on")
    serve.add_argument("--workers", type=int, default=1, help="how many processes")
    _in_folder(serve)
    serve.set_defaults(run=_serve)
    check = commands.add_parser("check", help="say what would be served, or what is wrong")
    check.add_argument("--probe", action="store_true", help="call each instance once, cheaply")
    _in_folder(check)
    check.set_defaults(run=lambda wanted: asyncio.run(_check(wanted.probe)))
    schema = commands.add_parser("schema", help="print the JSON Schemas of the files")
    schema.add_argument(
        "file", nargs="?", choices=["models", "identities"], help="of one of them alone"
    )
    schema.set_defaults(run=_schema)
    keys = commands.add_parser("keys", help="make an API key, or hash one")
    keys.add_argument("what", choices=["new", "hash"], help="hash reads it from standard input")
    keys.add_argument("--id", default="someone", help="the identity whose it is to be")
    keys.set_defaults(run=_keys)
    simulated = commands.add_parser(
        "simulate", help="OpenAI and Azure OpenAI on this machine, and what goes wrong there"
    )
    if "simulate" in words:
        from llamaxing.simulate import command

        command.add_options(simulated)
    _outbox_arguments(commands.add_parser("outbox", help="what waits to be recorded"))
    return parser


def _in_folder(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--folder", type=_folder, help="where .env is, and the files that settings name"
    )


def _folder(path: str) -> Path:
    if not Path(path).is_dir():
        raise argparse.ArgumentTypeError(f"there is no folder {path}")
    return Path(path)


def _outbox_arguments(outbox: argparse.ArgumentParser) -> None:
    _in_folder(outbox)
    commands = outbox.add_subparsers(required=True)
    status = commands.add_parser("status", help="how much waits, and how much is poison")
    status.set_defaults(run=_status)
    replay = commands.add_parser("replay", help="have poison delivered again")
    replay.add_argument("--sink", help="of one of them alone")
    replay.add_argument("--log", help="a log; instead, take in what is only there (- is stdin)")
    replay.set_defaults(run=_replay)
    purge = commands.add_parser("purge", help="drop for good what waits, or what is poison")
    purge.add_argument("what", choices=["waiting", "poison"])
    purge.add_argument("--sink", help="of one of them alone")
    purge.set_defaults(run=_purge)


def _port(text: str) -> int:
    # uvicorn neither serves at another nor ends.
    if not text.isdecimal() or int(text) >= 2**16:
        raise argparse.ArgumentTypeError(f"{text} is no number from 0 to 65535")
    return int(text)


def _status(_: argparse.Namespace) -> int:
    from llamaxing import upkeep

    return _upkeep(upkeep.status)


def _purge(wanted: argparse.Namespace) -> int:
    from llamaxing import upkeep

    return _upkeep(lambda it: upkeep.purge(it, wanted.sink, poison=wanted.what == "poison"))


def _replay(wanted: argparse.Namespace) -> int:
    from llamaxing import upkeep

    if wanted.log is None:
        return _upkeep(lambda it: upkeep.replay(it, wanted.sink))
    if wanted.log != "-" and not Path(wanted.log).is_file():
        sys.stderr.write(f"outbox: {wanted.log} is no file\n")
        return 1
    with sys.stdin if wanted.log == "-" else Path(wanted.log).open(encoding="utf-8") as lines:
        return _upkeep(lambda it: upkeep.replay_log(it, lines))


def _upkeep(does: "Callable[[Recording], AsyncIterator[str]]") -> int:
    from llamaxing import settings
    from llamaxing.build import Build
    from llamaxing.outbox import OutboxFailed
    from llamaxing.upstream import Upstreams

    async def run() -> None:
        environ = settings.environment(os.environ, Path.cwd())
        async with Upstreams(_CONNECTIONS) as transport:
            found = Build(environ).recording(transport)
            try:
                async for line in does(found):
                    print(line)
            finally:
                for outbox in found.outboxes:
                    await outbox.aclose(0)

    try:
        asyncio.run(run())
    except OutboxFailed as error:
        sys.stderr.write(f"outbox: {error}\n")
        return 1
    return 0


async def _check(probe: bool) -> int:
    import logging

    from llamaxing import settings
    from llamaxing.build import Build
    from llamaxing.check import probes, served
    from llamaxing.logs import log

    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
    logging.root.handlers[0].setLevel(logging.WARNING)
    environ = settings.environment(os.environ, Path.cwd())
    for line in settings.near_misses(environ):
        log.warning("%s", line)
    # What is configured is asked for, and not what once was.
    built = await Build({**environ, "CONFIGURATION_COPIES": "none"}).all()
    try:
        for line in served(built):
            print(line)
        if not probe:
            return 0
        found = await probes(built)
        for _, line in found:
            print(line)
        return 0 if all(good for good, _ in found) else 1
    finally:
        await built.gateway.aclose()


def _schema(wanted: argparse.Namespace) -> int:
    from llamaxing.build import schemas

    print(json.dumps(schemas()[wanted.file] if wanted.file else schemas(), indent=2))
    return 0


def _keys(wanted: argparse.Namespace) -> int:
    """The line for identities.json has the hash alone: nobody who reads the file has the key."""
    import secrets
    from datetime import UTC, datetime
    from getpass import getpass

    from llamaxing.identity import sha256

    if wanted.what == "new":
        key = f"llx-{secrets.token_urlsafe(32)}"
        print(f"{key}\n")
        print("Hand it over and forget it; this is for identities.json:\n")
    else:
        key = getpass("Key: ") if sys.stdin.isatty() else sys.stdin.readline().strip()
        if not key:
            sys.stderr.write("there is no key on standard input\n")
            return 1
    entry = {"id": datetime.now(UTC).date().isoformat(), "key": f"sha256:{sha256(key)}"}
    print(json.dumps({"id": wanted.id, "api_keys": [entry]}))
    return 0


def _serve(wanted: argparse.Namespace) -> int:
    # What is imported stays: to look whether it is garbage was a fourteenth of a start.
    gc.disable()
    # pydantic would read the metadata of every package for plug-ins of its own, and none is wanted.
    os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "__all__")

    from llamaxing import shim

    return shim.serve(wanted.host, wanted.port, wanted.workers)


if __name__ == "__main__":
    sys.exit(main())
