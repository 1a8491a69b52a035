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
        self._alone = "jwt" not in surroundings.methods
        self._now = now

    def faults(self, identity: Identity) -> Iterable[tuple[str, str]]:
        return ()

    def missing(self) -> Unauthenticated:
        ways = f"'{self._header}: <key>'" if self._header else _WAYS
        return Unauthenticated(f"You didn't provide an API key: send it as {ways}.")

    async def authenticate(self, request: Request, identities: Identities) -> Caller | None:
        found = [
            (identities.by_key(key, self._now()), key) for key in credentials(request, self._header)
        ]
        callers = [caller for caller, _ in found if caller]
        others = [key for caller, key in found if caller is None]
        tokens = [key for key in others if looks_like_token(key)]
        if len(tokens) < len(others) or (callers and others and self._alone):
            raise Unauthenticated("Incorrect API key provided.")
        if not callers:
            return None
        if len({identity.id for identity, _ in callers}) > 1:
            raise Unauthenticated("The request carries the API keys of two identities.")
        identity, key = callers[0]
        return Caller(identity, identity.id, f"apikey {key}")


_WAYS = "'Authorization: Bearer <key>' or as 'api-key: <key>'"
PLUGIN = ApiKey
