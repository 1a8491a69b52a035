"""The options of `python -m llamaxing simulate`, and what it prints."""

import argparse
import asyncio
import contextlib
import json
import random
import signal
import sys
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from llamaxing.simulate.behaviour import FAULTS, FORMS, Behaviour

_CAPABILITIES = ("chat_completions", "completions", "embeddings", "images_generations")


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Each option with [I:] may stand several times, as in --fault a:429=0.3: for one "
        "instance, or for all. Faults are error statuses (503), those as a page (html-503), and "
        + "; ".join(f"{name}: {what}" for name, what in FAULTS.items())
        + "."
    )
    add = parser.add_argument
    add("--host", default="127.0.0.1", help="the address to listen on")
    add("--port", type=int, default=9000, help="the port to listen on; 0 takes any")
    add("--instances", type=_names, default="a,b", help="names, by commas; default: a,b")
    add("--models", type=_names, default="sim", help="what they serve, by commas; default: sim")
    add("--key", help="the key that is let in; default: any")
    add("--seed", type=int, help="chance as it was with this number")
    add("--write-models", type=Path, metavar="FILE", help="a models.json for the gateway")
    for name, (type, metavar, help) in _EACH.items():
        # In the singular: several are given one by one.
        option, convert = f"--{name.replace('_', '-').removesuffix('s')}", partial(_each, type)
        add(option, dest=name, type=convert, action="append", metavar=f"[I:]{metavar}", help=help)
    parser.set_defaults(run=partial(_run, parser))


def _fault(text: str) -> Mapping[str, float]:
    name, equals, chance = text.partition("=")
    return {name: float(chance) if equals else 1.0}


_EACH: Mapping[str, tuple[Callable[[str], Any], str, str]] = {
    "latency": (float, "SECONDS", "until the first byte"),
    "chunk_latency": (float, "SECONDS", "between the events of a stream"),
    "rpm": (float, "N", "requests a minute, then 429 with the real wait"),
    "tpm": (float, "N", "tokens a minute, likewise"),
    "retry_after": (str, "FORM", f"how a 429 says it: {', '.join(FORMS)}"),
    "retry_in": (float, "SECONDS", "what a 429 that is a fault asks for; default: 1"),
    "faults": (_fault, "NAME[=CHANCE]", "what goes wrong, and how often; 1 is always"),
}


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]


def _each(convert: Callable[[str], Any], text: str) -> tuple[str, Any]:
    """The instance, "" for all of them, and the value."""
    instance, colon, value = text.rpartition(":")
    try:
        return instance if colon else "", convert(value)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} ends with no number") from None


def behaviours(wanted: argparse.Namespace) -> dict[str, Behaviour]:
    """By instance, and `""` for all others. Raises ValueError for what cannot be."""
    given = [
        (instance, name, value) for name in _EACH for instance, value in getattr(wanted, name) or ()
    ]
    names = {"", *wanted.instances, *(instance for instance, _, _ in given)}
    found: dict[str, dict[str, Any]] = {name: {"faults": {}} for name in names}
    # What is said of one goes over what is said of all.
    for instance, name, value in sorted(given, key=lambda it: it[0] != ""):
        for chosen in (instance,) if instance else names:
            if name == "faults":
                found[chosen][name] |= value
            else:
                found[chosen][name] = value
    return {name: Behaviour(**fields) for name, fields in found.items()}


def models(url: str, wanted: argparse.Namespace) -> list[dict[str, Any]]:
    """A models.json of what is simulated."""
    return [
        {
            "id": model,
            "capabilities": _CAPABILITIES,
            "instances": [
                {
                    "id": name if len(wanted.models) == 1 else f"{name}-{model}",
                    "provider": "azure",
                    "azure_endpoint": f"{url}/{name}",
                    "azure_deployment": model,
                    "azure_api_key": wanted.key or "any",
                    "azure_api_version": "2024-10-21",
                }
                for name in wanted.instances
            ],
        }
        for model in wanted.models
    ]


def _run(parser: argparse.ArgumentParser, wanted: argparse.Namespace) -> int:
    try:
        found = behaviours(wanted)
    except ValueError as error:
        parser.error(str(error))
    try:
        asyncio.run(_simulate(wanted, found))
    except KeyboardInterrupt:
        pass
    except OSError as error:
        sys.stderr.write(f"simulate: {error}\n")
        return 1
    return 0


async def _simulate(wanted: argparse.Namespace, found: Mapping[str, Behaviour]) -> None:
    from llamaxing.simulate.server import Simulator
    from llamaxing.simulate.service import Service

    services = {
        name: Service(behaviour, wanted.models, wanted.key) for name, behaviour in found.items()
    }
    others = services.pop("").behaviour
    simulator = Simulator(
        services,
        lambda: Service(others, wanted.models, wanted.key),
        random.Random(wanted.seed),
    )
    ended = asyncio.Event()
    # Where there are no such handlers, Ctrl-C cancels.
    with contextlib.suppress(NotImplementedError):
        for number in (signal.SIGINT, signal.SIGTERM):
            asyncio.get_running_loop().add_signal_handler(number, ended.set)
    async with simulator.listening(wanted.host, wanted.port) as url:
        if wanted.write_models:
            wanted.write_models.write_text(json.dumps(models(url, wanted), indent=2) + "\n")
        print(f"simulating {', '.join(sorted(services))} at {url}", flush=True)
        try:
            await ended.wait()
        finally:
            print(simulator.table(), flush=True)
