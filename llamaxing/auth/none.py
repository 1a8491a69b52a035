"""Everybody may call, and nobody is known."""

from collections.abc import Iterable

from pydantic import BaseModel

from llamaxing.auth import Caller, Now
from llamaxing.errors import Unauthenticated
from llamaxing.http import Request
from llamaxing.identity import ANONYMOUS, Identities, Identity
from llamaxing.plugins import Surroundings

_ANYBODY = Caller(ANONYMOUS, ANONYMOUS.id, "none")


class NoAuth:
    class Options(BaseModel, frozen=True):
        pass

    def __init__(self, options: Options, surroundings: Surroundings, now: Now) -> None:
        pass

    def faults(self, identity: Identity) -> Iterable[tuple[str, str]]:
        return ()

    def missing(self) -> Unauthenticated:
        return Unauthenticated("Nobody is refused here.")

    async def authenticate(self, request: Request, identities: Identities) -> Caller | None:
        return _ANYBODY


PLUGIN = NoAuth
