"""How long streams stand still while a thread imports Azure's SDK, as a blob's source has it done.

    python bench/imports.py

Prints, for each import, the longest gap in milliseconds between two turns of an event loop that
wants one every millisecond: the median and the worst of nine processes, beside an idle one.
"""

import statistics
import subprocess
import sys

PROGRAM = """
import asyncio, importlib, sys, time
import aiohttp, httpx, pydantic, llamaxing.build

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
    if sys.argv[1] == "idle":
        await asyncio.sleep(0.3)
    else:
        await asyncio.to_thread(importlib.import_module, sys.argv[1])
    ticking.cancel()
    print(max(gaps) * 1000)

asyncio.run(main())
"""


def gap(module: str) -> float:
    command = [sys.executable, "-c", PROGRAM, module]
    return float(subprocess.run(command, capture_output=True, check=True, text=True).stdout)


if __name__ == "__main__":
    for module in ("idle", "azure.identity", "azure.storage.blob"):
        gaps = [gap(module) for _ in range(9)]
        print(f"{module:20} median {statistics.median(gaps):5.1f} ms   worst {max(gaps):5.1f} ms")
