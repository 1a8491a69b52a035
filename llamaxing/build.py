"""The composition root: reads the settings, and puts the gateway together from what they name."""

import functools
import gc
import logging
import os
import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

import httpx
import msgspec
from pydantic import BaseModel, TypeAdapter

from llamaxing import plugins, safety, settings
from llamaxing.asgi import Application, Opened
from llamaxing.auth import Authenticator
from llamaxing.catalog import Catalog, Model, model_schema, read_models
from llamaxing.clock import Clock
from llamaxing.configuration import Live, Watch
from llamaxing.copies import Copies, default_folder
from llamaxing.cors import Cors
from llamaxing.credentials.entra import Tokens
from llamaxing.endpoints import ENDPOINTS
from llamaxing.errors import ConfigurationError
from llamaxing.forward import Forwarder
from llamaxing.gateway import Gateway, Options
from llamaxing.hosting import Hosting
from llamaxing.http import BodyLimits
from llamaxing.identity import Identities, Identity, read_identities
from llamaxing.ids import Ids
from llamaxing.logs import LEVELS, log
from llamaxing.outbox import OutboxFailed, Trigger
from llamaxing.recorder import Recorder
from llamaxing.recording import Recording, recording
from llamaxing.reference import Reference
from llamaxing.relay import Streams
from llamaxing.selection import Pauses, Selector
from llamaxing.settings import Settings
from llamaxing.upstream import Timeouts, Upstreams

T = TypeVar("T", bound=BaseModel)
V = TypeVar("V")

# Connections with which messages are sent back to wait.
_TO_QUEUES = 20


def application(
    environ: Mapping[str, str] | None = None, clock: Callable[[], float] = time.monotonic
) -> Application:
    """The ASGI application. Nothing is read until its first request, or its lifespan."""

    async def open_gateway() -> Opened:
        given = os.environ if environ is None else environ
        built = await Build(settings.environment(given, Path.cwd()), clock).all()
        built.gateway.start()
        # What is there now stays: nobody has to look again whether it is garbage.
        gc.freeze()
        limits = BodyLimits(built.settings.app_request_body_limit)
        return Opened(built.gateway, limits, built.settings.app_grace_period)

    return Application(open_gateway)


def triggers(environ: Mapping[str, str]) -> Sequence[Trigger]:
    """The queues whose messages the platform has to bring here; nothing is opened.

    Raises `ConfigurationError`.
    """
    found = Build(environ).recording(Upstreams(_TO_QUEUES))
    return [it for outbox in found.outboxes for it in outbox.triggers.values()]


def schemas() -> dict[str, dict[str, Any]]:
    """The JSON Schemas of models.json and identities.json, for editors to complete by."""
    return {
        "models": _listed("models.json of llamaxing", _model_schema()),
        "identities": _listed("identities.json of llamaxing", Identity),
    }


class Built(msgspec.Struct, frozen=True):
    """A gateway, which closes what is beside it here, and what it was made of."""

    gateway: Gateway
    live: Live
    forward: Forwarder
    settings: Settings


class Build:
    """One gateway out of one environment; faults gather until all of it has been looked at."""

    def __init__(
        self,
        environ: Mapping[str, str],
        clock: Callable[[], float] = time.monotonic,
        time_of_day: Clock | None = None,
    ) -> None:
        """`clock`: seconds, by which the configuration is looked at again and cooldowns end.
        `time_of_day`: by which records wait."""
        self._environ = environ
        self._clock = clock
        self._time = time_of_day or Clock()
        self._errors: list[ConfigurationError] = []
        self._methods: dict[str, Authenticator] = {}
        self._hosting = Hosting(environ, Path.cwd())

    async def all(self) -> Built:
        """Raises `ConfigurationError` with every fault there is."""
        chosen = self._read(Settings)
        if chosen is None:
            raise ConfigurationError.all(self._errors)
        log.setLevel(LEVELS[chosen.debug_level])
        transport = Upstreams(chosen.upstream_connections)
        build = self._sidecar if chosen.app_mode == "sidecar" else self._all
        try:
            return await build(chosen, transport)
        except BaseException:
            await transport.aclose()
            raise

    def recording(self, transport: Upstreams) -> Recording:
        """What it records with, alone; nothing is opened. Raises `ConfigurationError`."""
        chosen = self._read(Settings)
        if chosen is None:
            raise ConfigurationError.all(self._errors)
        return recording(chosen, self._surroundings(transport), self._hosting.on_azure)

    async def _all(self, chosen: Settings, transport: Upstreams) -> Built:
        surroundings = self._surroundings(transport)
        self._check(chosen)
        self._methods = self._authenticators(chosen, surroundings)
        live = self._live(chosen, surroundings)
        # Their keys may have been changed since: a sink asks for those that serve now.
        now = (lambda: live.current.identities) if live else Identities
        recorder = self._recorder(chosen, msgspec.structs.replace(surroundings, identities=now))
        try:
            if live:
                await live.start()
        except ConfigurationError as error:
            self._errors.append(error)
        if self._errors or live is None or recorder is None:
            raise ConfigurationError.all(self._errors)
        await self._open(recorder)
        forward = self._forwarder(chosen, transport, chosen.app_requests_timeout)
        gateway = Gateway(
            live,
            list(self._methods.values()),
            forward,
            recorder,
            Options(
                chosen.app_name,
                self._streams(chosen),
                Ids(_secrets(chosen)),
                _defaults(chosen),
                Cors(settings.listed(chosen.cors_origins)),
                chosen.instance_headers,
                frozenset(settings.listed(chosen.redact)),
            ),
            Reference(chosen.app_name) if chosen.app_page else None,
        )
        return Built(gateway, live, forward, chosen)

    async def _sidecar(self, chosen: Settings, transport: Upstreams) -> Built:
        from llamaxing.sidecar import Sidecar

        surroundings = self._surroundings(transport)
        own = self._read(settings.SidecarSettings)
        # Inwards nobody shows anything.
        open_to_all = chosen.model_copy(update={"auth_method": "none"})
        self._check(open_to_all)
        methods = self._authenticators(open_to_all, surroundings)
        recorder = self._recorder(chosen, surroundings)
        if self._errors or own is None or recorder is None:
            raise ConfigurationError.all(self._errors)
        await self._open(recorder)
        forward = self._forwarder(chosen, transport, own.sidecar_app_requests_timeout)
        sidecar = Sidecar(
            plugins.load("providers", "llamaxing").model_validate(own.instance()),
            list(methods.values()),
            forward,
            recorder,
            Options(own.sidecar_app_name, self._streams(chosen)),
        )
        return Built(sidecar, sidecar.live, forward, chosen)

    def _forwarder(self, chosen: Settings, transport: Upstreams, total: float) -> Forwarder:
        return Forwarder(
            transport,
            Selector(random.Random(), _pauses(chosen), self._clock),
            self._timeouts(chosen, total),
            chosen.upstream_attempts,
            Tokens(self._environ),
        )

    def _surroundings(self, transport: Upstreams) -> plugins.Surroundings:
        # It would log each call with its query, where a signature may stand.
        logging.getLogger("httpx").setLevel(logging.WARNING)
        # No proxy is asked for, as with upstreams; what serves them serves this too.
        web = httpx.AsyncClient(transport=transport, timeout=5, trust_env=False)
        return plugins.Surroundings(self._environ, web, clock=self._time)

    def _read(self, schema: type[T]) -> T | None:
        found, faults = settings.read(schema, self._environ)
        if faults:
            names = [fault.partition(":")[0] for fault in faults]
            self._errors.append(ConfigurationError(faults, names))
        return found

    def _fault(self, setting: str, what: str) -> None:
        self._errors.append(ConfigurationError([f"{setting}: {what}"], [setting]))

    def _check(self, chosen: Settings) -> None:
        try:
            safety.check_settings(chosen, self._hosting.on_azure)
        except ConfigurationError as error:
            self._errors.append(error)
        if chosen.auth_method != "none" and _identities_source(chosen) is None:
            self._fault(
                "identity_store",
                f"auth_method={chosen.auth_method} needs identities; set identity_store=json, or "
                "identities_source",
            )

    def _live(self, chosen: Settings, surroundings: plugins.Surroundings) -> Live | None:
        copies = Copies(_folder(chosen))
        found = _identities_source(chosen)
        # Both are looked at, so that the faults of both are told.
        models = self._watch(
            "models_source",
            chosen.models_source,
            functools.partial(self._models, chosen),
            surroundings,
            copies,
        )
        identities = found and self._watch(*found, self._identities, surroundings, copies)
        if models is None or (found and not identities):
            return None
        return Live(models, identities, chosen.configuration_reload_interval, self._clock)

    def _watch(
        self,
        setting: str,
        value: str,
        parse: Callable[[bytes, str, str], V],
        surroundings: plugins.Surroundings,
        copies: Copies,
    ) -> Watch[V] | None:
        kind, _, where = value.partition(":")
        plugin = plugins.load("sources", kind)
        options = self._read(plugin.Options)
        if options is None:
            return None
        try:
            source = plugin(where, options, surroundings)
        except ValueError as error:
            self._fault(setting, str(error))
            return None
        return Watch(source, setting, lambda raw: parse(raw, source.name, setting), copies)

    def _models(self, chosen: Settings, raw: bytes, name: str, setting: str) -> Catalog:
        catalog = read_models(raw, name, setting, _model_schema(), self._environ)
        safety.check_models(catalog, chosen)
        safety.check_ids(catalog, chosen)
        return catalog

    def _identities(self, raw: bytes, name: str, setting: str) -> Identities:
        identities = read_identities(raw, name, setting, self._environ, self._wrong_with)
        safety.check_identities(identities, setting, self._hosting.on_azure)
        return identities

    def _authenticators(
        self, chosen: Settings, surroundings: plugins.Surroundings
    ) -> dict[str, Authenticator]:
        made = {}
        names = settings.listed(chosen.auth_method)
        surroundings = msgspec.structs.replace(surroundings, methods=frozenset(names))
        for name in names:
            method = plugins.load("auth", name)
            options = self._read(method.Options)
            try:
                if options is not None:
                    made[name] = method(options, surroundings, lambda: datetime.now(UTC))
            except ConfigurationError as error:
                self._errors.append(error)
        return made

    def _wrong_with(self, identity: Identity) -> Iterator[tuple[str, str]]:
        several = "apikey" in self._methods and len(self._methods) > 1
        if several and "auth_key" in identity.model_fields_set:
            what = "may be a key or a claim, since auth_method has several methods"
            yield "auth_key", f"{what}; write api_keys, or claims"
        for method in self._methods.values():
            yield from method.faults(identity)

    def _recorder(self, chosen: Settings, surroundings: plugins.Surroundings) -> Recorder | None:
        try:
            found = recording(chosen, surroundings, self._hosting.on_azure)
        except ConfigurationError as error:
            self._errors.append(error)
            return None
        return found.recorder(chosen)

    async def _open(self, recorder: Recorder) -> None:
        try:
            await recorder.open()
        except OutboxFailed as error:
            await recorder.aclose(0)
            raise ConfigurationError([f"outbox: {error}"], ["outbox"]) from error

    def _timeouts(self, chosen: Settings, total: float) -> Timeouts:
        return Timeouts(
            connect=chosen.upstream_connect_timeout,
            first_header=chosen.upstream_first_header_timeout,
            total=self._hosting.longest_call(total),
            idle=chosen.upstream_idle_timeout,
            keep_alive=chosen.stream_keep_alive or None,
        )

    def _streams(self, chosen: Settings) -> Streams:
        return Streams(
            self._hosting.commit_after(chosen.stream_commit_after),
            chosen.stream_keep_alive or None,
            self._hosting.longest_stream(chosen.stream_max_age),
        )


@functools.cache
def _model_schema() -> type[Model]:
    return model_schema(
        {name: plugins.load("providers", name) for name in plugins.names("providers")}
    )


def _listed(title: str, schema: type[BaseModel]) -> dict[str, Any]:
    items: Any = list[schema]  # type: ignore[valid-type]
    found = TypeAdapter(items).json_schema()
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": title,
        "minItems": 1,
        **found,
    }


def _identities_source(chosen: Settings) -> tuple[str, str] | None:
    """The setting that says where they are, and what it says; None without identities."""
    if chosen.identities_source:
        return "identities_source", chosen.identities_source
    if chosen.identity_store == "none":
        return None
    return "identity_store_json_filename", f"file:{chosen.identity_store_json_filename}"


def _secrets(chosen: Settings) -> Sequence[bytes]:
    found = [it for it in (chosen.id_secret, chosen.id_secret_previous) if it is not None]
    return [secret.get_secret_value().encode() for secret in found] if chosen.id_secret else []


def _defaults(chosen: Settings) -> Mapping[str, str]:
    """By endpoint."""
    image, moderation = chosen.default_image_model, chosen.default_moderation_model
    images = [it.name for it in ENDPOINTS if it.path.startswith("images/")]
    found = {**dict.fromkeys(images, image), "moderations": moderation}
    return {endpoint: model for endpoint, model in found.items() if model}


def _pauses(chosen: Settings) -> Pauses:
    return Pauses(
        throttled=chosen.cooldown,
        longest=chosen.cooldown_limit,
        refused=chosen.auth_cooldown,
        broken=chosen.breaker_pause,
        failures=chosen.breaker_failures,
    )


def _folder(chosen: Settings) -> Path | None:
    if chosen.configuration_copies == "none":
        return None
    return Path(chosen.configuration_copies) if chosen.configuration_copies else default_folder()
