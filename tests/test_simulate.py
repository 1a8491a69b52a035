"""The simulator: the SDKs take it for the real thing, and it goes wrong as it is told to."""

import argparse
import asyncio
import itertools
import json
import os
import random
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from llamaxing.headers import retry_after
from llamaxing.simulate import command
from llamaxing.simulate.behaviour import FORMS, Behaviour, Limit, go
from llamaxing.simulate.service import Asked, Service
from tests.conftest import Serve
from tests.fakes import Clock
from tests.services import PROJECT, Simulator

KEY = {"authorization": "Bearer any"}
CHAT: dict[str, Any] = {
    "model": "sim",
    "messages": [{"role": "user", "content": "Say hello."}],
    "max_tokens": 4,
}


def parsed(*options: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    command.add_options(parser)
    return parser.parse_args(options)


def test_a_port_that_is_taken_is_a_line(simulator: Simulator) -> None:
    port = simulator.url.rpartition(":")[2]
    again = subprocess.run(
        [sys.executable, "-m", "llamaxing", "simulate", f"--port={port}"],
        cwd=PROJECT,
        capture_output=True,
        text=True,
        check=False,
    )

    assert (again.returncode, again.stdout) == (1, "")
    assert "address already in use" in again.stderr.lower()
    assert again.stderr.count("\n") == 1


# What the real SDKs make of it


def clients(simulator: Simulator) -> list[openai.OpenAI]:
    azure = {"azure_endpoint": f"{simulator.url}/sdk", "api_version": "2025-04-01-preview"}
    return [
        openai.OpenAI(base_url=f"{simulator.url}/sdk/v1", api_key="any", max_retries=0),
        openai.AzureOpenAI(**azure, api_key="any", max_retries=0),  # type: ignore[arg-type]
    ]


@pytest.fixture(params=[0, 1], ids=["OpenAI", "AzureOpenAI"])
def sdk(simulator: Simulator, request: pytest.FixtureRequest) -> Any:
    with clients(simulator)[request.param] as client:
        yield client


def test_an_sdk_gets_completions_plain_and_streamed_with_usage(sdk: openai.OpenAI) -> None:
    plain = sdk.chat.completions.create(**CHAT)
    chunks = list(
        sdk.chat.completions.create(**CHAT, stream=True, stream_options={"include_usage": True})
    )
    text = sdk.completions.create(model="sim", prompt="Once", max_tokens=2)

    said = "".join(it.choices[0].delta.content or "" for it in chunks if it.choices)
    assert plain.choices[0].message.content == said == "This answer was made"
    assert plain.usage == chunks[-1].usage
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == 4
    assert text.choices[0].text == "This answer"


def test_azures_streams_begin_with_a_chunk_without_choices(simulator: Simulator) -> None:
    streams = [it.chat.completions.create(**CHAT, stream=True) for it in clients(simulator)]

    assert [len(next(iter(stream)).choices) for stream in streams] == [1, 0]


def test_an_sdk_gets_embeddings_and_images(sdk: openai.OpenAI) -> None:
    made = sdk.embeddings.create(model="sim", input=["a", "b"])
    same = sdk.embeddings.create(model="sim", input="b", encoding_format="float")
    image = sdk.images.generate(model="sim", prompt="a llama")

    assert [it.index for it in made.data] == [0, 1]
    assert made.data[1].embedding == pytest.approx(same.data[0].embedding)
    assert image.data is not None
    assert image.data[0].b64_json


def test_an_sdk_gets_responses_that_are_kept(sdk: openai.OpenAI) -> None:
    made = sdk.responses.create(model="sim", input="Hello", max_output_tokens=3)
    with sdk.responses.stream(model="sim", input="And?", previous_response_id=made.id) as stream:
        kinds = [event.type for event in stream]
        further = stream.get_final_response()

    assert made.output_text == "This answer was"
    assert sdk.responses.retrieve(made.id) == made
    assert further.previous_response_id == made.id
    assert (kinds[0], kinds[-1]) == ("response.created", "response.completed")
    replayed = sdk.responses.retrieve(further.id, stream=True, starting_after=2)
    assert [event.type for event in replayed] == kinds[3:]
    sdk.responses.delete(made.id)
    with pytest.raises(openai.NotFoundError):
        sdk.responses.retrieve(made.id)
    with pytest.raises(openai.BadRequestError, match="Previous response"):
        sdk.responses.create(model="sim", input="And?", previous_response_id=made.id)


def test_an_sdk_is_told_of_models_that_are_not_there(simulator: Simulator) -> None:
    codes = []
    for client in clients(simulator):
        with pytest.raises(openai.NotFoundError) as error:
            client.chat.completions.create(**{**CHAT, "model": "other"})
        codes.append(error.value.code)

    assert codes == ["model_not_found", "DeploymentNotFound"]
    assert [model.id for model in clients(simulator)[0].models.list()] == ["sim"]


# Limits


def asked(**more: Any) -> Asked:
    return Asked("POST", "v1/chat/completions", headers=KEY, body={**CHAT, **more})


def test_so_many_requests_a_minute_are_let_in_and_one_more_each_time_one_is_due() -> None:
    clock = Clock()
    service = Service(Behaviour(rpm=3, retry_after="ms"), ["sim"], clock=clock)

    replies = [service.answer(asked()) for _ in range(4)]
    clock.now += 19
    replies.append(service.answer(asked()))
    clock.now += 1
    replies.append(service.answer(asked()))

    assert [reply.status for reply in replies] == [200, 200, 200, 429, 429, 200]
    assert [replies[at].headers["retry-after-ms"] for at in (3, 4)] == ["20000", "1000"]
    assert replies[1].headers == {
        "x-ratelimit-limit-requests": "3",
        "x-ratelimit-remaining-requests": "1",
        "x-ratelimit-reset-requests": "40s",
    }


def test_tokens_are_limited_too_and_a_call_larger_than_a_minutes_worth_is_let_in_once() -> None:
    clock = Clock()
    service = Service(Behaviour(tpm=100), ["sim"], clock=clock)

    statuses = [service.answer(asked(max_tokens=most)).status for most in (50, 80, 5)]
    clock.now += 60
    statuses += [service.answer(asked(max_tokens=5000)).status for _ in range(2)]

    assert statuses == [200, 429, 200, 200, 429]


@pytest.mark.parametrize("form", FORMS)
def test_each_form_of_a_wait_says_so_or_nothing(form: str) -> None:
    headers = Behaviour(retry_after=form).headers(90)

    seconds = retry_after(headers, time.time())
    if form in ("zero", "minus-one", "none"):
        assert seconds is None
    else:
        assert seconds == pytest.approx(90, abs=2)


def test_durations_are_written_as_go_writes_them() -> None:
    assert [go(it) for it in (0.02, 1.5, 59, 90, 3600)] == ["20ms", "1.5s", "59s", "1m30s", "60m0s"]


def test_no_limit_is_no_limit() -> None:
    limit = Limit("requests", 0, Clock())

    assert (limit.wait(1e9), limit.headers()) == (0, {})


# What goes wrong


def test_chance_decides_in_proportion_and_a_seed_repeats_it() -> None:
    behaviour = Behaviour(faults={"503": 0.3, "reset": 0.2})

    first, again = (
        [behaviour.fault(chance) for _ in range(5000)]
        for chance in (random.Random(1), random.Random(1))
    )

    shares = Counter(first)
    assert first == again
    assert shares["503"] / 5000 == pytest.approx(0.3, abs=0.03)
    assert shares["reset"] / 5000 == pytest.approx(0.2, abs=0.03)


@pytest.mark.parametrize(
    "options",
    [
        ("--fault", "nonsense"),
        ("--fault", "503=2"),
        ("--fault", "html-200=1"),
        ("--retry-after", "soon"),
        ("--latency=-1",),
        ("--rpm", "inf"),
    ],
)
def test_what_cannot_be_is_refused(options: tuple[str, ...]) -> None:
    with pytest.raises(ValueError, match=r"fault|between|form|numbers"):
        command.behaviours(parsed(*options))


def test_what_is_said_of_one_instance_goes_over_what_is_said_of_all() -> None:
    options = ("--fault=a:429=0.5", "--fault=503=0.1", "--fault=a:reset", "--latency=1")

    found = command.behaviours(parsed(*options, "--latency=a:2", "--rpm=c:9"))

    assert found == {
        "": Behaviour(latency=1, faults={"503": 0.1}),
        "a": Behaviour(latency=2, faults={"429": 0.5, "503": 0.1, "reset": 1}),
        "b": Behaviour(latency=1, faults={"503": 0.1}),
        "c": Behaviour(latency=1, rpm=9, faults={"503": 0.1}),
    }


async def test_a_stream_is_cut_and_one_stands_still_in_the_middle(simulator: Simulator) -> None:
    simulator.behave("cut", faults={"cut": 1})
    simulator.behave("stall", faults={"stall": 1})
    body = {**CHAT, "stream": True}

    got: dict[str, bytes] = {"cut": b"", "stall": b""}
    begun = asyncio.Event()

    async def read(instance: str) -> None:
        url = f"{simulator.url}/{instance}/v1/chat/completions"
        async with (
            httpx.AsyncClient(headers=KEY, trust_env=False) as client,
            client.stream("POST", url, json=body) as reply,
        ):
            async for piece in reply.aiter_bytes():
                got[instance] += piece
                begun.set()

    with pytest.raises(httpx.RemoteProtocolError):
        await read("cut")
    begun.clear()
    reading = asyncio.create_task(read("stall"))
    await begun.wait()
    _, pending = await asyncio.wait({reading}, timeout=0.2)
    reading.cancel()

    assert pending

    for stream in got.values():
        assert stream.startswith(b"data: ")
        assert b"[DONE]" not in stream


def test_a_request_may_be_refused_a_key_and_a_version(simulator: Simulator) -> None:
    path = "openai/deployments/sim/chat/completions"
    service = Service(Behaviour(), ["sim"], "sk-1")

    statuses = [
        service.answer(Asked("POST", path, query, headers, CHAT)).status
        for query, headers in itertools.product(
            ({"api-version": "v"}, {}), ({"api-key": "sk-1"}, {"api-key": "sk-2"}, {})
        )
    ]

    assert statuses == [200, 401, 401, 404, 401, 401]


# The command


def test_it_prints_what_it_answered_and_writes_models_that_the_gateway_takes(
    tmp_path: Path,
) -> None:
    models = tmp_path / "models.json"
    with Simulator(f"--write-models={models}", "--fault=a:503", "--models=x,y") as simulator:
        for instance in ("a", "b", "b"):
            url = f"{simulator.url}/{instance}/v1/chat/completions"
            httpx.post(url, headers=KEY, json={**CHAT, "model": "x"}, trust_env=False)
        simulator.behave("a", faults={})
        checked = subprocess.run(
            [sys.executable, "-m", "llamaxing", "check", "--probe"],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(PROJECT), "MODELS_SOURCE": f"file:{models}"},
            capture_output=True,
            text=True,
            check=False,
        )

    assert checked.returncode == 0, checked.stdout + checked.stderr
    assert [it["id"] for it in json.loads(models.read_text())] == ["x", "y"]
    assert [line.split() for line in simulator.printed.splitlines()] == [
        ["instance", "200", "503"],
        ["a", "2", "1"],
        ["b", "4", "0"],
    ]


def test_a_behaviour_that_cannot_be_is_400_and_changes_nothing(simulator: Simulator) -> None:
    for wrong in ({"faults": {"no": 1}}, {"unknown": 1}, [], {"latency": "x"}):
        reply = httpx.put(f"{simulator.url}/odd", json=wrong, trust_env=False)
        assert reply.status_code == 400, wrong
    unknown = httpx.put(f"{simulator.url}/odd", json={"latncy": 1}, trust_env=False).json()
    shown = httpx.get(simulator.url, trust_env=False).json()["odd"]

    assert shown["behaviour"]["faults"] == {}
    assert unknown["error"].startswith("'latncy' is not known; use latency, chunk_latency, ")


def test_an_option_without_its_number_is_refused_in_a_sentence(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit):
        parsed("--fault", "a:429=often")

    assert "argument --fault: 'a:429=often' ends with no number\n" in capsys.readouterr().err


# As an issuer of tokens


async def test_its_tokens_say_what_is_asked_for_and_a_gateway_believes_them(
    simulator: Simulator, serve: Serve
) -> None:
    issuer = f"{simulator.url}/entra"
    people = [{"id": "staff", "claims": {"roles": "Gateway.Call"}}]
    settings = {"AUTH_METHOD_JWT_ISSUER": issuer, "AUTH_METHOD_JWT_AUDIENCE": "app"}
    gateway = await serve(identities=people, AUTH_METHOD="jwt", **settings)

    statuses = []
    web = httpx.AsyncClient(trust_env=False)
    for asked in (
        {"aud": "app", "oid": "ann", "roles": "Other,Gateway.Call"},
        {"aud": "app", "oid": "ann"},
        {"aud": "another", "oid": "ann", "roles": "Gateway.Call"},
        {"aud": "app", "oid": "ann", "roles": "Gateway.Call", "exp": "1"},
    ):
        token = (await web.get(f"{issuer}/token", params=asked)).text
        reply = await gateway.get("/v1/models", headers={"authorization": f"Bearer {token}"})
        statuses.append(reply.status_code)

    assert statuses == [200, 403, 401, 401]
    wrong = await web.get(f"{issuer}/token", params={"exp": "soon"})
    assert (wrong.status_code, wrong.json()) == (400, {"error": "exp has to be a whole number"})
    assert (await web.get(f"{issuer}/elsewhere")).status_code == 404
    await web.aclose()
