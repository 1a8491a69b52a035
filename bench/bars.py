"""What a gateway has to hold, of medians and as ratios within one run."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from bench.results import Results

OURS = ("none", "apikey", "jwt", "recording")


@dataclass(frozen=True)
class Bar:
    """Held where `value` is at most `limit`; None is not measured, and not held."""

    text: str
    value: float | None
    limit: float

    @property
    def holds(self) -> bool:
        return self.value is not None and self.value <= self.limit

    def __str__(self) -> str:
        seen = "not measured" if self.value is None else f"{self.value:.3g}"
        return (
            f"{'holds ' if self.holds else 'MISSED'}  {self.text}: {seen} (at most {self.limit:g})"
        )


def bars(results: Results) -> Sequence[Bar]:
    of = results.median
    return [
        *_calls(of),
        *_streams(of),
        *_options(of),
        *_many(results),
        *_starts(of),
        *_memory(of),
        Bar(
            "calls not answered whole", sum(map(results.wrong, OURS)) if results.found else None, 0
        ),
    ]


Of = Callable[[str, str, str], float | None]


def _calls(of: Of) -> Iterator[Bar]:
    for callers, limit in ((32, 12), (256, 14)):
        ours, nginx, portkey = (
            of(name, f"json{callers}", "cpu_us") for name in ("apikey", "nginx", "portkey")
        )
        yield Bar(f"CPU a call at {callers}, of nginx's", ratio(ours, nginx), limit)
        yield Bar(f"CPU a call at {callers}, of Portkey's", ratio(ours, portkey), 1 / 5)
        fresh = of("apikey", f"tls{callers}", "reused")
        yield Bar(
            f"% of calls over TLS at {callers} that had to connect",
            None if fresh is None else 100 - fresh,
            1,
        )


def _streams(of: Of) -> Iterator[Bar]:
    ours, nginx = (of(name, "sse", "cpu_ms_1000") for name in ("apikey", "nginx"))
    yield Bar("CPU a thousand chunks, of nginx's", ratio(ours, nginx), 3)
    for figure, text, limit in (
        ("first_p50", "ms to the first chunk over direct, p50", 1),
        ("first_p99", "ms to the first chunk over direct, p99", 5),
        # A chunk that is held back comes with the next one, 10 ms later.
        ("delay_p99", "ms a chunk over direct, p99", 10),
    ):
        yield Bar(text, added(of, "apikey", "sse", figure), limit)


def _options(of: Of) -> Iterator[Bar]:
    for name, limit in (("jwt", 1.1), ("recording", 1.4)):
        ours, apikey = (of(it, "json32", "cpu_us") for it in (name, "apikey"))
        yield Bar(f"CPU a call with {name}, of apikey's", ratio(ours, apikey), limit)


def _many(results: Results) -> Iterator[Bar]:
    late = added(results.median, "apikey", "many", "first_p99")
    yield Bar("ms to the first chunk of 1,000 streams over direct, p99", late, 300)
    # The first time is what counts: later ones find memory that is there.
    yield Bar("KB a stream of 1,000", results.most("apikey", "many", "kb_stream"), 60)
    wrong = results.most("apikey", "many", "wrong")
    yield Bar("streams of 1,000 that are not whole", wrong, 0)


def _starts(of: Of) -> Iterator[Bar]:
    ours, portkey = (of(name, "start", "s") for name in ("none", "portkey"))
    yield Bar("s from exec to the first answer", ours, 0.35)
    yield Bar("the same, of Portkey's", ratio(ours, portkey), 1)
    worker, empty = (of(name, "start", "s") for name in ("worker", "worker-empty"))
    share = None if worker is None or empty is None else worker - empty
    yield Bar("s of it that are ours on the worker of Azure Functions", share, 0.4)
    yield Bar(
        "ms that streams stand still while azure-identity or pymongo is imported",
        of("imports", "gap", "ms"),
        50,
    )


def _memory(of: Of) -> Iterator[Bar]:
    for name in ("apikey", "recording"):
        yield Bar(f"MB idle, {name}", of(name, "memory", "idle_mb"), 60)
        # What pools and caches may yet take; a leak of a hundred bytes a call is ten megabytes.
        yield Bar(f"MB more after 100,000 calls, {name}", of(name, "memory", "growth_mb"), 3)


def ratio(ours: float | None, theirs: float | None) -> float | None:
    return None if ours is None or not theirs else ours / theirs


def added(of: Of, gateway: str, scenario: str, figure: str) -> float | None:
    """Over what the same takes without a gateway."""
    ours, direct = (of(name, scenario, figure) for name in (gateway, "direct"))
    return None if ours is None or direct is None else ours - direct
