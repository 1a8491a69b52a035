"""python3 run.py bench [--full] [--only json32,sse] [--gateways nginx,apikey] [--rounds 3]

Gateways side by side, each a whole program on a core of its own, in front of one upstream. What it
prints at the end is also in bench/results: as quick.md, or with --full as latest.md, with a plot
and with all figures as JSON; the README has those of latest. It takes two minutes; with --full most
of an hour, for which it installs the peers, and its exit code is 1 where a bar is missed.
"""

import argparse
import os
import signal
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from bench import flame, ours, report, results
from bench.bars import bars
from bench.imports import longest
from bench.lineup import LINEUP
from bench.process import keep_off
from bench.results import Results
from bench.rig import PROJECT, rig
from bench.rounds import Rounds, say
from bench.scenarios import SCENARIOS, Scale

FOLDER = PROJECT / "bench" / "results"
FULL = Scale(seconds=3, warm=3_000, calls=100_000)
QUICK = Scale(seconds=1, warm=500, calls=2_000)
_BUSY = 0.5
# Two minutes of it.
_SHORT = [it for it in SCENARIOS if it not in {"json1", "tls1", "tls256", "memory"}]
_FEW = ["direct", "nginx", "none", "apikey", "jwt", "recording"]


def main(arguments: Sequence[str]) -> int:
    options = argparse.ArgumentParser(
        usage=argparse.SUPPRESS,
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    options.add_argument("--full", action="store_true", help="everything, five times")
    options.add_argument("--only", type=_names, help=f"of {', '.join(SCENARIOS)}")
    options.add_argument("--gateways", type=_names, help=f"of {', '.join(LINEUP)}")
    options.add_argument("--rounds", type=int, help="1, with --full 5")
    wanted = options.parse_args(arguments)
    if os.getloadavg()[0] > _BUSY:
        say("this machine has other work: no time is to be trusted, and no ratio quite")
    if not ours.PYTHON.exists():
        say(
            "the gateway runs with all that a developer has: `python3 run.py bench` has it start so"
        )
    keep_off()
    found = run(wanted)
    print(report.document(found, every_bar=wanted.full), flush=True)
    write(found, "latest" if wanted.full else "quick")
    if wanted.full:
        flame.main(FOLDER / "flame.svg")
    missed = [bar for bar in bars(found) if not bar.holds]
    return 1 if wanted.full and missed else 0


def _names(text: str) -> list[str]:
    return text.split(",")


def run(wanted: argparse.Namespace) -> Results:
    found = Results(results.here(), wanted.rounds or (5 if wanted.full else 1))
    with tempfile.TemporaryDirectory(prefix="bench-") as folder, rig(Path(folder)) as made:
        rounds = Rounds(made, FULL if wanted.full else QUICK, found)
        rounds.start(wanted.gateways or (list(LINEUP) if wanted.full else _FEW))
        rounds.run(wanted.only or (list(SCENARIOS) if wanted.full else _SHORT))
    if wanted.only is None:
        found.add("imports", "gap", {"ms": longest(9 if wanted.full else 1)})
    return found


def write(found: Results, name: str) -> None:
    FOLDER.mkdir(exist_ok=True)
    found.write(FOLDER / f"{name}.json")
    (FOLDER / f"{name}.md").write_text(
        report.document(found, every_bar=name == "latest"), encoding="utf-8"
    )
    report.plot(found, FOLDER / f"{name}.png")
    if name == "latest":
        report.mend(PROJECT / "README.md", found)


if __name__ == "__main__":
    # Whatever it started ends with it.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    sys.exit(main(sys.argv[1:]))
