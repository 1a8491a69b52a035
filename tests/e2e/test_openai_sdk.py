"""openai-python as its users have it: through the gateway to a real model, and to the byte."""

import asyncio
import gzip
import hashlib
import json
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import openai
import pytest
import pytest_asyncio

from tests.conftest import configure, model
from tests.conftest import openai as instance
from tests.e2e import Program, functions_app, uvicorn_shim
from tests.fakes import DONE, Upstream, chunk
from tests.functions_host import Host
from tests.services import LocalModel

pytestmark = pytest.mark.asyncio(loop_scope="package")

KEY = "sk-of-a-caller"
WAYS = {"uvicorn": uvicorn_shim, "functions": functions_app}

MESSAGES = [{"role": "user", "content": "Say hello."}]
CHAT: dict[str, Any] = {"model": "smollm2", "messages": MESSAGES, "max_tokens": 8}
TEXT: dict[str, Any] = {"model": "smollm2", "prompt": "Once upon a", "max_tokens": 4}
EMBED: dict[str, Any] = {"model": "smollm2-embed", "input": ["a llama", "a gateway"]}

# What decoding and encoding again would change.
ODD = b'{ "id" : "1","choices":[],"n": 1e2, "n": 100.00, "s": "\\u00e9", "s": "\xc3\xa9" }\r\n'
PLAIN = {
    "odd": ODD,
    "large": b'{"data": "%b"}' % (b"x" * 3_000_000),
    "packed": gzip.compress(ODD),
}
LLAMA = 'data: {"choices":[{"index":0,"delta":{"content":"🦙"}}]}\n\n'.encode()
EVENTS = [
    b": a comment\n\n",
    chunk("", choices=[]),
    LLAMA[:49],
    LLAMA[49:51],
    LLAMA[51:] + chunk("Hi")[:7],
    chunk("Hi")[7:],
    b'data: {"choices":[]}\r\n\r\n',
    chunk("x" * 2**21),
]
STREAMS = {"done": [*EVENTS, DONE, b": after all\n\n"], "never-done": EVENTS}


@pytest_asyncio.fixture(scope="package", loop_scope="package")
async def upstream() -> AsyncIterator[Upstream]:
    """Answers each of its models always in the same way, and keeps what it was sent."""
    async with Upstream() as server:
        server.replies("odd", 200, PLAIN["odd"])
        server.replies("large", 200, PLAIN["large"])
        server.replies("packed", 200, PLAIN["packed"], content_encoding="gzip")
        for name, events in STREAMS.items():
            server.streams(name, events)
        server.replies("throttled", 429, retry_after="7")
        yield server


@pytest_asyncio.fixture(scope="package", loop_scope="package", params=WAYS)
async def gateway(
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
    local_model: LocalModel,
    upstream: Upstream,
) -> AsyncIterator[Program | Host]:
    """One gateway for all tests here, in each of the ways to run it."""
    folder: Path = tmp_path_factory.mktemp(request.param)
    models = [
        *json.loads(local_model.models.read_text()),
        *(model(instance(upstream, it), id=it) for it in (*PLAIN, *STREAMS, "throttled")),
    ]
    settings = {
        **configure(folder, models, [{"id": "someone", "auth_key": KEY}]),
        "LOCAL_MODEL_URL": local_model.url,
        "APP_REQUEST_BODY_LIMIT": "1000000",
    }
    async with WAYS[request.param](settings, folder) as running:
        yield running


class SDK:
    """One of openai-python's clients. Those that block do it in a thread."""

    def __init__(self, client: Any) -> None:
        self.client = client
        self._blocks = isinstance(client, openai.OpenAI)

    async def __call__(self, ask: Callable[[Any], Any]) -> Any:
        """What `ask` gets of the client; a stream as the list of its chunks."""
        if self._blocks:
            return await asyncio.to_thread(lambda: _whole(ask(self.client)))
        outcome = await ask(self.client)
        return [it async for it in outcome] if isinstance(outcome, openai.AsyncStream) else outcome

    async def body(self, ask: Callable[[Any], Any], read: str) -> tuple[bytes, bytes]:
        """The request's body, and the reply's as the client's `iter_bytes` or `iter_raw` has it."""
        if self._blocks:
            return await asyncio.to_thread(lambda: _body(ask(self.client), read))
        async with ask(self.client) as reply:
            arriving = getattr(reply.http_response, f"a{read}")()
            return reply.http_request.content, b"".join([it async for it in arriving])

    async def aclose(self) -> None:
        closing = self.client.close()
        if not self._blocks:
            await closing


def _whole(outcome: Any) -> Any:
    return list(outcome) if isinstance(outcome, openai.Stream) else outcome


def _body(asked: Any, read: str) -> tuple[bytes, bytes]:
    with asked as reply:
        arriving = getattr(reply.http_response, read)()
        return reply.http_request.content, b"".join(arriving)


CLIENTS = [openai.OpenAI, openai.AsyncOpenAI, openai.AzureOpenAI, openai.AsyncAzureOpenAI]
# Where Azure's would only make the small model work once more.
not_azure = pytest.mark.parametrize(
    "sdk", CLIENTS[:2], indirect=True, ids=lambda client: client.__name__
)


@pytest_asyncio.fixture(
    scope="module", loop_scope="package", params=CLIENTS, ids=lambda client: client.__name__
)
async def sdk(request: pytest.FixtureRequest, gateway: Program | Host) -> AsyncIterator[SDK]:
    where = {"base_url": f"{gateway.url}/v1"}
    if "Azure" in request.param.__name__:
        where = {"azure_endpoint": gateway.url, "api_version": "2024-10-21"}
    sdk = SDK(request.param(api_key=KEY, max_retries=0, timeout=60, **where))
    yield sdk
    await sdk.aclose()


# To the real model


async def test_chat(sdk: SDK) -> None:
    completion = await sdk(lambda client: client.chat.completions.create(**CHAT))

    [choice] = completion.choices
    assert choice.message.role == "assistant"
    assert choice.message.content
    assert choice.finish_reason in ("stop", "length")
    assert 0 < completion.usage.completion_tokens <= 8


async def test_chat_streamed_with_its_usage(sdk: SDK) -> None:
    *chunks, last = await sdk(
        lambda client: client.chat.completions.create(
            **CHAT, stream=True, stream_options={"include_usage": True}
        )
    )

    assert "".join(it.choices[0].delta.content or "" for it in chunks)
    assert len(chunks) > 2
    assert last.choices == []
    assert 0 < last.usage.completion_tokens <= 8


async def test_chat_streamed_by_an_alias(sdk: SDK) -> None:
    chunks = await sdk(
        lambda client: client.chat.completions.create(
            **{**CHAT, "model": "gpt-4o-mini"}, stream=True
        )
    )

    assert "".join(it.choices[0].delta.content or "" for it in chunks if it.choices)
    assert chunks[-1].choices[0].finish_reason in ("stop", "length")


@not_azure
async def test_completion(sdk: SDK) -> None:
    completion = await sdk(lambda client: client.completions.create(**TEXT))

    assert completion.choices[0].text
    assert 0 < completion.usage.completion_tokens <= 4


@not_azure
async def test_completion_streamed(sdk: SDK) -> None:
    chunks = await sdk(lambda client: client.completions.create(**TEXT, stream=True))

    assert "".join(it.choices[0].text for it in chunks if it.choices)
    assert len(chunks) > 2


@not_azure
async def test_embeddings_packed_as_the_client_asks_for_them_and_as_numbers(sdk: SDK) -> None:
    packed = await sdk(lambda client: client.embeddings.create(**EMBED))
    numbers = await sdk(lambda client: client.embeddings.create(**EMBED, encoding_format="float"))

    assert [it.index for it in packed.data] == [0, 1]
    assert len(packed.data[0].embedding) > 100
    for one, other in zip(packed.data, numbers.data, strict=True):
        assert list(one.embedding) == pytest.approx(other.embedding, abs=1e-4)


# By the gateway itself


async def test_the_models_are_listed_with_their_aliases(sdk: SDK) -> None:
    listed = await sdk(lambda client: client.models.list())

    assert {"smollm2", "gpt-4o-mini", "smollm2-embed", "odd"} <= {it.id for it in listed.data}
    assert {it.object for it in listed.data} == {"model"}


@pytest.mark.parametrize("name", ["smollm2", "gpt-4o-mini"])
async def test_a_model_is_retrieved_by_its_name_or_an_alias(sdk: SDK, name: str) -> None:
    found = await sdk(lambda client: client.models.retrieve(name))

    assert (found.id, found.object) == (name, "model")
    assert found.capabilities == ["chat_completions", "completions", "responses"]


async def test_a_reply_names_its_request(sdk: SDK) -> None:
    raw = await sdk(
        lambda client: client.chat.completions.with_raw_response.create(
            model="odd", messages=MESSAGES, extra_headers={"x-request-id": "one-of-mine"}
        )
    )

    assert raw.headers["x-request-id"] == "one-of-mine"
    assert raw.parse()._request_id == "one-of-mine"


# Errors, as the classes that callers catch


async def test_a_wrong_key_is_an_authentication_error(sdk: SDK) -> None:
    with pytest.raises(openai.AuthenticationError, match="Incorrect API key provided") as caught:
        await sdk(
            lambda client: client.with_options(api_key="sk-wrong").chat.completions.create(**CHAT)
        )

    assert (caught.value.code, caught.value.type) == ("invalid_api_key", "invalid_request_error")
    assert caught.value.request_id


@pytest.mark.parametrize("stream", [False, True], ids=["plain", "streamed"])
async def test_an_unknown_model_is_a_not_found_error(sdk: SDK, stream: bool) -> None:
    with pytest.raises(openai.NotFoundError, match="'gpt-0' does not exist here") as caught:
        await sdk(
            lambda client: client.chat.completions.create(
                model="gpt-0", messages=MESSAGES, stream=stream
            )
        )

    assert (caught.value.code, caught.value.param) == ("model_not_found", "model")


async def test_an_unknown_model_is_not_found_in_the_listing(sdk: SDK) -> None:
    with pytest.raises(openai.NotFoundError, match="'gpt-0' does not exist here"):
        await sdk(lambda client: client.models.retrieve("gpt-0"))


async def test_a_model_at_the_wrong_endpoint_is_a_bad_request(sdk: SDK) -> None:
    with pytest.raises(openai.BadRequestError, match="it serves chat_completions, completions"):
        await sdk(lambda client: client.embeddings.create(**{**EMBED, "model": "smollm2"}))


async def test_a_parameter_of_a_wrong_type_is_a_bad_request(sdk: SDK) -> None:
    with pytest.raises(openai.BadRequestError, match="has to be an object") as caught:
        await sdk(
            lambda client: client.chat.completions.create(
                **CHAT, extra_body={"observation_metadata": "no object"}
            )
        )

    assert (caught.value.code, caught.value.param) == ("invalid_type", "observation_metadata")


async def test_what_the_model_server_refuses_is_a_bad_request_in_its_own_words(sdk: SDK) -> None:
    with pytest.raises(openai.BadRequestError, match=r"(?i)messages"):
        await sdk(lambda client: client.chat.completions.create(model="smollm2", messages="Hello"))


async def test_a_body_above_the_limit_is_an_error_of_status_413(sdk: SDK) -> None:
    large = [{"role": "user", "content": "x" * 3_000_000}]

    with pytest.raises(openai.APIStatusError, match="1000000 bytes that app_req") as caught:
        await sdk(lambda client: client.chat.completions.create(model="smollm2", messages=large))

    assert (caught.value.status_code, caught.value.code) == (413, "request_too_large")


@pytest.mark.parametrize("stream", [False, True], ids=["plain", "streamed"])
async def test_a_throttled_upstream_is_a_rate_limit_error(sdk: SDK, stream: bool) -> None:
    with pytest.raises(openai.RateLimitError, match="upstream says 429") as caught:
        await sdk(
            lambda client: client.chat.completions.create(
                model="throttled", messages=MESSAGES, stream=stream
            )
        )

    assert caught.value.response.headers["retry-after"] == "7"


# To the byte


READ = ["iter_raw", "iter_bytes"]


@pytest.mark.parametrize("read", READ)
@pytest.mark.parametrize("name", PLAIN)
async def test_a_reply_is_the_same_to_the_byte(
    sdk: SDK, upstream: Upstream, name: str, read: str
) -> None:
    sent, got = await sdk.body(
        lambda client: client.chat.completions.with_streaming_response.create(
            model=name, messages=MESSAGES
        ),
        read,
    )

    expected = ODD if (name, read) == ("packed", "iter_bytes") else PLAIN[name]
    assert digest(got) == digest(expected)
    assert digest(upstream.journal[-1].body) == digest(sent)


@pytest.mark.parametrize("read", READ)
@pytest.mark.parametrize("name", STREAMS)
async def test_a_stream_is_the_same_to_the_byte(
    sdk: SDK, upstream: Upstream, name: str, read: str
) -> None:
    sent, got = await sdk.body(
        lambda client: client.chat.completions.with_streaming_response.create(
            model=name, messages=MESSAGES, stream=True
        ),
        read,
    )

    assert digest(got) == digest(b"".join(STREAMS[name]))
    assert sent.endswith(b"}")
    counting = sent[:-1] + b',"stream_options":{"include_usage":true}}'
    assert digest(upstream.journal[-1].body) == digest(counting)


def digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
