"""Connections that send what one turn of the event loop has written to them at its end, at once.

A packet wakes whoever waits for it, and that costs more than most of what a call does here. So a
reply's head goes out with its body, and calls that come together go on together: where each turn
has more of them to send for, a few turns are waited for.
"""

import asyncio
from collections import deque
from typing import Any
from weakref import WeakKeyDictionary

# Bytes that wait for the end of the turn at the most.
_MOST = 64 * 1024
# Turns that are waited for after the first.
_MORE_TURNS = 3


class Turn:
    """Of an event loop: the connections that have something to send at the end of it."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._soon = loop.call_soon
        self._waiting: deque[Corked] = deque()
        self._before = 0
        self._more = _MORE_TURNS

    def add(self, corked: "Corked") -> None:
        if not self._waiting:
            self._before, self._more = 0, _MORE_TURNS
            self._soon(self._end)
        self._waiting.append(corked)

    def _end(self) -> None:
        waiting = len(self._waiting)
        # One more may be the only one there is: it waits for nobody.
        if self._more and waiting > self._before + 1:
            self._before, self._more = waiting, self._more - 1
            self._soon(self._end)
            return
        try:
            while self._waiting:
                corked = self._waiting.popleft()
                corked.due = False
                corked.send()
        finally:
            if self._waiting:
                self._soon(self._end)


_turns: WeakKeyDictionary[asyncio.AbstractEventLoop, Turn] = WeakKeyDictionary()


class Corked:
    """A transport, as far as HTTP wants one."""

    def __init__(self, transport: Any) -> None:
        # uvloop's is an asyncio.Transport in all but name.
        self._transport: asyncio.Transport = transport
        loop = asyncio.get_running_loop()
        self._turn = _turns.get(loop) or _turns.setdefault(loop, Turn(loop))
        self._held: list[bytes] = []
        self._size = 0
        self.due = False
        self.is_closing = transport.is_closing
        self.get_extra_info = transport.get_extra_info
        self.pause_reading = transport.pause_reading
        self.resume_reading = transport.resume_reading

    @property
    def unsent(self) -> int:
        """Bytes, as far as they are still here."""
        return self._size + self._transport.get_write_buffer_size()

    def write(self, data: bytes) -> None:
        if not data:
            return
        if not self.due:
            self.due = True
            self._turn.add(self)
        self._held.append(data)
        self._size += len(data)
        if self._size > _MOST:
            self.send()

    def close(self) -> None:
        """What has been written is still sent."""
        self.send()
        self._transport.close()

    def abort(self) -> None:
        self._held, self._size = [], 0
        self._transport.abort()

    def send(self) -> None:
        """What is held."""
        held, self._held = self._held, []
        size, self._size = self._size, 0
        if not held or self.is_closing():
            return
        # To join what is large would cost more than it saves.
        for data in held if size > _MOST else (b"".join(held),):
            self._transport.write(data)
