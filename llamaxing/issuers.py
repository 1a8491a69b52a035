"""The issuers whose tokens are believed, and what a token has to be like (RFC 7519, RFC 8725)."""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NoReturn, TypeGuard

import jwt
import msgspec

from llamaxing.errors import InvalidToken
from llamaxing.identity import Claims
from llamaxing.jwks import Jwks
from llamaxing.logs import TEXTS, log

ENTRA_V1 = "https://sts.windows.net/"
ENTRA_V2 = "https://login.microsoftonline.com/"
# The tenant stands in the path, in the clouds of single countries too.
_ENTRA = re.compile(r"https://[^/]+/([0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12})/(?:v2\.0/?)?")
_LONGEST = 16 * 1024


class Issuers(msgspec.Struct, frozen=True):
    """`keys`: of each issuer, by its name in `iss`; without any, `iss` may say what it likes.
    `leeway`: seconds. Without `verifies` nobody looks at signatures. `now`: seconds since 1970.
    """

    keys: Mapping[str, Jwks]
    audience: Sequence[str]
    algorithms: Sequence[str]
    leeway: float
    verifies: bool
    now: Callable[[], float]

    @property
    def several(self) -> bool:
        """Whether there is more than one that could speak of somebody."""
        return len({authority(issuer) for issuer in self.keys}) > 1

    async def claims(self, token: str) -> Claims:
        """What the token says, where all of it may be believed.

        Raises `InvalidToken`, or `JwksUnavailable` while its issuer's keys cannot be had.
        """
        if len(token) > _LONGEST:
            refuse("it is too long")
        try:
            header = jwt.get_unverified_header(token)
            claims: dict[str, Any] = jwt.decode(token, options={"verify_signature": False})
        except (jwt.PyJWTError, ValueError, TypeError, RecursionError):
            refuse("it cannot be read")
        self._check_head(header)
        keys = self._keys_of(claims)
        if self.keys and keys is None:
            refuse("its issuer is not one of those believed here")
        if self.verifies and keys is not None:
            await self._verify(token, header, keys)
        self._check_times(claims)
        if self.audience and not _is_for(claims.get("aud"), self.audience):
            refuse("it is for another audience")
        return self._of_its_tenant(claims)

    def vouching(self, claims: Claims) -> object:
        """The keys that its issuer has now: when they have changed, its token may be none."""
        keys = self._keys_of(claims)
        return keys and keys.published

    def _keys_of(self, claims: Claims) -> Jwks | None:
        issuer = claims.get("iss")
        return self.keys.get(issuer) if isinstance(issuer, str) else None

    def _check_head(self, header: Mapping[str, Any]) -> None:
        kid = header.get("kid")
        if self.verifies and header.get("alg") not in self.algorithms:
            refuse("its algorithm is not one of those used here")
        if "crit" in header:
            # RFC 7515 section 4.1.11: what is critical has to be understood, and we know nothing.
            refuse("it asks for an extension")
        if kid is not None and not isinstance(kid, str):
            refuse("its key has no name")

    async def _verify(self, token: str, header: Mapping[str, Any], keys: Jwks) -> None:
        key = await keys.key(header.get("kid"), header["alg"])
        if key is None:
            refuse("no key of its issuer has signed it")
        try:
            # The signature alone: what the token says is looked at here.
            jwt.PyJWS().decode(token, key, algorithms=[header["alg"]])
        except (jwt.PyJWTError, ValueError, TypeError, RecursionError):
            refuse("its signature is not that of its issuer's key")

    def _check_times(self, claims: Claims) -> None:
        now = self.now()
        expires, begins = claims.get("exp"), claims.get("nbf")
        if not _is_time(expires) or expires <= now - self.leeway:
            refuse("it has expired, or does not say when it does")
        if begins is not None and (not _is_time(begins) or begins > now + self.leeway):
            refuse("it is not valid yet")

    def _of_its_tenant(self, claims: dict[str, Any]) -> Claims:
        tenant = _tenant(str(claims.get("iss")))
        if tenant is not None and claims.get("tid", tenant) != tenant:
            refuse("its tenant is not that of its issuer")
        if tenant is None and self.several:
            # Another issuer may write whatever it likes there, and be taken for a tenant.
            claims.pop("tid", None)
        return claims


def authority(issuer: str) -> str:
    """What two issuers that are one have in common: Entra ID's of v1 and of v2 tokens do."""
    return _tenant(issuer) or issuer


def refuse(why: str) -> NoReturn:
    """Raises `InvalidToken`."""
    log.log(TEXTS, "a token is refused: %s", why)
    raise InvalidToken(f"The token is not accepted: {why}.")


def _tenant(issuer: str) -> str | None:
    """The tenant that an issuer of Entra ID is."""
    found = _ENTRA.fullmatch(issuer)
    return found and found[1]


def _is_time(value: Any) -> TypeGuard[float]:
    return type(value) is int or (type(value) is float and math.isfinite(value))


def _is_for(given: Any, audience: Sequence[str]) -> bool:
    found = given if isinstance(given, list) else [given]
    return all(isinstance(it, str) for it in found) and any(it in audience for it in found)
