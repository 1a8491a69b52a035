"""The Langfuse sink: what arrives, under whose keys, and what happens while the server is away.

What the `langfuse` package itself sends of the same exchange says what is right.
"""

import asyncio
import hashlib
import json
import uuid
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
from langfuse import Langfuse as SDK
from langfuse import propagate_attributes
from opentelemetry.sdk.trace import TracerProvider

from llamaxing.endpoints import CAPABILITIES
from llamaxing.identity import Identities, Identity
from llamaxing.plugins import Surroundings
from llamaxing.sinks import Partly, Record
from llamaxing.sinks.langfuse import Langfuse
from tests.conftest import Serve, configure, model, openai
from tests.e2e import command
from tests.fakes import CHAT, DONE, Upstream, chunk
from tests.langfuse_server import Arrived, LangfuseServer

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
TRACEPARENT = f"00-{TRACE}-{PARENT}-01"
MESSAGES = [{"role": "user", "content": "Grüße"}]
ANSWER = {"role": "assistant", "content": "Hi 🦙"}


def record(**more: Any) -> Record:
    return {
        "id": uuid.uuid4().hex,
        "request_id": "r",
        "started": "2026-11-23T18:00:00.123456+00:00",
        "first_byte": "2026-11-23T18:00:00.654321+00:00",
        "finished": "2026-11-23T18:00:01+00:00",
        "endpoint": "chat_completions",
        "model": "m",
        "instance": "i1",
        "attempts": [{}],
        "identity": {"id": "team-a", "name": None, "info": None},
        "metadata": None,
        "traceparent": None,
        "status": 200,
        "request": {"model": "m", "messages": MESSAGES, "temperature": 0.5, "stop": ["a"]},
        "response": {"choices": [{"index": 0, "message": ANSWER}]},
        "usage": {"input": 5, "output": 3, "cached": 2, "reasoning": 1, "exact": True},
        "complete": True,
        "truncated": False,
        "error": None,
        **more,
    }


def identity(id: str, *keys: str) -> Identity:
    own = {"langfuse_public_key": keys[0], "langfuse_secret_key": keys[1]} if keys else None
    return Identity.model_validate({"id": id, "observability": own})


@pytest.fixture
def langfuse() -> Iterator[LangfuseServer]:
    with LangfuseServer(pk="sk", pk2="sk2") as server:
        yield server


Open = Callable[..., Langfuse]


@pytest.fixture
async def open_sink(langfuse: LangfuseServer) -> AsyncIterator[Open]:
    async with httpx.AsyncClient(verify=False) as web:

        def start(*identities: Identity, **options: str) -> Langfuse:
            given = {"observability_client_langfuse_host": langfuse.url + "/"}
            given |= {f"observability_client_langfuse_{name}": it for name, it in options.items()}
            serving = Identities(identities or [identity("team-a", "pk", "sk")])
            surroundings = Surroundings({}, web, identities=lambda: serving)
            return Langfuse(Langfuse.Options.model_validate(given), surroundings)

        yield start


@pytest.fixture
def sent(langfuse: LangfuseServer, open_sink: Open) -> Any:
    """Delivers one record; what arrived of it."""

    async def send(**more: Any) -> Arrived:
        assert await open_sink().deliver([record(**more)]) == {}
        return langfuse.arrived[-1]

    return send


def by_the_package(
    langfuse: LangfuseServer, trace: Mapping[str, Any], ids: Mapping[str, str], **generation: Any
) -> Arrived:
    """What arrives of a generation that the package has made."""
    before = len(langfuse.arrived)
    # A second client with the same key would be the first one, which has ended.
    public = uuid.uuid4().hex
    langfuse.projects[public] = "sk"
    sdk = SDK(
        public_key=public, secret_key="sk", base_url=langfuse.url, tracer_provider=TracerProvider()
    )
    try:
        with propagate_attributes(**trace):
            made = sdk.start_observation(as_type="generation", trace_context=ids, **generation)  # type: ignore[call-overload]
            made.end()
    finally:
        sdk.shutdown()
    [arrived] = langfuse.arrived[before:]
    return arrived


def decoded(attributes: Mapping[str, Any]) -> dict[str, Any]:
    """Attributes, of which those that are JSON are compared as such."""

    def value(it: Any) -> Any:
        try:
            return json.loads(it)
        except (TypeError, ValueError):
            return it

    return {name: value(it) for name, it in attributes.items()}


async def test_it_sends_what_the_package_sends(langfuse: LangfuseServer, sent: Any) -> None:
    metadata = {
        "trace_id": TRACE,
        "parent_observation_id": PARENT,
        "trace_name": "a trace",
        "trace_tags": ["one", "two"],
        "trace_metadata": {"text": "1", "number": 1, "list": [{"a": None}]},
        "session_id": "s-1",
        "name": "a generation",
        "mine": {"deep": [1.5, "ü"]},
        "big": 2**60,
        "nothing": None,
    }

    ours = await sent(metadata=metadata)

    theirs = await asyncio.to_thread(
        by_the_package,
        langfuse,
        {
            "user_id": "team-a",
            "session_id": "s-1",
            "trace_name": "a trace",
            "tags": ["one", "two"],
            "metadata": {"text": "1", "number": 1, "list": [{"a": None}]},
        },
        {"trace_id": TRACE, "parent_span_id": PARENT},
        name="a generation",
        model="m",
        model_parameters={"temperature": 0.5, "stop": ["a"]},
        input=MESSAGES,
        output=ANSWER,
        usage_details={
            "input": 3,
            "output": 2,
            "input_cached_tokens": 2,
            "output_reasoning_tokens": 1,
            "total": 8,
        },
        completion_start_time=datetime(2026, 11, 23, 18, 0, 0, 654321, UTC),
        metadata={
            "endpoint": "chat_completions",
            "instance": "i1",
            "request_id": "r",
            "status": 200,
            "complete": True,
            "truncated": False,
            "attempts": 1,
            "mine": {"deep": [1.5, "ü"]},
            "big": 2**60,
        },
    )
    assert decoded(ours.attributes) == decoded(theirs.attributes)
    # The server reads values by the form that a major version writes them in.
    (name, version), (its_name, its_version) = ours.scope, theirs.scope
    assert (name, version.partition(".")[0]) == (its_name, its_version.partition(".")[0])
    assert (ours.trace_id, ours.parent_id, ours.name, ours.status) == (
        theirs.trace_id,
        theirs.parent_id,
        theirs.name,
        theirs.status,
    )


async def test_an_error_is_what_the_package_makes_of_one(
    langfuse: LangfuseServer, sent: Any
) -> None:
    response = {"error": {"message": "too many", "type": "t"}}

    ours = await sent(status=429, error="all_instances_throttled", response=response, usage=None)

    theirs = await asyncio.to_thread(
        by_the_package,
        langfuse,
        {},
        {"trace_id": TRACE},
        name="x",
        level="ERROR",
        status_message="all_instances_throttled: too many",
    )
    for name in ("level", "status_message", "usage_details"):
        key = f"langfuse.observation.{name}"
        assert ours.attributes.get(key) == theirs.attributes.get(key)
    assert ours.status == theirs.status != {}


async def test_times_are_exact(sent: Any) -> None:
    arrived = await sent()

    start = int(datetime(2026, 11, 23, 18, 0, tzinfo=UTC).timestamp()) * 10**9
    assert arrived.start == start + 123_456_000
    assert arrived.end == start + 10**9
    assert arrived.json("completion_start_time") == "2026-11-23T18:00:00.654321Z"


@pytest.mark.parametrize(
    ("given", "trace", "parent"),
    [
        ({"traceparent": TRACEPARENT}, TRACE, PARENT),
        ({"traceparent": TRACEPARENT, "metadata": {"trace_id": TRACE}}, TRACE, PARENT),
        # The caller's span is in another trace.
        ({"traceparent": TRACEPARENT, "metadata": {"trace_id": "f" * 32}}, "f" * 32, ""),
        (
            {"traceparent": TRACEPARENT, "metadata": {"parent_observation_id": "a" * 16}},
            TRACE,
            "a" * 16,
        ),
        ({"traceparent": f"00-{'0' * 32}-{PARENT}-01", "id": "b" * 32}, "b" * 32, ""),
        ({"traceparent": "no such thing", "id": "b" * 32}, "b" * 32, ""),
        (
            {"metadata": {"trace_id": "f" * 32, "parent_observation_id": "a" * 16}},
            "f" * 32,
            "a" * 16,
        ),
        (
            {"metadata": {"trace_id": "", "parent_observation_id": None}, "id": "b" * 32},
            "b" * 32,
            "",
        ),
    ],
)
async def test_a_generation_is_in_the_trace_that_its_caller_names(
    sent: Any, given: dict[str, Any], trace: str, parent: str
) -> None:
    arrived = await sent(**given)

    assert (arrived.trace_id, arrived.parent_id) == (trace, parent)


@pytest.mark.parametrize("text", [str(uuid.uuid4()), "my trace", "A" * 32, "0" * 32, "ü"])
async def test_ids_of_another_form_are_derived_by_the_rule_of_the_package(
    sent: Any, text: str
) -> None:
    names = ("trace_id", "generation_id", "parent_observation_id")

    arrived = await sent(metadata=dict.fromkeys(names, text))

    assert arrived.trace_id == SDK.create_trace_id(seed=text)
    assert arrived.span_id == hashlib.sha256(text.encode()).hexdigest()[:16]
    assert arrived.parent_id == arrived.span_id
    assert [arrived.json(f"metadata.{name}") for name in names] == [text] * 3
    assert json.loads(arrived.attributes["langfuse.trace.metadata.trace_id"]) == text


async def test_a_second_delivery_has_the_same_ids(
    langfuse: LangfuseServer, open_sink: Open
) -> None:
    one = record()

    await open_sink().deliver([one])
    await open_sink().deliver([one])

    first, second = langfuse.arrived
    assert first == second


async def test_what_the_call_says_of_itself_is_taken_as_it_is(sent: Any) -> None:
    strange = {"trace_tags": "one", "trace_metadata": "text", "name": 7, "status_message": "fine"}

    arrived = await sent(
        metadata={**strange, "session_id": 12, "a.b": "\ufffd", "n": float("1e300")}
    )

    assert arrived.attributes["langfuse.trace.tags"] == ["one"]
    assert arrived.attributes["langfuse.trace.metadata"] == '"text"'
    assert arrived.attributes["session.id"] == "12"
    assert arrived.attributes["langfuse.observation.status_message"] == "fine"
    assert arrived.name == "7"
    assert arrived.json("metadata.a.b") == "\ufffd"
    assert arrived.status == {}


OUTPUTS: dict[str, tuple[dict[str, Any], Any, Any]] = {
    "several choices": (
        {"response": {"choices": [{"message": ANSWER}, {"message": ANSWER}]}},
        MESSAGES,
        [ANSWER, ANSWER],
    ),
    "tools": (
        {"request": {"messages": MESSAGES, "tools": [{"type": "function"}]}},
        {"messages": MESSAGES, "tools": [{"type": "function"}]},
        ANSWER,
    ),
    "completions": (
        {"request": {"prompt": "p"}, "response": {"choices": [{"text": "t"}]}},
        "p",
        "t",
    ),
    "responses": (
        {"request": {"input": "i", "instructions": "s"}, "response": {"output": [{"type": "m"}]}},
        {"input": "i", "instructions": "s"},
        [{"type": "m"}],
    ),
    "embeddings": (
        {"request": {"input": ["a"]}, "response": {"data": [{"embedding": [0.5]}]}},
        ["a"],
        None,
    ),
    "images": (
        {"request": {"prompt": "p"}, "response": {"data": [{"url": "u"}]}},
        "p",
        {"data": [{"url": "u"}]},
    ),
    "a form": (
        {"request": {"file": {"bytes": 3}}, "response": "text"},
        {"file": {"bytes": 3}},
        "text",
    ),
    "no texts": ({"request": None, "response": None}, None, None),
    "not json": ({"request": "{", "response": "<html>"}, "{", "<html>"),
}


@pytest.mark.parametrize(("given", "input", "output"), OUTPUTS.values(), ids=OUTPUTS)
async def test_input_and_output_are_what_people_read(
    sent: Any, given: dict[str, Any], input: Any, output: Any
) -> None:
    arrived = await sent(**given)

    found = decoded(arrived.attributes)
    assert found.get("langfuse.observation.input") == input
    assert found.get("langfuse.observation.output") == output


async def test_parameters_are_the_small_members(sent: Any) -> None:
    request = {"messages": [], "n": 2, "stream": True, "response_format": {"type": "text"}}
    request |= {"reasoning": {"effort": "low"}, "logit_bias": {}, "user": "u", "long": "x" * 500}

    arrived = await sent(request=request)

    assert arrived.json("model.parameters") == {
        "n": 2,
        "stream": True,
        "response_format.type": "text",
        "reasoning.effort": "low",
    }


@pytest.mark.parametrize(
    ("given", "level"),
    [
        ({}, None),
        ({"status": 499, "error": "caller_hung_up", "complete": False}, "WARNING"),
        ({"error": "caller_hung_up", "complete": False}, "WARNING"),
        ({"error": "upstream_stream_broken", "complete": False}, "ERROR"),
        ({"status": 500, "response": "x"}, "ERROR"),
        ({"status": None, "error": "worker_lost", "complete": False, "finished": None}, "ERROR"),
    ],
)
async def test_the_level_says_how_it_ended(
    sent: Any, given: dict[str, Any], level: str | None
) -> None:
    arrived = await sent(**given)

    assert arrived.attributes.get("langfuse.observation.level") == level


async def test_what_only_looks_at_an_earlier_answer_is_no_generation(sent: Any) -> None:
    arrived = await sent(endpoint="responses_retrieve", request=None)

    assert arrived.attributes["langfuse.observation.type"] == "span"


async def test_each_identity_has_its_own_project(langfuse: LangfuseServer, open_sink: Open) -> None:
    sink = open_sink(
        identity("a", "pk", "sk"), identity("b", "pk2", "sk2"), identity("c"), identity("d")
    )
    records = [record(identity={"id": id}) for id in "abcabd"]

    refused = await sink.deliver(records)

    assert refused == {}
    assert {(it.attributes["user.id"], it.public_key) for it in langfuse.arrived} == {
        ("a", "pk"),
        ("b", "pk2"),
    }
    assert len(langfuse.arrived) == 4
    assert langfuse.requests == 2


async def test_identities_without_a_project_have_that_of_the_settings(
    langfuse: LangfuseServer, open_sink: Open
) -> None:
    sink = open_sink(identity("a", "pk", "sk"), identity("c"), public_key="pk2", secret_key="sk2")
    who = ["a", "c", "anonymous"]

    await sink.deliver([*(record(identity={"id": id}) for id in who), record(identity=None)])

    found = {it.attributes["user.id"]: it.public_key for it in langfuse.arrived}
    assert found == {"a": "pk", "c": "pk2", "anonymous": "pk2"}


async def test_nobodys_traces_go_to_a_project_that_may_not_be_theirs(
    langfuse: LangfuseServer, open_sink: Open
) -> None:
    sink = open_sink(identity("a"), public_key="pk2", secret_key="sk2")
    gone = record(identity={"id": "gone"})

    refused = await sink.deliver([gone, record(identity={"id": "a"})])

    assert refused == {gone["id"]: "its identity is not configured any more"}
    assert [it.attributes["user.id"] for it in langfuse.arrived] == ["a"]


@pytest.mark.parametrize("status", [401, 413, 422])
async def test_what_the_server_will_never_take_is_refused(
    langfuse: LangfuseServer, open_sink: Open, status: int
) -> None:
    langfuse.status = status
    records = [record(), record()]

    refused = await open_sink().deliver(records)

    assert refused == dict.fromkeys([it["id"] for it in records], f"Langfuse answers {status}")


async def test_the_others_arrive_where_one_has_the_wrong_keys(
    langfuse: LangfuseServer, open_sink: Open
) -> None:
    sink = open_sink(identity("a", "pk", "wrong"), identity("b", "pk2", "sk2"))
    records = [record(identity={"id": "a"}), record(identity={"id": "b"})]

    refused = await sink.deliver(records)

    assert refused == {records[0]["id"]: "Langfuse answers 401"}
    assert [it.attributes["user.id"] for it in langfuse.arrived] == ["b"]


async def test_only_the_one_that_is_too_large_is_refused(
    langfuse: LangfuseServer, open_sink: Open
) -> None:
    langfuse.largest = 20_000
    records = [record(), record(response="x" * 30_000), record()]

    refused = await open_sink().deliver(records)

    assert refused == {records[1]["id"]: "Langfuse answers 413"}
    assert len(langfuse.arrived) == 2


async def test_a_trace_that_langfuse_would_not_take_is_cut_and_says_so(
    langfuse: LangfuseServer, open_sink: Open
) -> None:
    text = 'a "quoted" line\n' * 300_000

    refused = await open_sink().deliver([record(response=text)])

    assert refused == {}
    [arrived] = langfuse.arrived
    assert arrived.attributes["langfuse.observation.output"].endswith("bytes]")
    assert arrived.json("metadata.truncated") is True
    assert arrived.json("input") == MESSAGES


async def test_a_large_batch_is_sent_in_parts(langfuse: LangfuseServer, open_sink: Open) -> None:
    records = [record(response="x" * 1_000_000) for _ in range(7)]

    refused = await open_sink().deliver(records)

    assert refused == {}
    assert len(langfuse.arrived) == 7
    assert langfuse.requests == 3


@pytest.mark.parametrize("status", [500, 503, 404, 302])
async def test_a_server_that_fails_has_them_delivered_again(
    langfuse: LangfuseServer, open_sink: Open, status: int
) -> None:
    sink = open_sink()
    langfuse.status = status

    with pytest.raises(ConnectionError, match=str(status)):
        await sink.deliver([record()])
    langfuse.status = 200
    await sink.deliver([record()])

    assert len(langfuse.arrived) == 1


async def test_a_server_that_is_down_or_hangs_has_them_delivered_again(
    langfuse: LangfuseServer, open_sink: Open
) -> None:
    sink = open_sink()
    sink.timeout = 0.2

    await asyncio.to_thread(langfuse.stop)
    with pytest.raises(httpx.ConnectError):
        await sink.deliver([record()])
    langfuse.start()
    langfuse.hang()
    with pytest.raises(httpx.TimeoutException):
        await sink.deliver([record()])
    langfuse.release()
    await sink.deliver([record(id="c" * 32)])

    assert langfuse.arrived[-1].trace_id == "c" * 32


@pytest.mark.parametrize("status", [429, 500])
async def test_where_one_project_is_not_served_its_own_traces_alone_come_again(
    langfuse: LangfuseServer, open_sink: Open, status: int
) -> None:
    mine, other = record(identity={"id": "a"}), record(identity={"id": "b"})
    sink = open_sink(identity("a", "pk", "sk"), identity("b", "pk2", "sk2"))
    langfuse.failing["pk2"] = status

    with pytest.raises(Partly, match=str(status)) as partly:
        await sink.deliver([mine, other])
    langfuse.failing.clear()
    await sink.deliver([other])

    assert list(partly.value.later) == [other["id"]]
    assert [it.attributes["user.id"] for it in langfuse.arrived] == ["a", "b"]


async def test_what_a_project_may_not_send_for_now_says_nothing_of_the_server(
    langfuse: LangfuseServer, open_sink: Open
) -> None:
    """With any other failure of all there is, the sink is left alone for a while."""
    langfuse.failing["pk"] = 429

    with pytest.raises(Partly):
        await open_sink().deliver([record()])


def team(id: str, public: str, secret: str) -> dict[str, Any]:
    keys = {"langfuse_public_key": public, "langfuse_secret_key": secret}
    return {"id": id, "auth_key": f"key-{id}", "observability": keys}


TEAMS = [team("a", "pk", "sk"), team("b", "pk2", "sk2")]


async def test_a_whole_call_is_a_trace(
    langfuse: LangfuseServer, serve: Serve, upstream: Upstream
) -> None:
    usage = {"prompt_tokens": 5, "completion_tokens": 2}
    events = [chunk("Hel"), chunk("lo"), chunk("", choices=[], usage=usage), DONE]
    upstream.streams("i1", events)
    gateway = await serve(
        identities=TEAMS,
        OBSERVABILITY_CLIENT="langfuse",
        OBSERVABILITY_CLIENT_LANGFUSE_HOST=langfuse.url,
    )
    metadata = {"session_id": "s-1", "trace_name": "mine"}
    body = {**CHAT, "stream": True, "observation_metadata": metadata}
    headers = {"authorization": "Bearer key-b", "traceparent": TRACEPARENT}

    await gateway.post("/v1/chat/completions", json=body, headers=headers)
    await asyncio.to_thread(langfuse.wait_for_traces)

    [arrived] = langfuse.arrived
    [kept] = await gateway.recorded()
    assert (arrived.public_key, arrived.attributes["user.id"]) == ("pk2", "b")
    assert (arrived.trace_id, arrived.parent_id) == (TRACE, PARENT)
    assert arrived.attributes["session.id"] == "s-1"
    assert arrived.json("output")["content"] == "Hello"
    assert arrived.json("input") == CHAT["messages"]
    assert arrived.json("usage_details") == {"input": 5, "output": 2, "total": 7}
    assert arrived.json("completion_start_time") == kept["first_byte"].replace("+00:00", "Z")
    assert arrived.start // 1000 == microseconds(kept["started"])
    assert arrived.end // 1000 == microseconds(kept["finished"])
    assert "observation_metadata" not in upstream.journal[0].json
    assert "sk2" not in json.dumps(kept)


TOOLS = [{"type": "function", "function": {"name": "weather", "parameters": {}}}]
WANTED = {"type": "function", "id": "c1", "function": {"name": "weather", "arguments": "{}"}}
SAID = [{"type": "message", "content": [{"type": "output_text", "text": "Hi"}]}]


def choosing(*messages: dict[str, Any], **usage: Any) -> dict[str, Any]:
    choices = [{"index": at, "message": it} for at, it in enumerate(messages)]
    return {"object": "chat.completion", "choices": choices, "usage": usage}


@dataclass(frozen=True)
class Exchange:
    """A call, what upstream answers, and the generation that the package is told to send of it."""

    path: str
    asks: dict[str, Any]
    answer: Any
    generation: dict[str, Any]
    endpoint: str = "chat_completions"
    status: int = 200


EXCHANGES = {
    "chat": Exchange(
        "chat/completions",
        {"messages": MESSAGES, "temperature": 0.5, "max_completion_tokens": 10},
        choosing(ANSWER, prompt_tokens=5, completion_tokens=2, total_tokens=7),
        {
            "input": MESSAGES,
            "output": ANSWER,
            "model_parameters": {"temperature": 0.5, "max_completion_tokens": 10},
            "usage_details": {"input": 5, "output": 2, "total": 7},
        },
    ),
    "a stream of a model that thinks": Exchange(
        "chat/completions",
        {"messages": MESSAGES, "stream": True, "reasoning_effort": "low"},
        [
            chunk("Hi ", choices=[{"index": 0, "delta": {"role": "assistant", "content": "Hi "}}]),
            chunk("🦙"),
            chunk(
                "",
                choices=[],
                usage={
                    "prompt_tokens": 50,
                    "prompt_tokens_details": {"cached_tokens": 40},
                    "completion_tokens": 9,
                    "completion_tokens_details": {"reasoning_tokens": 7},
                },
            ),
            DONE,
        ],
        {
            "input": MESSAGES,
            "output": ANSWER,
            "model_parameters": {"stream": True, "reasoning_effort": "low"},
            "usage_details": {
                "input": 10,
                "input_cached_tokens": 40,
                "output": 2,
                "output_reasoning_tokens": 7,
                "total": 59,
            },
        },
    ),
    "tools": Exchange(
        "chat/completions",
        {"messages": MESSAGES, "tools": TOOLS, "tool_choice": "auto"},
        choosing(
            {"role": "assistant", "content": None, "tool_calls": [WANTED]},
            prompt_tokens=30,
            completion_tokens=6,
        ),
        {
            "input": {"messages": MESSAGES, "tools": TOOLS},
            "output": {"role": "assistant", "content": None, "tool_calls": [WANTED]},
            "model_parameters": {"tool_choice": "auto"},
            "usage_details": {"input": 30, "output": 6, "total": 36},
        },
    ),
    "several choices": Exchange(
        "chat/completions",
        {"messages": MESSAGES, "n": 2},
        choosing(ANSWER, {**ANSWER, "content": "Ho"}, prompt_tokens=5, completion_tokens=4),
        {
            "input": MESSAGES,
            "output": [ANSWER, {**ANSWER, "content": "Ho"}],
            "model_parameters": {"n": 2},
            "usage_details": {"input": 5, "output": 4, "total": 9},
        },
    ),
    "an error": Exchange(
        "chat/completions",
        {"messages": MESSAGES},
        {"error": {"message": "too long", "type": "invalid_request_error", "code": "context"}},
        {
            "input": MESSAGES,
            "output": {
                "error": {"message": "too long", "type": "invalid_request_error", "code": "context"}
            },
            "level": "ERROR",
            "status_message": "400: too long",
        },
        status=400,
    ),
    "responses": Exchange(
        "responses",
        {"input": "Hello", "instructions": "Be kind.", "store": False},
        {
            "object": "response",
            "output": SAID,
            "usage": {
                "input_tokens": 5,
                "input_tokens_details": {"cached_tokens": 4},
                "output_tokens": 3,
                "output_tokens_details": {"reasoning_tokens": 1},
                "total_tokens": 8,
            },
        },
        {
            "input": {"input": "Hello", "instructions": "Be kind."},
            "output": SAID,
            "model_parameters": {"store": False},
            "usage_details": {
                "input": 1,
                "input_cached_tokens": 4,
                "output": 2,
                "output_reasoning_tokens": 1,
                "total": 8,
            },
        },
        "responses",
    ),
    "embeddings": Exchange(
        "embeddings",
        {"input": ["a", "b"], "dimensions": 2},
        {
            "data": [{"index": at, "embedding": [0.5, 1]} for at in range(2)],
            "usage": {"prompt_tokens": 2, "total_tokens": 2},
        },
        {
            "input": ["a", "b"],
            "model_parameters": {"dimensions": 2},
            "usage_details": {"input": 2, "output": 0, "total": 2},
        },
        "embeddings",
    ),
    "an image": Exchange(
        "images/generations",
        {"prompt": "a llama", "size": "1024x1024"},
        {"created": 1, "data": [{"url": "https://images.test/1"}]},
        {
            "input": "a llama",
            "output": {"created": 1, "data": [{"url": "https://images.test/1"}]},
            "model_parameters": {"size": "1024x1024"},
        },
        "images_generations",
    ),
}


@pytest.mark.parametrize("exchange", EXCHANGES.values(), ids=EXCHANGES)
async def test_of_a_call_arrives_what_the_package_sends_of_it(
    langfuse: LangfuseServer, serve: Serve, upstream: Upstream, exchange: Exchange
) -> None:
    if isinstance(exchange.answer, list):
        upstream.streams("i1", exchange.answer)
    else:
        upstream.replies("i1", exchange.status, exchange.answer)
    models = [model(openai(upstream, "i1"), capabilities=list(CAPABILITIES))]
    gateway = await serve(
        models,
        TEAMS,
        OBSERVABILITY_CLIENT="langfuse",
        OBSERVABILITY_CLIENT_LANGFUSE_HOST=langfuse.url,
    )
    trace = {"trace_name": "t", "session_id": "s"}
    own = {**trace, "trace_id": TRACE, "trace_tags": ["one"], "name": "n", "colour": "blue"}
    body = {"model": "m", **exchange.asks, "observation_metadata": own}

    reply = await gateway.post(f"/v1/{exchange.path}", json=body, headers={"api-key": "key-a"})
    await asyncio.to_thread(langfuse.wait_for_traces)
    [ours] = langfuse.arrived
    theirs = await asyncio.to_thread(
        by_the_package,
        langfuse,
        {**trace, "user_id": "a", "tags": ["one"]},
        {"trace_id": TRACE},
        name="n",
        model="m",
        completion_start_time=datetime.fromisoformat(ours.json("completion_start_time")),
        metadata={
            "endpoint": exchange.endpoint,
            "instance": "i1",
            "request_id": reply.headers["x-request-id"],
            "status": exchange.status,
            "complete": True,
            "truncated": False,
            "attempts": 1,
            "colour": "blue",
        },
        **exchange.generation,
    )

    assert decoded(ours.attributes) == decoded(theirs.attributes)
    assert (ours.trace_id, ours.name, ours.status) == (TRACE, theirs.name, theirs.status)


async def test_traces_wait_while_langfuse_is_away_and_callers_do_not(
    langfuse: LangfuseServer,
    serve: Serve,
    upstream: Upstream,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    settings = {
        "OBSERVABILITY_CLIENT": "langfuse",
        "OBSERVABILITY_CLIENT_LANGFUSE_HOST": langfuse.url,
        "OUTBOX": "sqlite",
        "OUTBOX_PATH": str(tmp_path / "outbox.db"),
        "DELIVERY_TIMEOUT": "0.5",
        "DELIVERY_PAUSE_LIMIT": "0.1",
        "CONFIGURATION_RELOAD_INTERVAL": "0.001",
    }
    models = [model(openai(upstream, "i1"))]
    gateway = await serve(models, TEAMS, **settings)
    called = set()

    async def call() -> None:
        for who in "ab":
            body = {"model": "m", "messages": [{"role": "user", "content": f"{who}{len(called)}"}]}
            called.add(body["messages"][0]["content"])
            headers = {"authorization": f"Bearer key-{who}"}
            reply = await gateway.post("/v1/chat/completions", json=body, headers=headers)
            assert reply.status_code == 200

    async def seen(number: int = 2) -> None:
        await asyncio.to_thread(langfuse.wait_for_requests, number)

    await asyncio.to_thread(langfuse.stop)
    await call()
    await asyncio.to_thread(langfuse.start)
    langfuse.hang()
    await call()
    await seen()
    langfuse.release()
    langfuse.status = 500
    await call()
    await seen()
    langfuse.status = 200
    await asyncio.to_thread(langfuse.wait_for_traces, len(called))
    # A key is rotated there, and only then here.
    langfuse.projects["pk"] = "sk-new"
    await call()
    while "langfuse refuses records for good" not in caplog.text:  # noqa: ASYNC110
        await asyncio.sleep(0.01)
    environ = configure(tmp_path, models, [team("a", "pk", "sk-new"), TEAMS[1]]) | settings
    while caplog.text.count(": models=1 identities=2") < 2:
        await gateway.get("/v1/models", headers={"api-key": "key-b"})
    code, out, _ = await command(tmp_path, environ, "outbox", "replay")
    while {told(it) for it in langfuse.arrived} != called:  # noqa: ASYNC110
        await asyncio.sleep(0.01)

    assert (code, out) == (0, "jsonl: 0 to be delivered again\nlangfuse: 1 to be delivered again\n")
    for arrived in langfuse.arrived:
        who = told(arrived)[0]
        assert arrived.attributes["user.id"] == who
        assert arrived.public_key == {"a": "pk", "b": "pk2"}[who]
    # What the server took while it hung came again, as the same.
    assert len({it.span_id for it in langfuse.arrived}) == len(called)
    assert caplog.text.count("langfuse refuses records for good") == 1
    assert "sk-new" not in caplog.text


async def test_a_throttled_project_makes_no_other_wait(
    langfuse: LangfuseServer, serve: Serve, upstream: Upstream, tmp_path: Path
) -> None:
    gateway = await serve(
        identities=TEAMS,
        OBSERVABILITY_CLIENT="langfuse",
        OBSERVABILITY_CLIENT_LANGFUSE_HOST=langfuse.url,
        OUTBOX="sqlite",
        OUTBOX_PATH=str(tmp_path / "outbox.db"),
        DELIVERY_PAUSE_LIMIT="1",
    )

    async def call(who: str) -> None:
        reply = await gateway.post("/v1/chat/completions", json=CHAT, headers={"api-key": who})
        assert reply.status_code == 200

    langfuse.failing["pk"] = 429
    for number in range(1, 4):
        await call("key-a")
        await call("key-b")
        await asyncio.to_thread(langfuse.wait_for_traces, number)
    assert {it.public_key for it in langfuse.arrived} == {"pk2"}
    langfuse.failing.clear()
    await asyncio.to_thread(langfuse.wait_for_traces, 6)

    assert len({it.span_id for it in langfuse.arrived}) == len(langfuse.arrived) == 6


def told(arrived: Arrived) -> str:
    return str(arrived.json("input")[0]["content"])


def microseconds(moment: str) -> int:
    return (datetime.fromisoformat(moment) - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(
        microseconds=1
    )


async def test_streams_of_two_identities_never_cross(
    langfuse: LangfuseServer, serve: Serve, upstream: Upstream
) -> None:
    rounds, pieces = 100, 4
    instances = {who: openai(upstream, who) for who in "ab"}
    gateway = await serve(
        [model(it, id=f"model-{who}") for who, it in instances.items()],
        TEAMS,
        OBSERVABILITY_CLIENT="langfuse",
        OBSERVABILITY_CLIENT_LANGFUSE_HOST=langfuse.url,
    )

    for number in range(rounds):
        async with AsyncExitStack() as calls:
            scripts, lines = {}, {}
            for at, who in enumerate("ab"):
                usage = {"prompt_tokens": 10 * number + at, "completion_tokens": 1000 + number}
                texts = [chunk(f"{who}{number}.{piece};") for piece in range(pieces)]
                events = [*texts, chunk("", choices=[], usage=usage), DONE]
                upstream.forget(who)
                scripts[who] = upstream.streams(who, events, lock_step=True)
                body = {
                    "model": f"model-{who}",
                    "messages": [{"role": "user", "content": f"{who} {number}"}],
                    "stream": True,
                    "stream_options": {"include_usage": True},
                }
                headers = {"authorization": f"Bearer key-{who}"}
                call = gateway.stream("POST", "/v1/chat/completions", json=body, headers=headers)
                lines[who] = (await calls.enter_async_context(call)).aiter_lines()
            for _ in range(pieces + 2):
                for who in "ab":
                    scripts[who].release()
                    # One event, to the blank line at its end.
                    while await anext(lines[who]):
                        pass
            for who in "ab":
                assert [line async for line in lines[who]] == []
    await asyncio.to_thread(langfuse.wait_for_traces, 2 * rounds)

    records = await gateway.recorded(2 * rounds)
    seen = set()
    for arrived in langfuse.arrived:
        who = arrived.attributes["user.id"]
        asked, number = arrived.json("input")[0]["content"].split()
        seen.add((who, number))
        at = "ab".index(who)
        assert asked == who
        assert arrived.public_key == ["pk", "pk2"][at]
        assert arrived.json("output")["content"] == "".join(
            f"{who}{number}.{piece};" for piece in range(pieces)
        )
        usage = arrived.json("usage_details")
        assert usage["input"] == 10 * int(number) + at
        assert usage["output"] == 1000 + int(number)
    assert len(seen) == len(langfuse.arrived) == 2 * rounds
    for kept in records:
        who, number = kept["request"]["messages"][0]["content"].split()
        assert kept["identity"]["id"] == who
        assert kept["response"]["choices"][0]["message"]["content"].startswith(f"{who}{number}.0;")
        assert kept["usage"]["output"] == 1000 + int(number)
