"""API keys, as `Authorization: Bearer <key>` or as `api-key: <key>`."""

from collections.abc import Iterable

from pydantic import BaseModel, Field

from llamaxing.auth import Caller, Now, credentials, looks_like_token
from llamaxing.errors import Unauthenticated
from llamaxing.http import Request
from llamaxing.identity import Identities, Identity
from llamaxing.plugins import Surroundings


class ApiKey:
    class Options(BaseModel, frozen=True):
        auth_method_apikey_header_name: str | None = Field(
            default=None,
            description="The one header that carries the key, instead of `Authorization` and "
            "`api-key`.",
        )

    def __init__(self, options: Options, surroundings: Surroundings, now: Now) -> None:
        self._header = options.auth_method_apikey_header_name
        self._now = now

    def faults(self, identity: Identity) -> Iterable[tuple[str, str]]:
        return ()

    def missing(self) -> Unauthenticated:
        ways = f"'{self._header}: <key>'" if self._header else _WAYS
        return Unauthenticated(f"You didn't provide an API key: send it as {ways}.")

    async def authenticate(self, request: Request, identities: Identities) -> Caller | None:
        given = credentials(request, self._header)
        found = [identities.by_key(key, self._now()) for key in given]
        if not any(found) and all(map(looks_like_token, given)):
            return None
        callers = [it for it in found if it]
        if len(callers) < len(given):
            raise Unauthenticated("Incorrect API key provided.")
        if len({identity.id for identity, _ in callers}) > 1:
            raise Unauthenticated("The request carries the API keys of two identities.")
        identity, key = callers[0]
        return Caller(identity, identity.id, f"apikey {key}")


_WAYS = "'Authorization: Bearer <key>' or as 'api-key: <key>'"
PLUGIN = ApiKey
