"""Langfuse: one trace with one generation an exchange, in the project of the identity that called.

Spans have the attributes that the `langfuse` package, version 5, gives them. That package itself
does not tell whether they arrived, and keeps a client with threads for each project.
"""

import asyncio
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Self

import httpx
from pydantic import BaseModel, Field, SecretStr, field_validator, model_validator

from llamaxing import otlp
from llamaxing.fitting import fitted
from llamaxing.generation import span
from llamaxing.identity import ANONYMOUS
from llamaxing.plugins import Surroundings
from llamaxing.sinks import Partly, Record

# The server reads the values of attributes by the SDK that has written them.
_SDK = "5.0.4"
# What no second try mends: wrong keys, and what the server cannot read or take.
_NEVER = frozenset({400, 401, 403, 413, 422})
# Bytes of one request; Langfuse's own limit is 4.5 MB.
_LARGEST = 3_500_000

Keys = tuple[str, SecretStr]


class Throttled(ConnectionError):
    """A project has had as much as it may."""


class Langfuse:
    """Identities have their keys; the others have those of the settings, or no traces."""

    batch = 50
    timeout = 10.0
    """Seconds that the server may take."""

    class Options(BaseModel, frozen=True):
        observability_client_langfuse_host: str = Field(
            default="https://cloud.langfuse.com", description="The Langfuse server."
        )
        observability_client_langfuse_public_key: str | None = Field(
            default=None,
            description="The Langfuse project of identities without `observability`; without it "
            "they have no traces.",
        )
        observability_client_langfuse_secret_key: SecretStr | None = Field(
            default=None, description="That project's secret key."
        )

        @field_validator("observability_client_langfuse_host")
        @classmethod
        def _host(cls, value: str) -> str:
            if not value.startswith(("http://", "https://")):
                raise ValueError("has to begin with 'http://' or 'https://'")
            return value.rstrip("/")

        @model_validator(mode="after")
        def _both_keys(self) -> Self:
            names = [f"observability_client_langfuse_{it}_key" for it in ("public", "secret")]
            missing = [name for name in names if getattr(self, name) is None]
            if len(missing) == 1:
                raise ValueError(
                    f"{missing[0]}: is missing beside the other key; set both, or neither"
                )
            return self

    def __init__(self, options: Options, surroundings: Surroundings) -> None:
        self._url = f"{options.observability_client_langfuse_host}/api/public/otel/v1/traces"
        public = options.observability_client_langfuse_public_key
        secret = options.observability_client_langfuse_secret_key
        self._default: Keys | None = (public, secret) if public and secret else None
        self._web = surroundings.web
        self._identities = surroundings.identities

    async def deliver(self, records: Sequence[Record]) -> Mapping[str, str]:
        projects, refused = self._projects(records)
        outcomes = await asyncio.gather(
            *(self._send(keys, group) for keys, group in projects.items()), return_exceptions=True
        )
        later: list[str] = []
        failed: BaseException | None = None
        for group, outcome in zip(projects.values(), outcomes, strict=True):
            if isinstance(outcome, BaseException):
                later += [record["id"] for record in group]
                failed = outcome
            else:
                refused |= outcome
        if failed is None:
            return refused
        if len(later) == len(records) and not isinstance(failed, Throttled):
            raise failed
        # A project that takes no more for now does not make the others wait.
        raise Partly(later, refused, str(failed) or type(failed).__name__) from failed

    async def aclose(self) -> None:
        return None

    def _projects(
        self, records: Sequence[Record]
    ) -> tuple[Mapping[Keys, Sequence[Record]], dict[str, str]]:
        """The records of each, and why others have none; without those that nobody traces."""
        projects: dict[Keys, list[Record]] = defaultdict(list)
        refused: dict[str, str] = {}
        for record in records:
            try:
                keys = self._keys(record)
            except LookupError as error:
                refused[record["id"]] = str(error)
            else:
                if keys is not None:
                    projects[keys].append(record)
        return projects, refused

    def _keys(self, record: Record) -> Keys | None:
        """The keys that are configured now. Raises `LookupError` where nobody knows which."""
        if record["identity"] is None:
            return None
        id = record["identity"].get("entry", record["identity"]["id"])
        identity = self._identities().by_id(id)
        if identity is None and id != ANONYMOUS.id:
            # Whose project this was is not known: it must not go to another.
            raise LookupError("its identity is not configured any more")
        if identity is None or identity.observability is None:
            return self._default
        own = identity.observability
        return own.langfuse_public_key, own.langfuse_secret_key

    async def _send(self, keys: Keys, records: Sequence[Record]) -> dict[str, str]:
        spans = await asyncio.to_thread(lambda: [*map(_encoded, records)])
        refused: dict[str, str] = {}
        for part in _parts(spans):
            status = await self._post(keys, [spans[at] for at in part])
            if status == 413 and len(part) > 1:
                # One of them may be too large, and the others not.
                alone = [await self._post(keys, [spans[at]]) for at in part]
            else:
                alone = [status] * len(part)
            refused |= {
                records[at]["id"]: f"Langfuse answers {status}"
                for at, status in zip(part, alone, strict=True)
                if status in _NEVER
            }
        return refused

    async def _post(self, keys: Keys, spans: Sequence[bytes]) -> int:
        """The status: 2xx, or one that means never. Raises for every other."""
        public, secret = keys
        reply = await self._web.post(
            self._url,
            content=otlp.request(spans, "langfuse-sdk", _SDK, {"service.name": "llamaxing"}),
            headers={
                "content-type": otlp.CONTENT_TYPE,
                "x-langfuse-sdk-name": "python",
                "x-langfuse-sdk-version": _SDK,
                "x-langfuse-public-key": public,
                "x-langfuse-ingestion-version": "4",
            },
            auth=httpx.BasicAuth(public, secret.get_secret_value()),
            timeout=self.timeout,
        )
        if reply.status_code == 429:
            raise Throttled(f"Langfuse answers 429 for {public}")
        if not reply.is_success and reply.status_code not in _NEVER:
            raise ConnectionError(f"Langfuse answers {reply.status_code}")
        return reply.status_code


PLUGIN = Langfuse


def _encoded(record: Record) -> bytes:
    """The span of a record; the largest texts are cut of one that Langfuse would not take."""
    whole = span(record).encoded()
    if len(whole) <= _LARGEST:
        return whole
    return span(fitted(record, lambda it: len(span(it).encoded()) - _LARGEST)).encoded()


def _parts(spans: Sequence[bytes]) -> list[list[int]]:
    """The places of the spans, in parts that one request may have."""
    parts: list[list[int]] = []
    size = 0
    for at, encoded in enumerate(spans):
        size += len(encoded)
        if not parts or size > _LARGEST:
            parts.append([])
            size = len(encoded)
        parts[-1].append(at)
    return parts
