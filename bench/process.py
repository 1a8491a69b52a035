"""A program on a core of its own: its processor time, its memory, and its being stopped."""

import contextlib
import ctypes
import os
import signal
import subprocess
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

_PAGE_KB = os.sysconf("SC_PAGE_SIZE") / 1024
_QUIET = 0.01
CORES = sorted(os.sched_getaffinity(0))
_GATEWAY_CORE, _LOAD_CORE = CORES[0], CORES[-1]


def keep_off() -> None:
    """This process, and what it starts, leaves the gateways' core alone where there is another."""
    os.sched_setaffinity(0, {_LOAD_CORE})


class Program:
    """Started at once; `stop` ends it with all that it has started. What it writes is in `log`."""

    def __init__(
        self, command: Sequence[str], environ: Mapping[str, str], folder: Path, log: Path
    ) -> None:
        with log.open("ab") as file:
            self._process = subprocess.Popen(
                command,
                env=environ,
                cwd=folder,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=file,
                start_new_session=True,
                preexec_fn=_prepare,
            )
        self.pid = self._process.pid

    @property
    def ended(self) -> bool:
        return self._process.poll() is not None

    def cpu(self) -> float:
        """Seconds of processor time so far, of all its processes."""
        return sum(cpu(pid) for pid in tree(self.pid))

    def memory(self) -> float:
        """Megabytes; what several of its processes share counts once (PSS)."""
        return sum(_pss_kb(pid) for pid in tree(self.pid)) / 1024

    def resident(self) -> float:
        """Megabytes, read so cheaply that it can be asked for while something is measured."""
        return sum(_resident_kb(pid) for pid in tree(self.pid)) / 1024

    def freeze(self) -> None:
        self._signal(signal.SIGSTOP)

    def thaw(self, patience: float = 15) -> None:
        """Returns when it has worked off what was left, or after so many seconds."""
        self._signal(signal.SIGCONT)
        deadline = time.monotonic() + patience
        while time.monotonic() < deadline:
            before = self.cpu()
            time.sleep(0.1)
            if self.cpu() - before < _QUIET:
                return

    def stop(self) -> None:
        self._signal(signal.SIGCONT)
        for signum in (signal.SIGTERM, signal.SIGKILL):
            self._signal(signum)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(5)
                return

    def _signal(self, signum: int) -> None:
        """To all of them, unless it is known to have ended: its id may be another's by now."""
        if self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.pid, signum)


def _prepare() -> None:
    os.sched_setaffinity(0, {_GATEWAY_CORE})
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG: end with us, also when stopped


def tree(pid: int) -> list[int]:
    """The process and all that it, and they, have started."""
    children = defaultdict(list)
    for child, parent in _parents():
        children[parent].append(child)
    found = [pid]
    for one in found:  # grows meanwhile
        found += children[one]
    return found


def _parents() -> Iterator[tuple[int, int]]:
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            with contextlib.suppress(OSError):
                stat = (folder / "stat").read_text()
                yield int(folder.name), int(stat.rpartition(")")[2].split()[1])


def cpu(pid: int) -> float:
    """Seconds of processor time of one process, with its threads that have ended."""
    # The kernel's clock of another process, in nanoseconds where /proc counts hundredths:
    # MAKE_PROCESS_CPUCLOCK(pid, CPUCLOCK_SCHED).
    try:
        return time.clock_gettime((~pid << 3) | 2)
    except OSError:
        return 0.0


def _pss_kb(pid: int) -> int:
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1])
    return 0


def _resident_kb(pid: int) -> float:
    with contextlib.suppress(OSError):
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * _PAGE_KB
    return 0
