"""Everybody may call, and nobody is known."""

from collections.abc import Callable
from datetime import datetime

from pydantic import BaseModel

from llamaxing.http import Request
from llamaxing.identity import ANONYMOUS, Identities, Identity


class NoAuth:
    class Options(BaseModel, frozen=True):
        pass

    def __init__(self, options: Options, now: Callable[[], datetime]) -> None:
        pass

    async def authenticate(self, request: Request, identities: Identities) -> Identity | None:
        return ANONYMOUS


PLUGIN = NoAuth
