"""Upstreams that are called with a token of Entra ID, got by the real azure-identity."""

import asyncio
import json
import logging
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.authority import Authority
from tests.conftest import Serve, Served, azure, configure, model
from tests.e2e import uvicorn_shim
from tests.fakes import CHAT, Upstream
from tests.managed_identity import ManagedIdentity

PATH = "/v1/chat/completions"


def keyless(upstream: Upstream, id: str, **more: Any) -> dict[str, Any]:
    found = azure(upstream, id, **more)
    del found["azure_api_key"]
    return found


async def served(
    serve: Serve, upstream: Upstream, identity: ManagedIdentity, **more: Any
) -> Served:
    there = keyless(upstream, "i1", **more)
    return await serve([model(there)], AZURE_CREDENTIAL="managedidentity")


async def test_fifty_calls_at_once_are_sent_with_one_token_of_the_right_scope(
    serve: Serve, upstream: Upstream, identity: ManagedIdentity
) -> None:
    gateway = await served(serve, upstream, identity)

    replies = await asyncio.gather(*(gateway.post(PATH, json=CHAT) for _ in range(50)))

    assert {reply.status_code for reply in replies} == {200}
    [asked] = identity.requests
    assert asked.resource == "https://cognitiveservices.azure.com"
    [shown] = {it.headers["authorization"] for it in upstream.journal}
    assert shown.startswith("Bearer ")
    assert all("api-key" not in it.headers for it in upstream.journal)
    records = await gateway.recorded(50)
    assert shown.removeprefix("Bearer ") not in json.dumps(records)


async def test_a_user_assigned_identity_is_asked_for_by_its_id(
    serve: Serve, upstream: Upstream, identity: ManagedIdentity
) -> None:
    gateway = await served(serve, upstream, identity, azure_client_id="11111111-aaaa")

    assert (await gateway.post(PATH, json=CHAT)).status_code == 200
    assert identity.requests[0].client_id == "11111111-aaaa"


async def test_a_token_is_fetched_anew_before_it_ends_and_nobody_waits_for_that(
    serve: Serve, upstream: Upstream, identity: ManagedIdentity
) -> None:
    # It has four minutes left, which is less than a call may need and more than nothing.
    identity.lifetime = 240
    gateway = await served(serve, upstream, identity)
    assert (await gateway.post(PATH, json=CHAT)).status_code == 200
    identity.hang()

    for _ in range(3):
        assert (await gateway.post(PATH, json=CHAT)).status_code == 200
    await asyncio.to_thread(identity.wait_for_requests, 2)
    old, *same = (it.headers["authorization"] for it in upstream.journal)
    identity.lifetime = 24 * 60 * 60
    identity.release()
    while upstream.journal[-1].headers["authorization"] == old:
        assert (await gateway.post(PATH, json=CHAT)).status_code == 200

    assert set(same) == {old}
    assert len(identity.requests) == 2


async def test_a_token_serves_on_while_no_new_one_can_be_had(
    serve: Serve, upstream: Upstream, identity: ManagedIdentity, caplog: pytest.LogCaptureFixture
) -> None:
    identity.lifetime = 240
    gateway = await served(serve, upstream, identity)
    assert (await gateway.post(PATH, json=CHAT)).status_code == 200
    # azure-identity tries again by itself after a 500.
    identity.status = 400

    while "the one before serves until it ends" not in caplog.text:
        assert (await gateway.post(PATH, json=CHAT)).status_code == 200
    for _ in range(3):
        assert (await gateway.post(PATH, json=CHAT)).status_code == 200

    assert len(identity.requests) == 2
    assert len({it.headers["authorization"] for it in upstream.journal}) == 1


SECRET = "eyJ0eXAi.of-the-app.c2lnbmVk"
FAULTS: dict[str, tuple[int, Any]] = {
    "500": (500, {"message": SECRET, "access_token": SECRET}),
    "400 that repeats what it was shown": (400, {"message": f"secret-of-the-app {SECRET}"}),
    "401": (401, {"error": SECRET, "error_description": SECRET}),
    "no end": (200, {"access_token": SECRET}),
    "an odd end": (200, {"access_token": SECRET, "expires_on": "soon"}),
    "a list": (200, [SECRET]),
    "a text": (200, SECRET),
    "half of it": (200, f'{{"access_token": "{SECRET}"'.encode()),
    "a page": (502, f"<html>{SECRET}".encode()),
    "nothing": (200, b""),
}


@pytest.mark.parametrize("kind", ["managedidentity", ""], ids=["managed identity", "whatever"])
@pytest.mark.parametrize("how", FAULTS)
async def test_an_endpoint_that_fails_is_502_and_what_it_said_is_nowhere(
    serve: Serve,
    upstream: Upstream,
    identity: ManagedIdentity,
    caplog: pytest.LogCaptureFixture,
    how: str,
    kind: str,
) -> None:
    identity.status, said = FAULTS[how]
    identity.says = said if isinstance(said, bytes) else json.dumps(said).encode()
    models = [model(keyless(upstream, "i1"))]
    gateway = await serve(models, AZURE_CREDENTIAL=kind, DEBUG_LEVEL="2")
    caplog.set_level(logging.INFO)

    reply = await gateway.post(PATH, json=CHAT)

    assert (reply.status_code, reply.json()["error"]["code"]) == (502, "upstream_auth")
    assert "instance i1 cannot be called: no token from Entra ID" in caplog.text
    shown = reply.text + caplog.text + json.dumps(await gateway.recorded())
    assert [it for it in (SECRET, identity.secret) if it in shown] == []
    assert upstream.asked == []


async def test_without_a_token_it_is_502_and_the_next_instance_is_asked(
    serve: Serve, upstream: Upstream, identity: ManagedIdentity, caplog: pytest.LogCaptureFixture
) -> None:
    identity.status = 500
    alone = model(keyless(upstream, "i1"), id="alone")
    both = model(keyless(upstream, "i2"), azure(upstream, "i3", priority=1))
    gateway = await serve([alone, both], AZURE_CREDENTIAL="managedidentity")

    refused = await gateway.post(PATH, json={**CHAT, "model": "alone"})
    answered = await gateway.post(PATH, json=CHAT)

    assert (refused.status_code, refused.json()["error"]["code"]) == (502, "upstream_auth")
    assert identity.secret not in refused.text + caplog.text
    assert "instance i1 cannot be called: no token from Entra ID" in caplog.text
    assert (answered.status_code, upstream.asked) == (200, ["i3"])


@pytest.mark.parametrize("kind", ["client secret", "workload identity"])
async def test_an_identity_of_the_environment_gets_its_token_from_the_tenants_authority(
    upstream: Upstream, tmp_path: Path, kind: str
) -> None:
    models = [model(keyless(upstream, "i1", azure_token_scope="api://custom/.default"))]
    (tmp_path / "federated").write_text("a-token-of-the-cluster")
    with Authority(tmp_path) as authority:
        settings = configure(tmp_path, models) | authority.environ
        shown = {"client_secret": settings["AZURE_CLIENT_SECRET"]}
        if kind == "workload identity":
            del settings["AZURE_CLIENT_SECRET"]
            settings["AZURE_FEDERATED_TOKEN_FILE"] = str(tmp_path / "federated")
            shown = {"client_assertion": "a-token-of-the-cluster"}
        async with (
            uvicorn_shim(settings, tmp_path) as gateway,
            httpx.AsyncClient(base_url=gateway.url, timeout=30) as caller,
        ):
            calls = (caller.post(PATH, json=CHAT) for _ in range(50))
            replies = await asyncio.gather(*calls)

    assert {reply.status_code for reply in replies} == {200}
    [asked] = authority.requests
    assert asked["grant_type"] == "client_credentials"
    assert asked["scope"] == "api://custom/.default"
    assert shown.items() <= asked.items()
    assert {it.headers["authorization"] for it in upstream.journal} == {
        f"Bearer {authority.tokens[0]}"
    }
