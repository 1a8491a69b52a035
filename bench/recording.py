"""What it costs to record calls in MongoDB, and what callers notice of a MongoDB that fails.

    python -m bench.recording

Two gateways by turns, one that records nothing and one with an outbox and MongoDB. First the
processor time of a call, with the delivery of its record; then calls at a steady pace, a hundred a
second whose replies take upstream 50 ms, while MongoDB is well and while it is not. It takes two
minutes, and prints tables: of each figure the least of several rounds, since what else the machine
does only adds to it.
"""

import sys
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path

from bench import ours
from bench.process import keep_off
from bench.results import here
from bench.rig import rig
from bench.scenarios import Scale, Trial, load, warm
from tests.services import Mongod

_ROUNDS = 4
_SCALE = Scale(seconds=3, warm=1_000, calls=0)
# How many calls, by how many are made at a time; streams have so many chunks.
_CALLS = {1: 600, 64: 2_000}
_CHUNKS = 20
_TURNS = 5

Figures = dict[str, float]
Found = dict[tuple[str, ...], list[Figures]]


@contextmanager
def well(mongod: Mongod) -> Iterator[None]:
    yield


@contextmanager
def down(mongod: Mongod) -> Iterator[None]:
    mongod.kill()
    yield
    mongod.start()


@contextmanager
def killed(mongod: Mongod) -> Iterator[None]:
    """A third of the way, and started again at two thirds."""

    def fall() -> None:
        time.sleep(_SCALE.seconds / 3)
        mongod.kill()
        time.sleep(_SCALE.seconds / 3)
        mongod.start()

    falling = threading.Thread(target=fall)
    falling.start()
    yield
    falling.join()


@contextmanager
def frozen(mongod: Mongod) -> Iterator[None]:
    mongod.freeze()
    yield
    mongod.thaw()


@contextmanager
def refusing(mongod: Mongod) -> Iterator[None]:
    mongod.fails("insert", errorCode=13)
    yield
    mongod.heals()


WEATHERS: Mapping[str, Callable[[Mongod], AbstractContextManager[None]]] = {
    "well": well,
    "down": down,
    "killed and started again": killed,
    "frozen": frozen,
    "refusing writes": refusing,
}


def main() -> int:
    keep_off()
    with tempfile.TemporaryDirectory(prefix="bench-") as name, ExitStack() as stack:
        folder = Path(name)
        made = stack.enter_context(rig(folder))
        mongod = stack.enter_context(Mongod(made.subfolder("mongod")))
        trials = {}
        for title, gateway in (
            ("nothing", ours.apikey(made)),
            ("MongoDB", ours.mongodb(made, mongod.uri)),
        ):
            gateway.start()
            stack.callback(gateway.stop)
            trials[title] = Trial(made, gateway, _SCALE, ours.apikey)
            warm(trials[title])
        costs = _costs(trials)
        noticed = _noticed(trials, mongod)
    print("\n".join([_told_costs(costs), "", _told_noticed(noticed), "", _where()]))
    return 0


def _costs(trials: Mapping[str, Trial]) -> Found:
    found: Found = defaultdict(list)
    for _ in range(_ROUNDS):
        for callers, calls in _CALLS.items():
            for kind, chunks in (("plain", 0), ("streams", _CHUNKS)):
                for title, trial in trials.items():
                    number = calls // 2 if chunks else calls
                    us = _cpu(trial, callers, number, chunks)
                    found[kind, str(callers), title].append({"us": us})
    return found


def _cpu(trial: Trial, callers: int, calls: int, chunks: int) -> float:
    """Microseconds of a call, until its record is delivered."""
    assert trial.program is not None
    before = trial.program.cpu()
    asked = f"n={chunks}/g=0/" if chunks else "s=1024/"
    seen, _ = load(trial, "closed", asked, chunks=chunks, callers=callers, calls=calls)
    assert seen["wrong"] == 0, seen
    # What has come last waits a moment for others to be delivered with.
    time.sleep(0.5)
    trial.program.thaw()
    return (trial.program.cpu() - before) / calls * 1e6


def _noticed(trials: Mapping[str, Trial], mongod: Mongod) -> Found:
    """What callers see: without records, and with them in each weather."""
    found: Found = defaultdict(list)
    for _ in range(_TURNS):
        found[("not asked for",)].append(_paced(trials["nothing"]))
        for title, weather in WEATHERS.items():
            with weather(mongod):
                found[(title,)].append(_paced(trials["MongoDB"]))
            trials["MongoDB"].program.thaw()  # type: ignore[union-attr]
    return found


def _paced(trial: Trial) -> Figures:
    seen, _ = load(trial, "paced", "d=50/s=1024/", rate=100, seconds=_SCALE.seconds)
    assert seen["wrong"] == 0, seen
    return seen


def _told_costs(found: Found) -> str:
    lines = [
        "| calls | at a time | no record | outbox and MongoDB | more |",
        "|---|---|---|---|---|",
    ]
    for kind, callers in dict.fromkeys(key[:2] for key in found):
        without, with_it = (
            min(seen["us"] for seen in found[kind, callers, it]) for it in ("nothing", "MongoDB")
        )
        name = f"streams of {_CHUNKS} chunks" if kind == "streams" else "plain"
        more = f"{with_it - without:.0f} µs, {with_it / without - 1:.0%}"
        lines.append(f"| {name} | {callers} | {without:.0f} µs | {with_it:.0f} µs | {more} |")
    return "\n".join(lines)


def _told_noticed(found: Found) -> str:
    lines = ["| MongoDB is | p50 | p95 |", "|---|---|---|"]
    for (title,), seen in found.items():
        p50, p95 = (min(it[f"total_{percent}"] for it in seen) for percent in ("p50", "p95"))
        lines.append(f"| {title} | {p50:.1f} ms | {p95:.1f} ms |")
    return "\n".join(lines)


def _where() -> str:
    return ", ".join(f"{name} {value}" for name, value in here().items())


if __name__ == "__main__":
    sys.exit(main())
