"""In which order the instances of a model are asked, and which are left alone for a while."""

import random
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

from llamaxing.answer import Answer, Failure
from llamaxing.catalog import Model
from llamaxing.errors import AllInstancesThrottled, UpstreamAuth
from llamaxing.providers import Instance

# Above so many entries the book forgets those whose time has passed.
_ENTRIES = 1000


@dataclass(frozen=True, slots=True)
class Pauses:
    """How long an instance is left alone, in seconds: `throttled` where a 429 does not say, at
    most `longest` whatever it says; `refused` when it refused our credential; `broken`, doubled
    each time and spread by chance, from the `failures`-th failure in a row on.
    """

    throttled: float = 5
    longest: float = 300
    refused: float = 60
    broken: float = 5
    failures: int = 3


@dataclass(slots=True)
class Ailment:
    """What is known against an instance. `trial`: one call is finding out whether it is over."""

    until: float = 0.0
    failures: int = 0
    throttled: bool = False
    trial: bool = False


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
        self._book: dict[Instance, Ailment] = {}

    def candidates(self, model: Model) -> Iterator[Instance]:
        """Each instance once, without those that are left alone; if all are, the one that is free
        first. Whoever takes one says by `report` what came of it.
        """
        found = False
        for instance in self._ranked(model.instances):
            if self._admits(instance):
                found = True
                yield instance
        if not found:
            yield min(model.instances, key=lambda instance: self._book[instance].until)

    def report(self, instance: Instance, outcome: Answer | Failure | None) -> None:
        """None: nothing was learnt, since the caller left or ran out of time."""
        if isinstance(outcome, Failure):
            self._note(self._book.setdefault(instance, Ailment()), outcome)
            self._forget()
        elif ailment := self._book.get(instance):
            ailment.trial = False
            if outcome is not None and (ailment.failures or self._clock() >= ailment.until):
                del self._book[instance]

    def waits(self, model: Model) -> Sequence[float]:
        """Seconds until each throttled instance is asked again."""
        now = self._clock()
        known = [self._book.get(instance) for instance in model.instances]
        return [it.until - now for it in known if it and it.throttled and it.until > now]

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

    def _admits(self, instance: Instance) -> bool:
        ailment = self._book.get(instance) if self._book else None
        if ailment is None:
            return True
        if ailment.trial or self._clock() < ailment.until:
            return False
        ailment.trial = ailment.failures >= self._pauses.failures
        return True

    def _note(self, ailment: Ailment, failure: Failure) -> None:
        ailment.trial = False
        ailment.throttled = isinstance(failure.error, AllInstancesThrottled)
        until = self._clock() + self._pause(ailment, failure)
        ailment.until = max(ailment.until, until)

    def _pause(self, ailment: Ailment, failure: Failure) -> float:
        pauses = self._pauses
        if isinstance(failure.error, UpstreamAuth):
            return pauses.refused
        if failure.wait is not None:
            return min(failure.wait, pauses.longest)
        if ailment.throttled:
            return min(pauses.throttled, pauses.longest)
        if not failure.counts:
            return 0
        ailment.failures += 1
        if ailment.failures < pauses.failures:
            return 0
        # Bounded before it is a number too large to be one.
        doubled = pauses.broken * 2.0 ** min(ailment.failures - pauses.failures, 30)
        return min(doubled, pauses.longest) * self._chance.uniform(0.5, 1)

    def _forget(self) -> None:
        if len(self._book) > _ENTRIES:
            now = self._clock()
            self._book = {key: it for key, it in self._book.items() if it.trial or it.until > now}
