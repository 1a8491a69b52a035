"""Whatever upstreams send, and whatever callers send: an answer, a record, and no fault of ours."""

import json
import random
from collections.abc import Iterator

import httpx
import pytest

from llamaxing.endpoints import CAPABILITIES
from tests.conftest import Serve, azure, model, openai
from tests.fakes import CHAT, COMPLETION, DONE, Reply, Upstream, chunk

CALLS = 250
PATHS = ["chat/completions", "responses", "embeddings", "audio/speech", "images/generations"]
SURFACES = [f"/v1/{path}" for path in PATHS] + [
    f"/openai/deployments/m/{path}" for path in PATHS if path != "responses"
]
IDENTITY = {"id": "ann", "auth_key": "k"}
KEY = {"authorization": "Bearer k"}
# An instance that fails is asked again at once.
UNREST = {
    "COOLDOWN": "0",
    "COOLDOWN_LIMIT": "0.001",
    "AUTH_COOLDOWN": "0",
    "BREAKER_PAUSE": "0.001",
}

STATUSES = [200] * 8 + [201, 204, 205, 206, 304, 307, 400, 401, 403, 404, 409, 418, 429, 500, 503]
STATUSES += [529, 599, 600, 999]
TYPES = ["application/json", "text/event-stream", "text/html", "audio/mpeg", "a\xff/b", ""]
BODIES = [
    b"",
    b"null",
    b"[3]",
    b"\xff\xfe",
    b"{" * 100_000,
    b"data: " + b"[" * 100_000 + b"\n\n",
    b"\r\r\r\r",
    b"event: x\r\ndata: y\r\n\r\n",
    json.dumps(COMPLETION).encode(),
    chunk("a") + DONE,
    chunk("", choices=[], usage={}) + DONE,
    b'{"error": "x"}',
    b'{"error": {"code": 3}}',
    b'{"error": {"message": "stream_options"}}',
    b'{"error": {"code": "DeploymentNotFound"}}',
    b'{"id": "r", "id": "s"}',
    b'{"id": "r", "output": [{"id": 3}, 4], "usage": {"input_tokens": "x"}}',
    b'{"object": "list", "data": [{"id": "r"}, 3]}',
    b'{"usage": {"prompt_tokens": 1e400}}',
    b'data: {"type": "response.completed", "response": {"id": "r"}}\n\n',
]
HEADERS = [
    {"retry-after": "\xff"},
    {"retry-after": "Wed, 21 Oct 2099 07:28:00 GMT"},
    {"retry-after-ms": "1e309"},
    {"x-ratelimit-reset-tokens": "-"},
    {"x-request-id": "\xff a"},
    {"x-ms-region": "\xe9", "connection": "x-ms-region"},
    {"content-encoding": "br"},
    {"content-length": "3"},
    {"content-length": "100000000"},
    {},
]


def any_reply(chance: random.Random) -> Reply:
    body = chance.choice(BODIES)
    head = {"content-type": chance.choice(TYPES), **chance.choice(HEADERS)}
    ends = chance.choice(["whole", "whole", "cut", "reset", "in-headers", "garbage"])
    # With another length than the body has, a connection is good for nothing more.
    ends = "cut" if "content-length" in head and ends == "whole" else ends
    cut = chance.randrange(len(body) + 1)
    pieces = [piece for piece in (body[:cut], body[cut:]) if piece]
    chunked = "content-length" not in head and chance.random() < 0.5
    return Reply(chance.choice(STATUSES), head, pieces, chunked, ends)


@pytest.mark.parametrize("seed", [1, 2])
async def test_whatever_an_upstream_sends_its_call_ends_and_is_recorded(
    upstream: Upstream, serve: Serve, caplog: pytest.LogCaptureFixture, seed: int
) -> None:
    chance = random.Random(seed)
    models = [model(openai(upstream, "i1"), azure(upstream, "i2"), capabilities=CAPABILITIES)]
    gateway = await serve(models, [IDENTITY], **UNREST)
    sent: list[str] = []

    for number in range(CALLS):
        for instance in ("i1", "i2"):
            upstream.forget(instance)
            upstream.script(instance, any_reply(chance))
        body = {**CHAT, "stream": chance.random() < 0.5, "store": chance.random() < 0.5}
        sent.append(f"call-{number}")
        headers = {**KEY, "x-request-id": sent[-1], "connection": "close"}
        path = chance.choice(SURFACES)
        try:
            async with gateway.stream("POST", path, json=body, headers=headers) as reply:
                assert reply.headers["x-request-id"] == sent[-1]
                async for _ in reply.aiter_raw():
                    pass
        except httpx.RemoteProtocolError:
            pass  # cut, as upstream cut it
    records = await gateway.recorded(CALLS)

    assert sorted(record["request_id"] for record in records) == sorted(sent)
    assert "Traceback" not in caplog.text
    assert "internal_error" not in {record["error"] for record in records}


JSON = json.dumps(
    {
        "model": "m",
        "messages": [{"role": "user", "content": "\u00e9\u2028\U0001f999"}],
        "stream": True,
        "stream_options": {"include_usage": False},
        "store": True,
        "metadata": {"a": "b"},
        "input": [{"type": "item_reference", "id": f"msg.{'A' * 24}"}, {"id": 3}],
        "observation_metadata": {"tags": ["a"]},
    }
).encode()
FORM = (
    b'--b\r\nContent-Disposition: form-data; name="model"\r\n\r\nm\r\n--b\r\n'
    b'Content-Disposition: form-data; name="file"; filename="a.mp3"\r\n\r\nabc\r\n--b\r\n'
    b'Content-Disposition: form-data; name="observation_metadata"\r\n\r\n{"a": 1}\r\n--b--\r\n'
)
TOKENS = [b'"', b"{", b"}", b"[", b"]", b",", b":", b"null", b"\\ud83d", b"\xff", b"\0", b"1e999"]
TOKENS += [b'"model": "m",', b"--b", b"\r\n\r\n", b"--b--", b' name="model"', b" " * 100]


def spoilt(text: bytes, chance: random.Random) -> Iterator[bytes]:
    """The text, and others that differ from it here and there."""
    yield text
    for _ in range(CALLS):
        other = bytearray(text)
        for _ in range(chance.randint(1, 3)):
            at = chance.randrange(len(other) + 1)
            how = chance.randrange(3)
            if how == 0:
                other[at:at] = chance.choice(TOKENS)
            elif how == 1:
                del other[at : at + chance.randint(1, 12)]
            else:
                other[at : at + 1] = chance.randbytes(1)
        yield bytes(other)


@pytest.mark.parametrize(
    ("text", "content_type", "path"),
    [
        (JSON, "application/json", "/v1/chat/completions"),
        (JSON, "application/json", "/v1/responses"),
        (FORM, "multipart/form-data; boundary=b", "/v1/audio/transcriptions"),
    ],
    ids=["chat", "responses", "form"],
)
async def test_whatever_a_caller_sends_is_answered_or_refused(
    upstream: Upstream,
    serve: Serve,
    caplog: pytest.LogCaptureFixture,
    text: bytes,
    content_type: str,
    path: str,
) -> None:
    models = [model(openai(upstream, "i1"), azure(upstream, "i2"), capabilities=CAPABILITIES)]
    gateway = await serve(models, [IDENTITY])
    headers = {**KEY, "content-type": content_type}

    replies = [
        await gateway.post(path, content=body, headers=headers)
        for body in spoilt(text, random.Random(1))
    ]

    assert {reply.status_code for reply in replies} <= {200, 400, 404}
    refused = [reply.json()["error"] for reply in replies if reply.status_code != 200]
    assert all(error["message"] for error in refused)
    assert "Traceback" not in caplog.text
    for asked in upstream.journal:
        if content_type == "application/json":
            assert "observation_metadata" not in asked.json
    assert len(await gateway.recorded(len(replies))) == len(replies)
