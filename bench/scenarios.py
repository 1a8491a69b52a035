"""What is done to a gateway, and what is measured of it meanwhile."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from bench.gateways import Gateway, Missing, Route
from bench.process import LOAD_CORE
from bench.rig import PROJECT, Rig

_SCRIPT = Path(__file__).parent / "post.lua"
_LONGEST = 300
Figures = dict[str, float]


def json_calls(gateway: Gateway, route: Route | None, callers: int, seconds: int) -> Figures:
    """Plain calls of 1 KB and replies of 1 KB, as many as so many callers can make."""
    if route is None:
        return {}
    headers = "|".join(f"{name}: {value}" for name, value in route.headers.items())
    told = {"BENCH_BODY": route.body("s=1024/"), "BENCH_HEADERS": headers}
    command = [wrk(), "-t1", f"-c{callers}", f"-d{seconds}s", "--timeout", "20s"]
    printed, cpu = _run([*command, "-s", str(_SCRIPT), route.url], gateway, told)
    calls, microseconds, wrong, p50, p99 = map(int, printed.rpartition("RESULT")[2].split())
    return {
        "calls": calls,
        "wrong": wrong,
        "rps": calls / microseconds * 1e6,
        "cpu_us": cpu / max(1, calls) * 1e6,
        "p50_ms": p50 / 1000,
        "p99_ms": p99 / 1000,
    }


def streams(gateway: Gateway, gap: int, **how: Any) -> Figures:
    """Streams of 200 chunks. `gap`: milliseconds between two chunks."""
    route = gateway.plain
    body = route.body(f"n=200/g={gap}/", stream=True)
    seen, cpu = load(gateway, route, "streams", body, chunks=200, **how)
    chunks = seen["chunks"]
    return seen | {"cpu_ms_1000": cpu / max(1, chunks) * 1e6, "chunks_s": chunks / seen["seconds"]}


def load(
    gateway: Gateway, route: Route, kind: str, body: str, chunks: int = 0, **how: Any
) -> tuple[Figures, float]:
    """What `bench.load` saw, and the seconds of processor time that the gateway took."""
    told = {"url": route.url, "headers": dict(route.headers), "body": body, "chunks": chunks}
    wanted = json.dumps({"kind": kind, **told, **how})
    printed, cpu = _run([sys.executable, "-m", "bench.load", wanted], gateway, {})
    seen = json.loads(printed)
    return {**seen, "wrong": len(seen["wrong"])}, cpu


def _run(command: Sequence[str], gateway: Gateway, told: Mapping[str, str]) -> tuple[str, float]:
    program = gateway.program
    before = program.cpu() if program else 0
    done = subprocess.run(
        ["taskset", "-c", str(LOAD_CORE), *command],
        cwd=PROJECT,
        env={**os.environ, **told},
        capture_output=True,
        text=True,
        timeout=_LONGEST,
        check=True,
    )
    return done.stdout, (program.cpu() if program else 0) - before


def wrk() -> str:
    found = shutil.which("wrk")
    if found is None:
        raise Missing("wrk is not installed: apt-get install wrk")
    return found


def plain(gateway: Gateway, callers: int) -> Figures:
    return json_calls(gateway, gateway.plain, callers, 3)


SCENARIOS: Mapping[str, Callable[[Gateway], Figures]] = {
    "json1": partial(plain, callers=1),
    "json32": partial(plain, callers=32),
    "json256": partial(plain, callers=256),
    "sse": partial(streams, gap=10, number=50, within=0.5),
    "sse0": partial(streams, gap=0, number=32, rounds=2),
}


def measure(rig: Rig, gateway: Gateway, scenario: str) -> Figures:
    """Raises `Missing` where not every call that was answered had gone to the upstream."""
    before = rig.counts()["calls"]
    found = SCENARIOS[scenario](gateway)
    came = rig.counts()["calls"] - before
    if came < found.get("calls", 0):
        raise Missing(f"of {found['calls']} answers to {scenario} {came} were upstream's")
    return found
