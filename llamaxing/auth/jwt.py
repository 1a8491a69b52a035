"""Tokens (RFC 7519) of Entra ID, or of any OpenID Connect issuer."""

import hashlib
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NoReturn, TypeGuard

import jwt
from jwt.types import Options as PyJWTOptions
from pydantic import BaseModel, Field

from llamaxing.auth import Caller, Now, credentials, listed, looks_like_token
from llamaxing.errors import ConfigurationError, IdentityNotAllowed, InvalidToken, Unauthenticated
from llamaxing.http import Request
from llamaxing.identity import Claims, Identities, Identity
from llamaxing.jwks import Jwks
from llamaxing.logs import TEXTS, log
from llamaxing.plugins import Surroundings

_LONGEST = 16 * 1024
_REMEMBERED = 1000
# Seconds that a verified token is believed without a look at its key.
_BELIEVED = 300.0
_MOST_LEEWAY = 300.0
# Public keys verify these; with a shared secret anybody who knows it could sign.
_ALGORITHMS = frozenset(
    {"RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA"}
)
_ENTRA = "https://login.microsoftonline.com"
_ENTRA_V1 = "https://sts.windows.net/"
_ENTRA_V2 = f"{_ENTRA}/"


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
        self._verifies = options.auth_method_jwt_verify_signature
        self._leeway = options.auth_method_jwt_leeway
        self._algorithms = listed(options.auth_method_jwt_algorithms)
        self._audience = listed(options.auth_method_jwt_audience)
        self._roles = frozenset(listed(options.auth_method_jwt_required_roles))
        self._scopes = frozenset(listed(options.auth_method_jwt_required_scopes))
        self._now = now
        self._remembered: OrderedDict[bytes, tuple[float, Claims]] = OrderedDict()
        uris = _issuers(options)
        _check(options, uris, self._algorithms, self._audience)
        shared: dict[str, Jwks] = {}
        self._issuers: dict[str, Jwks] = {}
        for issuer, uri in uris.items():
            keys = Jwks(surroundings.web, lambda: now().timestamp(), issuer=issuer, uri=uri)
            self._issuers[issuer] = shared.setdefault(uri or issuer, keys)
        self._authorities = {_authority(issuer) for issuer in uris}
        if not self._verifies:
            log.warning("auth_method_jwt_verify_signature is off: anybody can forge a token")

    def faults(self, identity: Identity) -> Iterable[tuple[str, str]]:
        """What is wrong with an entry, by where it stands, if tokens come of several issuers."""
        if len(self._authorities) < 2:
            return
        which = "which issuer's it is, since there are several"
        if "auth_key" in identity.model_fields_set:
            yield "auth_key", f"does not say {which}; write claims, with iss or tid"
        if identity.claims and not {"iss", "tid"} & identity.claims.keys():
            yield "claims", f"do not say {which}; add iss or tid"

    def missing(self) -> Unauthenticated:
        header = self._header or "Authorization: Bearer"
        return InvalidToken(f"You didn't provide a token: send it as '{header} <token>'.")

    async def authenticate(self, request: Request, identities: Identities) -> Caller | None:
        tokens = credentials(request, self._header)
        if not any(map(looks_like_token, tokens)):
            return None
        callers = [await self._caller(token, identities) for token in tokens]
        if len({caller.id for caller in callers}) > 1:
            raise InvalidToken("The request carries the tokens of two identities.")
        return callers[0]

    async def _caller(self, token: str, identities: Identities) -> Caller:
        claims = await self._claims(token)
        subject = claims.get(self._id_key)
        if not isinstance(subject, str) or not subject.strip():
            self._refuse(f"its claim {self._id_key} names nobody")
        self._require(claims)
        found = identities.by_claims(claims, self._id_key)
        if found is None:
            raise IdentityNotAllowed("The token is valid, but nobody here is known by it.")
        identity, is_person = found
        # Those who share an entry share nothing else.
        id = identity.id if is_person else f"{identity.id}/{subject}"
        return Caller(identity, id, "jwt")

    def _require(self, claims: Claims) -> None:
        if not self._roles and not self._scopes:
            return
        roles = claims.get("roles")
        given = set(roles if isinstance(roles, list) else [])
        scopes = set(str(claims.get("scp") or claims.get("scope") or "").split())
        if not (self._roles & given or self._scopes & scopes):
            raise IdentityNotAllowed("The token has none of the roles or scopes needed here.")

    async def _claims(self, token: str) -> Claims:
        if len(token) > _LONGEST:
            self._refuse("it is too long")
        key = hashlib.sha256(token.encode()).digest()
        now = self._now().timestamp()
        until, claims = self._remembered.get(key, (0.0, {}))
        if now < until:
            return claims
        claims = await self._verified(token)
        self._remembered[key] = (min(claims["exp"], now + _BELIEVED), claims)
        if len(self._remembered) > _REMEMBERED:
            self._remembered.popitem(last=False)
        return claims

    async def _verified(self, token: str) -> Claims:
        try:
            header = jwt.get_unverified_header(token)
            unverified = jwt.decode(token, options={"verify_signature": False})
        except (jwt.PyJWTError, ValueError, TypeError, RecursionError):
            self._refuse("it cannot be read")
        self._check_head(header)
        issuer = unverified.get("iss")
        jwks = self._issuers.get(issuer) if isinstance(issuer, str) else None
        if self._issuers and jwks is None:
            self._refuse("its issuer is not one of those believed here")
        if self._verifies and jwks is not None:
            kid = header.get("kid")
            found = await jwks.key(kid)
            if found is None or found.algorithm_name not in (None, header["alg"]):
                self._refuse("no key of its issuer has signed it")
            self._decode(token, found)
        self._check_claims(unverified)
        return unverified

    def _check_head(self, header: Mapping[str, Any]) -> None:
        kid = header.get("kid")
        if self._verifies and header.get("alg") not in self._algorithms:
            self._refuse("its algorithm is not one of those used here")
        if "crit" in header:
            # RFC 7515 section 4.1.11: what is critical has to be understood, and we know nothing.
            self._refuse("it asks for an extension")
        if kid is not None and not isinstance(kid, str):
            self._refuse("its key has no name")

    def _decode(self, token: str, key: jwt.PyJWK) -> None:
        checks: PyJWTOptions = {
            "verify_aud": False,
            "verify_exp": False,
            "verify_nbf": False,
            "verify_iat": False,
            "verify_iss": False,
        }
        try:
            jwt.decode(token, key, algorithms=list(self._algorithms), options=checks)
        except (jwt.PyJWTError, ValueError, TypeError, RecursionError):
            self._refuse("its signature is not that of its issuer's key")

    def _check_claims(self, claims: Claims) -> None:
        now = self._now().timestamp()
        expires, begins = claims.get("exp"), claims.get("nbf")
        if not _is_time(expires) or expires <= now - self._leeway:
            self._refuse("it has expired, or does not say when it does")
        if begins is not None and (not _is_time(begins) or begins > now + self._leeway):
            self._refuse("it is not valid yet")
        if self._audience and not _is_for(claims.get("aud"), self._audience):
            self._refuse("it is for another audience")
        tenant = _tenant(str(claims.get("iss")))
        if tenant is not None and claims.get("tid", tenant) != tenant:
            self._refuse("its tenant is not that of its issuer")

    def _refuse(self, why: str) -> NoReturn:
        log.log(TEXTS, "a token is refused: %s", why)
        raise InvalidToken(f"The token is not accepted: {why}.")


def _issuers(options: Jwt.Options) -> Mapping[str, str | None]:
    """Each issuer, and where its keys are; None: as it says itself."""
    issuers = list(listed(options.auth_method_jwt_issuer))
    uris: list[str | None] = list(listed(options.auth_method_jwt_jwks_uri))
    if tenant := options.auth_method_jwt_tenant_id:
        own = [f"{_ENTRA_V1}{tenant}/", f"{_ENTRA_V2}{tenant}/v2.0"]
        entra = uris or [f"{_ENTRA_V2}{tenant}/discovery/v2.0/keys"]
        added = [it for it in own if it not in issuers]
        if not issuers:
            return dict.fromkeys(added, entra[0])
        uris = [*(uris or [None] * len(issuers)), *[entra[0]] * len(added)]
        issuers += added
    if len(uris) < 2:
        return dict.fromkeys(issuers, uris[0] if uris else None)
    return dict(zip(issuers, uris, strict=False)) if len(uris) == len(issuers) else {}


def _check(
    options: Jwt.Options,
    issuers: Mapping[str, str | None],
    algorithms: Sequence[str],
    audience: Sequence[str],
) -> None:
    faults = {}
    wanted = options.auth_method_jwt_issuer or options.auth_method_jwt_tenant_id
    if options.auth_method_jwt_verify_signature:
        if not wanted:
            faults["auth_method_jwt_issuer"] = (
                "is needed; write who issues the tokens, or set auth_method_jwt_tenant_id"
            )
        if not audience:
            faults["auth_method_jwt_audience"] = "is needed; write whom the tokens are for"
    if wanted and not issuers:
        faults["auth_method_jwt_jwks_uri"] = "has to be one for all, or one for each issuer"
    unknown = [it for it in algorithms or [""] if it not in _ALGORITHMS]
    if unknown:
        faults["auth_method_jwt_algorithms"] = (
            f"{unknown[0]!r} is not one of {', '.join(sorted(_ALGORITHMS))}"
        )
    if faults:
        raise ConfigurationError([f"{k}: {v}" for k, v in faults.items()], list(faults))


def _is_time(value: Any) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_for(given: Any, audience: Sequence[str]) -> bool:
    found = given if isinstance(given, list) else [given]
    return all(isinstance(it, str) for it in found) and any(it in audience for it in found)


def _tenant(issuer: str) -> str | None:
    """The tenant that an issuer of Entra ID is."""
    for beginning in (_ENTRA_V1, _ENTRA_V2):
        if issuer.startswith(beginning):
            return issuer.removeprefix(beginning).partition("/")[0]
    return None


def _authority(issuer: str) -> str:
    """What two issuers that are one have in common."""
    return _tenant(issuer) or issuer


PLUGIN = Jwt
