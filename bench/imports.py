"""How long streams stand still while a thread imports what the shipped Azure default needs later:
azure-identity for its tokens, pymongo for its first delivery.

Milliseconds: the longest gap between two turns of an event loop that wants one every millisecond.
"""

import statistics
import subprocess
import sys

MODULES = ("azure.identity", "pymongo")
_PROGRAM = """
import asyncio, importlib, sys, time
import httpx, pydantic, llamaxing.build

async def main():
    gaps = []
    async def tick():
        last = time.perf_counter()
        while True:
            await asyncio.sleep(0.001)
            now = time.perf_counter()
            gaps.append(now - last)
            last = now
    ticking = asyncio.create_task(tick())
    await asyncio.sleep(0.1)
    gaps.clear()
    await asyncio.to_thread(importlib.import_module, sys.argv[1])
    ticking.cancel()
    print(max(gaps) * 1000)

asyncio.run(main())
"""


def gap(module: str) -> float:
    command = [sys.executable, "-c", _PROGRAM, module]
    return float(subprocess.run(command, capture_output=True, check=True, text=True).stdout)


def longest(processes: int) -> float:
    """Of the modules the worse, and of so many processes the median."""
    return max(statistics.median(gap(module) for _ in range(processes)) for module in MODULES)
