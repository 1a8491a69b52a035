"""python -m bench [--only json32,sse] [--gateways nginx,apikey] [--rounds 3]

What `run.py bench` runs: gateways side by side, each a whole program, on one machine.
"""

import argparse
import statistics
import sys
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from bench.gateways import GATEWAYS, Gateway, Missing
from bench.rig import Rig, rig
from bench.scenarios import SCENARIOS, Figures, measure

Results = dict[str, dict[str, list[Figures]]]


def main(arguments: Sequence[str]) -> int:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--only", default=",".join(SCENARIOS))
    options.add_argument("--gateways", default=",".join(GATEWAYS))
    options.add_argument("--rounds", type=int, default=3)
    wanted = options.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="bench-") as folder, rig(Path(folder)) as ours:
        results = run(ours, wanted.gateways.split(","), wanted.only.split(","), wanted.rounds)
    for scenario in wanted.only.split(","):
        for name, found in results.items():
            print(scenario, name, medians(found.get(scenario, [])))
    return 0


def run(rig: Rig, names: Sequence[str], scenarios: Sequence[str], rounds: int) -> Results:
    """Every round has every scenario at every gateway, so that a busy minute is busy for all."""
    results: Results = {}
    with ExitStack() as stack:
        gateways = [it for name in names if (it := _start(rig, name, stack))]
        for number in range(rounds):
            for scenario in scenarios:
                first = number % len(gateways)
                for gateway in gateways[first:] + gateways[:first]:
                    found = _measure(rig, gateway, scenario)
                    if found:
                        results.setdefault(gateway.name, {}).setdefault(scenario, []).append(found)
    return results


def _start(rig: Rig, name: str, stack: ExitStack) -> Gateway | None:
    try:
        gateway = GATEWAYS[name](rig)
        stack.callback(gateway.stop)
        gateway.start()
    except Missing as error:
        say(f"{name} is skipped: {error}")
        return None
    if gateway.program:
        gateway.program.freeze()
    return gateway


def _measure(rig: Rig, gateway: Gateway, scenario: str) -> Figures | None:
    """All others stand still."""
    if gateway.program:
        gateway.program.thaw()
    try:
        found = measure(rig, gateway, scenario)
    except Missing as error:
        say(f"{scenario} at {gateway.name} is left out: {error}")
        return None
    finally:
        if gateway.program:
            gateway.program.freeze()
    shown = ", ".join(f"{name} {value:.5g}" for name, value in found.items())
    say(f"{scenario:8} {gateway.name:10} {shown}")
    return found


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def medians(runs: Sequence[Figures]) -> Figures:
    names = {name: None for run in runs for name in run}
    return {n: round(statistics.median(r[n] for r in runs if n in r), 3) for n in names}


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
