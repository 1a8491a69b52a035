"""In which order the instances of a model are asked."""

import random
from collections.abc import Sequence
from itertools import groupby

from llamaxing.catalog import Model
from llamaxing.providers import Instance


class Selector:
    """Priority first; within one priority by chance, in proportion to weight."""

    def __init__(self, chance: random.Random) -> None:
        self._chance = chance

    def order(self, model: Model) -> Sequence[Instance]:
        """Every instance of the model once, the one to ask first in front."""
        if len(model.instances) == 1:
            return model.instances
        ranked = sorted(model.instances, key=lambda instance: instance.priority)
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
