"""How a simulated instance behaves: how slow it is, how much it takes, and what goes wrong."""

import email.utils
import math
import random
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

# What may go wrong beside an error status, and that status as a page of HTML.
FAULTS = {
    "reset": "the connection is reset without an answer",
    "reset-in-headers": "the connection is reset within the headers",
    "silent": "no answer ever comes",
    "empty": "status 200 and nothing else",
    "cut": "the connection ends in the middle of the body",
    "stall": "nothing more comes in the middle of the body",
}
_STATUS = re.compile(r"(?:html-)?[45]\d\d")
# How a 429 says when to come again.
FORMS = ("seconds", "ms", "date", "reset", "zero", "minus-one", "none")


@dataclass(frozen=True)
class Behaviour:
    """Times are in seconds, faults have chances between 0 and 1. `rpm` and `tpm`: requests and
    tokens a minute; 0 is without limit. `retry_in` is what a 429 asks for that is a fault, and
    `retry_after` one of `FORMS`, for every 429.

    Raises ValueError for what cannot be.
    """

    latency: float = 0.0
    chunk_latency: float = 0.0
    rpm: float = 0.0
    tpm: float = 0.0
    retry_after: str = "seconds"
    retry_in: float = 1.0
    faults: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, chance in self.faults.items():
            if name not in FAULTS and not _STATUS.fullmatch(name):
                raise ValueError(f"{name!r} is not a fault; use {', '.join(FAULTS)}, 503, html-503")
            if not 0 <= chance <= 1:
                raise ValueError(f"the chance of {name} has to be between 0 and 1")
        if self.retry_after not in FORMS:
            raise ValueError(f"{self.retry_after!r} is not a form; use {', '.join(FORMS)}")
        numbers = (self.latency, self.chunk_latency, self.rpm, self.tpm, self.retry_in)
        if not all(0 <= number < math.inf for number in numbers):
            raise ValueError("times and limits have to be numbers from 0 on")

    def fault(self, chance: random.Random) -> str | None:
        """What goes wrong with one call, if anything does."""
        drawn = chance.random()
        for name, share in self.faults.items():
            drawn -= share
            if drawn < 0:
                return name
        return None

    def headers(self, wait: float) -> dict[str, str]:
        """What a 429 says about when to come again."""
        return {
            "seconds": {"retry-after": str(math.ceil(wait))},
            "ms": {"retry-after-ms": str(math.ceil(round(wait * 1000, 3)))},
            "date": {"retry-after": email.utils.formatdate(time.time() + wait, usegmt=True)},
            "reset": {
                "x-ratelimit-remaining-requests": "0",
                "x-ratelimit-reset-requests": go(wait),
            },
            "zero": {"retry-after": "0"},
            "minus-one": {"retry-after": "-1"},
            "none": {},
        }[self.retry_after]


class Limit:
    """So many a minute, which come back one after the other, as OpenAI counts them."""

    def __init__(self, what: str, a_minute: float, clock: Callable[[], float]) -> None:
        self._what = what
        self._most = a_minute
        self._left = a_minute
        self._clock = clock
        self._at = clock()

    def wait(self, amount: float) -> float:
        """Seconds until there are so many; what is more than a minute's never comes."""
        now = self._clock()
        self._left = min(self._most, self._left + (now - self._at) * self._most / 60)
        self._at = now
        missing = min(amount, self._most) - self._left
        # What was waited for is there, however the fractions fell.
        return missing * 60 / self._most if missing > 1e-9 else 0.0

    def take(self, amount: float) -> None:
        self._left -= min(amount, self._most)

    def headers(self) -> dict[str, str]:
        if not self._most:
            return {}
        return {
            f"x-ratelimit-limit-{self._what}": f"{self._most:g}",
            f"x-ratelimit-remaining-{self._what}": str(max(0, math.floor(self._left))),
            f"x-ratelimit-reset-{self._what}": go((self._most - self._left) * 60 / self._most),
        }


def go(seconds: float) -> str:
    """A duration as Go writes it, and OpenAI with it: `6m0s`, `1.5s`, `20ms`."""
    if seconds < 1:
        return f"{math.ceil(seconds * 1000)}ms"
    minutes, rest = divmod(seconds, 60)
    return f"{minutes:.0f}m{rest:.3g}s" if minutes else f"{rest:.3g}s"
