"""A flame graph of the hot path: where a gateway that is busy spends its time.

python -m bench.flame
"""

import subprocess
import sys
import tempfile
from pathlib import Path

from bench import ours
from bench.rig import PROJECT, rig
from bench.scenarios import Scale, Trial, measure

FILE = PROJECT / "bench" / "results" / "flame.svg"
_SECONDS = 10
_A_SECOND = 250


def main(file: Path) -> None:
    """Of calls with an API key, 32 at a time."""
    with tempfile.TemporaryDirectory(prefix="bench-") as folder, rig(Path(folder)) as made:
        gateway = ours.apikey(made)
        try:
            gateway.start()
            assert gateway.program
            watching = subprocess.Popen(_command(gateway.program.pid, file))
            measure(Trial(made, gateway, Scale(_SECONDS, 0)), "json32")
            watching.wait()
        finally:
            gateway.stop()


def _command(pid: int, file: Path) -> list[str]:
    spy = str(Path(sys.executable).with_name("py-spy"))
    # Less than the load lasts, so that it is never seen idle.
    how = ["--duration", str(_SECONDS - 2), "--rate", str(_A_SECOND), "--format", "flamegraph"]
    return [spy, "record", "--pid", str(pid), *how, "--output", str(file)]


if __name__ == "__main__":
    main(FILE)
