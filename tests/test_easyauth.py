"""App Service Authentication: what the platform says of a caller, and who could only pretend to."""

import base64
import json
from pathlib import Path
from typing import Any

import pytest

from llamaxing.build import Build
from llamaxing.errors import ConfigurationError
from tests.conftest import Serve, Served, configure, model, openai
from tests.e2e import command
from tests.fakes import CHAT, Upstream

PATH = "/v1/chat/completions"
ANN = "6c8b5f3e-0000-4000-8000-000000000001"
TENANT = "11111111-2222-3333-4444-555555555555"
SCHEMAS = "http://schemas.microsoft.com"
# As the platform writes it of somebody who signed in with Entra ID.
OF_ANN = [
    {"typ": "aud", "val": "gateway"},
    {"typ": "iss", "val": f"https://login.microsoftonline.com/{TENANT}/v2.0"},
    {"typ": f"{SCHEMAS}/identity/claims/objectidentifier", "val": ANN},
    {"typ": f"{SCHEMAS}/identity/claims/tenantid", "val": TENANT},
    {"typ": "name", "val": "Ann"},
]
ROLE = f"{SCHEMAS}/ws/2008/06/identity/claims/role"
PEOPLE: list[dict[str, Any]] = [
    {"id": "ann", "claims": {"oid": ANN, "tid": TENANT}},
    {"id": "team", "claims": {"roles": ["LLM.User"]}, "models": ["another"]},
    {"id": "group", "claims": {"groups": "g-1"}},
]
SETTINGS = {"AUTH_METHOD": "easyauth", "WEBSITE_AUTH_ENABLED": "True"}


def principal(*claims: dict[str, str], auth_typ: str = "aad") -> dict[str, str]:
    said = {"auth_typ": auth_typ, "name_typ": "name", "role_typ": "roles", "claims": claims}
    return {"x-ms-client-principal": base64.b64encode(json.dumps(said).encode()).decode()}


@pytest.fixture
async def guarded(serve: Serve) -> Served:
    return await serve(identities=PEOPLE, **SETTINGS)


async def test_whom_the_platform_knows_is_let_in_and_what_it_says_stays_here(
    guarded: Served, upstream: Upstream
) -> None:
    shown = {
        **principal(*OF_ANN),
        "x-ms-client-principal-id": "not what counts",
        "x-ms-client-principal-name": "Ann",
        "x-ms-token-aad-access-token": "a-token-of-ann",
    }

    reply = await guarded.post(PATH, json=CHAT, headers=shown)

    assert reply.status_code == 200
    assert not any(name.startswith("x-ms-") for name in upstream.journal[0].headers)
    [record] = await guarded.recorded()
    assert (record["identity"]["id"], record["credential"]) == ("ann", "easyauth")
    assert "a-token-of-ann" not in json.dumps(record)
    assert shown["x-ms-client-principal"] not in json.dumps(record)


@pytest.mark.parametrize(
    ("claim", "entry", "status"),
    [
        ({"typ": ROLE, "val": "LLM.User"}, "team", 403),
        ({"typ": "roles", "val": "LLM.User"}, "team", 403),
        ({"typ": "groups", "val": "g-1"}, "group", 200),
    ],
    ids=["a role", "a role by its short name", "a group"],
)
async def test_those_who_share_an_entry_are_told_apart(
    guarded: Served, claim: dict[str, str], entry: str, status: int
) -> None:
    bob = {"typ": f"{SCHEMAS}/identity/claims/objectidentifier", "val": "bob"}
    other = {**claim, "val": "something else"}

    reply = await guarded.post(PATH, json=CHAT, headers=principal(bob, other, claim, other))

    assert reply.status_code == status
    [record] = await guarded.recorded()
    assert (record["identity"]["id"], record["identity"]["entry"]) == (f"{entry}/bob", entry)


def encoded(text: str) -> dict[str, str]:
    return {"x-ms-client-principal": base64.b64encode(text.encode()).decode()}


OID = {"typ": "oid", "val": ANN}
REFUSED: dict[str, Any] = {
    "nothing": {},
    "an id alone": {"x-ms-client-principal-id": ANN, "x-ms-client-principal-name": "Ann"},
    "empty": {"x-ms-client-principal": ""},
    "no base64": {"x-ms-client-principal": "{}"},
    "base64 with more behind it": {"x-ms-client-principal": f"{encoded('{}')}!!"},
    "no JSON": encoded("claims"),
    "a list": encoded("[]"),
    "null": encoded("null"),
    "no claims": encoded("{}"),
    "claims are text": encoded('{"claims": "oid"}'),
    "claims are null": encoded('{"claims": null}'),
    "a claim without a name": encoded('{"claims": [{"val": "x"}]}'),
    "a claim named by a list": encoded('{"claims": [{"typ": [], "val": "x"}]}'),
    "very deep": encoded('{"claims": ' + "[" * 9000),
    "nobody": principal(),
    "an empty oid": principal({"typ": "oid", "val": ""}),
    "an oid of spaces": principal({"typ": "oid", "val": "  "}),
    "an oid that is half a character": encoded('{"claims": [{"typ": "oid", "val": "\\ud800"}]}'),
    "an oid that is an object": encoded('{"claims": [{"typ": "oid", "val": {"is": "ann"}}]}'),
    "two principals": [*principal(*OF_ANN).items(), *principal(OID).items()],
    "a token": {"authorization": f"Bearer {ANN}"},
    "an api-key": {"api-key": ANN},
}


@pytest.mark.parametrize("headers", REFUSED.values(), ids=REFUSED)
async def test_anything_else_is_401_and_nothing_is_sent_upstream(
    guarded: Served, upstream: Upstream, headers: Any
) -> None:
    reply = await guarded.post(PATH, json=CHAT, headers=headers)

    assert reply.status_code == 401
    error = reply.json()["error"]
    assert (error["type"], error["code"]) == ("invalid_request_error", "invalid_token")
    assert reply.headers["www-authenticate"].startswith("Bearer ")
    assert ANN not in reply.text
    assert upstream.asked == []


@pytest.mark.parametrize(
    "said",
    [principal(OID), principal(*OF_ANN, auth_typ="another"), principal({**OID, "val": "bob"})],
    ids=["no tenant", "another provider that says it is the tenant", "somebody else"],
)
async def test_who_signed_in_and_is_nobody_here_is_403(
    guarded: Served, upstream: Upstream, said: dict[str, str]
) -> None:
    reply = await guarded.post(PATH, json=CHAT, headers=said)

    assert (reply.status_code, reply.json()["error"]["code"]) == (403, "identity_not_allowed")
    assert upstream.asked == []


@pytest.mark.parametrize("marker", [None, "False", "", "0", "1", "yes", "true false"])
async def test_where_anybody_could_write_the_platforms_headers_it_does_not_start(
    upstream: Upstream, tmp_path: Path, marker: str | None
) -> None:
    environ = configure(tmp_path, [model(openai(upstream, "i1"))], PEOPLE) | SETTINGS
    if marker is None:
        del environ["WEBSITE_AUTH_ENABLED"]
    else:
        environ["WEBSITE_AUTH_ENABLED"] = marker

    with pytest.raises(ConfigurationError) as caught:
        await Build(environ).all()

    what = "'easyauth' needs App Service Authentication, and WEBSITE_AUTH_ENABLED is not true here"
    assert caught.value.faults == [f"auth_method: {what}; switch it on, or choose another method"]


async def test_the_command_that_serves_ends_with_1_where_there_is_no_platform(
    upstream: Upstream, tmp_path: Path
) -> None:
    environ = configure(tmp_path, [model(openai(upstream, "i1"))], PEOPLE)

    code, _, err = await command(tmp_path, environ | {"AUTH_METHOD": "easyauth"}, "serve")

    assert code == 1
    assert "WEBSITE_AUTH_ENABLED is not true here" in err


@pytest.mark.parametrize(
    ("key", "status"), [("key-ann", 200), ("key-bob", 401), ("nobody", 401), (None, 200)]
)
async def test_a_key_beside_it_has_to_be_of_the_same_identity(
    serve: Serve, upstream: Upstream, key: str | None, status: int
) -> None:
    people = [
        {**PEOPLE[0], "api_keys": [{"key": "key-ann"}]},
        {"id": "bob", "api_keys": [{"key": "key-bob"}]},
    ]
    gateway = await serve(identities=people, **SETTINGS | {"AUTH_METHOD": "apikey,easyauth"})
    shown = principal(*OF_ANN) | ({"api-key": key} if key else {})

    reply = await gateway.post(PATH, json=CHAT, headers=shown)

    assert reply.status_code == status
    assert len(upstream.asked) == (status == 200)
