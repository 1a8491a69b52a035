"""The results as a table and a plot, and what the README says of them."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.bars import added, bars
from bench.results import Results

README = re.compile(r"(<!-- python3 run.py bench --full -->\n)(.*?)(<!-- -->)", re.DOTALL)
TITLES = {
    "direct": "no gateway",
    "nginx": "nginx",
    "none": "**llamaxing**, `none`",
    "apikey": "**llamaxing**, `apikey`",
    "jwt": "**llamaxing**, `jwt`",
    "recording": "**llamaxing**, `apikey`, records",
    "worker-empty": "Functions worker, empty app",
    "worker": "Functions worker, **llamaxing**",
    "portkey": "Portkey",
    "litellm": "LiteLLM",
}


@dataclass(frozen=True)
class Column:
    """`over`: less what the same takes without a gateway."""

    title: str
    scenario: str
    figure: str
    over: bool = False

    def cell(self, results: Results, gateway: str) -> str:
        of = results.median
        if self.over and gateway != "direct":
            return shown(added(of, gateway, self.scenario, self.figure))
        return shown(of(gateway, self.scenario, self.figure))


CALLS = (
    Column("CPU µs a call at 1", "json1", "cpu_us"),
    Column("at 32", "json32", "cpu_us"),
    Column("at 256", "json256", "cpu_us"),
    Column("at 32, TLS to upstream", "tls32", "cpu_us"),
    Column("calls/s at 32", "json32", "rps"),
    Column("at 256", "json256", "rps"),
    Column("ms added at 100/s, p50", "paced", "total_p50", over=True),
    Column("p99", "paced", "total_p99", over=True),
    Column("ms added to 200 at once", "burst", "total_p99", over=True),
)
STREAMS = (
    Column("CPU ms a thousand chunks, 50 streams", "sse", "cpu_ms_1000"),
    Column("at full speed", "sse0", "cpu_ms_1000"),
    Column("ms added to the first chunk, p50", "sse", "first_p50", over=True),
    Column("p99", "sse", "first_p99", over=True),
    Column("to each chunk, p50", "sse", "delay_p50", over=True),
    Column("p99", "sse", "delay_p99", over=True),
    Column("first of 1,000 streams, p99", "many", "first_p99", over=True),
    Column("not whole", "many", "wrong"),
    Column("KB a stream", "many", "kb_stream"),
)
PROCESS = (
    Column("s from start to first answer", "start", "s"),
    Column("without .pyc", "start", "uncompiled_s"),
    Column("MB idle", "memory", "idle_mb"),
    Column("MB after calls", "memory", "after_mb"),
)


def shown(value: float | None) -> str:
    """Three digits of it."""
    if value is None:
        return ""
    if value == 0 or abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.3g}" if abs(value) >= 0.1 else f"{value:.2f}"


def table(results: Results, columns: Sequence[Column]) -> str:
    rows = [[column.title for column in columns], ["---" for _ in columns]]
    names = ["gateway", "---"]
    for name, title in TITLES.items():
        cells = [column.cell(results, name) for column in columns]
        if any(cells):
            rows.append(cells)
            names.append(title)
    return "\n".join(f"| {' | '.join([n, *row])} |" for n, row in zip(names, rows, strict=True))


def figures(results: Results) -> str:
    """The tables, and where they are from."""
    made = (
        "Commit {commit}, {date}, beside {beside}; {cores} cores of {cpu}, with a load of {load} "
        "before it; Python {python}; medians of {rounds} interleaved rounds."
    ).format(**results.where, rounds=results.rounds)
    tables = (table(results, columns) for columns in (CALLS, STREAMS, PROCESS))
    return "\n\n".join([made, *tables])


def section(results: Results) -> str:
    """What the README has between its marks."""
    return f"\n{figures(results)}\n\n![Some of it as a plot](bench/results/latest.png)\n\n"


def document(results: Results, *, every_bar: bool) -> str:
    """The tables with what was skipped, and with the bars: every one, or those of what there is."""
    skipped = [f"- {name} is not here: {why}" for name, why in results.skipped.items()]
    held = [bar for bar in bars(results) if every_bar or bar.value is not None]
    verdicts = [f"    {bar}" for bar in held]
    parts = [
        "# What it costs",
        figures(results),
        "\n".join(skipped),
        "\n".join(verdicts),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def mend(readme: Path, results: Results) -> None:
    text = readme.read_text(encoding="utf-8")
    mended = README.sub(lambda marks: marks[1] + section(results) + marks[3], text)
    readme.write_text(mended, encoding="utf-8")


PANELS = (
    ("CPU µs a call, 32 at a time", "json32", "cpu_us"),
    ("CPU ms a thousand chunks", "sse", "cpu_ms_1000"),
    ("s from start to first answer", "start", "s"),
)


def plot(results: Results, file: Path) -> None:
    """What of the panels there is, each on a logarithmic scale; no file where there is nothing."""
    import matplotlib as mpl

    mpl.use("agg")
    from matplotlib import pyplot

    names = [name for name in TITLES if name in results.found and not _is_bare(name)][::-1]
    panels = [it for it in PANELS if any(results.median(name, *it[1:]) for name in names)]
    if not panels:
        return
    picture, axes = pyplot.subplots(
        1, len(panels), figsize=(13, 3.2), layout="constrained", squeeze=False
    )
    for axis, (title, scenario, figure) in zip(axes[0], panels, strict=True):
        values = [results.median(name, scenario, figure) for name in names]
        drawn = axis.barh([_label(it) for it in names], [it or 0 for it in values])
        for bar, name in zip(drawn, names, strict=True):
            bar.set_color("#2a6fbb" if TITLES[name].startswith("**") else "#b5bac1")
        axis.bar_label(drawn, [shown(value) for value in values], padding=3)
        there = [it for it in values if it]
        axis.set(title=title, xscale="log", xlim=(min(there) / 4, max(there) * 6))
        axis.set_xlabel("logarithmic", loc="right", size="small")
        axis.minorticks_off()
    picture.savefig(file, dpi=110, metadata={"Software": None})
    pyplot.close(picture)


def _is_bare(name: str) -> bool:
    """Not a gateway that takes calls all day."""
    return name == "direct" or name.startswith("worker")


def _label(name: str) -> str:
    return re.sub(r"[*`]", "", TITLES[name])
