"""The time of day, and waits by it. What has to happen minutes later gets it as an argument."""

import asyncio
import contextlib
import time


class Clock:
    """This machine's; a test may move its own on."""

    def now(self) -> float:
        """Seconds since 1970 (UTC): the same for every process."""
        return time.time()

    async def wait(self, event: asyncio.Event, seconds: float) -> None:
        """Until the event is set, and for so many seconds at the most."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await event.wait()
