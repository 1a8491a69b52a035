"""Secrets that are recognised wherever they turn up, also in part; and a net for the whole run."""

import re
import secrets
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, get_args

import httpx
from pydantic import SecretStr
from pymongo import monitoring

from llamaxing.settings import every_setting

# So much of one is told from chance, and is of use to whoever finds it.
_PART = 16
LONGEST_PART = 3 * _PART
# Shorter ones stand in texts by chance, and so do words.
_LEAST = 5
_MEMBERS = frozenset(
    {"auth_key", "key", "azure_api_key", "openai_api_key", "llamaxing_api_key"}
    | {"llamaxing_function_key", "langfuse_secret_key"}
)
_SETTINGS = frozenset(
    name
    for name, field in every_setting().items()
    if SecretStr in (field.annotation, *get_args(field.annotation))
)
# A line at level 3, which says what nothing else may, and a secret that is a variable or a hash.
_SENSITIVE = re.compile(r"^Level 8 .*$", re.MULTILINE)
_ELSEWHERE = re.compile(r"\$\{|sha256:|sample-")


class Canaries:
    """Secrets, by what they are."""

    def __init__(self) -> None:
        self._known: dict[str, str] = {}

    def new(self, name: str) -> str:
        return self.keep(name, f"{secrets.token_hex(8)}-{secrets.token_hex(8)}")

    def keep(self, name: str, *found: str) -> str:
        """One or several that were made elsewhere; returns the first."""
        for number, it in enumerate(found):
            self._known[f"{name} {number}" if number else name] = it
        return found[0]

    def found_in(self, text: str) -> list[str]:
        """What the secrets are that it holds, or parts of them."""
        return [name for name, it in self._known.items() if any(p in text for p in _parts(it))]


class Net(Canaries):
    """The secrets of the test that runs, and where they turned up."""

    def __init__(self) -> None:
        super().__init__()
        self._torn: list[str] = []

    def drawn(self) -> list[str]:
        """Where the test's secrets turned up. From here on it is another test."""
        self._known.clear()
        torn, self._torn = self._torn, []
        return torn

    def look(self, where: str, text: str) -> None:
        if self.found_in(text):
            found = self.found_in(_SENSITIVE.sub("", text))
            self._torn += [f"{name} in {where}" for name in found]

    def lookout(self, where: str) -> Callable[[str], None]:
        """Looks for the secrets of now also when tests have followed that do not know them."""
        known = dict(self._known)

        def look(text: str) -> None:
            self._known |= known
            self.look(where, text)

        return look

    def look_at_files(self, folder: Path) -> None:
        """What was recorded, or waits for that."""
        for pattern in ("*.jsonl", "*.db*"):
            for file in folder.glob(pattern):
                self.look(file.name, file.read_bytes().decode("latin-1"))

    def know(self, value: Any) -> None:
        """The secrets in models.json, identities.json or the settings."""
        for name, it in value.items() if isinstance(value, Mapping) else ():
            if isinstance(it, str) and (name in _MEMBERS or name.lower() in _SETTINGS):
                if len(it) >= _LEAST and not it.isalpha() and not _ELSEWHERE.match(it):
                    self.keep(f"{name} {it}", it)
            else:
                self.know(it)
        for it in value if isinstance(value, list | tuple) else ():
            self.know(it)


NET = Net()


class Watched(httpx.AsyncHTTPTransport):
    """A caller's, which has the net look at each reply."""

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        response = await super().handle_async_request(request)
        NET.look("the headers of a reply", str(response.headers))
        assert isinstance(response.stream, httpx.AsyncByteStream)
        response.stream = _Watched(response.stream)
        return response


class _Watched(httpx.AsyncByteStream):
    def __init__(self, stream: httpx.AsyncByteStream) -> None:
        self._stream = stream
        self._seen = bytearray()

    async def __aiter__(self) -> AsyncIterator[bytes]:
        async for piece in self._stream:
            self._seen += piece
            yield piece

    async def aclose(self) -> None:
        NET.look("a reply", self._seen.decode("latin-1"))
        await self._stream.aclose()


class Documents(monitoring.CommandListener):
    """What goes to MongoDB and comes from there, by clients of this process: tests' own see what
    gateways elsewhere have written."""

    def started(self, event: monitoring.CommandStartedEvent) -> None:
        NET.look("a document", str(event.command))

    def succeeded(self, event: monitoring.CommandSucceededEvent) -> None:
        NET.look("a document", str(event.reply))

    def failed(self, event: monitoring.CommandFailedEvent) -> None:
        pass


def _parts(secret: str) -> Iterator[str]:
    if secret.count(".") == 2:
        # Everybody's tokens begin alike; what is signed, and the signature, do not.
        yield from (part[-LONGEST_PART:] for part in secret.split(".")[1:] if part)
        return
    yield secret[:_PART]
    yield secret[-_PART:]
