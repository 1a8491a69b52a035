"""Tokens: which are believed, and every way in which one is not. They are minted with pyjwt."""

import base64
import contextlib
import json
import math
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from llamaxing.auth.jwt import Jwt
from llamaxing.build import Build
from llamaxing.errors import (
    ConfigurationError,
    GatewayError,
    IdentityNotAllowed,
    InvalidToken,
)
from llamaxing.http import Body, BodyLimits, Request
from llamaxing.identity import Identities, Identity
from llamaxing.plugins import Surroundings
from tests.canaries import NET
from tests.conftest import Serve, Served, configure, model, openai
from tests.fakes import CHAT, Upstream

PATH = "/v1/chat/completions"
ANN = "6c8b5f3e-0000-4000-8000-000000000001"
PEOPLE: list[dict[str, Any]] = [
    {"id": "ann", "claims": {"oid": ANN}},
    {"id": "team", "claims": {"roles": ["LLM.User"]}, "models": ["m"]},
    {"id": "batch", "claims": {"azp": "batch-app"}},
    {"id": "old-batch", "claims": {"appid": "old-app"}},
    {"id": "group", "claims": {"groups": ["g-1", "g-2"]}, "models": ["another"]},
]
NOW = int(datetime.now(UTC).timestamp())


class Issuer:
    """An OpenID Connect issuer on the scripted upstream: `names` its instance there."""

    def __init__(self, upstream: Upstream, name: str = "issuer") -> None:
        self._upstream = upstream
        self._name = name
        self.url = upstream.url(name)
        self.keys = {"k1": rsa.generate_private_key(65537, 2048)}
        self.publishes()

    def beside(self, name: str) -> "Issuer":
        """Another one."""
        return Issuer(self._upstream, name)

    def publishes(self, **document: Any) -> None:
        """From here on these keys, whether discovery or they are asked for."""
        self._upstream.forget(self._name)
        keys = [
            {**json.loads(jwt.algorithms.RSAAlgorithm.to_jwk(key.public_key())), "kid": kid}
            for kid, key in self.keys.items()
        ]
        body = {"issuer": self.url, "jwks_uri": f"{self.url}/keys", "keys": keys, **document}
        self._upstream.replies(self._name, 200, body)

    def token(
        self, kid: str | None = "k1", algorithm: str = "RS256", key: Any = None, **claims: Any
    ) -> str:
        given = {"iss": self.url, "aud": "gateway", "exp": NOW + 600, "oid": ANN, **claims}
        wanted = {name: value for name, value in given.items() if value is not ABSENT}
        # The tests were collected some time ago.
        late = int(datetime.now(UTC).timestamp()) - NOW
        for name in ("exp", "nbf"):
            if type(wanted.get(name)) in (int, float):
                wanted[name] += late
        head = {} if kid is None else {"kid": kid}
        token = jwt.encode(wanted, key or self.keys["k1"], algorithm=algorithm, headers=head)
        return NET.keep(f"token {token}", token)

    @property
    def asked(self) -> int:
        """How often the keys were."""
        return sum(it.path == "/keys" for it in self._upstream.journal)


ABSENT = object()


@pytest.fixture
def issuer(upstream: Upstream) -> Issuer:
    return Issuer(upstream)


def settings(*issuers: Issuer, **more: str) -> dict[str, str]:
    return {
        "AUTH_METHOD": "jwt",
        "AUTH_METHOD_JWT_ISSUER": ",".join(it.url for it in issuers),
        "AUTH_METHOD_JWT_AUDIENCE": "gateway, api://gateway",
        **more,
    }


@pytest.fixture
async def guarded(serve: Serve, issuer: Issuer) -> Served:
    return await serve(identities=PEOPLE, **settings(issuer))


def bearer(token: str) -> dict[str, str]:
    return {"authorization": f"Bearer {token}"}


def asked(upstream: Upstream) -> list[str]:
    return [it for it in upstream.asked if it.startswith("i") and it != "issuer"]


ACCEPTED: dict[str, dict[str, Any]] = {
    "as it should be": {},
    "the other audience": {"aud": "api://gateway"},
    "an audience of several": {"aud": ["gateway", "else"]},
    "just expired": {"exp": NOW - 20},
    "fractions of seconds": {"exp": NOW + 600.5, "nbf": NOW - 0.5},
    "valid since now": {"nbf": NOW + 20},
}


@pytest.mark.parametrize("claims", ACCEPTED.values(), ids=ACCEPTED)
@pytest.mark.parametrize("header", ["bearer", "lower-case scheme", "api-key", "both"])
async def test_a_good_token_is_let_in(
    guarded: Served, upstream: Upstream, issuer: Issuer, claims: dict[str, Any], header: str
) -> None:
    token = issuer.token(**claims)
    shown = {"bearer": bearer(token), "api-key": {"api-key": token}}
    shown["lower-case scheme"] = {"authorization": f"bearer {token}"}
    shown["both"] = shown["bearer"] | shown["api-key"]

    reply = await guarded.post(PATH, json=CHAT, headers=shown[header])

    assert reply.status_code == 200
    assert token not in str(upstream.journal[-1].headers)
    [record] = await guarded.recorded()
    assert (record["identity"]["id"], record["credential"]) == ("ann", "jwt")
    assert token not in json.dumps(record)


def signed_by_hand(head: dict[str, Any] | bytes, claims: dict[str, Any], sign: Any = None) -> str:
    def part(value: Any) -> bytes:
        raw = value if isinstance(value, bytes) else json.dumps(value).encode()
        return base64.urlsafe_b64encode(raw).rstrip(b"=")

    text = part(head) + b"." + part(claims)
    return (text + b"." + part(sign(text) if sign else b"")).decode()


FOREIGN = rsa.generate_private_key(65537, 2048)
CLAIMS = {"aud": "gateway", "exp": NOW + 36_000, "oid": ANN}
OWN = jwt.algorithms.RSAAlgorithm.to_jwk(FOREIGN.public_key(), as_dict=True)


def unsigned(alg: str) -> Callable[[Issuer], str]:
    return lambda issuer: signed_by_hand(
        {"alg": alg, "typ": "JWT", "kid": "k1"}, {**CLAIMS, "iss": issuer.url}
    )


def by_public_key(issuer: Issuer) -> str:
    public = issuer.keys["k1"].public_key()
    secret = public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    algorithm = jwt.algorithms.HMACAlgorithm(jwt.algorithms.HMACAlgorithm.SHA256)
    head = {"alg": "HS256", "typ": "JWT", "kid": "k1"}
    return signed_by_hand(
        head, {**CLAIMS, "iss": issuer.url}, lambda text: algorithm.sign(text, secret)
    )


def with_head(**head: Any) -> Callable[[Issuer], str]:
    """Signed by a key of the forger's, which the head says is good."""
    return lambda issuer: jwt.encode(
        {**CLAIMS, "iss": issuer.url}, FOREIGN, algorithm="RS256", headers={"kid": "k1", **head}
    )


def with_keys_elsewhere(name: str) -> Callable[[Issuer], str]:
    """The forger's server has the key for it, and would be seen to be asked."""

    def make(issuer: Issuer) -> str:
        forger = issuer.beside("i-forger")
        forger.keys = {"k1": FOREIGN}
        forger.publishes()
        return with_head(**{name: f"{forger.url}/keys"})(issuer)

    return make


def claiming(**claims: Any) -> Callable[[Issuer], str]:
    return lambda issuer: issuer.token(**claims)


def cut(issuer: Issuer) -> str:
    return issuer.token()[:-8]


def changed(issuer: Issuer) -> str:
    head, _, signature = issuer.token().split(".")
    claims = json.dumps({**CLAIMS, "iss": issuer.url, "oid": "somebody else"}).encode()
    return ".".join([head, base64.urlsafe_b64encode(claims).decode().rstrip("="), signature])


def critical(issuer: Issuer) -> str:
    """Whose signature is good."""
    algorithm = jwt.algorithms.RSAAlgorithm(jwt.algorithms.RSAAlgorithm.SHA256)
    head = {"alg": "RS256", "kid": "k1", "crit": ["b64"], "b64": True}
    claims = {**CLAIMS, "iss": issuer.url}
    return signed_by_hand(head, claims, lambda text: algorithm.sign(text, issuer.keys["k1"]))


REFUSED: dict[str, Callable[[Issuer], str]] = {
    "alg none": unsigned("none"),
    "alg None": unsigned("None"),
    "HS256 with the public key": by_public_key,
    "RS512, which is not on the list": lambda issuer: issuer.token(algorithm="RS512"),
    "ES256, which is not on the list": lambda issuer: issuer.token(
        algorithm="ES256", key=ec.generate_private_key(ec.SECP256R1())
    ),
    "a foreign key under our kid": with_head(),
    "jku": with_keys_elsewhere("jku"),
    "x5u": with_keys_elsewhere("x5u"),
    "x5c": with_head(x5c=["MIIB"]),
    "jwk": with_head(jwk=OWN),
    "crit": lambda issuer: jwt.encode(
        {**CLAIMS, "iss": issuer.url},
        issuer.keys["k1"],
        algorithm="RS256",
        headers={"kid": "k1", "crit": ["exp"], "exp": 1},
    ),
    "crit, of what PyJWT knows": critical,
    "kid is a number": lambda issuer: signed_by_hand(
        {"alg": "RS256", "kid": 1}, {**CLAIMS, "iss": issuer.url}
    ),
    "an unknown kid": lambda issuer: issuer.token(kid="other"),
    "no exp": claiming(exp=ABSENT),
    "exp is text": claiming(exp=str(NOW + 600)),
    "exp is null": claiming(exp=None),
    "exp is true": claiming(exp=True),
    "exp is infinite": claiming(exp=math.inf),
    "exp is no number": claiming(exp=math.nan),
    "expired": claiming(exp=NOW - 120),
    "nbf to come": claiming(nbf=NOW + 120),
    "nbf is text": claiming(nbf="soon"),
    "nbf is no number": claiming(nbf=math.nan),
    "no aud": claiming(aud=ABSENT),
    "another aud": claiming(aud="another"),
    "the beginning of the aud": claiming(aud="gate"),
    "aud is an object": claiming(aud={"gateway": True}),
    "aud holds a number": claiming(aud=["gateway", 1]),
    "no iss": claiming(iss=ABSENT),
    "another iss": claiming(iss="https://evil.example"),
    "iss with a slash more": lambda issuer: issuer.token(iss=issuer.url + "/"),
    "iss is a list": lambda issuer: signed_by_hand(
        {"alg": "RS256", "kid": "k1"}, {**CLAIMS, "iss": [issuer.url]}
    ),
    "identity null": claiming(oid=None),
    "identity empty": claiming(oid=""),
    "identity a space": claiming(oid=" "),
    "identity half a character": claiming(oid="\ud800"),
    "identity of two lines": claiming(oid="ann\nbob"),
    "identity a list": claiming(oid=[ANN]),
    "identity an object": claiming(oid={"is": ANN}),
    "no identity": claiming(oid=ABSENT),
    "over 16 KB": claiming(padding="x" * 17_000),
    "a deep header": lambda _: signed_by_hand(b'{"a":' + b"[" * 8000, CLAIMS),
    "cut": cut,
    "changed": changed,
    "not JSON": lambda _: "eyJhbGciOi.eyJvaWQiO.AAAA",
    "only two dots": lambda _: "eyJ..",
    "an object id": lambda _: ANN,
    "a known id": lambda _: "ann",
}


def refused(reply: httpx.Response, upstream: Upstream) -> None:
    """401 in OpenAI's shape, which says how to sign in, and nothing went further."""
    assert reply.status_code == 401
    assert reply.headers["content-type"] == "application/json"
    error = reply.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["type"] == "invalid_request_error"
    assert error["code"] in ("invalid_token", "invalid_api_key")
    assert reply.headers["www-authenticate"].startswith("Bearer ")
    assert asked(upstream) == []


@pytest.mark.parametrize("how", REFUSED)
async def test_a_token_that_is_not_good_is_401_and_nothing_is_sent_upstream(
    guarded: Served, upstream: Upstream, issuer: Issuer, how: str
) -> None:
    token = REFUSED[how](issuer)

    reply = await guarded.post(PATH, json=CHAT, headers=bearer(token))

    refused(reply, upstream)
    assert reply.json()["error"]["code"] == "invalid_token"
    assert token not in reply.text
    assert ANN not in reply.text
    [record] = await guarded.recorded()
    assert (record["status"], record["identity"], record["request"]) == (401, None, None)


def headers_of(token: str, other: str) -> dict[str, Any]:
    return {
        "two Authorization headers": [("authorization", f"Bearer {token}")] * 2,
        "tokens of two people": {"authorization": f"Bearer {token}", "api-key": other},
        "a token and a key": {"authorization": f"Bearer {token}", "api-key": "key"},
        "a key of nobody and a token": {"authorization": "Bearer nobody", "api-key": token},
        "two api-key headers": [("api-key", token)] * 2,
        "another scheme": {"authorization": f"Basic {token}"},
        "no scheme": {"authorization": token},
        "two spaces": {"authorization": f"Bearer  {token}"},
        "a tab": {"authorization": f"Bearer\t{token}"},
        "a word behind it": {"authorization": f"Bearer {token} more"},
        "two tokens": {"authorization": f"Bearer {token},{token}"},
        "nothing behind the scheme": {"authorization": "Bearer"},
        "a scheme in api-key": {"api-key": f"Bearer {token}"},
        "an empty api-key": {"api-key": ""},
        "nothing": {},
        "in a cookie": {"cookie": f"authorization={token}"},
    }


@pytest.mark.parametrize("how", list(headers_of("", "")))
async def test_a_token_counts_in_its_header_alone(
    guarded: Served, upstream: Upstream, issuer: Issuer, how: str
) -> None:
    other = issuer.token(oid="somebody", roles=["LLM.User"])
    headers = headers_of(issuer.token(), other)[how]

    reply = await guarded.post(PATH, json=CHAT, headers=headers)

    refused(reply, upstream)
    if not headers:
        assert reply.headers["www-authenticate"] == 'Bearer realm="llamaxing"'


async def test_a_token_in_the_query_or_the_body_is_none(
    guarded: Served, upstream: Upstream, issuer: Issuer
) -> None:
    token = issuer.token()

    reply = await guarded.post(f"{PATH}?access_token={token}", json={**CHAT, "token": token})

    refused(reply, upstream)


async def test_a_header_of_ones_own_replaces_both(
    serve: Serve, upstream: Upstream, issuer: Issuer
) -> None:
    gateway = await serve(
        identities=PEOPLE, **settings(issuer, AUTH_METHOD_JWT_HEADER_NAME="X-Token")
    )
    token = issuer.token()

    refused(await gateway.post(PATH, json=CHAT, headers=bearer(token)), upstream)
    with_scheme = {"x-token": f"Bearer {token}"}
    refused(await gateway.post(PATH, json=CHAT, headers=with_scheme), upstream)
    ours = await gateway.post(PATH, json=CHAT, headers={"x-token": token})

    assert ours.status_code == 200
    assert "x-token" not in upstream.journal[-1].headers


async def test_a_valid_token_of_nobody_here_is_403(
    guarded: Served, upstream: Upstream, issuer: Issuer
) -> None:
    reply = await guarded.post(PATH, json=CHAT, headers=bearer(issuer.token(oid="nobody")))

    error = reply.json()["error"]
    assert (reply.status_code, error["type"]) == (403, "permission_error")
    assert error["code"] == "identity_not_allowed"
    assert asked(upstream) == []


async def test_those_who_share_an_entry_are_told_apart(
    guarded: Served, upstream: Upstream, issuer: Issuer
) -> None:
    token = issuer.token(oid="one", roles=["Else", "LLM.User"])

    reply = await guarded.post(PATH, json=CHAT, headers=bearer(token))

    assert reply.status_code == 200
    [record] = await guarded.recorded()
    assert record["identity"]["id"] == "team/one"


async def test_a_persons_own_entry_goes_before_one_that_is_shared(
    guarded: Served, issuer: Issuer
) -> None:
    await guarded.post(PATH, json=CHAT, headers=bearer(issuer.token(roles=["LLM.User"])))

    [record] = await guarded.recorded()
    assert record["identity"]["id"] == "ann"


@pytest.mark.parametrize(
    ("claims", "status"),
    [
        ({"azp": "batch-app"}, 200),
        ({"azp": "batch-app", "idtyp": "app"}, 200),
        ({"azp": "batch-app", "scp": "user_impersonation"}, 403),
        ({"azp": "batch-app", "idtyp": "user"}, 403),
        ({"azp": "batch-app", "sub": "somebody"}, 200),
        ({"azp": "batch-app", "sub": "a name for one application"}, 403),
        ({"appid": "old-app"}, 200),
        ({"appid": "old-app", "scp": "user_impersonation"}, 403),
    ],
    ids=[
        "an app's",
        "an app's that says so",
        "a person's",
        "a person's that says so",
        "an app's, known by one id",
        "a person's, known by two",
        "an app's of v1",
        "a person's of v1",
    ],
)
async def test_the_application_counts_for_its_own_tokens_alone(
    guarded: Served, issuer: Issuer, claims: dict[str, Any], status: int
) -> None:
    token = issuer.token(oid="somebody", **claims)

    assert (await guarded.post(PATH, json=CHAT, headers=bearer(token))).status_code == status


async def test_a_role_or_a_scope_may_be_required(serve: Serve, issuer: Issuer) -> None:
    gateway = await serve(
        identities=PEOPLE,
        **settings(
            issuer,
            AUTH_METHOD_JWT_REQUIRED_ROLES="LLM.Batch",
            AUTH_METHOD_JWT_REQUIRED_SCOPES="llm.use, llm.all",
        ),
    )
    shown = {
        200: [
            {"roles": ["LLM.Batch"]},
            {"roles": "LLM.Batch"},
            {"roles": [["odd"], None, "LLM.Batch"]},
            {"scp": "other llm.use"},
            {"scp": ["other", "llm.use"]},
            {"scope": "llm.all"},
        ],
        403: [
            {},
            {"roles": ["LLM"]},
            {"scp": "llm.user"},
            {"scp": "LLM.Batch"},
            {"roles": "LLM.Batch LLM.Use"},
            {"roles": [["LLM.Batch"]]},
            {"roles": {"LLM.Batch": True}},
        ],
    }

    for status, tokens in shown.items():
        for claims in tokens:
            token = issuer.token(**claims)  # type: ignore[arg-type]
            reply = await gateway.post(PATH, json=CHAT, headers=bearer(token))
            assert reply.status_code == status, claims


# Several issuers


async def test_one_issuer_cannot_speak_for_another(
    serve: Serve, upstream: Upstream, issuer: Issuer
) -> None:
    other = Issuer(upstream, "other-issuer")
    people = [{"id": "ann", "claims": {"oid": ANN, "iss": issuer.url}}]
    gateway = await serve(identities=people, **settings(issuer, other))

    own = await gateway.post(PATH, json=CHAT, headers=bearer(issuer.token()))
    others = await gateway.post(PATH, json=CHAT, headers=bearer(other.token()))
    forged = await gateway.post(PATH, json=CHAT, headers=bearer(other.token(iss=issuer.url)))

    assert (own.status_code, others.status_code, forged.status_code) == (200, 403, 401)
    assert others.json()["error"]["code"] == "identity_not_allowed"
    assert asked(upstream) == ["i1"]


async def test_another_issuer_is_not_a_tenant_because_it_says_so(
    serve: Serve, upstream: Upstream, issuer: Issuer
) -> None:
    people = [{"id": "ann", "claims": {"oid": ANN, "tid": TENANT}}]
    both = f"{V2['iss']},{issuer.url}"
    keys = f"{issuer.url}/keys"
    gateway = await serve(
        identities=people,
        **settings(issuer, AUTH_METHOD_JWT_ISSUER=both, AUTH_METHOD_JWT_JWKS_URI=keys),
    )

    own = await gateway.post(PATH, json=CHAT, headers=bearer(issuer.token(**V2)))
    forged = await gateway.post(PATH, json=CHAT, headers=bearer(issuer.token(tid=TENANT)))

    assert (own.status_code, forged.status_code) == (200, 403)


async def test_the_keys_of_another_issuer_are_not_those_of_the_tenant(issuer: Issuer) -> None:
    asked = []

    def keys(request: httpx.Request) -> httpx.Response:
        asked.append(str(request.url))
        public = jwt.algorithms.RSAAlgorithm.to_jwk(issuer.keys["k1"].public_key(), as_dict=True)
        other = jwt.algorithms.RSAAlgorithm.to_jwk(FOREIGN.public_key(), as_dict=True)
        is_tenants = request.url.host == "login.microsoftonline.com"
        key = {**(other if is_tenants else public), "kid": "k1"}
        return httpx.Response(200, json={"keys": [key]})

    method = Jwt(
        Jwt.Options(
            auth_method_jwt_tenant_id=TENANT,
            auth_method_jwt_issuer=issuer.url,
            auth_method_jwt_jwks_uri=f"{issuer.url}/keys",
            auth_method_jwt_audience="gateway",
        ),
        Surroundings({}, httpx.AsyncClient(transport=httpx.MockTransport(keys))),
        lambda: datetime.now(UTC),
    )
    people = Identities([Identity(id="ann", claims={"oid": (ANN,), "tid": (TENANT,)})])

    with pytest.raises(InvalidToken):
        await method.authenticate(request(issuer.token(**V2)), people)
    assert await method.authenticate(request(issuer.token(key=FOREIGN, **V2)), people)
    assert asked == [f"https://login.microsoftonline.com/{TENANT}/discovery/v2.0/keys"]


async def test_two_issuers_that_call_somebody_alike_mean_two_people(
    serve: Serve, upstream: Upstream, issuer: Issuer
) -> None:
    other = Issuer(upstream, "issuer-b")
    people = [{"id": "team", "claims": {"roles": "LLM.User", "iss": [issuer.url, other.url]}}]
    gateway = await serve(identities=people, **settings(issuer, other))

    for it in (issuer, other):
        token = it.token(oid="one", roles=["LLM.User"])
        assert (await gateway.post(PATH, json=CHAT, headers=bearer(token))).status_code == 200

    first, second = (it["identity"]["id"] for it in await gateway.recorded(2))
    assert (first, second) == (f"team/one@{issuer.url}", f"team/one@{other.url}")


@pytest.mark.parametrize(
    ("entry", "line"),
    [
        (
            {"id": "a", "claims": {"oid": ANN}},
            "[0].claims: do not say which issuer's it is, since there are several; add iss or tid",
        ),
        (
            {"id": "a", "auth_key": ANN},
            (
                "[0].auth_key: does not say which issuer's it is, since there are several; write "
                "claims, with iss or tid"
            ),
        ),
    ],
    ids=["claims", "auth_key"],
)
async def test_with_several_issuers_an_entry_names_its_own(
    upstream: Upstream, issuer: Issuer, tmp_path: Any, entry: dict[str, Any], line: str
) -> None:
    environ = configure(tmp_path, [model(openai(upstream, "i1"))], [entry])
    with pytest.raises(ConfigurationError) as caught:
        await Build({**environ, **settings(issuer, Issuer(upstream, "other"))}).all()

    assert caught.value.faults == [f"identities.json: {line}"]


async def test_beside_the_platforms_authentication_an_entry_names_its_issuer(
    upstream: Upstream, issuer: Issuer, tmp_path: Any
) -> None:
    environ = configure(tmp_path, [model(openai(upstream, "i1"))], [PEOPLE[0]])
    both = settings(issuer, AUTH_METHOD="jwt,easyauth", WEBSITE_AUTH_ENABLED="true")

    with pytest.raises(ConfigurationError) as caught:
        await Build(environ | both).all()

    assert "[0].claims: do not say which issuer's it is" in caught.value.faults[0]


TENANT = "11111111-2222-3333-4444-555555555555"
V1 = {"iss": f"https://sts.windows.net/{TENANT}/", "aud": "api://gateway", "tid": TENANT}
V2 = {
    "iss": f"https://login.microsoftonline.com/{TENANT}/v2.0",
    "aud": "gateway",
    "tid": TENANT,
    "ver": "2.0",
}


@pytest.mark.parametrize("shape", [V1, V2], ids=["v1", "v2"])
@pytest.mark.parametrize("configured", ["both", "v1", "v2"])
async def test_tokens_of_entra_id_are_believed_in_the_versions_that_are_configured(
    serve: Serve, upstream: Upstream, issuer: Issuer, shape: dict[str, Any], configured: str
) -> None:
    own = {"v1": V1["iss"], "v2": V2["iss"]}.get(configured)
    where = {"AUTH_METHOD_JWT_ISSUER": own} if own else {"AUTH_METHOD_JWT_TENANT_ID": TENANT}
    gateway = await serve(
        identities=PEOPLE,
        **settings(
            AUTH_METHOD_JWT_JWKS_URI=f"{issuer.url}/keys", **{"AUTH_METHOD_JWT_ISSUER": "", **where}
        ),
    )
    believed = configured == "both" or shape["iss"] == own

    reply = await gateway.post(PATH, json=CHAT, headers=bearer(issuer.token(**shape)))
    elsewhere = issuer.token(**{**shape, "tid": TENANT[::-1]})
    against_issuer = await gateway.post(PATH, json=CHAT, headers=bearer(elsewhere))
    iss = shape["iss"].replace(TENANT, TENANT[::-1])
    foreign = issuer.token(**{**shape, "iss": iss, "tid": TENANT[::-1]})
    other_tenant = await gateway.post(PATH, json=CHAT, headers=bearer(foreign))

    assert reply.status_code == (200 if believed else 401)
    assert len(asked(upstream)) == believed
    upstream.journal.clear()
    for it in (against_issuer, other_tenant):
        refused(it, upstream)
    if believed:
        assert (await gateway.recorded())[0]["identity"]["id"] == "ann"


BY_APP: dict[str, Any] = {"roles": ["LLM.Batch"], "oid": "sp-1", "sub": "sp-1"}
BY_PERSON: dict[str, Any] = {"scp": "openid llm.use", "sub": "a pairwise id"}
SHAPES: dict[str, tuple[dict[str, Any], str | None]] = {
    "a person's of v1": ({**V1, **BY_PERSON, "appid": "web", "ver": "1.0"}, "ann"),
    "a person's of v2": ({**V2, **BY_PERSON, "azp": "web"}, "ann"),
    "an application's of v1": ({**V1, **BY_APP, "appid": "old-app"}, "old-batch/sp-1"),
    "an application's of v2": ({**V2, **BY_APP, "azp": "batch-app"}, "batch/sp-1"),
    "a person's without the scope": ({**V2, **BY_PERSON, "scp": "openid"}, None),
    "an application's without the role": ({**V2, **BY_APP, "roles": [], "azp": "batch-app"}, None),
    "somebody's through the application": (
        {**V2, **BY_PERSON, "oid": "else", "azp": "batch-app"},
        None,
    ),
}


@pytest.mark.parametrize("how", SHAPES)
async def test_an_application_comes_in_by_its_role_and_a_person_by_a_scope(
    serve: Serve, issuer: Issuer, how: str
) -> None:
    claims, who = SHAPES[how]
    where = {"AUTH_METHOD_JWT_ISSUER": "", "AUTH_METHOD_JWT_TENANT_ID": TENANT}
    gateway = await serve(
        identities=PEOPLE,
        **settings(
            AUTH_METHOD_JWT_JWKS_URI=f"{issuer.url}/keys",
            AUTH_METHOD_JWT_REQUIRED_ROLES="LLM.Batch",
            AUTH_METHOD_JWT_REQUIRED_SCOPES="llm.use",
            **where,
        ),
    )

    reply = await gateway.post(PATH, json=CHAT, headers=bearer(issuer.token(**claims)))

    assert reply.status_code == (200 if who else 403)
    [record] = await gateway.recorded()
    assert (record["identity"] or {"id": None})["id"] == who


async def test_the_models_of_a_group_are_those_that_its_members_see(
    guarded: Served, upstream: Upstream, issuer: Issuer
) -> None:
    shown = bearer(issuer.token(oid="one", groups=["g-2", "g-9"]))

    listing = await guarded.get("/v1/models", headers=shown)
    call = await guarded.post(PATH, json=CHAT, headers=shown)

    assert listing.json()["data"] == []
    assert (call.status_code, call.json()["error"]["code"]) == (403, "model_not_allowed")
    team = bearer(issuer.token(oid="two", roles=["LLM.User"]))
    listing = await guarded.get("/v1/models", headers=team)
    assert [it["id"] for it in listing.json()["data"]] == ["m", "alias"]


# Keys


@pytest.mark.parametrize("algorithm", ["RS512", "PS256"])
async def test_a_key_that_does_not_say_its_algorithm_is_good_for_those_that_are_set(
    serve: Serve, issuer: Issuer, algorithm: str
) -> None:
    # Entra ID's do not.
    gateway = await serve(
        identities=PEOPLE, **settings(issuer, AUTH_METHOD_JWT_ALGORITHMS=f"RS256,{algorithm}")
    )

    for shown in ("RS256", algorithm):
        token = issuer.token(algorithm=shown)
        assert (await gateway.post(PATH, json=CHAT, headers=bearer(token))).status_code == 200


async def test_a_key_for_one_algorithm_is_not_used_for_another(
    serve: Serve, upstream: Upstream, issuer: Issuer
) -> None:
    public = jwt.algorithms.RSAAlgorithm.to_jwk(issuer.keys["k1"].public_key(), as_dict=True)
    issuer.publishes(keys=[{**public, "kid": "k1", "alg": "RS256"}])
    gateway = await serve(
        identities=PEOPLE, **settings(issuer, AUTH_METHOD_JWT_ALGORITHMS="RS256,RS512")
    )

    token = issuer.token(algorithm="RS512")

    refused(await gateway.post(PATH, json=CHAT, headers=bearer(token)), upstream)


# Tokens that were seen before


async def test_a_token_is_not_believed_for_longer_than_it_says() -> None:
    now = datetime(2030, 1, 1, tzinfo=UTC)
    times = [now]
    method = unverified(lambda: times[-1])
    ends = (now + timedelta(seconds=100)).timestamp()
    token = jwt.encode({"oid": ANN, "exp": ends}, "", algorithm="none")
    people = Identities([Identity(id="ann", claims={"oid": (ANN,)})])

    assert await method.authenticate(request(token), people)
    times.append(now + timedelta(seconds=159))
    assert await method.authenticate(request(token), people)
    times.append(now + timedelta(seconds=161))
    with pytest.raises(InvalidToken):
        await method.authenticate(request(token), people)


async def test_whose_a_token_is_follows_the_identities_that_are_configured_now() -> None:
    method = unverified(lambda: datetime.now(UTC))
    token = signed_by_hand({"alg": "none"}, {"oid": ANN, "exp": NOW + 36_000, "iss": ["any"]})
    before = Identities([Identity(id="ann", claims={"oid": (ANN,)})])
    after = Identities([Identity(id="ann-2", claims={"oid": (ANN,)})])

    found = [await method.authenticate(request(token), it) for it in (before, before, after)]

    assert [it and it.id for it in found] == ["ann", "ann", "ann-2"]
    with pytest.raises(IdentityNotAllowed):
        await method.authenticate(request(token), Identities())


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=5,
) | st.sampled_from([ANN, "LLM.User", "\ud800", 10**400])
NAMES = ["iss", "aud", "exp", "nbf", "oid", "sub", "tid", "azp", "scp", "roles", "groups", "idtyp"]


@given(
    head=st.dictionaries(st.sampled_from(["alg", "kid", "typ", "crit", "b64", "jwk"]), JSON),
    claims=st.dictionaries(st.sampled_from(NAMES), JSON, max_size=4),
)
@hypothesis_settings(max_examples=200, deadline=None, database=None)
async def test_whatever_a_token_says_it_is_judged(
    head: dict[str, Any], claims: dict[str, Any]
) -> None:
    method = unverified(lambda: datetime.now(UTC), auth_method_jwt_required_roles="LLM.User")
    people = [Identity.model_validate(it) for it in PEOPLE]
    given_claims = {"oid": ANN, "exp": NOW + 36_000, "roles": ["LLM.User"], **claims}
    token = signed_by_hand({"alg": "none", **head}, given_claims)

    with contextlib.suppress(GatewayError):
        await method.authenticate(request(token), Identities(people))


def unverified(now: Callable[[], datetime], **more: Any) -> Jwt:
    web = httpx.AsyncClient(transport=httpx.MockTransport(lambda _: httpx.Response(500)))
    options = Jwt.Options(auth_method_jwt_verify_signature=False, **more)
    return Jwt(options, Surroundings({}, web), now)


def request(token: str) -> Request:
    async def nothing() -> bytes:
        return b""

    return Request("POST", PATH, bearer(token), Body(nothing, BodyLimits(0)))


# Beside API keys


@pytest.mark.parametrize("methods", ["apikey, jwt", "jwt,apikey"])
async def test_tokens_and_api_keys_are_both_let_in(
    serve: Serve, upstream: Upstream, issuer: Issuer, methods: str
) -> None:
    people = [
        {"id": "ann", "claims": {"oid": ANN}, "api_keys": [{"key": "key-ann", "id": "2026"}]},
        {"id": "bob", "api_keys": [{"key": "key-bob"}]},
    ]
    gateway = await serve(identities=people, **settings(issuer, AUTH_METHOD=methods))
    token = issuer.token()
    shown: list[tuple[dict[str, str], int]] = [
        (bearer(token), 200),
        ({"api-key": "key-ann"}, 200),
        ({**bearer(token), "api-key": "key-ann"}, 200),
        ({**bearer("key-ann"), "api-key": token}, 200),
        ({**bearer(token), "api-key": "key-bob"}, 401),
        ({**bearer(token), "api-key": "key-nobody"}, 401),
        ({**bearer(cut(issuer)), "api-key": "key-ann"}, 401),
        ({**bearer("key-ann"), "api-key": cut(issuer)}, 401),
        ({"api-key": ANN}, 401),
        ({"api-key": "ann"}, 401),
        ({"api-key": ""}, 401),
        (bearer("key-nobody"), 401),
        (bearer(cut(issuer)), 401),
        ({}, 401),
    ]

    for headers, status in shown:
        reply = await gateway.post(PATH, json=CHAT, headers=headers)
        assert reply.status_code == status, headers
        assert ("www-authenticate" in reply.headers) == (status == 401)
    assert len(asked(upstream)) == sum(status == 200 for _, status in shown)
    first, second, *_ = await gateway.recorded(len(shown))
    assert (first["credential"], second["credential"]) == ("jwt", "apikey 2026")


async def test_with_both_a_bare_auth_key_is_a_fault(
    upstream: Upstream, issuer: Issuer, tmp_path: Any
) -> None:
    people = [{"id": "ann", "auth_key": ANN}]
    environ = configure(tmp_path, [model(openai(upstream, "i1"))], people)
    with pytest.raises(ConfigurationError) as caught:
        await Build({**environ, **settings(issuer, AUTH_METHOD="jwt,apikey")}).all()

    what = "may be a key or a claim, since auth_method has several methods"
    assert caught.value.faults == [
        f"identities.json: [0].auth_key: {what}; write api_keys, or claims"
    ]


async def test_with_tokens_alone_an_auth_key_is_the_claim(serve: Serve, issuer: Issuer) -> None:
    gateway = await serve(identities=[{"id": "ann", "auth_key": ANN}], **settings(issuer))

    token = await gateway.post(PATH, json=CHAT, headers=bearer(issuer.token()))
    bare = await gateway.post(PATH, json=CHAT, headers={"api-key": ANN})

    assert (token.status_code, bare.status_code) == (200, 401)


# Settings


WRONG_SETTINGS = {
    "no issuer": (
        {"AUTH_METHOD_JWT_ISSUER": ""},
        (
            "auth_method_jwt_issuer: is needed; write who issues the tokens, or set "
            "auth_method_jwt_tenant_id"
        ),
    ),
    "no audience": (
        {"AUTH_METHOD_JWT_AUDIENCE": ""},
        "auth_method_jwt_audience: is needed; write whom the tokens are for",
    ),
    "a shared secret": (
        {"AUTH_METHOD_JWT_ALGORITHMS": "RS256,HS256"},
        (
            "auth_method_jwt_algorithms: 'HS256' is not one of ES256, ES384, ES512, EdDSA, PS256, "
            "PS384, PS512, RS256, RS384, RS512"
        ),
    ),
    "keys for some": (
        {"AUTH_METHOD_JWT_JWKS_URI": "https://a/1,https://a/2,https://a/3"},
        "auth_method_jwt_jwks_uri: has to be one for all, or one for each issuer",
    ),
    "keys without TLS": (
        {"AUTH_METHOD_JWT_JWKS_URI": "http://issuer.example/keys"},
        (
            "auth_method_jwt_jwks_uri: keys are only taken by https; give a URL that starts with "
            "https://"
        ),
    ),
    "an issuer that is no URL": (
        {"AUTH_METHOD_JWT_ISSUER": "issuer.example"},
        (
            "auth_method_jwt_issuer: keys are only taken by https; give a URL that starts with "
            "https://"
        ),
    ),
    "a tenant's name": (
        {"AUTH_METHOD_JWT_TENANT_ID": "contoso.onmicrosoft.com", "AUTH_METHOD_JWT_ISSUER": ""},
        (
            "auth_method_jwt_tenant_id: has to be the tenant's id, 32 hex digits with dashes; no "
            "name of it stands in tokens"
        ),
    ),
    "too much leeway": (
        {"AUTH_METHOD_JWT_LEEWAY": "301"},
        "auth_method_jwt_leeway: has to be less than or equal to 300",
    ),
}


@pytest.mark.parametrize("how", WRONG_SETTINGS)
async def test_settings_that_do_not_go_together_are_told(
    upstream: Upstream, issuer: Issuer, tmp_path: Any, how: str
) -> None:
    wrong, line = WRONG_SETTINGS[how]
    environ = configure(tmp_path, [model(openai(upstream, "i1"))], PEOPLE)

    with pytest.raises(ConfigurationError) as caught:
        await Build({**environ, **settings(issuer), **wrong}).all()

    assert caught.value.faults == [line]


async def test_unverified_tokens_are_warned_of(
    serve: Serve, issuer: Issuer, caplog: pytest.LogCaptureFixture
) -> None:
    gateway = await serve(
        identities=PEOPLE, **settings(issuer, AUTH_METHOD_JWT_VERIFY_SIGNATURE="false")
    )

    forged = await gateway.post(PATH, json=CHAT, headers=bearer(with_head()(issuer)))
    expired = await gateway.post(PATH, json=CHAT, headers=bearer(issuer.token(exp=NOW - 99)))

    assert (forged.status_code, expired.status_code) == (200, 401)
    assert "anybody can forge a token" in caplog.text
