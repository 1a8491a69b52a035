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
        caller: Caller | None = None
        tokens = False
        for key in credentials(request, self._header):
            found = identities.by_key(key, self._now())
            if found is None:
                if not looks_like_token(key):
                    raise _incorrect()
                tokens = True
            elif caller is not None and caller.id != found[0].id:
                raise Unauthenticated("The request carries the API keys of two identities.")
            elif caller is None:
                caller = Caller(found[0], found[0].id, f"apikey {found[1]}")
        if caller is not None and tokens and self._alone:
            raise _incorrect()
        return caller


def _incorrect() -> Unauthenticated:
    return Unauthenticated("Incorrect API key provided.")


_WAYS = "'Authorization: Bearer <key>' or as 'api-key: <key>'"
PLUGIN = ApiKey
