"""One of two instances fails, in each way there is: every call is answered, and it rests."""

import uuid
from typing import Any

import httpx
import pytest

from tests.conftest import Serve, Served, model
from tests.fakes import CHAT, Clock
from tests.services import Simulator

PATH = "/v1/chat/completions"
STREAMED = pytest.mark.parametrize("streamed", [False, True], ids=["plain", "stream"])


def throttles(form: str) -> dict[str, Any]:
    return {"faults": {"429": 1}, "retry_after": form, "retry_in": 30}


def limited(fault: str) -> dict[str, float]:
    """In models.json: so long is waited for what never comes, and for nothing else."""
    return {"timeout": 1} if fault == "silent" else {}


def always(fault: str) -> dict[str, Any]:
    return {"faults": {fault: 1}}


# How it behaves; how often it is then asked by a hundred calls; the seconds after which it still
# rests, and after which it is asked again.
WAYS: dict[str, tuple[dict[str, Any], int, float, float]] = {
    "429 in seconds": (throttles("seconds"), 1, 29, 31),
    "429 in milliseconds": (throttles("ms"), 1, 29, 31),
    "429 until a date": (throttles("date"), 1, 25, 31),
    "429 until its reset": (throttles("reset"), 1, 29, 31),
    "429 of zero seconds": (throttles("zero"), 1, 4, 6),
    "429 of minus one second": (throttles("minus-one"), 1, 4, 6),
    "429 without a word": (throttles("none"), 1, 4, 6),
    "401": (always("401"), 1, 59, 61),
    "403": (always("403"), 1, 59, 61),
    "404 of the deployment": (always("404"), 3, 2, 6),
    "408": (always("408"), 3, 2, 6),
    "500": (always("500"), 3, 2, 6),
    "502": (always("502"), 3, 2, 6),
    "503": (always("503"), 3, 2, 6),
    "503 as a page": (always("html-503"), 3, 2, 6),
    "504": (always("504"), 3, 2, 6),
    "empty": (always("empty"), 3, 2, 6),
    "reset before the headers": (always("reset"), 3, 2, 6),
    "reset within the headers": (always("reset-in-headers"), 3, 2, 6),
    "no header in time": (always("silent"), 3, 2, 6),
}


@pytest.fixture
def bad() -> str:
    return f"bad-{uuid.uuid4().hex}"


async def answered(gateway: Served, streamed: bool, calls: int = 1) -> int:
    """How many calls were, whole."""
    number = 0
    for _ in range(calls):
        reply = await gateway.post(PATH, json={**CHAT, "stream": streamed})
        ends = b"data: [DONE]\n\n" if streamed else b"}"
        number += reply.status_code == 200 and reply.content.endswith(ends)
    return number


@STREAMED
@pytest.mark.parametrize(("behaviour", "most", "rests", "over"), WAYS.values(), ids=WAYS)
async def test_a_hundred_of_a_hundred_calls_are_answered_and_the_bad_one_rests(
    simulator: Simulator,
    other_simulator: Simulator,
    serve: Serve,
    bad: str,
    behaviour: dict[str, Any],
    most: int,
    rests: float,
    over: float,
    streamed: bool,
) -> None:
    clock = Clock()
    other_simulator.behave(bad, **behaviour)
    first = other_simulator.azure(bad, **limited(*behaviour["faults"]))
    gateway = await serve([model(first, simulator.openai("good", priority=1))], clock=clock)

    assert await answered(gateway, streamed, 100) == 100
    assert sum(other_simulator.answered(bad).values()) == most

    other_simulator.behave(bad, faults={})
    clock.now += rests
    assert await answered(gateway, streamed) == 1
    assert "200" not in other_simulator.answered(bad)
    clock.now += over - rests
    assert await answered(gateway, streamed, 5) == 5
    assert other_simulator.answered(bad)["200"] == 5


@STREAMED
async def test_a_refused_connection_is_no_callers_business_and_used_again_afterwards(
    simulator: Simulator, serve: Serve, bad: str, streamed: bool
) -> None:
    clock = Clock()
    with Simulator() as ended:
        first = ended.openai(bad)
        gateway = await serve([model(first, simulator.azure("good", priority=1))], clock=clock)
        ended.stop()

        assert await answered(gateway, streamed, 100) == 100
        errors = [it["attempts"][0]["error"] for it in await gateway.recorded(100)]
        assert errors == ["upstream_unreachable"] * 3 + [None] * 97

        ended.start()
        clock.now += 6
        assert await answered(gateway, streamed, 5) == 5
        assert ended.answered(bad) == {"200": 5}


async def test_an_instance_whose_plain_replies_break_off_is_not_asked_for_ever(
    simulator: Simulator, serve: Serve, bad: str
) -> None:
    simulator.behave(bad, **always("cut"))
    instances = simulator.openai(bad), simulator.openai("good", priority=1)
    gateway = await serve([model(*instances)], clock=Clock())

    statuses = [(await gateway.post(PATH, json=CHAT)).status_code for _ in range(10)]

    # Each may have done what was asked, so none was done twice.
    assert statuses == [502] * 3 + [200] * 7
    assert simulator.answered(bad) == {"cut": 3}


FORMS = {"seconds": 7, "ms": 7, "date": 7, "reset": 7, "zero": 5, "minus-one": 5, "none": 5}


@STREAMED
@pytest.mark.parametrize(("form", "wait"), FORMS.items(), ids=FORMS)
async def test_when_all_throttle_the_caller_is_told_the_least_wait(
    simulator: Simulator, serve: Serve, bad: str, form: str, wait: int, streamed: bool
) -> None:
    worse = f"{bad}-worse"
    simulator.behave(bad, faults={"429": 1}, retry_after=form, retry_in=7)
    simulator.behave(worse, faults={"429": 1}, retry_after="seconds", retry_in=30)
    instances = simulator.openai(bad), simulator.azure(worse, priority=1)
    gateway = await serve([model(*instances)], clock=Clock())

    reply = await gateway.post(PATH, json={**CHAT, "stream": streamed})

    assert reply.status_code == 429
    # A date has no fractions of a second.
    assert reply.headers["retry-after"] in {str(wait), str(wait - (form == "date"))}
    assert float(reply.headers["retry-after-ms"]) <= wait * 1000
    assert simulator.answered(bad) == simulator.answered(worse) == {"429": 1}


ENDS = {
    "401": (502, "upstream_auth"),
    "404": (404, "model_not_found"),
    "500": (500, None),
    "503": (503, None),
    "empty": (502, "upstream_bad_response"),
    "reset": (502, "upstream_unreachable"),
    "reset-in-headers": (502, "upstream_unreachable"),
    "silent": (504, "upstream_timeout"),
}


@STREAMED
@pytest.mark.parametrize(("fault", "told"), ENDS.items(), ids=ENDS)
async def test_when_all_fail_the_caller_is_told_how_and_each_was_asked_once(
    other_simulator: Simulator,
    serve: Serve,
    bad: str,
    fault: str,
    told: tuple[int, str | None],
    streamed: bool,
) -> None:
    names = f"{bad}-1", f"{bad}-2"
    for name in names:
        other_simulator.behave(name, **always(fault))
    instances = [other_simulator.openai(name, **limited(fault)) for name in names]
    gateway = await serve([model(*instances)], clock=Clock())

    reply = await gateway.post(PATH, json={**CHAT, "stream": streamed})

    assert (reply.status_code, reply.json()["error"]["code"]) == told
    assert [other_simulator.answered(name) for name in names] == [{fault: 1}] * 2


# Callers' own 404s

UNKNOWN: list[tuple[str, str, dict[str, Any] | None]] = [
    ("GET", "/v1/responses/resp_never", None),
    ("GET", "/v1/responses/{gone}", None),
    ("DELETE", "/v1/responses/{gone}", None),
    (
        "POST",
        "/v1/responses",
        {"model": "m", "input": [{"type": "input_file", "file_id": "file-none"}]},
    ),
    (
        "POST",
        PATH,
        {"model": "m", "messages": [{"role": "user", "content": [{"file": {"file_id": "none"}}]}]},
    ),
]


@pytest.mark.parametrize("places", [1, 2])
async def test_two_hundred_404s_of_callers_own_leave_every_instance_healthy(
    simulator: Simulator, serve: Serve, bad: str, places: int
) -> None:
    names = [f"{bad}-{number}" for number in range(places)]
    instances = [simulator.openai(name, priority=rank) for rank, name in enumerate(names)]
    secret = {"ID_SECRET": "a long text to sign ids"} if places > 1 else {}
    served = model(*instances, capabilities=["responses", "chat_completions"])
    gateway = await serve([served], **secret)
    made = (await gateway.post("/v1/responses", json={"model": "m", "input": "Hi"})).json()["id"]
    kept = f"{simulator.url}/{names[0]}/v1/responses/{made.partition('.')[0]}"
    headers = {"authorization": "Bearer any"}
    async with httpx.AsyncClient(headers=headers, trust_env=False) as direct:
        assert (await direct.delete(kept)).status_code == 200

    statuses = set()
    for _ in range(200 // len(UNKNOWN)):
        for method, path, body in UNKNOWN:
            reply = await gateway.client.request(method, path.format(gone=made), json=body)
            statuses.add(reply.status_code)
    states = (await gateway.get("/health/instances")).json()["instances"]

    assert statuses == {404}
    assert [(it["state"], it["last_error"], it["in_flight"]) for it in states] == [
        ("ready", None, 0)
    ] * places
    good = simulator.answered(names[0])["200"]
    assert await answered(gateway, streamed=False) == 1
    assert simulator.answered(names[0])["200"] == good + 1
