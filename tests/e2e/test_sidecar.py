"""An application without a key, a sidecar and a gateway that verifies tokens: three programs.

The application speaks openai-python; the token is a real issuer's, and got by azure-identity.
"""

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import openai as sdk
import pytest
import pytest_asyncio

from tests.authority import Authority
from tests.conftest import configure, model, openai
from tests.e2e import functions_app, uvicorn_shim
from tests.fakes import CHAT, COMPLETION, DONE, Upstream, chunk
from tests.langfuse_server import LangfuseServer
from tests.services import OIDCIssuer

pytestmark = pytest.mark.asyncio(loop_scope="module")

# What its issuer calls the application; one of the gateway's two models is for it.
PEOPLE: list[dict[str, Any]] = [{"id": "apps", "claims": {"oid": "the-app"}, "models": ["m"]}]
PATH = "/v1/chat/completions"


@dataclass
class Chain:
    """What stands in a row, and the `client` of the application at its beginning."""

    client: sdk.AsyncOpenAI
    gateway: str
    sidecar: str
    upstream: Upstream
    authority: Authority
    issuer: OIDCIssuer
    langfuse: LangfuseServer
    records: Path

    async def record(self, request_id: str) -> dict[str, Any]:
        """The gateway's, once it is there."""
        while True:
            lines = self.records.read_text().split("\n")[:-1] if self.records.exists() else []
            for record in map(json.loads, lines):
                if record["request_id"] == request_id:
                    return dict(record)
            await asyncio.sleep(0.01)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def row(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Chain]:
    behind, beside = (tmp_path_factory.mktemp(name) for name in ("gateway", "sidecar"))
    with (
        OIDCIssuer() as issuer,
        Authority(beside) as authority,
        LangfuseServer(public="secret") as langfuse,
    ):
        authority.mint = lambda: issuer.token("the-app", "gateway")
        async with AsyncExitStack() as stack:
            upstream = await stack.enter_async_context(Upstream())
            models = [model(openai(upstream, "i1")), model(openai(upstream, "i2"), id="other")]
            settings = {
                **configure(behind, models, PEOPLE),
                "AUTH_METHOD": "jwt",
                "AUTH_METHOD_JWT_ISSUER": issuer.url,
                "AUTH_METHOD_JWT_AUDIENCE": "gateway",
                "OBSERVABILITY_CLIENT": "langfuse",
                "OBSERVABILITY_CLIENT_LANGFUSE_HOST": langfuse.url,
                "OBSERVABILITY_CLIENT_LANGFUSE_PUBLIC_KEY": "public",
                "OBSERVABILITY_CLIENT_LANGFUSE_SECRET_KEY": "secret",
            }
            gateway = await stack.enter_async_context(uvicorn_shim(settings, behind))
            own = {
                "APP_MODE": "sidecar",
                "SIDECAR_UPSTREAM_URL": f"{gateway.url}/v1",
                "SIDECAR_AUTH_METHOD": "azure",
                "SIDECAR_AUTH_METHOD_AZURE_SCOPE": "api://gateway/.default",
                **authority.environ,
            }
            sidecar = await stack.enter_async_context(uvicorn_shim(own, beside))
            url = f"{sidecar.url}/v1"
            client = sdk.AsyncOpenAI(base_url=url, api_key="unused", max_retries=0)
            await stack.enter_async_context(client)
            records = behind / "records.jsonl"
            yield Chain(
                client, gateway.url, sidecar.url, upstream, authority, issuer, langfuse, records
            )


@pytest.fixture
def chain(row: Chain) -> Iterator[Chain]:
    yield row
    row.upstream.forget("i1")
    row.upstream.journal.clear()
    row.langfuse.arrived.clear()


async def test_fifty_calls_at_once_are_known_by_one_token(chain: Chain) -> None:
    calls = (
        chain.client.chat.completions.create(
            **CHAT,  # type: ignore[call-overload]
            extra_headers={"x-request-id": f"call-{number}"},
        )
        for number in range(50)
    )

    replies = await asyncio.gather(*calls)

    assert {it.choices[0].message.content for it in replies} == {"Hi"}
    assert [it["scope"] for it in chain.authority.requests] == ["api://gateway/.default"]
    record = await chain.record("call-49")
    assert (record["identity"]["id"], record["credential"]) == ("apps", "jwt")
    assert all(it.json == CHAT for it in chain.upstream.journal)
    [token] = chain.authority.tokens
    assert token not in str([it.headers for it in chain.upstream.journal])


async def test_a_call_is_traced_by_the_gateway_behind_as_its_metadata_says(chain: Chain) -> None:
    metadata = {"trace_name": "orders", "session_id": "s-1", "colour": "blue"}

    await chain.client.chat.completions.create(
        **CHAT,  # type: ignore[call-overload]
        extra_body={"observation_metadata": metadata},
        extra_headers={"x-request-id": "an-id-of-the-app"},
    )

    arrived = chain.langfuse.arrived
    while not (found := [it for it in arrived if it.attributes.get("session.id") == "s-1"]):
        await asyncio.to_thread(chain.langfuse.wait_for_traces, len(arrived) + 1)
    [trace] = found
    assert trace.attributes["langfuse.trace.name"] == "orders"
    assert trace.attributes["user.id"] == "apps"
    assert trace.attributes["langfuse.observation.metadata.colour"] == '"blue"'
    assert (await chain.record("an-id-of-the-app"))["metadata"] == metadata
    assert chain.upstream.journal[-1].json == CHAT


async def test_a_stream_comes_as_the_model_makes_it(chain: Chain) -> None:
    pieces = [chunk(text) for text in ("one", "two", "three")]
    reply = chain.upstream.streams("i1", [*pieces, DONE], lock_step=True)
    said = []
    reply.release()

    async with await chain.client.chat.completions.create(
        **CHAT,  # type: ignore[call-overload]
        stream=True,
    ) as stream:
        async for it in stream:
            said.append(it.choices[0].delta.content)
            # The next one is made only now.
            reply.release()

    assert said == ["one", "two", "three"]


@pytest.mark.parametrize("when", ["before the first byte", "in a stream", "in a plain call"])
async def test_an_application_that_hangs_up_ends_the_call_at_the_model(
    chain: Chain, when: str
) -> None:
    in_stream = when == "in a stream"
    ends = "silent-after" if in_stream else "silent"
    chain.upstream.streams("i1", [chunk("one")] if in_stream else [], ends=ends)
    body = {**CHAT, "stream": when != "in a plain call"}

    async with httpx.AsyncClient(base_url=chain.sidecar, timeout=30, trust_env=False) as client:
        if in_stream:
            async with client.stream("POST", PATH, json=body) as reply:
                await anext(reply.aiter_raw())
        else:
            calling = asyncio.create_task(client.post(PATH, json=body))
            await chain.upstream.request()
            calling.cancel()

        await asyncio.wait_for(chain.upstream.journal[0].hung_up.wait(), 10)


async def test_what_the_gateway_refuses_reaches_the_application_as_it_was_said(
    chain: Chain,
) -> None:
    with pytest.raises(sdk.PermissionDeniedError) as not_allowed:
        await chain.client.chat.completions.create(**{**CHAT, "model": "other"})
    with pytest.raises(sdk.NotFoundError) as unknown:
        await chain.client.chat.completions.create(**{**CHAT, "model": "nope"})
    with pytest.raises(sdk.BadRequestError) as without_model:
        await chain.client.post(PATH.removeprefix("/v1"), body={"messages": []}, cast_to=object)
    listed = [it.id async for it in chain.client.models.list()]

    codes = [it.value.code for it in (not_allowed, unknown, without_model)]
    assert codes == ["model_not_allowed", "model_not_found", "missing_required_parameter"]
    assert listed == ["m"]
    assert chain.upstream.asked == []


async def test_a_token_that_the_gateway_refuses_is_502_and_named_to_nobody(
    chain: Chain, tmp_path: Path
) -> None:
    settings = {
        "APP_MODE": "sidecar",
        "SIDECAR_UPSTREAM_URL": chain.gateway,
        "SIDECAR_AUTH_METHOD": "azure",
        "SIDECAR_AUTH_METHOD_AZURE_SCOPE": "api://gateway/.default",
    }
    with Authority(tmp_path) as authority:
        authority.mint = lambda: chain.issuer.token("the-app", "another audience")
        async with (
            uvicorn_shim(
                settings | authority.environ, tmp_path, stderr=asyncio.subprocess.PIPE
            ) as sidecar,
            httpx.AsyncClient(base_url=sidecar.url, timeout=30, trust_env=False) as client,
        ):
            refused = await client.post(PATH, json=CHAT)
            sidecar.process.terminate()
            _, log = await sidecar.process.communicate()

    assert (refused.status_code, refused.json()["error"]["code"]) == (502, "upstream_auth")
    assert "instance gateway refused the gateway's credential: 401" in log.decode()
    for secret in (*authority.tokens, authority.environ["AZURE_CLIENT_SECRET"]):
        assert secret not in refused.text + log.decode()
    assert chain.upstream.asked == []


async def test_a_gateway_that_is_a_functions_app_is_reached_with_its_function_key(
    tmp_path: Path,
) -> None:
    people = [{"id": "app", "auth_key": "key-of-the-app"}]
    async with Upstream() as upstream:
        behind = configure(tmp_path, [model(openai(upstream, "i1"))], people)
        async with functions_app({**behind, "FUNCTIONS_AUTH_LEVEL": "function"}, tmp_path) as host:
            replies = {}
            for key in ("host-key", "another"):
                own = {
                    "APP_MODE": "sidecar",
                    "SIDECAR_UPSTREAM_URL": host.url,
                    "SIDECAR_AUTH_METHOD_APIKEY_KEY": "key-of-the-app",
                    "SIDECAR_FUNCTION_KEY": key,
                }
                async with (
                    uvicorn_shim(own, tmp_path) as sidecar,
                    httpx.AsyncClient(base_url=sidecar.url, trust_env=False) as client,
                ):
                    replies[key] = await client.post(PATH, json=CHAT)

        assert replies["host-key"].json() == COMPLETION
        assert replies["another"].status_code == 502
        assert replies["another"].json()["error"]["code"] == "upstream_auth"
        assert len(upstream.journal) == 1
