"""Who is calling. A method is one module here: a class of `Authenticator`, named by `PLUGIN`."""

import re
from collections.abc import Callable, Iterable, Sequence
from datetime import datetime
from typing import Protocol, TypeGuard

import msgspec

from llamaxing.errors import Unauthenticated
from llamaxing.http import Request
from llamaxing.identity import Identities, Identity

Now = Callable[[], datetime]

_HEADERS = ("authorization", "api-key")
# RFC 7515 section 7.1: three parts in base64url; the first is JSON, so it begins with `{"`.
_TOKEN = re.compile(r"eyJ[\w-]*\.[\w-]*\.[\w-]*", re.ASCII)


class Caller(msgspec.Struct, frozen=True):
    """The identity, and the `id` under which what is the caller's is known: the identity's own, or
    with a person behind it where several share an entry. `how`: what they showed, for records.
    """

    identity: Identity
    id: str
    how: str


class Authenticator(Protocol):
    """Made of its `Options`, the gateway's surroundings, and what time it is."""

    def faults(self, identity: Identity) -> Iterable[tuple[str, str]]:
        """What is wrong with an entry of identities.json for this method: where, and what."""

    def missing(self) -> Unauthenticated:
        """What a caller is told who shows nothing that any method knows."""

    async def authenticate(self, request: Request, identities: Identities) -> Caller | None:
        """Which of `identities` is calling, or None when the request has no credential that this
        method knows.

        Raises `Unauthenticated` for one it knows and does not accept, `IdentityNotAllowed` for one
        that is good and nobody's here.
        """


def credentials(request: Request, header: str | None = None) -> list[str]:
    """The credentials of a request: those of `Authorization: Bearer` and of `api-key`.

    A `header` replaces both; any but Authorization carries the raw value.
    Raises `Unauthenticated` for another scheme, or for more than one value in a header.
    """
    given = request.headers
    names = (header.lower(),) if header else _HEADERS
    return [
        _bearer(given[name]) if name == "authorization" else given[name]
        for name in names
        if name in given
    ]


def looks_like_token(credential: str) -> bool:
    """Whether it is a JWT rather than an API key."""
    return _TOKEN.fullmatch(credential) is not None


def is_name(claim: object) -> TypeGuard[str]:
    """Whether a claim can be what somebody is called, in a line of the log as well."""
    return isinstance(claim, str) and claim.isprintable() and not claim.isspace() and claim != ""


def listed(value: str) -> Sequence[str]:
    """The items of a setting that has several, separated by commas."""
    return [it.strip() for it in value.split(",") if it.strip()]


def _bearer(value: str) -> str:
    scheme, _, token = value.partition(" ")
    if scheme.lower() != "bearer" or not token or "," in token or " " in token:
        raise Unauthenticated("The Authorization header has to read 'Bearer', a space, and a key.")
    return token
