"""An issuer's keys: fetched once for all who wait, and never replaced by nonsense."""

import asyncio
import json
from collections.abc import Callable
from typing import Any

import httpx
import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import rsa

from llamaxing.errors import JwksUnavailable
from llamaxing.jwks import Jwks
from tests.fakes import Clock

ISSUER = "https://issuer.example"
URI = "https://keys.example/jwks"


def published(*kids: str) -> dict[str, Any]:
    return {"keys": [{**PUBLIC, "kid": kid} for kid in kids]}


PUBLIC = json.loads(
    jwt.algorithms.RSAAlgorithm.to_jwk(rsa.generate_private_key(65537, 2048).public_key())
)


class Server:
    """Answers what it is told to, to every URL."""

    def __init__(self, answer: Any) -> None:
        self.answer = answer
        self.asked: list[str] = []
        self.arrived = asyncio.Event()
        self.gate = asyncio.Event()
        self.gate.set()

    async def __call__(self, request: httpx.Request) -> httpx.Response:
        self.asked.append(str(request.url))
        self.arrived.set()
        await self.gate.wait()
        if isinstance(self.answer, Exception):
            raise self.answer
        if isinstance(self.answer, httpx.Response):
            return self.answer
        return httpx.Response(200, json=self.answer)


def keys_of(server: Server, clock: Callable[[], float], uri: str | None = URI) -> Jwks:
    web = httpx.AsyncClient(transport=httpx.MockTransport(server))
    return Jwks(web, clock, issuer=ISSUER, uri=uri)


@pytest.fixture
def clock() -> Clock:
    return Clock()


async def test_fifty_cold_calls_at_once_cause_one_fetch(clock: Clock) -> None:
    server = Server(published("k1"))
    server.gate.clear()
    jwks = keys_of(server, clock)

    waiting = [asyncio.create_task(jwks.key("k1", "RS256")) for _ in range(50)]
    await server.arrived.wait()
    server.gate.set()
    found = await asyncio.gather(*waiting)

    assert len(server.asked) == 1
    assert None not in found


async def test_a_caller_who_gives_up_takes_the_keys_from_nobody_else(clock: Clock) -> None:
    server = Server(published("k1"))
    server.gate.clear()
    jwks = keys_of(server, clock)

    first, second = (asyncio.create_task(jwks.key("k1", "RS256")) for _ in range(2))
    await server.arrived.wait()
    first.cancel()
    server.gate.set()

    assert await second is not None
    assert len(server.asked) == 1


async def test_unknown_keys_ask_again_once_in_a_cooldown(clock: Clock) -> None:
    server = Server(published("k1"))
    jwks = keys_of(server, clock)
    await jwks.key("k1", "RS256")

    for number in range(40):
        clock.now += 1
        assert await jwks.key(f"unknown-{number}", "RS256") is None

    assert len(server.asked) <= 3


async def test_a_new_key_is_found_and_one_that_is_withdrawn_goes(clock: Clock) -> None:
    server = Server(published("k1"))
    jwks = keys_of(server, clock)
    await jwks.key("k1", "RS256")

    server.answer = published("k1", "k2")
    clock.now += 31
    assert await jwks.key("k2", "RS256") is not None
    server.answer = published("k2")
    clock.now += 301
    # Nobody waits for what is only old.
    assert await jwks.key("k1", "RS256") is not None
    while len(server.asked) < 3 or await jwks.key("k1", "RS256"):  # noqa: ASYNC110  it ends by itself
        await asyncio.sleep(0)
    assert await jwks.key("k2", "RS256") is not None


ABSURD: dict[str, Any] = {
    "no connection": httpx.ConnectError("refused"),
    "a timeout": httpx.ReadTimeout("late"),
    "500": httpx.Response(500),
    "a redirect": httpx.Response(302, headers={"location": "https://evil.example"}),
    "HTML": httpx.Response(200, text="<html>"),
    "a list": httpx.Response(200, json=[]),
    "no keys": {"keys": []},
    "keys is text": {"keys": "k1"},
    "shared secrets": {"keys": [{"kty": "oct", "k": "c2VjcmV0", "kid": "k1"}]},
    "keys for encryption": {"keys": [{**PUBLIC, "kid": "k1", "use": "enc"}]},
    "half a key": {"keys": [{"kty": "RSA", "kid": "k1", "n": "AQAB"}]},
    "very large": httpx.Response(200, content=b" " * 600_000),
    "very deep": httpx.Response(200, content=b"[" * 100_000),
}


@pytest.mark.parametrize("how", ABSURD)
async def test_what_makes_no_sense_never_replaces_good_keys(clock: Clock, how: str) -> None:
    server = Server(published("k1"))
    jwks = keys_of(server, clock)
    good = await jwks.key("k1", "RS256")
    server.answer = ABSURD[how]

    clock.now += 31
    assert await jwks.key("k2", "RS256") is None

    assert len(server.asked) == 2
    same = await jwks.key("k1", "RS256")
    assert good
    assert same
    assert same.key == good.key


@pytest.mark.parametrize("how", ABSURD)
async def test_without_keys_it_is_unavailable_until_there_are_some(clock: Clock, how: str) -> None:
    server = Server(ABSURD[how])
    jwks = keys_of(server, clock)

    for _ in range(5):
        with pytest.raises(JwksUnavailable):
            await jwks.key("k1", "RS256")
    assert len(server.asked) == 1
    server.answer = published("k1")
    clock.now += 3

    assert await jwks.key("k1", "RS256") is not None


async def test_an_issuer_says_where_its_keys_are(clock: Clock) -> None:
    document = {"issuer": ISSUER, "jwks_uri": URI, **published("k1")}
    server = Server(document)

    assert await keys_of(server, clock, uri=None).key("k1", "RS256") is not None
    assert server.asked == [f"{ISSUER}/.well-known/openid-configuration", URI]


@pytest.mark.parametrize(
    "document",
    [
        {"issuer": "https://other.example", "jwks_uri": URI},
        {"issuer": ISSUER},
        {"issuer": ISSUER, "jwks_uri": "http://keys.example"},
    ],
    ids=["another issuer", "no keys", "without TLS"],
)
async def test_a_discovery_document_that_is_not_the_issuers_counts_for_nothing(
    clock: Clock, document: dict[str, Any]
) -> None:
    server = Server({**document, **published("k1")})

    with pytest.raises(JwksUnavailable):
        await keys_of(server, clock, uri=None).key("k1", "RS256")
    assert len(server.asked) == 1


async def test_a_token_without_a_key_id_is_for_the_only_key(clock: Clock) -> None:
    one, two = Server(published("k1")), Server(published("k1", "k2"))

    assert await keys_of(one, clock).key(None, "RS256") is not None
    assert await keys_of(two, clock).key(None, "RS256") is None
