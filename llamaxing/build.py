"""The composition root: reads the settings, and puts the gateway together from what they name."""

import os
import random
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel

from llamaxing import plugins, settings
from llamaxing.asgi import Application
from llamaxing.auth import Authenticator
from llamaxing.catalog import Catalog, read_models
from llamaxing.errors import ConfigurationError
from llamaxing.forward import Forwarder
from llamaxing.gateway import Gateway
from llamaxing.http import BodyLimits
from llamaxing.identity import Identities, read_identities
from llamaxing.logs import LEVELS, log
from llamaxing.recorder import Recorder
from llamaxing.reference import Reference
from llamaxing.selection import Selector
from llamaxing.settings import Settings
from llamaxing.sinks import Sink
from llamaxing.sources import Source
from llamaxing.upstream import AiohttpTransport, Timeouts

T = TypeVar("T", bound=BaseModel)

# Azure's front end gives up after 230 s without a byte.
_LONGEST_ON_AZURE = 220.0


def application(environ: Mapping[str, str] | None = None) -> Application:
    """The ASGI application. Nothing is read until its first request, or its lifespan."""

    async def open_gateway() -> tuple[Gateway, BodyLimits]:
        given = os.environ if environ is None else environ
        return await Build(settings.environment(given, Path.cwd())).gateway()

    return Application(open_gateway)


class Build:
    """One gateway out of one environment; faults gather until all of it has been looked at."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        self._environ = environ
        self._faults: list[str] = []
        self._settings: list[str] = []
        # Present on the platform only: Core Tools do not set it.
        self._on_azure = "WEBSITE_INSTANCE_ID" in environ

    async def gateway(self) -> tuple[Gateway, BodyLimits]:
        """Raises `ConfigurationError` with every fault there is."""
        chosen = self._read(Settings)
        if chosen is None:
            raise ConfigurationError(self._faults, self._settings)
        log.setLevel(LEVELS[chosen.debug_level])
        self._check(chosen)
        catalog = await self._catalog(chosen)
        identities = await self._identities(chosen)
        authenticator = self._authenticator(chosen, identities)
        sinks = self._sinks(chosen)
        if self._faults:
            raise ConfigurationError(self._faults, self._settings)
        gateway = Gateway(
            catalog,
            [authenticator],
            Forwarder(
                AiohttpTransport(chosen.upstream_connections),
                Selector(random.Random()),
                self._timeouts(chosen),
                chosen.upstream_attempts,
            ),
            Recorder(sinks, copy_up_to=chosen.logging_copy_limit),
            chosen.app_name,
            Reference(chosen.app_name) if chosen.app_page else None,
        )
        return gateway, BodyLimits(chosen.app_request_body_limit)

    def _read(self, schema: type[T]) -> T | None:
        found, faults = settings.read(schema, self._environ)
        self._faults += faults
        self._settings += [fault.partition(":")[0] for fault in faults]
        return found

    def _fault(self, setting: str, what: str) -> None:
        self._faults.append(f"{setting}: {what}")
        self._settings.append(setting)

    def _check(self, chosen: Settings) -> None:
        if chosen.debug_level == len(LEVELS) - 1:
            log.warning("debug_level is 3: the log holds the credentials of callers")
        if chosen.auth_method == "none":
            if self._on_azure and not chosen.auth_none_on_azure:
                self._fault(
                    "auth_method",
                    "'none' would let everybody in; choose another, or set auth_none_on_azure=true",
                )
            log.warning("auth_method is none: everybody who reaches this gateway may use it")
        elif chosen.identity_store == "none":
            self._fault(
                "identity_store", f"auth_method={chosen.auth_method} needs identity_store=json"
            )

    async def _catalog(self, chosen: Settings) -> Catalog | Any:
        source = _source(chosen.models_source)
        providers = {name: plugins.load("providers", name) for name in plugins.names("providers")}
        raw = await self._bytes(source, "models_source")
        if raw is None:
            return None
        try:
            return read_models(raw, source.name, "models_source", providers, self._environ)
        except ConfigurationError as error:
            self._take(error)
            return None

    async def _identities(self, chosen: Settings) -> Identities:
        if chosen.identity_store == "none":
            return Identities()
        setting = "identity_store_json_filename"
        source = _source(f"file:{chosen.identity_store_json_filename}")
        raw = await self._bytes(source, setting)
        if raw is None:
            return Identities()
        try:
            return read_identities(raw, source.name, setting)
        except ConfigurationError as error:
            self._take(error)
            return Identities()

    async def _bytes(self, source: Source, setting: str) -> bytes | None:
        try:
            return await source.read()
        except OSError as error:
            self._fault(setting, f"{source.name} cannot be read: {error.strerror or error}")
            return None

    def _authenticator(self, chosen: Settings, identities: Identities) -> Authenticator | Any:
        method = plugins.load("auth", chosen.auth_method)
        options = self._read(method.Options)
        return options and method(options, identities, lambda: datetime.now(UTC))

    def _sinks(self, chosen: Settings) -> list[Sink]:
        if chosen.logging_client == "none":
            return []
        sink = plugins.load("sinks", chosen.logging_client)
        options = self._read(sink.Options)
        return [sink(options)] if options is not None else []

    def _timeouts(self, chosen: Settings) -> Timeouts:
        total = chosen.app_requests_timeout
        if self._on_azure and total > _LONGEST_ON_AZURE:
            log.warning(
                "app_requests_timeout is capped at %g s: Azure's front end gives up after 230 s",
                _LONGEST_ON_AZURE,
            )
            total = _LONGEST_ON_AZURE
        return Timeouts(
            connect=chosen.upstream_connect_timeout,
            first_header=chosen.upstream_first_header_timeout,
            total=total,
            idle=chosen.upstream_idle_timeout,
        )

    def _take(self, error: ConfigurationError) -> None:
        self._faults += error.faults
        self._settings += error.settings


def _source(setting: str) -> Source:
    kind, _, where = setting.partition(":")
    source: Source = plugins.load("sources", kind)(where)
    return source
