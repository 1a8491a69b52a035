"""Who is calling: what is let in, and what never gets further."""

import json
from typing import Any

import jwt
import pytest

from llamaxing import plugins
from tests.conftest import Serve, Served, model, openai
from tests.fakes import CHAT, Upstream

PATH = "/v1/chat/completions"
IDENTITIES = [
    {"id": "ann", "auth_key": "key-ann", "name": "Ann", "info": {"team": 1}},
    {"id": "bob", "api_keys": [{"key": "key-bob"}, {"key": "key-bob-2"}], "models": ["other"]},
    {"id": "old", "api_keys": [{"key": "key-old", "expires": "2020-01-01T00:00:00Z"}]},
]


@pytest.fixture
async def guarded(serve: Serve) -> Served:
    return await serve(identities=IDENTITIES)


ACCEPTED = {
    "bearer": {"authorization": "Bearer key-ann"},
    "lower-case scheme": {"authorization": "bearer key-ann"},
    "api-key": {"api-key": "key-ann"},
    "both the same": {"api-key": "key-ann", "authorization": "Bearer key-ann"},
}


@pytest.mark.parametrize("headers", ACCEPTED.values(), ids=ACCEPTED)
async def test_a_known_key_is_let_in(
    upstream: Upstream, guarded: Served, headers: dict[str, str]
) -> None:
    reply = await guarded.post(PATH, json=CHAT, headers=headers)

    assert reply.status_code == 200
    sent = upstream.journal[0]
    assert "key-ann" not in str(sent.headers)
    [record] = await guarded.recorded()
    assert record["identity"] == {"id": "ann", "name": "Ann", "info": {"team": 1}}
    assert "key-ann" not in json.dumps(record)


UNSIGNED = jwt.encode({"oid": "key-ann", "exp": 2**31}, key="", algorithm="none")
REFUSED: dict[str, Any] = {
    "nothing": {},
    "unknown": {"authorization": "Bearer nobody"},
    "expired": {"authorization": "Bearer key-old"},
    "nothing after the scheme": {"authorization": "Bearer"},
    "no scheme": {"authorization": "key-ann"},
    "another scheme": {"authorization": "Basic key-ann"},
    "two spaces": {"authorization": "Bearer  key-ann"},
    "two values": [("authorization", "Bearer key-ann"), ("authorization", "Bearer key-ann")],
    "a tab": {"authorization": "Bearer\tkey-ann"},
    "a word behind it": {"authorization": "Bearer key-ann more"},
    "a scheme in api-key": {"api-key": "Bearer key-ann"},
    "two api-keys": [("api-key", "key-ann"), ("api-key", "key-ann")],
    "two keys in one": {"api-key": "key-ann,key-ann"},
    "quoted": {"api-key": '"key-ann"'},
    "another case": {"api-key": "KEY-ANN"},
    "a token beside it": {"api-key": "key-ann", "authorization": f"Bearer {UNSIGNED}"},
    "a token": {"authorization": f"Bearer {UNSIGNED}"},
    "an id": {"api-key": "ann"},
    "a principal of the platform": {
        "x-ms-client-principal": "eyJjbGFpbXMiOiBbXX0=",
        "x-ms-client-principal-id": "key-ann",
        "x-ms-client-principal-name": "ann",
    },
    "basic, as a user with the key": {"authorization": "Basic YW5uOmtleS1hbm4="},
    "empty api-key": {"api-key": ""},
    "two people": {"api-key": "key-bob", "authorization": "Bearer key-ann"},
    "one known of two": {"api-key": "nobody", "authorization": "Bearer key-ann"},
    "in a cookie": {"cookie": "api-key=key-ann"},
    "the hash": {"api-key": "sha256:" + "0" * 64},
}


@pytest.mark.parametrize("headers", REFUSED.values(), ids=REFUSED)
async def test_anything_else_is_401_in_openais_shape(
    upstream: Upstream, guarded: Served, headers: Any
) -> None:
    reply = await guarded.post(PATH, json=CHAT, headers=headers)

    assert reply.status_code == 401
    error = reply.json()["error"]
    assert (error["type"], error["code"]) == ("invalid_request_error", "invalid_api_key")
    assert reply.headers["www-authenticate"].startswith("Bearer")
    assert "key-" not in error["message"].replace("api-key", "")
    assert upstream.asked == []
    [record] = await guarded.recorded()
    assert (record["status"], record["identity"], record["request"]) == (401, None, None)


async def test_a_key_in_the_query_or_the_body_is_none(upstream: Upstream, guarded: Served) -> None:
    reply = await guarded.post(f"{PATH}?api-key=key-ann", json={**CHAT, "api_key": "key-ann"})

    assert reply.status_code == 401
    assert upstream.asked == []


@pytest.mark.parametrize("name", ["x-key", "X-Key"])
async def test_a_header_of_ones_own_replaces_both(serve: Serve, name: str) -> None:
    gateway = await serve(identities=IDENTITIES, AUTH_METHOD_APIKEY_HEADER_NAME=name)

    ours = await gateway.post(PATH, json=CHAT, headers={"x-key": "key-ann"})
    usual = await gateway.post(PATH, json=CHAT, headers={"authorization": "Bearer key-ann"})

    assert (ours.status_code, usual.status_code) == (200, 401)


async def test_the_decision_is_made_before_the_body_is_read(guarded: Served) -> None:
    reply = await guarded.post(PATH, content=b"{no json", headers={"api-key": "nobody"})

    assert reply.status_code == 401


async def test_a_model_that_is_not_on_the_list_is_403(guarded: Served) -> None:
    reply = await guarded.post(PATH, json=CHAT, headers={"api-key": "key-bob-2"})

    assert reply.status_code == 403
    error = reply.json()["error"]
    assert (error["type"], error["code"]) == ("permission_error", "model_not_allowed")


async def test_the_listing_asks_who_is_calling_and_shows_what_they_may_use(guarded: Served) -> None:
    nobody = await guarded.get("/v1/models")
    ann = await guarded.get("/v1/models", headers={"api-key": "key-ann"})
    bob = await guarded.get("/v1/models", headers={"api-key": "key-bob"})

    assert nobody.status_code == 401
    assert [model["id"] for model in ann.json()["data"]] == ["m", "alias"]
    assert bob.json() == {"object": "list", "data": []}


async def test_a_model_of_the_listing_is_found_by_its_name_with_slashes_too(
    upstream: Upstream, serve: Serve
) -> None:
    gateway = await serve([model(openai(upstream, "i1"), aliases=["org/name"])])

    found = await gateway.get("/v1/models/org/name")
    encoded = await gateway.get("/openai/models/org%2Fname")
    missing = await gateway.get("/v1/models/nope")

    assert found.json()["id"] == encoded.json()["id"] == "org/name"
    assert (missing.status_code, missing.json()["error"]["code"]) == (404, "model_not_found")


NEEDS = {
    "easyauth": {"WEBSITE_AUTH_ENABLED": "True"},
    "jwt": {"AUTH_METHOD_JWT_VERIFY_SIGNATURE": "false"},
}
SHOWS = {
    "easyauth": {
        "x-ms-client-principal": "eyJjbGFpbXMiOiBbXX0=",
        "x-ms-client-principal-id": "key-ann",
    },
    "jwt": {"api-key": UNSIGNED},
}


@pytest.mark.parametrize("method", plugins.names("auth"))
async def test_every_method_serves_a_whole_call(serve: Serve, method: str) -> None:
    gateway = await serve(identities=IDENTITIES, AUTH_METHOD=method, **NEEDS.get(method, {}))

    reply = await gateway.post(PATH, json=CHAT, headers=SHOWS.get(method, {"api-key": "key-ann"}))

    assert reply.status_code == 200
