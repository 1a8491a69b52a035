"""Find a plug-in by the name that a setting gives it, and import only that one.

A plug-in is a module in one of the folders below. Its `PLUGIN` is the class, whose `Options` are
the settings that it has of its own.
"""

import importlib
import pkgutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import httpx
import msgspec

from llamaxing.clock import Clock
from llamaxing.identity import Identities

KINDS = ("providers", "auth", "sources", "sinks", "outbox")


class Surroundings(msgspec.Struct, frozen=True):
    """What a plug-in may use of the gateway it is part of, and does not close.

    `environ` are the environment's variables and those of `.env`; `identities()` those that are
    configured now. `methods`: those of `auth_method`.
    """

    environ: Mapping[str, str]
    web: httpx.AsyncClient
    identities: Callable[[], Identities] = Identities
    clock: Clock = msgspec.field(default_factory=Clock)
    methods: frozenset[str] = frozenset()


def names(kind: str) -> list[str]:
    """The plug-ins of a kind that there are, in alphabetical order."""
    folder = Path(__file__).with_name(kind)
    return sorted(module.name for module in pkgutil.iter_modules([str(folder)]))


def load(kind: str, name: str) -> Any:
    """The class. `name` is one of `names(kind)`."""
    return importlib.import_module(f"llamaxing.{kind}.{name}").PLUGIN
