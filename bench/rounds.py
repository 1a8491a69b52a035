"""Every round has every scenario at every gateway, so that a busy minute is busy for all."""

import sys
from collections.abc import Sequence

from bench.gateways import Gateway, Missing
from bench.lineup import LINEUP
from bench.results import Results
from bench.rig import Rig
from bench.scenarios import Figures, Scale, Trial, measure, warm

# Long, and of what does not change from one round to the next.
_ONCE = frozenset({"memory"})


class Rounds:
    """All gateways but the one that is measured stand still."""

    def __init__(self, rig: Rig, scale: Scale, results: Results) -> None:
        self._rig, self._scale, self._results = rig, scale, results
        self._gateways: list[Gateway] = []

    def start(self, names: Sequence[str]) -> None:
        for name in names:
            try:
                gateway = LINEUP[name](self._rig)
                self._rig.stack.callback(gateway.stop)
                if not gateway.only_starts:
                    gateway.start()
                    warm(self._trial(gateway))
            except Missing as why:
                say(f"{name} is skipped: {why}")
                self._results.skipped[name] = str(why)
            else:
                self._freeze(gateway)
                self._gateways.append(gateway)

    def run(self, scenarios: Sequence[str]) -> None:
        for number in range(self._results.rounds):
            # Nobody is always the first.
            first = number % max(1, len(self._gateways))
            order = self._gateways[first:] + self._gateways[:first]
            for scenario in scenarios:
                if number == 0 or scenario not in _ONCE:
                    for gateway in order:
                        self._measure(gateway, scenario)

    def _trial(self, gateway: Gateway) -> Trial:
        return Trial(self._rig, gateway, self._scale, LINEUP[gateway.name])

    def _measure(self, gateway: Gateway, scenario: str) -> None:
        if gateway.program:
            gateway.program.thaw()
        try:
            found = measure(self._trial(gateway), scenario)
        except Missing as why:
            say(f"{scenario} at {gateway.name} is left out: {why}")
            return
        finally:
            self._freeze(gateway)
        if found:
            self._results.add(gateway.name, scenario, found)
            say(f"{scenario:8} {gateway.name:12} {_line(found)}")

    def _freeze(self, gateway: Gateway) -> None:
        if gateway.program:
            gateway.program.freeze()


def _line(figures: Figures) -> str:
    return "  ".join(f"{name} {value:.4g}" for name, value in figures.items())


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
