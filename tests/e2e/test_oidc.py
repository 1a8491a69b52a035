"""Callers with tokens of a real issuer: signing in, new keys, and an issuer that is away."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import httpx
import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import rsa

from tests.conftest import configure, model, openai
from tests.e2e import uvicorn_shim
from tests.fakes import CHAT, Upstream
from tests.services import OIDCIssuer, free_port

PATH = "/v1/chat/completions"
PEOPLE = [{"id": "batch", "claims": {"oid": "batch-app"}}]


@pytest.fixture
def issuer() -> Iterator[OIDCIssuer]:
    with OIDCIssuer() as found:
        yield found


def settings(upstream: Upstream, folder: Path, url: str) -> dict[str, str]:
    return {
        **configure(folder, [model(openai(upstream, "i1"))], PEOPLE),
        "AUTH_METHOD": "jwt",
        "AUTH_METHOD_JWT_ISSUER": url,
        "AUTH_METHOD_JWT_AUDIENCE": "gateway",
    }


@pytest.fixture
async def caller(
    upstream: Upstream, tmp_path: Path, issuer: OIDCIssuer
) -> AsyncIterator[httpx.AsyncClient]:
    async with (
        uvicorn_shim(settings(upstream, tmp_path, issuer.url), tmp_path) as gateway,
        httpx.AsyncClient(base_url=gateway.url, timeout=30) as client,
    ):
        yield client


async def call(client: httpx.AsyncClient, token: str) -> httpx.Response:
    return await client.post(PATH, json=CHAT, headers={"authorization": f"Bearer {token}"})


async def test_an_application_signs_in_and_calls(
    caller: httpx.AsyncClient, issuer: OIDCIssuer
) -> None:
    good = await call(caller, issuer.token("batch-app", "gateway"))
    nobody = await call(caller, issuer.token("somebody", "gateway"))
    elsewhere = await call(caller, issuer.token("batch-app", "another"))

    assert [it.status_code for it in (good, nobody, elsewhere)] == [200, 403, 401]


async def test_fifty_calls_at_once_at_the_start_fetch_the_keys_once(
    caller: httpx.AsyncClient, issuer: OIDCIssuer
) -> None:
    tokens = [issuer.token("batch-app", "gateway") for _ in range(50)]

    replies = await asyncio.gather(*(call(caller, token) for token in tokens))

    assert {reply.status_code for reply in replies} == {200}
    assert issuer.fetches == 1


async def test_forty_keys_that_nobody_has_fetch_them_three_times_at_the_most(
    caller: httpx.AsyncClient, issuer: OIDCIssuer
) -> None:
    good = issuer.token("batch-app", "gateway")
    claims = jwt.decode(good, options={"verify_signature": False})
    forger = rsa.generate_private_key(65537, 2048)
    assert (await call(caller, good)).status_code == 200

    for number in range(40):
        token = jwt.encode(claims, forger, algorithm="RS256", headers={"kid": f"made-up-{number}"})
        assert (await call(caller, token)).status_code == 401

    assert issuer.fetches <= 3
    assert (await call(caller, issuer.token("batch-app", "gateway"))).status_code == 200


async def test_a_new_key_is_believed_without_a_restart_and_the_one_before_no_more(
    caller: httpx.AsyncClient, issuer: OIDCIssuer
) -> None:
    old = issuer.token("batch-app", "gateway")
    assert (await call(caller, old)).status_code == 200

    issuer.rotate()
    new = issuer.token("batch-app", "gateway")

    assert (await call(caller, new)).status_code == 200
    # What was signed with the key before is none of its issuer's now, though it was seen already.
    assert (await call(caller, old)).status_code == 401


async def test_a_key_that_is_withdrawn_signs_nothing_any_more(
    caller: httpx.AsyncClient, issuer: OIDCIssuer
) -> None:
    unseen = issuer.token("batch-app", "gateway")
    issuer.rotate()
    assert (await call(caller, issuer.token("batch-app", "gateway"))).status_code == 200

    assert (await call(caller, unseen)).status_code == 401


async def test_known_keys_serve_on_while_the_issuer_is_away(
    upstream: Upstream, tmp_path: Path
) -> None:
    with OIDCIssuer() as issuer:
        first, second = (issuer.token("batch-app", "gateway") for _ in range(2))
        async with (
            uvicorn_shim(settings(upstream, tmp_path, issuer.url), tmp_path) as gateway,
            httpx.AsyncClient(base_url=gateway.url, timeout=30) as client,
        ):
            assert (await call(client, first)).status_code == 200
            issuer.__exit__()
            assert (await call(client, first)).status_code == 200
            assert (await call(client, second)).status_code == 200


async def test_an_issuer_that_is_away_at_the_start_is_503_until_it_is_there(
    upstream: Upstream, tmp_path: Path
) -> None:
    port = free_port()
    with OIDCIssuer(port) as before:
        token = before.token("batch-app", "gateway")
    async with (
        uvicorn_shim(settings(upstream, tmp_path, before.url), tmp_path) as gateway,
        httpx.AsyncClient(base_url=gateway.url, timeout=30) as client,
    ):
        refused = await call(client, token)
        with OIDCIssuer(port) as issuer:
            token = issuer.token("batch-app", "gateway")
            async with asyncio.timeout(20):
                while (reply := await call(client, token)).status_code == 503:  # noqa: ASYNC110
                    await asyncio.sleep(0.2)

    assert (refused.status_code, refused.json()["error"]["code"]) == (503, "jwks_unavailable")
    assert refused.headers["retry-after"]
    assert reply.status_code == 200
