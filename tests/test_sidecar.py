"""Beside an application that has no credential: it adds one, and changes nothing else."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import openai as sdk
import pytest

from llamaxing.build import Build
from llamaxing.errors import ConfigurationError
from tests.authority import Authority
from tests.conftest import Serve, Served, model, openai, running
from tests.e2e import uvicorn_shim
from tests.fakes import CHAT, COMPLETION, DONE, Upstream, chunk
from tests.managed_identity import ManagedIdentity
from tests.test_jwt import Issuer, settings

PATH = "/v1/chat/completions"
PEOPLE = [{"id": "app", "auth_key": "key-of-the-app", "models": ["m"]}]
SCOPE = "api://gateway/.default"
STREAM = [chunk("a"), chunk("b"), DONE]


def beside(url: str, **more: str) -> dict[str, str]:
    return {
        "APP_MODE": "sidecar",
        "SIDECAR_UPSTREAM_URL": url,
        "SIDECAR_AUTH_METHOD_APIKEY_KEY": "key-of-the-app",
        **more,
    }


@pytest.fixture
async def gateway(serve: Serve, upstream: Upstream) -> Served:
    models = [model(openai(upstream, "i1")), model(openai(upstream, "i2"), id="other")]
    return await serve(models, PEOPLE)


@pytest.fixture
async def sidecar(gateway: Served, tmp_path: Path) -> AsyncIterator[Served]:
    async with running(beside(f"{gateway.url}/v1"), tmp_path) as found:
        yield found


@pytest.fixture
async def client(sidecar: Served) -> AsyncIterator[sdk.AsyncOpenAI]:
    """An application's own: it has no key to show."""
    async with sdk.AsyncOpenAI(
        base_url=f"{sidecar.url}/v1", api_key="unused", max_retries=0
    ) as found:
        yield found


async def test_a_call_without_a_key_is_answered_and_stays_as_it_is(
    client: sdk.AsyncOpenAI, gateway: Served, upstream: Upstream
) -> None:
    reply = await client.chat.completions.create(**CHAT)  # type: ignore[call-overload]

    assert reply.choices[0].message.content == "Hi"
    [record] = await gateway.recorded()
    assert (record["identity"]["id"], record["credential"][:7]) == ("app", "apikey ")
    assert upstream.journal[0].json == CHAT


async def test_a_stream_comes_as_it_is_made(
    sidecar: Served, gateway: Served, upstream: Upstream
) -> None:
    reply = upstream.streams("i1", STREAM, lock_step=True)
    seen = b""

    async with sidecar.stream("POST", PATH, json={**CHAT, "stream": True}) as response:
        arriving = response.aiter_raw()
        for piece in STREAM:
            reply.release()
            while not seen.endswith(piece):
                seen += await anext(arriving)

    assert seen == b"".join(STREAM)


async def test_a_caller_who_hangs_up_ends_the_call_at_the_model(
    sidecar: Served, gateway: Served, upstream: Upstream
) -> None:
    upstream.streams("i1", STREAM[:1], ends="silent-after")

    async with sidecar.stream("POST", PATH, json={**CHAT, "stream": True}) as response:
        await anext(response.aiter_raw())

    await asyncio.wait_for(upstream.journal[0].hung_up.wait(), 5)


async def test_metadata_for_traces_goes_on_to_the_gateway(
    client: sdk.AsyncOpenAI, gateway: Served, upstream: Upstream
) -> None:
    metadata = {"session_id": "s-1"}
    await client.chat.completions.create(
        **CHAT,  # type: ignore[call-overload]
        extra_body={"observation_metadata": metadata},
        extra_headers={"x-request-id": "one-of-the-app"},
    )

    [record] = await gateway.recorded()
    assert (record["metadata"], record["request_id"]) == (metadata, "one-of-the-app")
    assert upstream.journal[0].json == CHAT


async def test_the_listing_and_every_refusal_of_the_gateway_pass_unchanged(
    sidecar: Served, gateway: Served, upstream: Upstream
) -> None:
    key = {"api-key": "key-of-the-app"}
    upstream.replies("i1", 422, {"error": {"message": "no", "code": "x"}})
    for method, path, body in [
        ("GET", "/v1/models", None),
        ("GET", "/v1/models/nope", None),
        ("POST", PATH, {**CHAT, "model": "nope"}),
        ("POST", PATH, {**CHAT, "model": "other"}),
        ("POST", PATH, {"messages": []}),
        ("POST", PATH, []),
        ("POST", PATH, CHAT),
        ("POST", "/openai/deployments/nope/chat/completions?api-version=1", CHAT),
        ("GET", "/v1/unknown/path", None),
        ("PUT", PATH, CHAT),
        ("DELETE", "/v1/responses/resp_1", None),
    ]:
        direct = await gateway.client.request(method, path, json=body, headers=key)
        through = await sidecar.client.request(method, path, json=body)

        assert (through.status_code, through.content) == (direct.status_code, direct.content), path
        assert through.headers["content-type"] == direct.headers["content-type"]


async def test_a_refusal_of_the_sidecars_own_key_is_502(
    gateway: Served, tmp_path: Path, upstream: Upstream
) -> None:
    wrong = beside(gateway.url, SIDECAR_AUTH_METHOD_APIKEY_KEY="wrong")
    async with running(wrong, tmp_path) as sidecar:
        reply = await sidecar.post(PATH, json=CHAT)

    assert (reply.status_code, reply.json()["error"]["code"]) == (502, "upstream_auth")
    assert upstream.asked == []


async def test_a_gateway_that_is_away_is_said_to_be_so_and_not_a_model(tmp_path: Path) -> None:
    async with running(beside("http://127.0.0.1:9"), tmp_path) as sidecar:
        reply = await sidecar.get("/v1/models")

    error = reply.json()["error"]
    assert (reply.status_code, error["code"]) == (502, "upstream_unreachable")
    assert error["message"] == "The gateway behind this sidecar could not be reached."


async def test_what_an_application_shows_stays_here(upstream: Upstream, tmp_path: Path) -> None:
    settings = beside(upstream.url("gw"), SIDECAR_FUNCTION_KEY="function-key")
    async with running(settings, tmp_path) as sidecar:
        await sidecar.post(
            f"{PATH}?code=secret&api-version=1",
            json=CHAT,
            headers={"authorization": "Bearer own", "cookie": "a=b", "x-functions-key": "own"},
        )

    [asked] = upstream.journal
    assert asked.headers["authorization"] == "Bearer key-of-the-app"
    assert asked.headers["x-functions-key"] == "function-key"
    assert "cookie" not in asked.headers
    assert asked.path == f"{PATH}?api-version=1"


async def test_nothing_is_recorded_unless_a_sink_is_set(upstream: Upstream, tmp_path: Path) -> None:
    file = tmp_path / "records.jsonl"
    sink = {"LOGGING_CLIENT": "jsonl", "LOGGING_CLIENT_JSONL_FILENAME": str(file)}
    async with running(beside(upstream.url("gw")), tmp_path) as sidecar:
        await sidecar.post(PATH, json=CHAT)
    before = file.exists()
    async with running(beside(upstream.url("gw"), **sink), tmp_path) as sidecar:
        await sidecar.post(PATH, json=CHAT)
        [record] = await sidecar.recorded()

    assert not before
    assert (record["endpoint"], record["model"], record["response"]) == (
        "chat_completions",
        "m",
        COMPLETION,
    )


async def test_settings_beside_the_application_are_read_from_a_file_of_their_own(
    upstream: Upstream, tmp_path: Path
) -> None:
    lines = [f"{name}={value}" for name, value in beside(upstream.url("gw")).items()]
    (tmp_path / ".env-sidecar").write_text("\n".join(lines))
    async with (
        uvicorn_shim({"APP_MODE": "sidecar"}, tmp_path) as sidecar,
        httpx.AsyncClient(base_url=sidecar.url) as caller,
    ):
        reply = await caller.post(PATH, json=CHAT)

    assert reply.json() == COMPLETION
    assert upstream.journal[0].headers["authorization"] == "Bearer key-of-the-app"


async def test_with_entra_id_a_gateway_that_verifies_tokens_knows_the_application(
    serve: Serve, upstream: Upstream, tmp_path: Path
) -> None:
    issuer = Issuer(upstream)
    people: list[dict[str, Any]] = [{"id": "app", "claims": {"azp": "the-gateway"}}]
    gateway = await serve(identities=people, **settings(issuer))
    upstream.streams("i1", STREAM)
    with Authority(tmp_path) as authority:
        authority.mint = lambda: issuer.token(oid="service-principal", azp="the-gateway")
        own = beside(
            gateway.url,
            SIDECAR_AUTH_METHOD="azure",
            SIDECAR_AUTH_METHOD_AZURE_SCOPE=SCOPE,
        )
        async with (
            uvicorn_shim({**own, **authority.environ}, tmp_path) as sidecar,
            sdk.AsyncOpenAI(base_url=f"{sidecar.url}/v1", api_key="unused") as client,
        ):
            stream = await client.chat.completions.create(
                **CHAT,  # type: ignore[call-overload]
                stream=True,
            )
            texts = [it.choices[0].delta.content async for it in stream]

    assert texts == ["a", "b"]
    assert [it["scope"] for it in authority.requests] == [SCOPE]
    [record] = await gateway.recorded()
    assert record["identity"]["entry"] == "app"


async def test_with_a_managed_identity_fifty_calls_at_once_show_one_token_for_its_scope(
    upstream: Upstream, tmp_path: Path, identity: ManagedIdentity
) -> None:
    async with running(as_application(upstream), tmp_path) as sidecar:
        replies = await asyncio.gather(*(sidecar.post(PATH, json=CHAT) for _ in range(50)))

    assert {reply.json()["id"] for reply in replies} == {COMPLETION["id"]}
    assert [it.resource for it in identity.requests] == ["api://gateway"]
    shown = {it.headers["authorization"] for it in upstream.journal}
    assert shown == {f"Bearer {identity.tokens[0]}"}


async def test_without_a_token_it_is_502_and_what_the_endpoint_said_is_nowhere(
    upstream: Upstream,
    tmp_path: Path,
    identity: ManagedIdentity,
    caplog: pytest.LogCaptureFixture,
) -> None:
    identity.status, identity.says = 400, b'{"error": "invalid_scope", "message": "a-token-of-it"}'
    async with running(as_application(upstream, DEBUG_LEVEL="2"), tmp_path) as sidecar:
        reply = await sidecar.post(PATH, json=CHAT)

    assert (reply.status_code, reply.json()["error"]["code"]) == (502, "upstream_auth")
    assert "instance gateway cannot be called: no token from Entra ID" in caplog.text
    assert "a-token-of-it" not in reply.text + caplog.text
    assert upstream.asked == []


def as_application(upstream: Upstream, **more: str) -> dict[str, str]:
    own = {"SIDECAR_AUTH_METHOD": "azure", "SIDECAR_AUTH_METHOD_AZURE_SCOPE": SCOPE}
    return beside(upstream.url("gw"), AZURE_CREDENTIAL="managedidentity", **own, **more)


@pytest.mark.parametrize(
    ("more", "line"),
    [
        ({"SIDECAR_UPSTREAM_URL": ""}, "sidecar_upstream_url: is missing"),
        (
            {"SIDECAR_UPSTREAM_URL": "gateway"},
            "sidecar_upstream_url: has to be a URL that starts with https:// (or http://)",
        ),
        (
            {"SIDECAR_AUTH_METHOD": "azure"},
            "sidecar_auth_method: 'azure' needs sidecar_auth_method_azure_scope",
        ),
        (
            {"SIDECAR_AUTH_METHOD_APIKEY_KEY": ""},
            "sidecar_auth_method: 'apikey' needs sidecar_auth_method_apikey_key",
        ),
    ],
    ids=["no url", "no scheme", "no scope", "no key"],
)
async def test_what_is_missing_is_told(tmp_path: Path, more: dict[str, str], line: str) -> None:

    with pytest.raises(ConfigurationError) as caught:
        await Build({**beside("https://gateway.example"), **more}).all()

    assert caught.value.faults == [line]
