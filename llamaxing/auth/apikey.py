"""API keys, as `Authorization: Bearer <key>` or as `api-key: <key>`."""

from collections.abc import Callable
from datetime import datetime

from pydantic import BaseModel, Field

from llamaxing.auth import credentials
from llamaxing.errors import Unauthenticated
from llamaxing.http import Request
from llamaxing.identity import Identities, Identity


class ApiKey:
    class Options(BaseModel, frozen=True):
        auth_method_apikey_header_name: str | None = Field(
            default=None,
            description="The one header that carries the key, instead of `Authorization` and "
            "`api-key`.",
        )

    def __init__(self, options: Options, now: Callable[[], datetime]) -> None:
        self._header = options.auth_method_apikey_header_name
        self._now = now

    async def authenticate(self, request: Request, identities: Identities) -> Identity | None:
        given = credentials(request, self._header)
        known = [identities.by_key(key, self._now()) for key in given]
        if None in known:
            raise Unauthenticated("Incorrect API key provided.")
        if len({identity.id for identity in known if identity}) > 1:
            raise Unauthenticated("The request carries the API keys of two identities.")
        return known[0] if known else None


PLUGIN = ApiKey
