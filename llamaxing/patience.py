"""Waiting up to a limit, many times over: a timer is moved on, and not made anew each time."""

import asyncio
import math
from collections.abc import Awaitable
from typing import TypeVar

T = TypeVar("T")


class Patience:
    """What `asyncio.timeout` does, for one who waits for each chunk of a stream: chunks come far
    more often than a limit is reached, so the timer that is there is looked at when it rings.
    """

    def __init__(self, left: "list[Patience] | None" = None) -> None:
        """`left`: where it is left when a wait is over, for the next."""
        self._left = left
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None
        self._rings = math.inf
        self._ends = math.inf
        self._waiting: asyncio.Task[object] | None = None
        self._over = False

    async def within(self, seconds: float, awaited: Awaitable[T]) -> T:
        """Raises TimeoutError when so many seconds have passed; one wait at a time."""
        task = self._waiting = asyncio.current_task(self._loop)
        assert task is not None  # noqa: S101
        cancelled_before = task.cancelling()
        self.move(seconds)
        try:
            return await awaited
        except asyncio.CancelledError:
            if self._over and task.uncancel() <= cancelled_before:
                raise TimeoutError from None
            raise
        finally:
            self._waiting, self._over = None, False
            if self._left is not None:
                self._left.append(self)

    def move(self, seconds: float) -> None:
        """Within what is awaited: from now on it has so many."""
        self._ends = self._loop.time() + seconds
        if self._ends < self._rings:
            self._set(self._ends)

    def end(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _set(self, at: float) -> None:
        self.end()
        self._rings = at
        self._timer = self._loop.call_at(at, self._ring)

    def _ring(self) -> None:
        self._timer, self._rings = None, math.inf
        if self._waiting is None:
            return
        if self._loop.time() < self._ends:
            self._set(self._ends)
        else:
            self._over = True
            self._waiting.cancel()


class Waits:
    """For many who wait once: who has done so before has left a timer."""

    def __init__(self) -> None:
        self._left: list[Patience] = []

    def one(self) -> Patience:
        return self._left.pop() if self._left else Patience(self._left)
