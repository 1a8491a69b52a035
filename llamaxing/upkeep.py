"""`python -m llamaxing outbox`: what waits, what is poison; brought home, or dropped."""

from collections.abc import AsyncIterator, Iterable, Sequence

import msgspec

from llamaxing.errors import ConfigurationError
from llamaxing.outbox import Outbox
from llamaxing.recorder import in_the_log
from llamaxing.recording import Recording


async def status(recording: Recording) -> AsyncIterator[str]:
    """A line a sink."""
    for sink, found in (await _outbox(recording).status()).items():
        age = "" if found.oldest is None else f", the oldest for {found.oldest:.0f} s"
        yield f"{sink}: {found.waiting} waiting{age}; {found.poison} poison"


async def replay(recording: Recording, sink: str | None) -> AsyncIterator[str]:
    """Has poison delivered again, once its cause is mended."""
    for name in _sinks(recording, sink):
        number = await _outbox(recording).replay(name)
        yield f"{name}: {number} to be delivered again"


async def replay_log(recording: Recording, lines: Iterable[str]) -> AsyncIterator[str]:
    """Takes in what only the log has. What a sink has already changes nothing there."""
    number = 0
    for _, record in in_the_log(lines):
        await _outbox(recording).put(record["id"], msgspec.json.encode(record))
        number += 1
    yield f"{number} from the log to be delivered"


async def purge(recording: Recording, sink: str | None, *, poison: bool) -> AsyncIterator[str]:
    for name in _sinks(recording, sink):
        number = await _outbox(recording).purge(name, poison=poison)
        yield f"{name}: {number} dropped"


def _outbox(recording: Recording) -> Outbox:
    if not recording.outboxes:
        fault = "logging_client: nothing is recorded here; set it, or observability_client"
        raise ConfigurationError([fault], ["logging_client"])
    return recording.outboxes[0]


def _sinks(recording: Recording, sink: str | None) -> Sequence[str]:
    if sink is not None and sink not in recording.deliveries:
        raise ConfigurationError([f"{sink} is not a sink of this gateway"], [])
    return [sink] if sink else list(recording.deliveries)
