"""What was measured, where and when: kept as JSON, a table and a plot are made of it."""

import json
import os
import platform
import re
import statistics
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from bench import ours, peers
from bench.process import CORES
from bench.rig import PROJECT

Figures = Mapping[str, float]


@dataclass
class Results:
    """`found`: by gateway and scenario, what each round has seen. `skipped`: why, by gateway."""

    where: dict[str, str]
    rounds: int
    found: dict[str, dict[str, list[dict[str, float]]]] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)

    def add(self, gateway: str, scenario: str, figures: Figures) -> None:
        self.found.setdefault(gateway, {}).setdefault(scenario, []).append(dict(figures))

    def median(self, gateway: str, scenario: str, figure: str) -> float | None:
        values = self._values(gateway, scenario, figure)
        return statistics.median(values) if values else None

    def most(self, gateway: str, scenario: str, figure: str) -> float | None:
        return max(self._values(gateway, scenario, figure), default=None)

    def wrong(self, gateway: str) -> int:
        """How many calls of all rounds were not answered whole."""
        runs = (run for runs in self.found.get(gateway, {}).values() for run in runs)
        return sum(int(run.get("wrong", 0)) for run in runs)

    def _values(self, gateway: str, scenario: str, figure: str) -> Sequence[float]:
        runs = self.found.get(gateway, {}).get(scenario, [])
        return [run[figure] for run in runs if figure in run]

    def write(self, file: Path) -> None:
        file.write_text(json.dumps(asdict(self), indent=1) + "\n")


def read(file: Path) -> Results:
    return Results(**json.loads(file.read_text()))


def here() -> dict[str, str]:
    """The commit, the machine and how busy it was before, the day, and the versions of others."""
    changed = _git("status", "--porcelain", "--", "llamaxing", "bench")
    return {
        "commit": _git("rev-parse", "--short", "HEAD") + ("+" if changed else ""),
        "cpu": _cpu(),
        "cores": str(len(CORES)),
        "python": _python(),
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
        "load": f"{os.getloadavg()[0]:.1f}",
        "beside": f"nginx {_nginx()}, LiteLLM {_pinned('litellm')}, Portkey {_pinned('npm')}",
    }


def _git(*arguments: str) -> str:
    done = subprocess.run(["git", *arguments], cwd=PROJECT, capture_output=True, text=True)
    return done.stdout.strip() if done.returncode == 0 else "unknown"


def _python() -> str:
    """Of this gateway."""
    told = subprocess.run(ours.command("-V"), capture_output=True, text=True, check=True)
    return told.stdout.split()[1]


def _nginx() -> str:
    program = peers.nginx_program()
    if program is None:
        return "none"
    told = subprocess.run([program, "-v"], capture_output=True, text=True, check=True).stderr
    return told.strip().rpartition("/")[2]


def _pinned(name: str) -> str:
    """The version of what the requirements file lists first."""
    lines = (PROJECT / f"requirements-bench-{name}.txt").read_text().splitlines()
    first = next(line for line in lines if line and not line.startswith("#"))
    return re.split("==|@", first)[-1]


def _cpu() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
