"""App Service Authentication ("Easy Auth"): the platform has verified the caller, and says who."""

import base64
import json
from collections.abc import Iterable
from typing import Any

from pydantic import BaseModel

from llamaxing.auth import Caller, Now, is_name
from llamaxing.errors import (
    ConfigurationError,
    IdentityNotAllowed,
    InvalidToken,
    NoToken,
    Unauthenticated,
)
from llamaxing.http import Request
from llamaxing.identity import Identities, Identity
from llamaxing.plugins import Surroundings

# Present with the value False where the platform's authentication is off.
_MARKER = "WEBSITE_AUTH_ENABLED"
_PRINCIPAL = "x-ms-client-principal"
# The long names that the platform gives some claims of Entra ID.
_SHORT = {
    "http://schemas.microsoft.com/identity/claims/objectidentifier": "oid",
    "http://schemas.microsoft.com/identity/claims/tenantid": "tid",
    "http://schemas.microsoft.com/identity/claims/scope": "scp",
    "http://schemas.microsoft.com/ws/2008/06/identity/claims/role": "roles",
    "http://schemas.microsoft.com/ws/2008/06/identity/claims/groups": "groups",
}
_ENTRA = "aad"
_LISTS = frozenset({"roles", "groups"})


class EasyAuth:
    class Options(BaseModel, frozen=True):
        pass

    def __init__(self, options: Options, surroundings: Surroundings, now: Now) -> None:
        """Raises `ConfigurationError` where anybody could write the platform's headers."""
        if surroundings.environ.get(_MARKER, "").strip().lower() != "true":
            what = f"'easyauth' needs App Service Authentication, and {_MARKER} is not true here"
            raise ConfigurationError(
                [f"auth_method: {what}; switch it on, or choose another method"], ["auth_method"]
            )

    def faults(self, identity: Identity) -> Iterable[tuple[str, str]]:
        return ()

    def missing(self) -> Unauthenticated:
        return NoToken("You are not signed in.")

    async def authenticate(self, request: Request, identities: Identities) -> Caller | None:
        given = request.headers.get(_PRINCIPAL)
        if given is None:
            return None
        claims = _claims(given)
        if "oid" not in claims:
            claims["oid"] = request.headers.get(f"{_PRINCIPAL}-id", "")
        subject = claims["oid"]
        if not is_name(subject):
            raise InvalidToken("The platform does not say who you are.")
        found = identities.by_claims(claims, "oid")
        if found is None:
            raise IdentityNotAllowed("You are signed in, but nobody here is known by that.")
        identity, is_person = found
        return Caller(
            identity, identity.id if is_person else f"{identity.id}/{subject}", "easyauth"
        )


def _claims(principal: str) -> dict[str, Any]:
    try:
        said = json.loads(base64.b64decode(principal, validate=True))
        pairs = [(_SHORT.get(it["typ"], it["typ"]), it["val"]) for it in said["claims"]]
    except (ValueError, KeyError, TypeError, RecursionError):
        raise InvalidToken("What the platform says of you cannot be read.") from None
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name in _LISTS:
            found.setdefault(name, []).append(value)
        else:
            found[name] = value
    if said.get("auth_typ") != _ENTRA:
        # Another provider may write whatever it likes there, and be taken for a tenant.
        found.pop("tid", None)
    return found


PLUGIN = EasyAuth
