"""The settings: environment variables in upper case, or lines of `.env`."""

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Self, TypeVar

from pydantic import BaseModel, Field, SecretStr, ValidationError, field_validator, model_validator

from llamaxing import plugins
from llamaxing.document import UNRESOLVED, either, fault_lines, is_unresolved
from llamaxing.endpoints import CAPABILITIES
from llamaxing.providers import BaseURL, Key

T = TypeVar("T", bound=BaseModel)

_ORIGIN = re.compile(r"https?://[^/\s,?#]+")
_LEAST_SECRET = 16


class FunctionsSettings(BaseModel, frozen=True, defer_build=True):
    """What the Functions app has to know before there is a gateway."""

    functions_auth_level: Literal["anonymous", "function"] = Field(
        default="anonymous",
        description="On Azure Functions: `anonymous`, or `function` to ask for a function key "
        "besides.",
    )

    @field_validator("functions_auth_level", mode="before")
    @classmethod
    def _any_case(cls, value: str) -> str:
        return value.lower()


class SidecarSettings(BaseModel, frozen=True, defer_build=True):
    """What a sidecar has besides: they also count in lines of `.env-sidecar`."""

    sidecar_app_name: str = Field(
        default="llamaxing-sidecar", description="With `app_mode=sidecar`: its name."
    )
    sidecar_app_requests_timeout: float = Field(
        default=300, gt=0, description="As `app_requests_timeout`, for a sidecar."
    )
    sidecar_upstream_url: BaseURL = Field(
        description="The gateway that a sidecar sends everything to, with or without `/v1`."
    )
    sidecar_auth_method: Literal["apikey", "azure"] = Field(
        default="apikey",
        description="What a sidecar shows it: an API key, or with `azure` a token of Entra ID.",
    )
    sidecar_auth_method_apikey_key: Key | None = Field(
        default=None, description="The API key, with `apikey`."
    )
    sidecar_auth_method_azure_scope: str | None = Field(
        default=None,
        description="What the token is for, with `azure`: `api://<application id>/.default`.",
    )
    sidecar_function_key: Key | None = Field(
        default=None, description="A function key that the gateway's host asks for besides."
    )

    @model_validator(mode="after")
    def _credential(self) -> Self:
        name = {"apikey": "apikey_key", "azure": "azure_scope"}[self.sidecar_auth_method]
        setting = f"sidecar_auth_method_{name}"
        if getattr(self, setting) is None:
            raise ValueError(f"sidecar_auth_method: {self.sidecar_auth_method!r} needs {setting}")
        return self

    def instance(self) -> Mapping[str, Any]:
        """The gateway behind, as models.json would have it."""
        key, scope = self.sidecar_auth_method_apikey_key, self.sidecar_auth_method_azure_scope
        found: dict[str, Any] = {
            "llamaxing_api_key": key if self.sidecar_auth_method == "apikey" else None,
            "llamaxing_token_scope": scope if self.sidecar_auth_method == "azure" else None,
            "llamaxing_function_key": self.sidecar_function_key,
        }
        here = {
            "id": "gateway",
            "provider": "llamaxing",
            "llamaxing_url": self.sidecar_upstream_url,
        }
        return {**here, **{name: value for name, value in found.items() if value is not None}}


class Settings(BaseModel, frozen=True):
    """What every gateway has; a plug-in adds `Options` of its own. Times are in seconds."""

    app_name: str = Field(
        default="llamaxing", description="The gateway's name, in the models listing and the page."
    )
    app_mode: Literal["gateway", "sidecar"] = Field(
        default="gateway",
        description="What runs: `gateway`, or `sidecar`, which adds a credential to the calls of "
        "the application beside it.",
    )
    app_requests_timeout: float = Field(
        default=300,
        gt=0,
        description="Seconds until a call has to be answered, all tries together; on Azure at "
        "most 220, since the platform gives up after 230.",
    )
    app_request_body_limit: int = Field(
        default=64 * 1024 * 1024, gt=0, description="Bytes of the largest request body."
    )
    app_grace_period: float = Field(
        default=30,
        ge=0,
        description="Seconds at the end, under uvicorn, in which open calls finish and records are "
        "delivered; new calls get 503.",
    )
    app_page: bool = Field(
        default=True, description="Whether `/` shows the API reference, with a chat to try."
    )
    debug_level: int = Field(
        default=0,
        ge=0,
        le=3,
        description="0: a line a call, without texts; 1: requests and replies too; 2: chunks of "
        "streams too; 3: what is sensitive too.",
    )
    auth_method: str = Field(
        default="none",
        description="How callers are known: `none`, or of `apikey`, `jwt` and `easyauth` one or "
        "more, separated by commas.",
    )
    auth_none_on_azure: bool = Field(
        default=False, description="Lets `auth_method=none` serve on Azure, open to everybody."
    )
    identity_store: Literal["none", "json"] = Field(
        default="none", description="Where identities are: `none`, `json`."
    )
    identity_store_json_filename: str = Field(
        default="identities.json", description="The identities' file, with `json`."
    )
    models_source: str = Field(
        default="file:models.json",
        description="Where the models are: `file:PATH`, `env:NAME` (an app setting that holds the "
        "JSON), `blob:https://ACCOUNT.blob.core.windows.net/CONTAINER/NAME` or `https://…`.",
    )
    identities_source: str | None = Field(
        default=None,
        description="Where the identities are, instead of a file: as with `models_source`.",
    )
    configuration_reload_interval: float = Field(
        default=30,
        ge=0,
        description="Seconds after which a call has the sources looked at again; 0 never.",
    )
    configuration_copies: str | None = Field(
        default=None,
        description="Folder for the last good copy of what is read over the network, with which a "
        "start serves while that is away; `none` keeps none. By default below the machine's "
        "temporary folder.",
    )
    upstream_connect_timeout: float = Field(
        default=5, gt=0, description="Seconds to connect to an instance; then the next is asked."
    )
    upstream_first_header_timeout: float = Field(
        default=60,
        gt=0,
        description="Seconds until a stream's first header; then the next instance is asked.",
    )
    upstream_idle_timeout: float = Field(
        default=120, gt=0, description="Seconds of silence after which a stream is broken."
    )
    upstream_attempts: int = Field(
        default=4, gt=0, description="How many instances are asked for one call at the most."
    )
    upstream_connections: int = Field(
        default=2000, gt=0, description="How many connections to upstreams there may be at once."
    )
    cooldown: float = Field(
        default=5,
        ge=0,
        description="Seconds that a throttled instance is left alone where it does not say how "
        "long.",
    )
    cooldown_limit: float = Field(
        default=300,
        ge=0,
        description="Seconds of the longest pause, whatever an instance asks for.",
    )
    auth_cooldown: float = Field(
        default=60,
        ge=0,
        description="Seconds that an instance is left alone that refused the gateway's key.",
    )
    breaker_failures: int = Field(
        default=3,
        gt=0,
        description="How many failures in a row (5xx, no connection, no header in time) have an "
        "instance left alone.",
    )
    breaker_pause: float = Field(
        default=5,
        ge=0,
        description="Seconds of the first such pause; it doubles each time, is spread by chance, "
        "and one call then tries whether it is over.",
    )
    instance_headers: bool = Field(
        default=False,
        description="Whether replies have `x-llamaxing-instance`, the id of the instance that was "
        "asked last, and `x-llamaxing-attempts`.",
    )
    stream_keep_alive: float = Field(
        default=15,
        ge=0,
        description="Seconds of silence after which a stream's caller gets a comment; 0 never.",
    )
    stream_commit_after: float | None = Field(
        default=None,
        ge=0,
        description="Seconds after which a stream's caller gets status 200 and comments although "
        "no instance has answered yet; what fails then is an error event. 0 never. By default "
        "100 on Azure, where the platform gives up after 230, and never elsewhere.",
    )
    stream_max_age: float = Field(
        default=3600,
        ge=0,
        description="Seconds after which a stream is ended; 0 never. On Azure it is less than "
        "the host's `functionTimeout`.",
    )
    id_secret: SecretStr | None = Field(
        default=None,
        description="Long random text, the same in every process, that signs the ids of stored "
        "responses and completions. Needed for `responses` where callers are known, or a model "
        "has several instances.",
    )
    id_secret_previous: SecretStr | None = Field(
        default=None, description="The one before, whose ids stay good while it is set."
    )
    default_image_model: str | None = Field(
        default=None, description="The model of `images/…` calls that name none."
    )
    default_moderation_model: str | None = Field(
        default=None, description="The model of `moderations` calls that name none."
    )
    cors_origins: str = Field(
        default="",
        description="Origins whose web pages may call from a browser, separated by commas, as in "
        "`https://chat.example.com`; `*` for all.",
    )
    logging_client: str = Field(
        default="none", description="Where a record of each call goes: `none`, `jsonl`, `mongodb`."
    )
    logging_copy_limit: int = Field(
        default=2 * 1024 * 1024,
        ge=0,
        description="Bytes of a request, and of a reply, that a record keeps.",
    )
    redact: str = Field(
        default="",
        description="Endpoints whose requests and replies are not recorded, by their names in "
        "models.json and separated by commas; `*` for all.",
    )
    observability_client: str = Field(
        default="none", description="Where a trace of each call goes: `none`, `langfuse`."
    )
    outbox: str | None = Field(
        default=None,
        description="Where records wait until each sink has them: `sqlite`, `azure_queue`, or "
        "`none`, which has a call wait for its sinks. By default `azure_queue` on Azure, where "
        "there is a storage connection, and `sqlite` elsewhere.",
    )
    delivery_timeout: float = Field(
        default=30, gt=0, description="Seconds that a sink may take for a batch of records."
    )
    delivery_pause_limit: float = Field(
        default=60,
        gt=0,
        description="Seconds of the longest pause before a sink that fails is tried again; the "
        "first is 1, and each is twice the one before it, spread by chance. With `azure_queue`, "
        "where each record waits by itself, ten times as long.",
    )
    audit_required: bool = Field(
        default=False,
        description="Whether calls are let through only while records can be kept, and the end of "
        "a reply only when its record is.",
    )
    audit_max_age: float = Field(
        default=4000,
        gt=0,
        description="With `audit_required`: seconds after which a call whose end was not recorded "
        "is delivered as `worker_lost`. More than a call can last.",
    )

    @field_validator("outbox")
    @classmethod
    def _outbox(cls, value: str | None) -> str | None:
        return value and _one_of(value, plugins.names("outbox"))

    @field_validator("cors_origins")
    @classmethod
    def _cors_origins(cls, value: str) -> str:
        for origin in listed(value):
            if origin != "*" and not _ORIGIN.fullmatch(origin):
                raise ValueError(f"{origin!r} is not an origin; write it as 'https://host'")
        return value

    @field_validator("id_secret", "id_secret_previous")
    @classmethod
    def _id_secret(cls, value: SecretStr | None) -> SecretStr | None:
        if value is not None and len(value.get_secret_value()) < _LEAST_SECRET:
            raise ValueError(f"is too short; use at least {_LEAST_SECRET} random characters")
        return value

    @field_validator("auth_method")
    @classmethod
    def _auth_method(cls, value: str) -> str:
        methods = [_one_of(it, plugins.names("auth")) for it in listed(value)]
        if not methods:
            raise ValueError(f"is empty; use {either(plugins.names('auth'))}")
        if "none" in methods and len(methods) > 1:
            raise ValueError("has 'none' beside others, and would let everybody in")
        return ",".join(dict.fromkeys(methods))

    @field_validator("redact")
    @classmethod
    def _redact(cls, value: str) -> str:
        for name in listed(value):
            _one_of(name, ["*", *CAPABILITIES])
        return value

    @field_validator("logging_client", "observability_client")
    @classmethod
    def _sink(cls, value: str) -> str:
        return _one_of(value, ["none", *plugins.names("sinks")])

    @field_validator("models_source", "identities_source")
    @classmethod
    def _source(cls, value: str | None) -> str | None:
        if value is None:
            return None
        kind, colon, where = value.partition(":")
        if not colon or not where:
            raise ValueError("has to name a kind and a place, as in 'file:models.json'")
        _one_of(kind, plugins.names("sources"))
        return value


def read(schema: type[T], environ: Mapping[str, str]) -> tuple[T | None, list[str]]:
    """The settings of `schema`, or the faults: a line each, without the values.

    An empty variable counts as one that is not set, and white space around a value for nothing.
    """
    lowered = {name.lower(): it for name, value in environ.items() if (it := value.strip())}
    given = {name: lowered[name] for name in schema.model_fields if name in lowered}
    unresolved = [name for name, value in given.items() if is_unresolved(value)]
    if unresolved:
        return None, [f"{name}: is {UNRESOLVED}" for name in unresolved]
    try:
        return schema.model_validate(given), []
    except ValidationError as error:
        # What is wrong with several together says itself which they are.
        lines = fault_lines(error, schema)
        return None, [f"{where}: {what}" if where else what for where, what in lines]


def environment(environ: Mapping[str, str], folder: Path) -> dict[str, str]:
    """The environment over what `.env` in the folder says, and `.env-sidecar` of a sidecar."""
    beside = {k: v for k, v in _lines(folder / ".env-sidecar") if k.lower().startswith("sidecar_")}
    return {**beside, **dict(_lines(folder / ".env")), **environ}


def _lines(file: Path) -> Iterator[tuple[str, str]]:
    if not file.is_file():
        return
    from dotenv import dotenv_values

    yield from ((name, value) for name, value in dotenv_values(file).items() if value is not None)


def listed(value: str) -> Sequence[str]:
    """The items of a setting that has several, separated by commas."""
    return [it.strip() for it in value.split(",") if it.strip()]


def _one_of(value: str, known: Sequence[str]) -> str:
    if value not in known:
        raise ValueError(f"{value!r} is not known; use {either(known)}")
    return value


def every_setting() -> dict[str, Any]:
    """Each setting's name and its field, the plug-ins' own among them."""
    chosen = [
        (kind, name)
        for kind in ("auth", "sources", "sinks", "outbox")
        for name in plugins.names(kind)
    ]
    schemas = [
        Settings,
        FunctionsSettings,
        SidecarSettings,
        *(plugins.load(kind, name).Options for kind, name in chosen),
    ]
    return {name: field for schema in schemas for name, field in schema.model_fields.items()}


def near_misses(environ: Mapping[str, str]) -> list[str]:
    """A line for each variable that is nearly called like a setting, and counts for nothing."""
    import difflib

    known = every_setting()
    lines = []
    for variable in sorted(environ):
        name = variable.lower()
        near = difflib.get_close_matches(name, known, n=1, cutoff=0.9) if name not in known else []
        lines += [f"{variable}: is not a setting; did you mean {it.upper()}?" for it in near]
    return lines
