"""What the gateway serves by: models and identities, read again when their sources change."""

import asyncio
import hashlib
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, Generic, TypeVar

import msgspec

from llamaxing.catalog import Catalog
from llamaxing.copies import Copies
from llamaxing.errors import ConfigurationError
from llamaxing.identity import Identities
from llamaxing.logs import log
from llamaxing.sources import Reading, Source

T = TypeVar("T")

# Seconds for one read of a source, its credential included.
_READ_WITHIN = 10.0


class Configuration(msgspec.Struct, frozen=True):
    """What one call is answered by, from its beginning to its end."""

    catalog: Catalog
    identities: Identities
    version: str
    """Twelve hex digits of a hash over the bytes of all sources: the same in every process."""


class Watch(Generic[T]):
    """One source, and the last good of what it held.

    `parse` makes the value of the bytes, or raises `ConfigurationError`; it is called in a thread.
    """

    value: T

    def __init__(
        self, source: Source, setting: str, parse: Callable[[bytes], T], copies: Copies
    ) -> None:
        self.source = source
        self._setting = setting
        self._parse = parse
        self._copies = copies
        self.version = ""
        self.read_at: datetime | None = None
        self.stale_since: datetime | None = None
        self._tag: str | None = None
        self._told: list[str] = []

    async def start(self) -> None:
        """The first read; or else the last good copy, where there is one.

        Raises `ConfigurationError`.
        """
        try:
            await self._take()
        except ConfigurationError as error:
            if not await self._take_copy():
                raise
            self._stay(error)

    async def look(self) -> None:
        """Takes what is new and good; else what there is serves on, and that is said once."""
        try:
            await self._take()
        except ConfigurationError as error:
            self._stay(error)

    def detail(self) -> dict[str, Any]:
        return {
            "source": self.source.name,
            "version": self.version,
            "read_at": _iso(self.read_at),
            "stale_since": _iso(self.stale_since),
        }

    async def _take(self) -> None:
        reading = await self._read()
        if reading is not None:
            if _hash(reading.content) != self.version:
                await self._use(reading.content)
                if self.source.copied_as:
                    await asyncio.to_thread(
                        self._copies.keep, self.source.copied_as, reading.content
                    )
            # Only of what is good: what is not will be read again.
            self._tag = reading.tag
        if self.stale_since is not None:
            log.info("%s is up to date again", self.source.name)
        self.read_at, self.stale_since, self._told = datetime.now(UTC), None, []

    async def _read(self) -> Reading | None:
        try:
            async with asyncio.timeout(_READ_WITHIN):
                return await self.source.read(self._tag)
        except OSError as error:
            away = isinstance(error, ConnectionError | TimeoutError)
            reason = error.strerror or str(error) or f"no answer within {_READ_WITHIN:g} s"
            fault = f"{self._setting}: {self.source.name} cannot be read: {reason}"
            raise ConfigurationError([fault], [self._setting], heals=away) from error

    async def _take_copy(self) -> bool:
        if not self.source.copied_as:
            return False
        copy = await asyncio.to_thread(self._copies.last, self.source.copied_as)
        if copy is None:
            return False
        try:
            await self._use(copy.content)
        except ConfigurationError:
            return False
        self.read_at = copy.written
        return True

    async def _use(self, content: bytes) -> None:
        self.value = await asyncio.to_thread(self._parse, content)
        self.version = _hash(content)

    def _stay(self, error: ConfigurationError) -> None:
        self.stale_since = self.stale_since or datetime.now(UTC)
        if error.faults != self._told:
            self._told = error.faults
            log.error(
                "%s stays as it was at %s: %s",
                self.source.name,
                _iso(self.read_at),
                " | ".join(error.faults),
            )


class Live:
    """The configuration that serves now.

    A look at the sources is due every `interval` seconds, and taken when a call comes after that,
    which does not wait for it: a task that waited by itself would be frozen with the process.
    """

    current: Configuration
    """From `start` on."""

    def __init__(
        self,
        models: Watch[Catalog],
        identities: Watch[Identities] | None,
        interval: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`interval` 0: never."""
        self._models = models
        self._identities = identities
        self._interval = interval
        self._clock = clock
        self._due = 0.0
        self._version = ""
        self._looking: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Raises `ConfigurationError` with the faults of every source."""
        found = await asyncio.gather(*(it.start() for it in self._watches), return_exceptions=True)
        errors = [error for error in found if error is not None]
        faults = [error for error in errors if isinstance(error, ConfigurationError)]
        if len(faults) < len(errors):
            raise next(error for error in errors if not isinstance(error, ConfigurationError))
        if faults:
            raise ConfigurationError.all(faults)
        self._swap()
        self._due = self._clock() + self._interval

    def look(self) -> None:
        """Called with every request; most cost a comparison."""
        if not self._interval or self._clock() < self._due:
            return
        if self._looking is None or self._looking.done():
            self._due = self._clock() + self._interval
            self._looking = asyncio.create_task(self._look())

    async def looked(self) -> None:
        """Returns when the look that is under way, if there is one, has ended."""
        if self._looking is not None:
            await asyncio.wait([self._looking])

    def detail(self) -> dict[str, Any]:
        """For whoever runs the gateway: what is served by, and since when it is stale."""
        detail: dict[str, Any] = {"version": self.current.version, "models": self._models.detail()}
        if self._identities is not None:
            detail["identities"] = self._identities.detail()
        return detail

    async def aclose(self) -> None:
        if self._looking is not None:
            self._looking.cancel()
        await self.looked()

    @property
    def _watches(self) -> list[Watch[Any]]:
        return [self._models, *([self._identities] if self._identities else [])]

    async def _look(self) -> None:
        try:
            await asyncio.gather(*(watch.look() for watch in self._watches))
        except Exception:
            # Nobody waits for this task: what serves now serves on.
            log.exception("the configuration could not be looked at")
        self._swap()

    def _swap(self) -> None:
        """In one assignment: a call sees the whole of one configuration, old or new."""
        version = _hash("".join(watch.version for watch in self._watches).encode())
        if version != self._version:
            self._version = version
            identities = self._identities.value if self._identities else Identities()
            self.current = Configuration(self._models.value, identities, version)
            log.info(
                "configuration %s: models=%d identities=%d",
                version,
                len(self.current.catalog.models),
                len(identities),
            )


def _hash(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:12]


def _iso(at: datetime | None) -> str | None:
    return None if at is None else at.isoformat(timespec="seconds")
