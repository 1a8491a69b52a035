"""What is kept of a call: texts, tokens, sizes; and what is not."""

import asyncio
import base64
import hashlib
import json
from pathlib import Path
from typing import Any

import httpx
import openai as sdk
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llamaxing.endpoints import BY_NAME
from llamaxing.exchange import Attempt, Exchange, Kept
from llamaxing.generation import span
from llamaxing.identity import ANONYMOUS
from llamaxing.replies import usage_of
from tests.conftest import Serve, Served, configure, model, openai, running
from tests.fakes import CHAT, COMPLETION, DONE, SSE, Reply, Upstream, chunk
from tests.journals import seeded
from tests.services import LocalModel

STREAM = {**CHAT, "stream": True}
PICTURE = bytes(range(256)) * 8
ENCODED = base64.b64encode(PICTURE).decode()
MARK = f"[2,048 bytes, sha256:{hashlib.sha256(PICTURE).hexdigest()}]"
EXACT = {"input": 5, "output": 2, "cached": 0, "reasoning": 0, "exact": True}


async def test_it_says_which_version_of_it_this_is(gateway: Served) -> None:
    await gateway.post("/v1/chat/completions", json=CHAT)

    [record] = await gateway.recorded()
    assert record["schema"] == 1


async def test_the_tokens_of_a_stream_are_known_though_its_copy_is_cut(
    upstream: Upstream, serve: Serve
) -> None:
    usage = {"prompt_tokens": 5, "completion_tokens": 2}
    # A caller who writes of usage is not taken for it.
    texts = [chunk('"usage": {"prompt_tokens": 99}'), *(chunk("x" * 9_000) for _ in range(20))]
    upstream.streams("i1", [*texts, chunk("", choices=[], usage=usage), DONE])
    gateway = await serve(LOGGING_COPY_LIMIT="20000")

    await gateway.post("/v1/chat/completions", json=STREAM)

    [record] = await gateway.recorded()
    assert record["truncated"] is True
    assert record["usage"] == EXACT
    assert record["response"]["choices"][0]["message"]["content"].endswith("x" * 9_000)


async def test_the_tokens_of_a_plain_reply_are_known_though_its_copy_is_cut(
    upstream: Upstream, serve: Serve
) -> None:
    body = {"data": ["x" * 200_000], "usage": {"prompt_tokens": 5, "total_tokens": 5}}
    upstream.replies("i1", 200, body)
    gateway = await serve(LOGGING_COPY_LIMIT="1000")

    await gateway.post("/v1/embeddings", json={"model": "m", "input": "a"})

    [record] = await gateway.recorded()
    assert (record["usage"]["input"], record["usage"]["exact"]) == (5, True)
    assert len(record["response"]) == 1000


@pytest.mark.parametrize("ends", ["cut", "whole"])
async def test_tokens_that_nobody_counted_are_estimated_and_marked(
    upstream: Upstream, gateway: Served, ends: str
) -> None:
    # 40 bytes of the caller's, and 20 of the model's.
    upstream.streams("i1", [chunk("0123456789"), chunk("0123456789")], ends=ends)
    body = {**STREAM, "messages": [{"role": "user", "content": "0123456789" * 4}]}

    await gateway.post("/v1/chat/completions", json=body)

    [record] = await gateway.recorded()
    expected = {"input": 10, "output": 5, "cached": 0, "reasoning": 0, "exact": False}
    assert record["usage"] == expected


async def test_a_call_that_was_refused_has_cost_no_tokens(
    upstream: Upstream, gateway: Served
) -> None:
    upstream.replies("i1", 400)

    await gateway.post("/v1/chat/completions", json=CHAT)
    await gateway.post("/v1/chat/completions", json={**CHAT, "model": "unknown"})

    assert [it["usage"] for it in await gateway.recorded(2)] == [None, None]


async def test_a_response_that_is_looked_at_again_is_not_counted_again(
    upstream: Upstream, gateway: Served
) -> None:
    answer = {"id": "resp_1", "object": "response", "output": [], "usage": {"input_tokens": 7}}
    upstream.replies("i1", 200, answer)
    exchange = Exchange(BY_NAME["responses_retrieve"], "e", "r", Kept(1000), status=200)
    exchange.reply.add(json.dumps(answer).encode())

    record = exchange.record()

    assert record["response"] == answer
    assert record["usage"] is None


async def test_a_caller_who_leaves_has_what_was_said_in_the_record(
    upstream: Upstream, serve: Serve
) -> None:
    gateway = await serve([model(openai(upstream, "i1"), capabilities=["responses"])])
    item = {"type": "message", "role": "assistant", "content": []}
    events: list[dict[str, Any]] = [
        {"type": "response.created", "response": {"id": "resp_1", "output": []}},
        {"type": "response.output_item.added", "output_index": 0, "item": item},
        {
            "type": "response.output_text.delta",
            "output_index": 0,
            "content_index": 0,
            "delta": "Hi",
        },
    ]
    upstream.streams(
        "i1", [b"data: %b\n\n" % json.dumps(it).encode() for it in events], ends="silent-after"
    )
    body = {"model": "m", "input": "Hello", "stream": True, "store": False}

    async with gateway.stream("POST", "/v1/responses", json=body) as reply:
        async for line in reply.aiter_lines():
            if "Hi" in line:
                break
    [record] = await gateway.recorded()

    assert (record["complete"], record["error"]) == (False, "caller_hung_up")
    assert record["response"]["output"][0]["content"] == [{"text": "Hi"}]
    assert record["usage"]["exact"] is False


async def test_an_image_is_its_size_and_hash(upstream: Upstream, gateway: Served) -> None:
    upstream.replies("i1", 200, {"data": [{"b64_json": ENCODED, "revised_prompt": "a llama"}]})

    await gateway.post("/v1/images/generations", json={"model": "m", "prompt": "a llama"})

    [record] = await gateway.recorded()
    assert record["response"] == {"data": [{"b64_json": MARK, "revised_prompt": "a llama"}]}


async def test_images_and_audio_of_a_request_are_their_size_and_hash(
    upstream: Upstream, serve: Serve
) -> None:
    content = [
        {"type": "text", "text": "What is this?"},
        {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{ENCODED}"}},
        {"type": "input_audio", "input_audio": {"data": ENCODED, "format": "wav"}},
        {"type": "file", "file": {"file_data": f"data:application/pdf;base64,{ENCODED}"}},
        {"type": "text", "text": f"![](data:image/png;base64,{ENCODED}) and more"},
    ]
    gateway = await serve(LOGGING_COPY_LIMIT="2000")

    await gateway.post(
        "/v1/chat/completions", json={**CHAT, "messages": [{"role": "user", "content": content}]}
    )

    [record] = await gateway.recorded()
    kept = record["request"]["messages"][0]["content"]
    assert [list(part.values())[1] for part in kept] == [
        "What is this?",
        {"url": f"data:image/png;base64,{MARK}"},
        {"data": MARK, "format": "wav"},
        {"file_data": f"data:application/pdf;base64,{MARK}"},
        f"![](data:image/png;base64,{MARK}) and more",
    ]
    # It was larger than a record may be, and is not without its images.
    assert record["truncated"] is False
    assert upstream.journal[0].body.count(ENCODED.encode()) == 4


async def test_a_text_is_never_taken_for_an_image(upstream: Upstream, gateway: Served) -> None:
    texts = ["x" * 5_000, ENCODED, "data:" + "y" * 500, "a b c " * 500]
    body = {**CHAT, "messages": [{"role": "user", "content": text} for text in texts]}
    body |= {"data": "x" * 5_000, "result": "no base64 at all " * 50}

    await gateway.post("/v1/chat/completions", json=body)

    [record] = await gateway.recorded()
    assert record["request"] == body


async def test_an_image_that_is_cut_off_is_a_mark_too(upstream: Upstream, serve: Serve) -> None:
    upstream.replies("i1", 200, {"created": 1, "data": [{"b64_json": ENCODED}]})
    gateway = await serve(LOGGING_COPY_LIMIT="1000")

    await gateway.post("/v1/images/generations", json={"model": "m", "prompt": "a llama"})

    [record] = await gateway.recorded()
    assert record["response"] == '{"created": 1, "data": [{"b64_json": "[962 characters]'
    assert record["truncated"] is True


async def test_speech_is_its_size_and_hash(upstream: Upstream, serve: Serve) -> None:
    speech = Reply(200, {"content-type": "audio/mpeg"}, [PICTURE])
    upstream.script("i1", speech)
    gateway = await serve(LOGGING_COPY_LIMIT="4000")
    body = {"model": "m", "input": "Hello", "voice": "alloy"}

    await gateway.post("/v1/audio/speech", json=body)
    speech.chunks = [PICTURE, PICTURE]
    await gateway.post("/v1/audio/speech", json=body)

    whole, cut = await gateway.recorded(2)
    digest = hashlib.sha256(PICTURE).hexdigest()
    expected = {"content_type": "audio/mpeg", "bytes": 2048, "sha256": digest}
    assert whole["response"] == expected
    assert cut["response"] == {"content_type": "audio/mpeg", "bytes": 4096}


async def test_an_uploaded_file_is_its_name_size_and_hash(
    upstream: Upstream, gateway: Served
) -> None:
    upstream.replies("i1", 200, {"text": "Hello"})

    await gateway.post(
        "/v1/audio/transcriptions",
        data={"model": "m"},
        files={"file": ("a.wav", PICTURE, "audio/wav")},
    )

    [record] = await gateway.recorded()
    digest = hashlib.sha256(PICTURE).hexdigest()
    file = {"filename": "a.wav", "content_type": "audio/wav", "bytes": 2048, "sha256": digest}
    assert record["request"] == {"model": "m", "file": file}
    assert record["response"] == {"text": "Hello"}


@pytest.mark.parametrize("redact", ["chat_completions", "embeddings, chat_completions", "*"])
async def test_texts_of_a_redacted_endpoint_are_kept_nowhere(
    serve: Serve, redact: str, caplog: pytest.LogCaptureFixture
) -> None:
    gateway = await serve(REDACT=redact, DEBUG_LEVEL="1")
    body = {**CHAT, "messages": [{"role": "user", "content": "a secret of mine"}]}

    await gateway.post("/v1/chat/completions", json=body)
    await gateway.post("/v1/completions", json={"model": "m", "prompt": "of everybody"})

    chat, completion = await gateway.recorded(2)
    assert (chat["request"], chat["response"]) == (None, None)
    assert chat["usage"]["input"] == 5
    assert (completion["request"] is None) == (redact == "*")
    assert "a secret of mine" not in caplog.text + json.dumps(chat)


COUNTS: dict[str, tuple[Any, Any]] = {
    "none": ({}, None),
    "not an object": ({"usage": [1]}, None),
    "seconds of audio": ({"usage": {"type": "duration", "seconds": 3}}, None),
    "null": ({"usage": {"prompt_tokens": None, "completion_tokens": "2"}}, (0, 0, 0, 0)),
    "details of another kind": (
        {"usage": {"prompt_tokens": 3, "prompt_tokens_details": [1], "completion_tokens": -1}},
        (3, 0, 0, 0),
    ),
    "a chat": (
        {
            "usage": {
                "prompt_tokens": 9,
                "completion_tokens": 8,
                "prompt_tokens_details": {"cached_tokens": 7},
                "completion_tokens_details": {"reasoning_tokens": 6},
            }
        },
        (9, 8, 7, 6),
    ),
    "a response": (
        {
            "usage": {
                "input_tokens": 9,
                "output_tokens": 8,
                "input_tokens_details": {"cached_tokens": 7},
                "output_tokens_details": {"reasoning_tokens": 6},
            }
        },
        (9, 8, 7, 6),
    ),
}


@pytest.mark.parametrize(("reply", "counts"), COUNTS.values(), ids=COUNTS)
def test_tokens_are_read_in_the_words_of_either_api(reply: Any, counts: Any) -> None:
    found = usage_of(reply)

    assert (found and (found.input, found.output, found.cached, found.reasoning)) == counts


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=10,
)
MEMBERS = st.sampled_from(
    [*CHAT, *COMPLETION, "input", "output", "usage", "data", "error", "prompt", "stream", "tools"]
    if CHAT
    else []
)
BODIES = st.dictionaries(MEMBERS, JSON, max_size=6) | JSON
METADATA = st.none() | st.dictionaries(
    st.sampled_from(
        ["trace_id", "trace_tags", "trace_metadata", "session_id", "name", "x\0", "generation_id"]
    ),
    JSON,
    max_size=5,
)


@settings(max_examples=300, deadline=None)
@given(
    BODIES,
    BODIES,
    METADATA,
    st.sampled_from(["application/json", "text/event-stream", "audio/mp3"]),
)
def test_no_call_is_so_strange_that_there_is_no_record_or_no_trace(
    request: Any, reply: Any, metadata: Any, content_type: str
) -> None:
    exchange = Exchange(BY_NAME["chat_completions"], "a" * 32, "r", Kept(10_000))
    exchange.identity, exchange.metadata, exchange.model = ANONYMOUS, metadata, "m"
    exchange.request = json.dumps(request).encode()
    exchange.attempts, exchange.status = [Attempt("i", 0.0)], 200
    exchange.content_type, exchange.finished = content_type, 1e9
    exchange.reply.add(b"data: " * (content_type == SSE["content-type"][:17]))
    exchange.reply.add(json.dumps(reply).encode() + b"\n\n")

    record = exchange.record()

    assert json.loads(json.dumps(record)) == record
    assert span(record).encoded()


def test_what_is_nested_very_deeply_is_kept_as_text() -> None:
    exchange = Exchange(BY_NAME["chat_completions"], "e", "r", Kept(10_000))
    exchange.identity = ANONYMOUS
    exchange.request = b'{"a":' + b"[" * 300 + b"]" * 300 + b"}"
    exchange.metadata = json.loads(exchange.request)

    record = exchange.record()

    assert "[[[[[[[[[[" in json.dumps(record["request"])
    assert span(record).encoded()


async def test_a_real_models_stream_is_recorded_as_its_plain_reply(
    tmp_path: Path, local_model: LocalModel
) -> None:
    models = json.loads(local_model.models.read_text())
    environ = configure(tmp_path, models) | {"LOCAL_MODEL_URL": local_model.url}
    asked: dict[str, Any] = {"model": "smollm2", "temperature": 0, "seed": 1, "max_tokens": 6}
    asked["messages"] = [{"role": "user", "content": "Say hello."}]
    async with running(environ, tmp_path) as gateway:
        client = sdk.AsyncOpenAI(
            base_url=f"{gateway.url}/v1",
            api_key="any",
            http_client=httpx.AsyncClient(verify=False),
        )
        async with client:
            plain = await client.chat.completions.create(**asked)
            said = [
                piece.choices[0].delta.content or ""
                async for piece in await client.chat.completions.create(**asked, stream=True)
                if piece.choices
            ]
            response = await client.responses.create(
                model="smollm2", input="Say hello.", max_output_tokens=6, temperature=0, store=False
            )
            events = [
                event
                async for event in await client.responses.create(
                    model="smollm2",
                    input="Say hello.",
                    max_output_tokens=6,
                    temperature=0,
                    store=False,
                    stream=True,
                )
            ]
        records = await gateway.recorded(4)

    first, streamed, whole, typed = records
    assert streamed["response"]["choices"][0]["message"]["content"] == "".join(said)
    assert first["response"]["choices"][0]["message"]["content"] == plain.choices[0].message.content
    assert first["usage"]["output"] == streamed["usage"]["output"] == 6
    assert first["usage"]["input"] == plain.usage.prompt_tokens  # type: ignore[union-attr]
    assert whole["response"]["output"] == [it.to_dict() for it in response.output]
    assert typed["response"]["output"] == [it.to_dict() for it in events[-1].response.output]  # type: ignore[union-attr]
    assert whole["usage"]["output"] == response.usage.output_tokens  # type: ignore[union-attr]
    assert all(record["usage"]["exact"] for record in records)


async def test_interleaved_streams_never_mix_their_texts_usage_or_callers(
    upstream: Upstream, serve: Serve
) -> None:
    """Two at a time, a hundred times over, their chunks in an order that is left to chance."""
    chance = seeded()
    names = ("alice", "bob")
    models = [model(openai(upstream, f"of-{name}"), id=name) for name in names]
    gateway = await serve(models, [{"id": name, "auth_key": f"key-{name}"} for name in names])
    seen: dict[tuple[str, int], bytes] = {}

    async def call(name: str, number: int) -> None:
        headers = {"authorization": f"Bearer key-{name}", "x-request-id": f"{name}-{number}"}
        body = {**STREAM, "model": name}
        reply = await gateway.post("/v1/chat/completions", json=body, headers=headers)
        seen[name, number] = reply.content

    for number in range(100):
        sent = {name: stream_of(name, number) for name in names}
        for name in names:
            upstream.forget(f"of-{name}")
        streams = {it: upstream.streams(f"of-{it}", sent[it], lock_step=True) for it in names}
        calls = [asyncio.create_task(call(name, number)) for name in names]
        turns = [streams[name] for name in names for _ in sent[name]]
        chance.shuffle(turns)
        for stream in turns:
            stream.release()
            await asyncio.sleep(0)
        await asyncio.gather(*calls)

    records = {it["request_id"]: it for it in await gateway.recorded(200)}
    assert len(records) == 200
    for (name, number), given_to_caller in seen.items():
        record = records[f"{name}-{number}"]
        *chunks, _, done = stream_of(name, number)
        assert given_to_caller == b"".join([*chunks, done])
        assert record["identity"]["id"] == name
        assert record["response"]["choices"][0]["message"]["content"] == "".join(
            text_of(name, number)
        )
        assert (record["usage"]["input"], record["usage"]["output"]) == (number, len(name))


def text_of(name: str, number: int) -> list[str]:
    return [f"{name} {number} {piece} " for piece in range(5)]


def stream_of(name: str, number: int) -> list[bytes]:
    usage = {"prompt_tokens": number, "completion_tokens": len(name)}
    return [*map(chunk, text_of(name, number)), chunk("", choices=[], usage=usage), DONE]
