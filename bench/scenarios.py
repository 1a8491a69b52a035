"""What is done to a gateway, and what is measured of it meanwhile."""

import functools
import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from bench.gateways import Gateway, Missing, Route
from bench.process import Program
from bench.rig import PROJECT, Rig

_SCRIPT = Path(__file__).parent / "post.lua"
_LONGEST = 600
_CHUNKS = 200
_MANY = 1000
_KB = 1024
Figures = dict[str, float]


@dataclass(frozen=True)
class Scale:
    """`seconds` of each scenario that has no length of its own, `warm` calls before the first;
    `calls` after which memory is looked at again."""

    seconds: int
    warm: int
    calls: int


@dataclass(frozen=True)
class Trial:
    """`make` makes another gateway like this one."""

    rig: Rig
    gateway: Gateway
    scale: Scale
    make: Callable[[Rig], Gateway]

    @property
    def program(self) -> Program | None:
        return self.gateway.program

    @contextmanager
    def fresh(self) -> Iterator["Trial"]:
        """With a gateway that has had one call, beside the one that is warm."""
        gateway = self.make(self.rig)
        try:
            gateway.start()
            yield replace(self, gateway=gateway)
        finally:
            gateway.stop()


def plain(trial: Trial, callers: int) -> Figures:
    """Calls and replies of 1 KB, as many as so many callers can make."""
    return _wrk(trial, trial.gateway.plain, callers)


def tls(trial: Trial, callers: int) -> Figures:
    """The same where the upstream speaks TLS; `reused`: the calls on connections that were there,
    of a hundred, once each caller has made a call."""
    route = trial.gateway.tls
    if route is None:
        return {}
    load(trial, "closed", "s=1024/", route, callers=callers, calls=2 * callers)
    before = trial.rig.counts()
    found = _wrk(trial, route, callers)
    after = trial.rig.counts()
    calls, connections = (after[it] - before[it] for it in ("tls_calls", "tls_connections"))
    return {**found, "reused": 100 * (1 - connections / max(1, calls))}


def paced(trial: Trial) -> Figures:
    """A hundred calls a second, whose replies take upstream 50 ms."""
    seconds = 2 * trial.scale.seconds
    return load(trial, "paced", "d=50/s=1024/", rate=100, seconds=seconds)[0]


def burst(trial: Trial) -> Figures:
    """Two hundred callers at the same moment."""
    return load(trial, "closed", "d=50/s=1024/", callers=200, calls=200)[0]


def streams(trial: Trial, gap: int, **how: Any) -> Figures:
    """Streams of 200 chunks. `gap`: milliseconds between two chunks."""
    seen, cpu = load(trial, "streams", f"n={_CHUNKS}/g={gap}/", chunks=_CHUNKS, **how)
    chunks = seen["chunks"]
    if trial.program:
        seen["cpu_ms_1000"] = cpu / max(1, chunks) * 1e6
    return {**seen, "chunks_s": chunks / seen["seconds"]}


def many(trial: Trial) -> Figures:
    """A thousand streams at once, at a gateway that has had one call."""
    with trial.fresh() as cold, _peak(cold.program) as peak:
        before = peak()
        seen, _ = load(cold, "streams", "n=20/g=200/", chunks=20, number=_MANY)
        if cold.program:
            seen["kb_stream"] = (peak() - before) * _KB / _MANY
    return seen


def memory(trial: Trial) -> Figures:
    """Of a gateway that has had one call; after a tenth of so many, and after all of them."""
    with trial.fresh() as cold:
        if cold.program is None:
            return {}
        found = {"idle_mb": cold.program.memory()}
        calls = min(trial.scale.calls, 2_000) if trial.gateway.is_peer else trial.scale.calls
        for name, number in (("warm_mb", calls // 10), ("after_mb", calls)):
            seen, _ = load(cold, "closed", "s=1024/", callers=32, calls=number)
            found = {**seen, **found, name: cold.program.memory()}
    return {**found, "growth_mb": found["after_mb"] - found["warm_mb"]}


def start(trial: Trial) -> Figures:
    """Seconds from `exec` to the first answer, also without .pyc files; and of processor time."""
    gateway = trial.gateway if trial.gateway.only_starts else trial.make(trial.rig)
    if not gateway.command:
        return {}
    found = {"s": gateway.start()}
    if gateway.program:
        found["cpu_s"] = gateway.program.cpu()
    gateway.stop()
    if gateway.uncompiled:
        found["uncompiled_s"] = gateway.start(**gateway.uncompiled)
        gateway.stop()
    return found


SCENARIOS: Mapping[str, Callable[[Trial], Figures]] = {
    **{f"json{number}": partial(plain, callers=number) for number in (1, 32, 256)},
    **{f"tls{number}": partial(tls, callers=number) for number in (1, 32, 256)},
    "paced": paced,
    "sse": partial(streams, gap=10, number=50, within=0.5),
    "sse0": partial(streams, gap=0, number=32, rounds=2),
    "many": many,
    "burst": burst,
    "memory": memory,
    "start": start,
}


def measure(trial: Trial, scenario: str) -> Figures:
    """Raises `Missing` where not every call that was answered had gone to the upstream."""
    if trial.gateway.only_starts and scenario != "start":
        return {}
    before = trial.rig.counts()["calls"]
    found = SCENARIOS[scenario](trial)
    came = trial.rig.counts()["calls"] - before
    if came < found.get("calls", 0):
        raise Missing(f"of {found['calls']:.0f} answers {came} were upstream's")
    return found


def warm(trial: Trial) -> None:
    """What compiles as it runs has begun to, and lazy imports are done."""
    load(trial, "closed", "s=1024/", callers=32, calls=trial.scale.warm)
    load(trial, "streams", "n=20/g=0/", chunks=20, number=10)


def load(
    trial: Trial,
    kind: str,
    asked: str,
    route: Route | None = None,
    chunks: int = 0,
    **how: Any,
) -> tuple[Figures, float]:
    """What `bench.load` saw, and the seconds of processor time that the gateway took."""
    route = route or trial.gateway.plain
    body = route.body(asked, stream=chunks > 0)
    told = {"url": route.url, "headers": dict(route.headers), "body": body, "chunks": chunks}
    wanted = json.dumps({"kind": kind, **told, **how})
    printed, cpu = _run(trial, [sys.executable, "-m", "bench.load", wanted])
    seen = json.loads(printed)
    return {**seen, "wrong": len(seen["wrong"])}, cpu


def _wrk(trial: Trial, route: Route, callers: int) -> Figures:
    program = shutil.which("wrk")
    if program is None:
        raise Missing("wrk is not installed: apt-get install wrk")
    headers = "|".join(f"{name}: {value}" for name, value in route.headers.items())
    told = {"BENCH_BODY": route.body("s=1024/"), "BENCH_HEADERS": headers}
    command = [program, "-t1", f"-c{callers}", f"-d{trial.scale.seconds}s", "--timeout", "20s"]
    before = trial.rig.counts()["calls"]
    printed, cpu = _run(trial, [*command, "-s", str(_SCRIPT), route.url], **told)
    came = trial.rig.counts()["calls"] - before
    calls, microseconds, wrong, p50, p99 = map(int, printed.rpartition("RESULT")[2].split())
    found = {"calls": calls, "wrong": wrong, "rps": calls / microseconds * 1e6}
    # Those that are under way at the end have cost about half. Where they are most of all calls,
    # it is no figure.
    if trial.program and calls >= callers:
        found["cpu_us"] = cpu / (calls + came) * 2e6
    return {**found, "p50_ms": p50 / 1000, "p99_ms": p99 / 1000}


def _run(trial: Trial, command: Sequence[str], **told: str) -> tuple[str, float]:
    """What it printed, and the seconds of processor time that the gateway took meanwhile."""
    before = trial.program.cpu() if trial.program else 0
    try:
        done = subprocess.run(
            command,
            cwd=PROJECT,
            env={**os.environ, **told},
            capture_output=True,
            text=True,
            timeout=_LONGEST,
            check=True,
        )
    except subprocess.CalledProcessError as error:
        said = str(error.stderr).strip().splitlines() or ["nothing"]
        raise Missing(f"its callers failed: {said[-1]}") from error
    except subprocess.TimeoutExpired as error:
        raise Missing(f"it took more than {_LONGEST} s") from error
    return done.stdout, (trial.program.cpu() if trial.program else 0) - before


@contextmanager
def _peak(program: Program | None) -> Iterator[Callable[[], float]]:
    """The most megabytes so far, looked at fifty times a second."""
    if program is None:
        yield lambda: 0
        return
    found = [program.resident()]
    ended = threading.Event()

    def watch() -> None:
        while not ended.wait(0.02):
            found.append(program.resident())

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield functools.partial(lambda: max(found))
    finally:
        ended.set()
        thread.join()
