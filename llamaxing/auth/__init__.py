"""Who is calling. A method is one module here: a class of `Authenticator`, named by `PLUGIN`."""

from typing import Protocol

from llamaxing.errors import Unauthenticated
from llamaxing.http import Request
from llamaxing.identity import Identities, Identity


class Authenticator(Protocol):
    async def authenticate(self, request: Request, identities: Identities) -> Identity | None:
        """Which of `identities` is calling, or None when the request has no credential that this
        method knows.

        Raises `Unauthenticated` for one it knows and does not accept.
        """


def credentials(request: Request, header: str | None = None) -> list[str]:
    """The credentials of a request: those of `Authorization: Bearer` and of `api-key`.

    A `header` replaces both; any but Authorization carries the raw value.
    Raises `Unauthenticated` for another scheme, or for more than one value in a header.
    """
    names = [header.lower()] if header else ["authorization", "api-key"]
    values = [(name, request.headers[name]) for name in names if name in request.headers]
    return [_bearer(value) if name == "authorization" else value for name, value in values]


def _bearer(value: str) -> str:
    scheme, _, token = value.partition(" ")
    if scheme.lower() != "bearer" or not token or "," in token or " " in token:
        raise Unauthenticated("The Authorization header has to read 'Bearer', a space, and a key.")
    return token
