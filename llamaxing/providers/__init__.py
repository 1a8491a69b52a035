"""Where a model runs. A provider is one module here: a class of `Instance`, named by `PLUGIN`."""

import re
from abc import abstractmethod
from collections.abc import Hashable, Mapping
from typing import Annotated, Any
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field, SecretStr

from llamaxing.credentials.entra import Tokens
from llamaxing.document import NotBoolean, Strict
from llamaxing.endpoints import Endpoint


def _base_url(url: str) -> str:
    _check_ends(url)
    if not _BEGIN(url):
        raise ValueError("has to be a URL that starts with https:// (or http://)")
    if not _can_be_called(url):
        raise ValueError("has a host, a port or a character that no URL can have")
    parts = urlsplit(url)
    if parts.query or parts.fragment or parts.username or parts.password:
        raise ValueError("has to be a URL without a query, a fragment or a user in it")
    return url.rstrip("/")


_BEGIN = re.compile(r"https?://[^/?#]", re.IGNORECASE).match
_PLAIN = re.compile(r"[^\s\\\x00-\x1f\x7f]+").fullmatch


def _can_be_called(url: str) -> bool:
    try:
        parts = urlsplit(url)
        port, host = parts.port, (parts.hostname or "").encode("idna")
    except ValueError:
        return False
    return port != 0 and host != b"" and _PLAIN(url) is not None


def _check_ends(text: str) -> None:
    # The end of a line comes along with many a secret that is kept in a file.
    if text != text.strip():
        raise ValueError("has white space around it; take that away")


def _header(text: str) -> str:
    _check_ends(text)
    if not (text.isascii() and text.isprintable()):
        raise ValueError("has a character that no header can have; write it anew")
    return text


def _secret_header(secret: SecretStr) -> SecretStr:
    return SecretStr(_header(secret.get_secret_value()))


BaseURL = Annotated[str, AfterValidator(_base_url)]
HeaderText = Annotated[str, AfterValidator(_header)]
Key = Annotated[SecretStr, Field(min_length=1), AfterValidator(_secret_header)]
"""A secret that is sent in a header."""


class Instance(Strict):
    """One place a model runs, as models.json has it.

    Instances of a lower `priority` are asked first, those of one priority in proportion to
    `weight`. `timeout`: seconds to wait for its first header before another is asked.
    """

    id: str = Field(min_length=1)
    provider: str
    priority: Annotated[int, NotBoolean] = Field(default=0, ge=0)
    weight: Annotated[float, NotBoolean] = Field(default=1, gt=0, allow_inf_nan=False)
    timeout: Annotated[float | None, NotBoolean] = Field(default=None, gt=0, allow_inf_nan=False)

    def __hash__(self) -> int:
        # Equality looks at all of it; this is asked for several times a call.
        return hash(self.id)

    @property
    @abstractmethod
    def account(self) -> Hashable:
        """Where it keeps things: what one instance has kept, another of the account finds."""

    @abstractmethod
    def url(self, endpoint: Endpoint, id: str = "") -> str:
        """Where to send a call of this endpoint; `id` of what is kept there, if it is about one."""

    @abstractmethod
    async def headers(self, tokens: Tokens) -> Mapping[str, str]:
        """The credential it is called with, and what else its provider wants to be told.

        Raises `ConnectionError` where there is no credential to be had just now.
        """

    def refuses_us(self, status: int, code: str | None) -> bool:
        """Whether a 401 or 403 with this code in its error is about the gateway's credential."""
        return True

    @abstractmethod
    def edits(self, endpoint: Endpoint, model: str) -> Mapping[str, Any]:
        """The members of a request for `model` that have to say something else here."""
