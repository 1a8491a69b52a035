"""A flame graph of the hot path: where a gateway that is busy spends its time.

python -m bench.flame
"""

import subprocess
import sys
import tempfile
from pathlib import Path

from bench import ours
from bench.rig import PROJECT, rig
from bench.scenarios import Scale, Trial, measure, warm

FILE = PROJECT / "bench" / "results" / "flame.svg"
_SECONDS = 10
_A_SECOND = 100


def main(file: Path) -> None:
    """Of calls with an API key, 32 at a time."""
    file.parent.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="bench-") as folder, rig(Path(folder)) as made:
        trial = Trial(made, ours.apikey(made), Scale(_SECONDS, 2_000, 0), ours.apikey)
        try:
            trial.gateway.start()
            warm(trial)
            assert trial.program
            watching = subprocess.Popen(_command(trial.program.pid, file))
            measure(trial, "json32")
            if watching.wait() != 0:
                print("no flame graph: py-spy may not look at other processes here")
                return
        finally:
            trial.gateway.stop()
    # It tells how it was called, and so where this folder is.
    file.write_text(file.read_text().replace(f"{PROJECT}/", ""))


def _command(pid: int, file: Path) -> list[str]:
    spy = str(Path(sys.executable).with_name("py-spy"))
    # Less than the load lasts; and with the GIL alone, since a thread that waits seems to work.
    how = [
        "--gil",
        "--duration",
        str(_SECONDS - 2),
        "--rate",
        str(_A_SECOND),
        "--format",
        "flamegraph",
    ]
    return [spy, "record", "--pid", str(pid), *how, "--output", str(file)]


if __name__ == "__main__":
    main(FILE)
