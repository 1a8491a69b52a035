"""In which order the instances of a model are asked, and which are left alone for a while."""

import random
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from functools import partial
from itertools import groupby
from typing import Any

import msgspec

from llamaxing.answer import Answer, Failure
from llamaxing.catalog import Model
from llamaxing.errors import AllInstancesThrottled, UpstreamAuth
from llamaxing.providers import Instance

# Above so many entries the book forgets those whose time has passed.
_ENTRIES = 1000
# The weight of the newest call in the moving average of latencies.
_NEWEST = 0.2


class Pauses(msgspec.Struct, frozen=True):
    """How long an instance is left alone, in seconds: `throttled` where a 429 does not say, at
    most `longest` whatever it says; `refused` when it refused our credential; `broken`, doubled
    each time and spread by chance, from the `failures`-th failure in a row on.
    """

    throttled: float = 5
    longest: float = 300
    refused: float = 60
    broken: float = 5
    failures: int = 3


class Condition(msgspec.Struct):
    """What is known of an instance. `until`: when it is asked again; `trial`: one call is finding
    out whether it is well. `latency`: seconds to the first header, the last ones counting most.
    """

    until: float = 0.0
    failures: int = 0
    throttled: bool = False
    trial: bool = False
    in_flight: int = 0
    latency: float | None = None
    error: str | None = None
    error_at: float = 0.0


class Selector:
    """Priority first; within one priority by chance, in proportion to weight.

    What it knows is kept by instance as configured: a changed one starts afresh. `clock`: seconds.
    """

    def __init__(
        self,
        chance: random.Random,
        pauses: Pauses | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._chance = chance
        self._pauses = pauses or Pauses()
        self._clock = clock
        self._book: dict[Instance, Condition] = {}
        self._most = _ENTRIES

    def candidates(self, model: Model, only: Instance | None = None) -> Iterator[Instance]:
        """Each instance once, without those that are left alone; if all are, the one that is free
        first. Whoever takes one says by `report` what came of it, and closes its answer.
        """
        found = False
        for instance in (only,) if only else self._ranked(model.instances):
            condition = self._of(instance)
            if only or self._admits(condition):
                found = True
                condition.in_flight += 1
                yield instance
        if not found:
            yield self.take(min(model.instances, key=lambda instance: self._of(instance).until))

    def take(self, instance: Instance) -> Instance:
        """Takes this one, whatever is known against it."""
        self._of(instance).in_flight += 1
        return instance

    def report(self, instance: Instance, outcome: Answer | Failure | None) -> None:
        """None: nothing was learnt, since the caller left or ran out of time."""
        condition = self._of(instance)
        condition.trial = False
        if isinstance(outcome, Answer):
            outcome.on_close = partial(_left, condition)
            self._answered(condition, outcome)
            return
        _left(condition)
        if outcome is not None and outcome.counts:
            self._failed(condition, outcome)

    def waits(self, model: Model) -> Sequence[float]:
        """Seconds until each throttled instance is asked again."""
        now = self._clock()
        known = [self._of(instance) for instance in model.instances]
        return [it.until - now for it in known if it.throttled and it.until > now]

    def states(self, model: Model) -> list[dict[str, Any]]:
        """How each instance is, as plain JSON values: `cooling` as long as it asks, `open` while
        the breaker keeps calls from it, `trial` when the next one tries.
        """
        return [self._state(instance.id, self._of(instance)) for instance in model.instances]

    def _state(self, id: str, condition: Condition) -> dict[str, Any]:
        broken = condition.failures >= self._pauses.failures
        rests = condition.until > self._clock()
        resting, awake = ("open", "trial") if broken else ("cooling", "ready")
        latency = condition.latency
        return {
            "id": id,
            "state": resting if rests else awake,
            "until": self._iso(condition.until) if rests else None,
            "in_flight": condition.in_flight,
            "latency_ms": None if latency is None else round(latency * 1000, 1),
            "last_error": condition.error,
            "last_error_at": self._iso(condition.error_at) if condition.error else None,
        }

    def _iso(self, at: float) -> str:
        return (datetime.now(UTC) + timedelta(seconds=at - self._clock())).isoformat(
            timespec="milliseconds"
        )

    def _ranked(self, instances: Sequence[Instance]) -> Sequence[Instance]:
        if len(instances) == 1:
            return instances
        ranked = sorted(instances, key=lambda instance: instance.priority)
        return [
            instance
            for _, equals in groupby(ranked, key=lambda instance: instance.priority)
            for instance in self._shuffled(list(equals))
        ]

    def _shuffled(self, equals: Sequence[Instance]) -> Sequence[Instance]:
        # Efraimidis and Spirakis (2006): the order of draws without replacement, by weight.
        return sorted(
            equals,
            key=lambda instance: self._chance.random() ** (1 / instance.weight),
            reverse=True,
        )

    def _of(self, instance: Instance) -> Condition:
        found = self._book.get(instance)
        if found is None:
            self._forget()
            found = self._book[instance] = Condition()
        return found

    def _admits(self, condition: Condition) -> bool:
        if condition.trial or self._clock() < condition.until:
            return False
        condition.trial = condition.failures >= self._pauses.failures
        return True

    def _answered(self, condition: Condition, answer: Answer) -> None:
        before = answer.latency if condition.latency is None else condition.latency
        condition.latency = before + _NEWEST * (answer.latency - before)
        # A throttled instance's wait is not ended by a success that was under way.
        if condition.failures:
            condition.failures, condition.until = 0, 0.0

    def _failed(self, condition: Condition, failure: Failure) -> None:
        now = self._clock()
        condition.error, condition.error_at = failure.kind, now
        condition.throttled = isinstance(failure.error, AllInstancesThrottled)
        condition.until = max(condition.until, now + self._pause(condition, failure))

    def _pause(self, condition: Condition, failure: Failure) -> float:
        pauses = self._pauses
        if isinstance(failure.error, UpstreamAuth):
            return pauses.refused
        if failure.wait is not None:
            return min(failure.wait, pauses.longest)
        if condition.throttled:
            return min(pauses.throttled, pauses.longest)
        condition.failures += 1
        if condition.failures < pauses.failures:
            return 0
        # Bounded before it is a number too large to be one.
        doubled = pauses.broken * 2.0 ** min(condition.failures - pauses.failures, 30)
        return min(doubled, pauses.longest) * self._chance.uniform(0.5, 1)

    def _forget(self) -> None:
        """Those that may be gone, in time: twice as many as are left may come before the next."""
        if len(self._book) >= self._most:
            now = self._clock()
            left = {key: it for key, it in self._book.items() if it.in_flight or it.until > now}
            self._book, self._most = left, max(_ENTRIES, 2 * len(left))


def _left(condition: Condition) -> None:
    condition.in_flight -= 1
