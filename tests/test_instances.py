"""What callers and operators see of the instances: headers of a reply, and `/health/instances`."""

import asyncio
from datetime import UTC, datetime
from typing import Any

import pytest

from tests.conftest import Serve, Served, azure, model, openai
from tests.fakes import CHAT, DONE, Clock, Upstream, chunk

PATH = "/v1/chat/completions"
SEEN = "/health/instances"


async def state(gateway: Served, number: int = 0) -> dict[str, Any]:
    reply = await gateway.get(SEEN)
    assert reply.status_code == 200
    found: dict[str, Any] = reply.json()["instances"][number]
    return found


def seconds_left(found: dict[str, Any]) -> float:
    return (datetime.fromisoformat(found["until"]) - datetime.now(UTC)).total_seconds()


async def test_an_instance_that_nobody_asked_is_ready(upstream: Upstream, gateway: Served) -> None:
    assert await state(gateway) == {
        "model": "m",
        "id": "i1",
        "state": "ready",
        "until": None,
        "in_flight": 0,
        "latency_ms": None,
        "last_error": None,
        "last_error_at": None,
    }


async def test_a_throttled_instance_cools_until_it_said_and_keeps_its_last_error(
    upstream: Upstream, serve: Serve
) -> None:
    clock = Clock()
    gateway = await serve(clock=clock)
    upstream.replies("i1", 429, retry_after="30")
    await gateway.post(PATH, json=CHAT)

    found = await state(gateway)
    assert (found["state"], found["last_error"]) == ("cooling", "upstream_status_429")
    assert 25 < seconds_left(found) <= 30
    clock.now += 31
    found = await state(gateway)
    assert (found["state"], found["until"]) == ("ready", None)
    assert found["last_error"] == "upstream_status_429"
    age = datetime.now(UTC) - datetime.fromisoformat(found["last_error_at"])
    assert 31 <= age.total_seconds() < 40


async def test_a_broken_instance_is_open_then_on_trial_then_ready(
    upstream: Upstream, serve: Serve
) -> None:
    clock = Clock()
    gateway = await serve(clock=clock)
    upstream.fails("i1", "reset")
    states = [(await state(gateway))["state"]]
    for _ in range(3):
        await gateway.post(PATH, json=CHAT)
        states.append((await state(gateway))["state"])
    clock.now += 6
    states.append((await state(gateway))["state"])
    upstream.forget("i1")
    await gateway.post(PATH, json=CHAT)
    found = await state(gateway)

    assert [*states, found["state"]] == ["ready", "ready", "ready", "open", "trial", "ready"]
    assert found["last_error"] == "upstream_unreachable"


async def test_a_stream_is_in_flight_until_its_last_byte(
    upstream: Upstream, gateway: Served
) -> None:
    reply = upstream.streams("i1", [chunk("Hi"), DONE], lock_step=True)
    reply.release()

    async with gateway.stream("POST", PATH, json={**CHAT, "stream": True}) as streamed:
        pieces = streamed.aiter_bytes()
        assert await anext(pieces) == chunk("Hi")
        within = await state(gateway)
        reply.release()
        assert [piece async for piece in pieces] == [DONE]
    after = await state(gateway)

    assert (within["in_flight"], after["in_flight"]) == (1, 0)
    assert after["latency_ms"] > 0


@pytest.mark.parametrize(
    ("streamed", "settings"),
    [(False, {}), (True, {}), (True, {"STREAM_COMMIT_AFTER": "0.001"})],
    ids=["plain", "stream", "stream that begins early"],
)
async def test_nothing_is_in_flight_after_callers_who_hung_up_and_calls_that_failed(
    upstream: Upstream, serve: Serve, streamed: bool, settings: dict[str, str]
) -> None:
    gateway = await serve(**settings)
    upstream.fails("i1", "silent")
    calling = asyncio.create_task(gateway.post(PATH, json={**CHAT, "stream": streamed}))
    asked = await upstream.request()
    assert (await state(gateway))["in_flight"] == 1
    calling.cancel()
    await asked.hung_up.wait()
    await gateway.recorded()
    upstream.forget("i1")
    for status in (400, 404, 429, 500):
        upstream.replies("i1", status).replies("i2", status)
    for _ in range(4):
        await gateway.post(PATH, json={**CHAT, "stream": streamed})

    assert [(await state(gateway, number))["in_flight"] for number in (0, 1)] == [0, 0]


async def test_who_may_not_call_is_not_told_and_others_of_their_models_alone(
    upstream: Upstream, serve: Serve
) -> None:
    gateway = await serve(
        [model(openai(upstream, "i1"), id="m1"), model(azure(upstream, "a1"), id="m2")],
        [{"id": "someone", "auth_key": "sk-1", "models": ["m2"]}],
    )

    nobody = await gateway.get(SEEN)
    someone = await gateway.get(SEEN, headers={"api-key": "sk-1"})

    assert nobody.status_code == 401
    assert [(it["model"], it["id"]) for it in someone.json()["instances"]] == [("m2", "a1")]
    assert "key-a1" not in someone.text
    assert "127.0.0.1" not in someone.text


async def test_a_reply_says_which_instance_it_is_from_where_that_is_wanted(
    upstream: Upstream, serve: Serve
) -> None:
    odd = {**openai(upstream, "i2", priority=1), "id": "läma\r\n: x"}
    gateway = await serve([model(openai(upstream, "i1"), odd)], INSTANCE_HEADERS="true")
    upstream.replies("i1", 503)
    upstream.replies("i2").streams("i2", [DONE])
    upstream.replies("i2", 503, b"{}").fails("i2", "reset")

    replies = [await gateway.post(PATH, json={**CHAT, "stream": n == 1}) for n in range(4)]

    assert [reply.status_code for reply in replies] == [200, 200, 503, 502]
    for number, reply in enumerate(replies):
        assert reply.headers["x-llamaxing-instance"] == "l%C3%A4ma%0D%0A: x"
        assert reply.headers["x-llamaxing-attempts"] == ("1" if number == 3 else "2")
    refused = await gateway.post(PATH, json={"model": "nobody's"})
    assert "x-llamaxing-attempts" not in refused.headers


async def test_by_default_no_reply_says_which_instance_it_is_from(gateway: Served) -> None:
    reply = await gateway.post(PATH, json=CHAT)

    assert [name for name in reply.headers if name.startswith("x-llamaxing")] == []
