"""Tokens (RFC 7519) of Entra ID, or of any OpenID Connect issuer."""

import hashlib
import re
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from urllib.parse import urlsplit

import msgspec
from pydantic import BaseModel, Field

from llamaxing.auth import Caller, Now, credentials, is_name, listed, looks_like_token
from llamaxing.errors import (
    ConfigurationError,
    IdentityNotAllowed,
    InvalidToken,
    NoToken,
    Unauthenticated,
)
from llamaxing.http import Request
from llamaxing.identity import Claims, Identities, Identity, values
from llamaxing.issuers import ENTRA_V1, ENTRA_V2, Issuers, authority, refuse
from llamaxing.jwks import Jwks
from llamaxing.logs import log
from llamaxing.plugins import Surroundings

_REMEMBERED = 1000
# Seconds that a verified token is believed without a look at its key.
_BELIEVED = 300.0
_MOST_LEEWAY = 300.0
# Public keys verify these; with a shared secret anybody who knows it could sign.
_ALGORITHMS = frozenset(
    {"RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA"}
)
_TENANT = re.compile(r"(?i)[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")


class _Seen(msgspec.Struct):
    """A token that was verified: who that is, among those who were known when it came."""

    until: float
    claims: Claims
    keys: object
    caller: Caller | None = None
    identities: Identities | None = None


class Jwt:
    class Options(BaseModel, frozen=True):
        auth_method_jwt_header_name: str | None = Field(
            default=None,
            description="The one header that carries the token, instead of `Authorization` and "
            "`api-key`.",
        )
        auth_method_jwt_id_key: str = Field(
            default="oid", min_length=1, description="The claim that says who somebody is."
        )
        auth_method_jwt_tenant_id: str | None = Field(
            default=None,
            description="The tenant of Entra ID: sets its issuers, of v1 and v2 tokens, and keys.",
        )
        auth_method_jwt_issuer: str = Field(
            default="", description="The issuers that are believed (`iss`), separated by commas."
        )
        auth_method_jwt_audience: str = Field(
            default="",
            description="Whom a token has to be for (`aud`), separated by commas; with Entra ID "
            "the application's id and its `api://` URI.",
        )
        auth_method_jwt_jwks_uri: str = Field(
            default="",
            description="Where the issuers' keys are: one for all, or as many as issuers, "
            "separated by commas. By default as each issuer's OpenID configuration says.",
        )
        auth_method_jwt_algorithms: str = Field(
            default="RS256", description="The algorithms of signatures, separated by commas."
        )
        auth_method_jwt_required_roles: str = Field(
            default="",
            description="A token needs one of these application roles, or of the scopes below.",
        )
        auth_method_jwt_required_scopes: str = Field(
            default="", description="A token needs one of these scopes, or of the roles above."
        )
        auth_method_jwt_leeway: float = Field(
            default=60,
            ge=0,
            le=_MOST_LEEWAY,
            description="Seconds that clocks may differ by.",
        )
        auth_method_jwt_verify_signature: bool = Field(
            default=True,
            description="Whether signatures are verified. Off only behind something that does.",
        )

    def __init__(self, options: Options, surroundings: Surroundings, now: Now) -> None:
        """Raises `ConfigurationError` for options that do not go together."""
        self._header = options.auth_method_jwt_header_name
        self._id_key = options.auth_method_jwt_id_key
        self._roles = frozenset(listed(options.auth_method_jwt_required_roles))
        self._scopes = frozenset(listed(options.auth_method_jwt_required_scopes))
        self._alone = "apikey" not in surroundings.methods
        self._several = "easyauth" in surroundings.methods
        self._now = now
        self._seen: OrderedDict[bytes, _Seen] = OrderedDict()
        uris = _issuers(options)
        _check(options, uris)
        shared: dict[str, Jwks] = {}
        keys = {}
        for issuer, uri in uris.items():
            found = Jwks(surroundings.web, lambda: now().timestamp(), issuer=issuer, uri=uri)
            keys[issuer] = shared.setdefault(uri or issuer, found)
        self._issuers = Issuers(
            keys,
            listed(options.auth_method_jwt_audience),
            listed(options.auth_method_jwt_algorithms),
            options.auth_method_jwt_leeway,
            options.auth_method_jwt_verify_signature,
            lambda: now().timestamp(),
        )
        self._several |= self._issuers.several
        if not self._issuers.verifies:
            log.warning("auth_method_jwt_verify_signature is off: anybody can forge a token")

    def faults(self, identity: Identity) -> Iterable[tuple[str, str]]:
        """What is wrong with an entry, by where it stands, if tokens come of several issuers."""
        if not self._several:
            return
        which = "which issuer's it is, since there are several"
        if "auth_key" in identity.model_fields_set:
            yield "auth_key", f"does not say {which}; write claims, with iss or tid"
        if identity.claims and not {"iss", "tid"} & identity.claims.keys():
            yield "claims", f"do not say {which}; add iss or tid"

    def missing(self) -> Unauthenticated:
        header = self._header or "Authorization: Bearer"
        return NoToken(f"You didn't provide a token: send it as '{header} <token>'.")

    async def authenticate(self, request: Request, identities: Identities) -> Caller | None:
        given = credentials(request, self._header)
        tokens = [it for it in given if looks_like_token(it)]
        if not tokens:
            return None
        if self._alone and len(tokens) < len(given):
            refuse("another credential is beside it")
        callers = [await self._caller(token, identities) for token in tokens]
        if len({caller.id for caller in callers}) > 1:
            raise InvalidToken("The request carries the tokens of two identities.")
        return callers[0]

    async def _caller(self, token: str, identities: Identities) -> Caller:
        digest = hashlib.sha256(token.encode()).digest()
        now = self._now().timestamp()
        seen = self._seen.get(digest)
        if (
            seen is None
            or now >= seen.until
            or self._issuers.vouching(seen.claims) is not seen.keys
        ):
            claims = await self._issuers.claims(token)
            until = min(claims["exp"], now + _BELIEVED)
            seen = _Seen(until, claims, self._issuers.vouching(claims))
            self._seen[digest] = seen
            if len(self._seen) > _REMEMBERED:
                self._seen.popitem(last=False)
        if seen.caller is None or seen.identities is not identities:
            seen.caller = self._identified(seen.claims, identities)
            seen.identities = identities
        return seen.caller

    def _identified(self, claims: Claims, identities: Identities) -> Caller:
        subject = claims.get(self._id_key)
        if not is_name(subject):
            refuse("it does not say whose it is")
        self._require(claims)
        found = identities.by_claims(claims, self._id_key)
        if found is None:
            raise IdentityNotAllowed("The token is valid, but nobody here is known by it.")
        identity, is_person = found
        # Those who share an entry share nothing else; and what one issuer calls somebody, another
        # may call somebody else.
        issuer = f"@{authority(claims['iss'])}" if self._issuers.several else ""
        id = identity.id if is_person else f"{identity.id}/{subject}{issuer}"
        return Caller(identity, id, "jwt")

    def _require(self, claims: Claims) -> None:
        if not self._roles and not self._scopes:
            return
        scopes = values(claims, "scp") | values(claims, "scope")
        if not (self._roles & values(claims, "roles") or self._scopes & scopes):
            raise IdentityNotAllowed("The token has none of the roles or scopes needed here.")


def _issuers(options: Jwt.Options) -> Mapping[str, str | None]:
    """Each issuer, and where its keys are; None: as it says itself. Empty where that is not said of
    each.
    """
    tenant = (options.auth_method_jwt_tenant_id or "").lower()
    own = [f"{ENTRA_V1}{tenant}/", f"{ENTRA_V2}{tenant}/v2.0"] if tenant else []
    named = listed(options.auth_method_jwt_issuer) or own
    uris: Sequence[str | None] = listed(options.auth_method_jwt_jwks_uri)
    if len(uris) < 2:
        uris = [uris[0] if uris else None] * len(named)
    if len(uris) != len(named):
        return {}
    found = dict(zip(named, uris, strict=True))
    # What is said of other issuers is not said of the tenant: their keys speak for them alone.
    for issuer in own:
        found[issuer] = found.get(issuer) or f"{ENTRA_V2}{tenant}/discovery/v2.0/keys"
    return found


def _check(options: Jwt.Options, issuers: Mapping[str, str | None]) -> None:
    faults = {}
    wanted = options.auth_method_jwt_issuer or options.auth_method_jwt_tenant_id
    if options.auth_method_jwt_verify_signature:
        if not wanted:
            faults["auth_method_jwt_issuer"] = (
                "is needed; write who issues the tokens, or set auth_method_jwt_tenant_id"
            )
        if not listed(options.auth_method_jwt_audience):
            faults["auth_method_jwt_audience"] = "is needed; write whom the tokens are for"
        for issuer, uri in issuers.items():
            if not _is_safe(uri or issuer):
                name = "auth_method_jwt_jwks_uri" if uri else "auth_method_jwt_issuer"
                faults[name] = "keys are only taken by https; give a URL that starts with https://"
    tenant = options.auth_method_jwt_tenant_id
    if tenant is not None and not _TENANT.fullmatch(tenant):
        faults["auth_method_jwt_tenant_id"] = (
            "has to be the tenant's id, 32 hex digits with dashes; no name of it stands in tokens"
        )
    if wanted and not issuers:
        faults["auth_method_jwt_jwks_uri"] = "has to be one for all, or one for each issuer"
    algorithms = listed(options.auth_method_jwt_algorithms)
    unknown = [it for it in algorithms or [""] if it not in _ALGORITHMS]
    if unknown:
        faults["auth_method_jwt_algorithms"] = (
            f"{unknown[0]!r} is not one of {', '.join(sorted(_ALGORITHMS))}"
        )
    if faults:
        raise ConfigurationError([f"{k}: {v}" for k, v in faults.items()], list(faults))


def _is_safe(url: str) -> bool:
    """Whether nobody on the way can put keys of their own in the place of those there."""
    parts = urlsplit(url)
    local = parts.hostname in ("localhost", "127.0.0.1", "::1")
    return bool(parts.hostname) and (parts.scheme == "https" or (parts.scheme == "http" and local))


PLUGIN = Jwt
