"""What is tried elsewhere, and what the caller gets when nothing helps."""

import asyncio
import json
import random
from collections.abc import Mapping, Sequence

import httpx
import pytest
from pydantic import SecretStr

from llamaxing import plugins
from llamaxing.answer import Answer
from llamaxing.catalog import Model
from llamaxing.credentials.entra import Tokens
from llamaxing.endpoints import BY_NAME
from llamaxing.exchange import Exchange, Kept
from llamaxing.forward import Call, Forwarder
from llamaxing.payload import Payload
from llamaxing.providers.azure import AzureInstance
from llamaxing.selection import Pauses, Selector
from llamaxing.upstream import Answered, Asked, Timeouts
from tests.conftest import Serve, Served, azure, llamaxing, model, openai
from tests.fakes import CHAT, COMPLETION, DONE, Clock, Upstream, chunk

PATHS = [f"/v1/{BY_NAME[name].path}" for name in ("chat_completions", "embeddings", "audio_speech")]
BODIES = [CHAT, {**CHAT, "stream": True}]
TRIED_ELSEWHERE = [401, 403, 404, 408, 429, 500, 502, 503, 504]


@pytest.mark.parametrize("body", BODIES, ids=["plain", "stream"])
@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("status", TRIED_ELSEWHERE)
async def test_another_instance_answers_when_one_fails(
    upstream: Upstream, gateway: Served, status: int, path: str, body: object
) -> None:
    upstream.replies("i1", status).replies("i2", 200)

    reply = await gateway.post(path, json=body)

    assert reply.status_code == 200
    assert upstream.asked == ["i1", "i2"]
    [record] = await gateway.recorded()
    assert [attempt["status"] for attempt in record["attempts"]] == [status, 200]
    assert record["complete"] is True


@pytest.mark.parametrize("body", BODIES, ids=["plain", "stream"])
@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("status", [400, 409, 413, 422])
async def test_a_caller_gets_what_no_other_instance_would_do_better(
    upstream: Upstream, gateway: Served, status: int, path: str, body: object
) -> None:
    upstream.replies("i1", status, b'{"error": {"message": "yours"}}')

    reply = await gateway.post(path, json=body)

    assert (reply.status_code, reply.content) == (status, b'{"error": {"message": "yours"}}')
    assert upstream.asked == ["i1"]


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("status", [404, 408, 500, 502, 503, 504])
async def test_the_last_upstreams_words_pass_when_every_instance_fails(
    upstream: Upstream, gateway: Served, status: int, path: str
) -> None:
    upstream.replies("i1", status, b'{"error": 1}').replies("i2", status, b'{"error": 2}')

    reply = await gateway.post(path, json=CHAT)

    assert (reply.status_code, reply.content) == (status, b'{"error": 2}')


@pytest.mark.parametrize("status", [401, 403])
async def test_a_refused_credential_of_ours_is_502_and_named_in_the_log(
    upstream: Upstream, gateway: Served, status: int, caplog: pytest.LogCaptureFixture
) -> None:
    upstream.replies("i1", status, b'{"error": "sk-i1 is wrong"}')
    upstream.replies("i2", status, b'{"error": "sk-i2 is wrong"}')

    reply = await gateway.post("/v1/chat/completions", json=CHAT)

    assert reply.status_code == 502
    assert reply.json()["error"]["code"] == "upstream_auth"
    assert "sk-i" not in reply.text + caplog.text
    errors = [record.getMessage() for record in caplog.records if record.levelname == "ERROR"]
    assert [message.split()[1] for message in errors] == ["i1", "i2"]


async def test_any_other_failure_goes_before_a_refused_credential(
    upstream: Upstream, gateway: Served
) -> None:
    upstream.replies("i1", 503, b'{"error": "busy"}').replies("i2", 401)

    reply = await gateway.post("/v1/chat/completions", json=CHAT)

    assert (reply.status_code, reply.content) == (503, b'{"error": "busy"}')


async def test_all_throttled_gives_the_least_wait(upstream: Upstream, serve: Serve) -> None:
    gateway = await serve(clock=Clock())
    upstream.replies("i1", 429, retry_after="7").replies("i2", 429, retry_after_ms="12500")

    reply = await gateway.post("/v1/chat/completions", json=CHAT)

    assert reply.status_code == 429
    assert reply.json()["error"]["message"] == "upstream says 429"
    assert (reply.headers["retry-after"], reply.headers["retry-after-ms"]) == ("7", "7000")


@pytest.mark.parametrize("waits", [("9", "4"), ("4", "9")])
async def test_a_503_of_all_gives_the_least_wait_too_and_its_own_words(
    upstream: Upstream, gateway: Served, waits: tuple[str, str]
) -> None:
    for instance, wait in zip(("i1", "i2"), waits, strict=True):
        upstream.replies(instance, 503, b"<p>busy", content_type="text/html", retry_after=wait)

    reply = await gateway.post("/v1/chat/completions", json=CHAT)

    assert (reply.status_code, reply.content) == (503, b"<p>busy")
    assert (reply.headers["retry-after"], reply.headers["retry-after-ms"]) == ("4", "4000")


async def test_a_failure_that_names_no_wait_is_given_none(
    upstream: Upstream, gateway: Served
) -> None:
    upstream.replies("i1", 429, retry_after="7").replies("i2", 500)

    reply = await gateway.post("/v1/chat/completions", json=CHAT)

    assert reply.status_code == 500
    assert "retry-after" not in reply.headers


async def test_all_throttled_without_a_body_is_said_by_us(
    upstream: Upstream, gateway: Served
) -> None:
    upstream.replies("i1", 429, b"", content_type="text/plain", retry_after="3")
    upstream.replies("i2", 429, b"", content_type="text/plain", retry_after="-1")

    reply = await gateway.post("/v1/chat/completions", json=CHAT)

    assert reply.status_code == 429
    assert reply.json()["error"]["code"] == "all_instances_throttled"
    assert reply.json()["error"]["type"] == "rate_limit_error"
    assert reply.headers["retry-after"] == "3"


@pytest.mark.parametrize("body", BODIES, ids=["plain", "stream"])
async def test_an_instance_that_resets_is_passed_over(
    upstream: Upstream, gateway: Served, body: object
) -> None:
    upstream.fails("i1", "reset").replies("i2", 200)

    reply = await gateway.post("/v1/chat/completions", json=body)

    assert reply.status_code == 200
    assert upstream.asked == ["i1", "i2"]


async def test_an_instance_that_refuses_connections_is_passed_over(
    upstream: Upstream, serve: Serve
) -> None:
    nobody = openai(upstream, "i0", openai_base_url="http://127.0.0.1:9/v1")
    gateway = await serve([model(nobody, openai(upstream, "i1", priority=1))])

    reply = await gateway.post("/v1/chat/completions", json=CHAT)

    assert reply.status_code == 200
    [record] = await gateway.recorded()
    assert [it["error"] for it in record["attempts"]] == ["upstream_unreachable", None]


async def test_an_instance_that_accepts_no_connection_in_time_is_passed_over(
    upstream: Upstream, serve: Serve
) -> None:
    async def never_says_a_word_of_tls(
        reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        await reader.read()
        writer.close()

    async with await asyncio.start_server(never_says_a_word_of_tls, "127.0.0.1", 0) as silent:
        port = silent.sockets[0].getsockname()[1]
        deaf = openai(upstream, "i0", openai_base_url=f"https://127.0.0.1:{port}/v1")
        gateway = await serve(
            [model(deaf, openai(upstream, "i1", priority=1))], UPSTREAM_CONNECT_TIMEOUT="0.2"
        )

        reply = await gateway.post("/v1/chat/completions", json=CHAT)

    assert reply.status_code == 200
    [record] = await gateway.recorded()
    assert [it["error"] for it in record["attempts"]] == ["upstream_unreachable", None]


async def test_when_nobody_can_be_reached_it_is_502_without_a_host_name(serve: Serve) -> None:
    nobody = {"id": "i0", "provider": "openai", "openai_api_key": "k"}
    gateway = await serve([model({**nobody, "openai_base_url": "http://127.0.0.1:9/v1"})])

    reply = await gateway.post("/v1/chat/completions", json=CHAT)

    assert reply.status_code == 502
    assert reply.json()["error"]["code"] == "upstream_unreachable"
    assert "127.0.0.1" not in reply.text


async def test_the_log_says_why_an_instance_could_not_be_reached(
    serve: Serve, caplog: pytest.LogCaptureFixture
) -> None:
    nobody = {"id": "i0", "provider": "openai", "openai_api_key": "k"}
    gateway = await serve([model({**nobody, "openai_base_url": "http://127.0.0.1:9/v1"})])

    await gateway.post("/v1/chat/completions", json=CHAT)

    told = [it.getMessage() for it in caplog.records if "cannot be reached" in it.getMessage()]
    assert [line.partition(": ")[0] for line in told] == ["instance i0 cannot be reached"]
    assert "('127.0.0.1', 9)" in told[0]


async def test_a_stream_without_a_header_in_time_goes_to_another_instance(
    upstream: Upstream, serve: Serve
) -> None:
    upstream.fails("i1", "silent")
    upstream.streams("i2", [chunk("Hi"), DONE])
    gateway = await serve(UPSTREAM_FIRST_HEADER_TIMEOUT="0.2")

    reply = await gateway.post("/v1/chat/completions", json={**CHAT, "stream": True})

    assert reply.content == chunk("Hi") + DONE
    assert (await upstream.request(0)).hung_up.is_set()


async def test_a_plain_call_that_is_not_answered_in_time_is_504_and_not_done_twice(
    upstream: Upstream, serve: Serve
) -> None:
    upstream.fails("i1", "silent")
    gateway = await serve(APP_REQUESTS_TIMEOUT="0.2")

    reply = await gateway.post("/v1/chat/completions", json=CHAT)

    assert reply.status_code == 504
    assert reply.json()["error"]["code"] == "upstream_timeout"
    assert upstream.asked == ["i1"]
    [record] = await gateway.recorded()
    assert [(it["instance"], it["error"]) for it in record["attempts"]] == [
        ("i1", "upstream_timeout")
    ]


async def test_an_instance_with_a_timeout_of_its_own_fails_over_on_plain_calls_too(
    upstream: Upstream, serve: Serve
) -> None:
    upstream.fails("i1", "silent")
    slow, other = openai(upstream, "i1", timeout=0.2), openai(upstream, "i2", priority=1)
    gateway = await serve([model(slow, other)])

    reply = await gateway.post("/v1/chat/completions", json=CHAT)

    assert reply.status_code == 200
    assert (await gateway.recorded())[0]["attempts"][0]["error"] == "upstream_timeout"


async def test_a_reply_that_turns_out_to_be_empty_is_asked_for_elsewhere(
    upstream: Upstream, gateway: Served
) -> None:
    upstream.streams("i1", [], headers={"content-type": "application/json"})

    reply = await gateway.post("/v1/chat/completions", json=CHAT)

    assert reply.json() == COMPLETION
    assert upstream.asked == ["i1", "i2"]


NONSENSE = {
    "html": (200, b"<html>sign in</html>", {"content_type": "text/html"}),
    "empty": (200, b"", {}),
    "no content": (204, b"", {"content_type": "text/plain", "content_length": "50"}),
    "no status there is": (999, b"{}", {}),
    "redirect": (302, b"", {"location": "http://127.0.0.1:9/"}),
}


@pytest.mark.parametrize(("status", "body", "headers"), NONSENSE.values(), ids=NONSENSE)
async def test_nonsense_instead_of_an_answer_is_502_when_every_instance_sends_it(
    upstream: Upstream, gateway: Served, status: int, body: bytes, headers: dict[str, str]
) -> None:
    for instance in ("i1", "i2"):
        upstream.replies(instance, status, body, **headers)

    reply = await gateway.post("/v1/chat/completions", json=CHAT)

    assert reply.status_code == 502
    assert reply.json()["error"]["code"] == "upstream_bad_response"
    assert upstream.asked == ["i1", "i2"]


async def test_a_plain_reply_that_breaks_off_is_502_and_not_asked_for_twice(
    upstream: Upstream, gateway: Served
) -> None:
    upstream.streams(
        "i1", [b'{"id": "half'], ends="cut", headers={"content-type": "application/json"}
    )

    reply = await gateway.post("/v1/chat/completions", json=CHAT)

    assert reply.status_code == 502
    assert reply.json()["error"]["code"] == "upstream_bad_response"
    assert upstream.asked == ["i1"]


async def test_each_instance_is_asked_once_and_only_so_many_in_all(
    upstream: Upstream, serve: Serve
) -> None:
    instances = [openai(upstream, f"i{n}", priority=n) for n in range(6)]
    for n in range(6):
        upstream.replies(f"i{n}", 500)
    gateway = await serve([model(*instances)], UPSTREAM_ATTEMPTS="3")

    reply = await gateway.post("/v1/chat/completions", json=CHAT)

    assert reply.status_code == 500
    assert upstream.asked == ["i0", "i1", "i2"]


async def test_an_idle_connection_that_upstream_closed_is_not_the_callers_business(
    upstream: Upstream, gateway: Served
) -> None:
    assert (await gateway.post("/v1/chat/completions", json=CHAT)).status_code == 200
    upstream.closes_idle_connections()

    reply = await gateway.post("/v1/chat/completions", json=CHAT)

    assert reply.status_code == 200
    assert len((await gateway.recorded(2))[1]["attempts"]) == 1


async def test_azure_is_asked_by_deployment_and_version_with_the_body_untouched(
    upstream: Upstream, serve: Serve
) -> None:
    gateway = await serve([model(azure(upstream, "a1"))])
    body = b'{ "model": "m",\n "temperature": 1e0, "messages": [] }'

    reply = await gateway.post(
        "/v1/chat/completions", content=body, headers={"content-type": "application/json"}
    )

    assert reply.status_code == 200
    [asked] = upstream.journal
    assert asked.path == "/openai/deployments/at-a1/chat/completions?api-version=2024-10-21"
    assert asked.headers["api-key"] == "key-a1"
    assert "authorization" not in asked.headers
    assert asked.body == body


async def test_openai_is_told_its_own_name_for_the_model_and_the_organization(
    upstream: Upstream, serve: Serve
) -> None:
    instance = openai(upstream, "i1", openai_model="gpt-real", openai_organization="org-ours")
    gateway = await serve([model(instance, aliases=["alias"])])

    await gateway.post("/v1/chat/completions", json={**CHAT, "model": "alias"})

    [asked] = upstream.journal
    assert asked.path == "/v1/chat/completions"
    assert asked.headers["authorization"] == "Bearer sk-i1"
    assert asked.headers["openai-organization"] == "org-ours"
    assert asked.json == {**CHAT, "model": "gpt-real"}


@pytest.mark.parametrize("provider", plugins.names("providers"))
async def test_every_provider_serves_a_whole_call_plain_and_streamed(
    upstream: Upstream, serve: Serve, provider: str
) -> None:
    instance = {"azure": azure, "openai": openai, "llamaxing": llamaxing}[provider](upstream, "i1")
    upstream.replies("i1").streams("i1", [chunk("Hi"), DONE])
    gateway = await serve([model(instance)])

    plain = await gateway.post("/v1/chat/completions", json=CHAT)
    streamed = await gateway.post("/v1/chat/completions", json={**CHAT, "stream": True})

    assert plain.json()["choices"][0]["message"]["content"] == "Hi"
    assert streamed.content == chunk("Hi") + DONE


async def test_one_that_refuses_to_count_and_is_then_silent_is_left_for_another(
    upstream: Upstream, serve: Serve
) -> None:
    upstream.replies("i1", 400, b'{"error": {"message": "stream_options"}}').fails("i1", "silent")
    upstream.streams("i2", [chunk("Hel"), DONE])
    first, second = openai(upstream, "i1"), openai(upstream, "i2", priority=1)
    gateway = await serve([model(first, second)], UPSTREAM_FIRST_HEADER_TIMEOUT="0.2")

    reply = await gateway.post(PATHS[0], json={**CHAT, "stream": True})

    assert reply.content == chunk("Hel") + DONE
    assert upstream.asked == ["i1", "i1", "i2"]
    [record] = await gateway.recorded()
    assert [it["status"] for it in record["attempts"]] == [None, 200]


async def test_every_instance_gets_its_share(upstream: Upstream, serve: Serve) -> None:
    gateway = await serve([model(openai(upstream, "i1"), azure(upstream, "a1"))])

    for _ in range(60):
        await gateway.post("/v1/chat/completions", json=CHAT)

    assert set(upstream.asked) == {"i1", "a1"}


async def test_observation_metadata_stays_here(upstream: Upstream, gateway: Served) -> None:
    body = {**CHAT, "observation_metadata": {"trace_id": "t"}}

    await gateway.post("/v1/chat/completions", json=body)

    assert upstream.journal[0].json == CHAT
    [record] = await gateway.recorded()
    assert record["metadata"] == {"trace_id": "t"}
    assert record["request"] == body


# A wait that is slept: under 100 ms, and where no other instance has answered.


class Naps(list[float]):
    async def __call__(self, seconds: float) -> None:
        self.append(seconds)


class Mocked(httpx.MockTransport):
    """httpx's own stand-in for a server, behind the door."""

    async def send(self, asked: Asked) -> Answered:
        request = httpx.Request(
            asked.method, asked.url, headers=asked.headers, content=asked.content
        )
        response = await self.handle_async_request(request)
        assert isinstance(response.stream, httpx.AsyncByteStream)
        head = [(name.lower(), value) for name, value in response.headers.raw]
        return Answered(response.status_code, head, response.stream)


async def forwarded(replies: Mapping[str, Sequence[httpx.Response]], naps: Naps) -> Answer:
    """What comes of a call to instances that reply so, each reply in its turn."""
    left = {id: iter(given) for id, given in replies.items()}
    transport = Mocked(lambda request: next(left[request.url.host]))
    instances = tuple(
        AzureInstance(
            id=id,
            provider="azure",
            azure_endpoint=f"http://{id}",
            azure_deployment="d",
            azure_api_key=SecretStr("k"),
            priority=rank,
        )
        for rank, id in enumerate(replies)
    )
    selector = Selector(random.Random(4), Pauses(), Clock())
    forward = Forwarder(transport, selector, Timeouts(), 4, Tokens({}), naps)
    endpoint = BY_NAME["chat_completions"]
    asked = Model(id="m", capabilities=(endpoint.capability,), instances=instances)
    call = Call(asked, endpoint, Payload(json.dumps(CHAT).encode()))
    return await forward(call, Exchange(endpoint, "id", "id", Kept(0)))


def throttled(**headers: str) -> httpx.Response:
    head = {name.replace("_", "-"): value for name, value in headers.items()}
    return httpx.Response(429, headers=head, json={"error": {}})


def good() -> httpx.Response:
    return httpx.Response(200, json=COMPLETION)


async def test_a_provisioned_deployment_that_is_free_in_40_ms_is_asked_once_more() -> None:
    naps = Naps()

    answer = await forwarded({"ptu": [throttled(retry_after_ms="40"), good()]}, naps)

    assert answer.status == 200
    assert naps == [0.04]


async def test_it_is_asked_once_more_and_not_twice_and_its_last_wait_is_told() -> None:
    naps = Naps()
    twice = [throttled(retry_after_ms="40"), throttled(retry_after_ms="60")]

    answer = await forwarded({"ptu": twice}, naps)

    assert (answer.status, answer.header(b"retry-after-ms")) == (429, "60")
    assert naps == [0.04]


async def test_of_several_that_are_soon_free_the_first_one_is_asked() -> None:
    naps = Naps()
    later, sooner = throttled(retry_after_ms="90"), throttled(retry_after_ms="20")

    answer = await forwarded({"later": [later], "sooner": [sooner, good()]}, naps)

    assert answer.status == 200
    assert naps == [0.02]


NOT_SLEPT: dict[str, dict[str, Sequence[httpx.Response]]] = {
    "another answers": {"a": [throttled(retry_after_ms="40")], "b": [good()]},
    "too long": {"a": [throttled(retry_after_ms="100")], "b": [throttled(retry_after="1")]},
    "not said": {"a": [throttled(retry_after="0")], "b": [throttled()]},
    "broken": {"a": [httpx.Response(500)], "b": [httpx.Response(503)]},
}


@pytest.mark.parametrize("replies", NOT_SLEPT.values(), ids=NOT_SLEPT)
async def test_nothing_else_is_slept(replies: Mapping[str, Sequence[httpx.Response]]) -> None:
    naps = Naps()

    await forwarded(replies, naps)

    assert naps == []
