"""The benchmark: its arithmetic and its bars; that it sees what goes wrong; no verdict on times."""

import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

if sys.platform != "linux":
    pytest.skip("it reads what Linux tells of processes", allow_module_level=True)

from bench import bars, load, ours, report, results, upstream
from bench.gateways import PATH, Gateway, Missing, Route
from bench.results import Results
from bench.rig import PROJECT, Rig, post, rig
from bench.scenarios import Scale, Trial, measure
from bench.scenarios import load as loaded

README = PROJECT / "README.md"
LATEST = PROJECT / "bench" / "results" / "latest.json"
HERE = {
    "commit": "c0ffee",
    "cpu": "a CPU",
    "cores": "2",
    "python": "3.11",
    "date": "2026-01-31",
    "load": "0.1",
    "beside": "nginx 1",
}
# Every bar is held by these: gateway, scenario, figure and what was measured.
GOOD = [
    ("nginx", "json32", "cpu_us", 20),
    ("nginx", "json256", "cpu_us", 20),
    ("portkey", "json32", "cpu_us", 1000),
    ("portkey", "json256", "cpu_us", 2000),
    ("apikey", "json32", "cpu_us", 150),
    ("apikey", "json256", "cpu_us", 200),
    ("jwt", "json32", "cpu_us", 160),
    ("recording", "json32", "cpu_us", 200),
    ("apikey", "tls32", "reused", 99.5),
    ("apikey", "tls256", "reused", 100),
    ("nginx", "sse", "cpu_ms_1000", 18),
    ("apikey", "sse", "cpu_ms_1000", 45),
    ("direct", "sse", "first_p50", 0.5),
    ("apikey", "sse", "first_p50", 1.2),
    ("direct", "sse", "first_p99", 2),
    ("apikey", "sse", "first_p99", 6),
    ("direct", "sse", "delay_p99", 1),
    ("apikey", "sse", "delay_p99", 4),
    ("direct", "many", "first_p99", 100),
    ("apikey", "many", "first_p99", 350),
    ("apikey", "many", "kb_stream", 40),
    ("apikey", "many", "wrong", 0),
    ("none", "start", "s", 0.3),
    ("portkey", "start", "s", 0.4),
    ("worker-empty", "start", "s", 1),
    ("worker", "start", "s", 1.35),
    ("imports", "gap", "ms", 20),
    ("apikey", "memory", "idle_mb", 45),
    ("apikey", "memory", "growth_mb", 0.5),
    ("recording", "memory", "idle_mb", 50),
    ("recording", "memory", "growth_mb", 2.5),
]


def found(*figures: tuple[str, str, str, float]) -> Results:
    made = Results(dict(HERE), rounds=1)
    for gateway, scenario, figure, value in figures:
        made.add(gateway, scenario, {figure: value})
    return made


def missed(made: Results) -> list[str]:
    return [bar.text for bar in bars.bars(made) if not bar.holds]


@pytest.mark.parametrize(
    ("values", "percent", "expected"),
    [(range(1, 101), 50, 50), (range(1, 101), 99, 99), ([7], 99, 7), ([3, 1, 2], 50, 2)],
)
def test_a_percentile_is_the_smallest_value_that_so_many_do_not_exceed(
    values: Any, percent: float, expected: float
) -> None:
    assert load.percentile(list(values), percent) == expected


def test_figures_are_medians_of_the_rounds_and_so_are_their_ratios() -> None:
    made = found(*(("apikey", "json32", "cpu_us", it) for it in (100, 900, 120)))
    for value in (10, 12, 11):
        made.add("nginx", "json32", {"cpu_us": value})

    assert made.median("apikey", "json32", "cpu_us") == 120
    assert made.median("apikey", "json32", "rps") is None
    [bar] = [it for it in bars.bars(made) if it.text == "CPU a call at 32, of nginx's"]
    assert bar.value == pytest.approx(120 / 11)
    assert bar.holds


def test_no_bar_is_missed_where_all_are_held() -> None:
    assert missed(found(*GOOD)) == []


@pytest.mark.parametrize(
    ("gateway", "scenario", "figure", "value", "text"),
    [
        ("apikey", "json32", "cpu_us", 241, "CPU a call at 32, of nginx's"),
        ("portkey", "json256", "cpu_us", 999, "CPU a call at 256, of Portkey's"),
        ("apikey", "tls32", "reused", 98.9, "% of calls over TLS at 32 that had to connect"),
        ("apikey", "sse", "cpu_ms_1000", 55, "CPU a thousand chunks, of nginx's"),
        ("apikey", "sse", "delay_p99", 11.1, "ms a chunk over direct, p99"),
        ("recording", "json32", "cpu_us", 211, "CPU a call with recording, of apikey's"),
        ("apikey", "many", "wrong", 1, "streams of 1,000 that are not whole"),
        ("none", "start", "s", 0.41, "the same, of Portkey's"),
        ("worker", "start", "s", 1.41, "s of it that are ours on the worker of Azure Functions"),
        ("recording", "memory", "growth_mb", 3.1, "MB more after 100,000 calls, recording"),
        ("jwt", "burst", "wrong", 1, "calls not answered whole"),
    ],
)
def test_a_bar_is_missed_by_what_is_over_it(
    gateway: str, scenario: str, figure: str, value: float, text: str
) -> None:
    others = [it for it in GOOD if it[:3] != (gateway, scenario, figure)]

    assert text in missed(found(*others, (gateway, scenario, figure, value)))


def test_what_was_not_measured_is_no_bar_that_is_held() -> None:
    without = found(*(it for it in GOOD if it[0] != "portkey"))

    assert all("Portkey" in text for text in missed(without))
    assert len(missed(without)) == 3
    assert "MISSED  the same, of Portkey's: not measured" in report.document(
        without, every_bar=True
    )
    assert "not measured" not in report.document(without, every_bar=False)


def test_a_table_has_a_row_a_gateway_and_times_over_those_without_one() -> None:
    made = found(("direct", "sse", "first_p50", 0.5), ("apikey", "sse", "first_p50", 1.25))
    columns = [
        report.Column("first", "sse", "first_p50", over=True),
        report.Column("CPU", "json32", "cpu_us"),
    ]

    assert report.table(made, columns).splitlines() == [
        "| gateway | first | CPU |",
        "| --- | --- | --- |",
        "| no gateway | 0.5 |  |",
        "| **llamaxing**, `apikey` | 0.75 |  |",
    ]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, ""),
        (0, "0"),
        (0.049, "0.05"),
        (0.346, "0.346"),
        (12.34, "12.3"),
        (58522, "58,522"),
    ],
)
def test_a_figure_has_three_digits(value: float | None, text: str) -> None:
    assert report.shown(value) == text


def test_results_tell_where_they_are_from() -> None:
    assert results.here().keys() == HERE.keys()


def test_results_are_read_as_they_were_written(tmp_path: Path) -> None:
    made = found(*GOOD)
    made.skipped["litellm"] = "it is not installed"
    made.write(tmp_path / "latest.json")

    assert results.read(tmp_path / "latest.json") == made
    document = report.document(made, every_bar=True)
    assert "Commit c0ffee, 2026-01-31, beside nginx 1; 2 cores of a CPU, with a load of" in document
    assert "- litellm is not here: it is not installed" in document


def test_figures_take_the_place_of_those_before(tmp_path: Path) -> None:
    readme = tmp_path / "README.md"
    readme.write_text(README.read_text(encoding="utf-8"), encoding="utf-8")

    for value in (100, 200):
        made = found(("apikey", "json32", "cpu_us", value))
        report.mend(readme, made)

        text = readme.read_text(encoding="utf-8")
        assert [told for _, told, _ in report.README.findall(text)] == [report.section(made)]
        assert report.README.sub("", text) == report.README.sub("", README.read_text("utf-8"))


def test_the_readme_has_the_figures_of_the_latest_run() -> None:
    [(_, told, _)] = report.README.findall(README.read_text(encoding="utf-8"))

    assert told == (report.section(results.read(LATEST)) if LATEST.exists() else "")


def test_the_upstream_does_what_a_call_says() -> None:
    assert upstream.parts(b"d=50/n=3/") == (50, 1024, 3, 0)
    assert upstream.parts(b"") == (0, 1024, 200, 0)
    head, _, body = upstream.reply(1024).partition(b"\r\n\r\n")
    assert len(body) == 1024
    assert json.loads(body)["usage"]["total_tokens"] == 180
    assert b"content-length: 1024" in head


# What is measured


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    with rig(tmp_path_factory.mktemp("bench")) as found_rig:
        yield found_rig


def trial(rig: Rig, gateway: Gateway) -> Trial:
    return Trial(rig, gateway, Scale(1, 10, 10), lambda _: replace(gateway, program=None))


def test_every_call_and_chunk_of_a_gateway_is_seen_whole_and_its_processor_time(made: Rig) -> None:
    gateway = ours.apikey(made)
    try:
        gateway.start()
        streams, burst = (measure(trial(made, gateway), it) for it in ("sse0", "burst"))
    finally:
        gateway.stop()

    assert (streams["calls"], streams["chunks"], streams["wrong"]) == (64, 64 * 200, 0)
    assert streams["cpu_ms_1000"] > 0
    assert (burst["calls"], burst["wrong"]) == (200, 0)


@pytest.mark.parametrize("make", [ours.jwt, ours.recording])
def test_each_kind_of_gateway_starts_and_takes_a_call_over_tls(made: Rig, make: Any) -> None:
    gateway = make(made)
    before = made.counts()["tls_calls"]
    try:
        gateway.start()
        seen, _ = loaded(
            trial(made, gateway), "closed", "s=1024/", gateway.tls, callers=2, calls=20
        )
        after = made.counts()
    finally:
        gateway.stop()

    assert (seen["calls"], seen["wrong"]) == (20, 0)
    assert after["tls_calls"] - before == 20
    if make is ours.recording:
        assert (gateway.folder / "llamaxing-outbox.db").exists()
        assert len((gateway.folder / "apicalls.jsonl").read_text().splitlines()) >= 20


def test_streams_that_are_not_whole_are_wrong(made: Rig) -> None:
    direct = Gateway("direct", made.folder, Route(f"{made.upstream}{PATH}"))

    seen, _ = loaded(trial(made, direct), "streams", "n=3/g=1/", chunks=4, number=2)

    assert (seen["calls"], seen["wrong"]) == (2, 2)


def test_a_gateway_that_answers_by_itself_is_not_measured(made: Rig) -> None:
    class Own(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["content-length"]))
            self.send_response(200)
            self.send_header("content-length", "2")
            self.end_headers()
            self.wfile.write(b"{}")

        def log_message(self, *_: object) -> None:
            pass

    class Server(ThreadingHTTPServer):
        request_queue_size = 200

    server = Server(("127.0.0.1", 0), Own)
    threading.Thread(target=server.serve_forever, args=(0.01,)).start()
    answering = Gateway("own", made.folder, Route(f"http://127.0.0.1:{server.server_port}{PATH}"))
    try:
        with pytest.raises(Missing, match="of 200 answers 0 were upstream's"):
            measure(trial(made, answering), "burst")
    finally:
        server.shutdown()
        server.server_close()


def test_what_a_gateway_has_not_passed_on_is_not_measured(made: Rig) -> None:
    """A peer left out what tells the upstream how to answer, and so was measured at less."""
    before = made.counts()["calls"]

    status = post(f"{made.upstream}{PATH}", '{"messages": []}', {})

    assert (status, made.counts()["calls"]) == (200, before)


def test_a_gateway_that_has_died_fails_its_calls_and_no_more(made: Rig) -> None:
    gateway = ours.none(made)
    try:
        gateway.start()
        assert gateway.program
        gateway.program.stop()
        gateway.program.thaw()
        seen = measure(trial(made, gateway), "burst")
        gateway.program.freeze()
    finally:
        gateway.stop()

    assert (seen["calls"], seen["wrong"]) == (0, 200)


def test_a_gateway_that_does_not_start_is_missing_with_its_last_words(made: Rig) -> None:
    gateway = replace(ours.none(made), environ={"AUTH_METHOD": "ldap", "PYTHONPATH": str(PROJECT)})

    with pytest.raises(Missing, match="'ldap' is not known"):
        gateway.start()


def test_uncompiled_is_all_but_pythons_own_library(made: Rig) -> None:
    program = (
        "import json, httpx, os; print(*(os.path.exists(it.__cached__) for it in (json, httpx)))"
    )
    told = subprocess.run(
        [sys.executable, "-c", program],
        env={"PATH": "", **made.uncompiled},
        capture_output=True,
        text=True,
        check=True,
    )

    assert told.stdout.split() == ["True", "False"]


def test_the_gateway_has_around_it_what_a_deployment_has_and_no_more(made: Rig) -> None:
    if not ours.PYTHON.exists():
        pytest.skip("`python3 run.py bench` makes this environment")
    program = "import importlib.util as it; print(*(it.find_spec(name) is not None for name in "

    told = subprocess.run(
        [ours.none(made).command[0], "-c", f"{program} ('uvicorn', 'pymongo', 'pytest')))"],
        capture_output=True,
        text=True,
        check=True,
    )

    assert told.stdout.split() == ["True", "True", "False"]
