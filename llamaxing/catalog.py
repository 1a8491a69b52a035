"""models.json: which models there are, and where each runs."""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from pydantic import Field, SerializeAsAny

from llamaxing.document import Document, Strict
from llamaxing.endpoints import ENDPOINTS, Endpoint
from llamaxing.errors import ConfigurationError, ModelNotAllowed, ModelNotFound, NotForThisEndpoint
from llamaxing.identity import Identity
from llamaxing.providers import Instance

_CAPABILITIES = [endpoint.name for endpoint in ENDPOINTS]
_VARIABLE = re.compile(r"\$\{([^}]*)\}")


class Model(Strict):
    """What callers ask for, by its id or an alias."""

    id: str = Field(min_length=1)
    aliases: tuple[str, ...] = ()
    capabilities: tuple[str, ...] = Field(min_length=1)
    instances: tuple[SerializeAsAny[Instance], ...] = Field(min_length=1)

    @property
    def names(self) -> Sequence[str]:
        return (self.id, *self.aliases)


class Catalog:
    """Every model that is served."""

    def __init__(self, models: Iterable[Model]) -> None:
        self._models = tuple(models)
        self._by_name = {name: model for model in self._models for name in model.names}

    def find(self, name: str, endpoint: Endpoint, identity: Identity) -> Model:
        """Raises `ModelNotFound`, `ModelNotAllowed` or `NotForThisEndpoint`."""
        model = self._by_name.get(name)
        if model is None:
            raise ModelNotFound(name)
        if not identity.may_use(model.id):
            raise ModelNotAllowed(name)
        if endpoint.name not in model.capabilities:
            raise NotForThisEndpoint(name, endpoint.name, model.capabilities)
        return model

    def listing(self, identity: Identity, app_name: str) -> list[dict[str, Any]]:
        """What this identity may use, aliases too, as OpenAI's `/v1/models` lists it."""
        return [
            {
                "id": name,
                "object": "model",
                "created": 0,
                "owned_by": model.instances[0].provider,
                "capabilities": list(model.capabilities),
                "proxied_by": app_name,
            }
            for name, model in self._by_name.items()
            if identity.may_use(model.id)
        ]


def read_models(
    raw: bytes,
    name: str,
    setting: str,
    providers: Mapping[str, type[Instance]],
    variables: Mapping[str, str],
) -> Catalog:
    """`${VAR}` in an instance is taken from `variables`.

    Raises `ConfigurationError` with every fault of the file.
    """
    document = Document(name)
    found = [
        (at, model)
        for at, item in document.items(raw)
        if (model := _model(document, at, item, providers, variables))
    ]
    names = [(f"{at}.id", model.id) for at, model in found]
    names += [
        (f"{at}.aliases[{index}]", alias)
        for at, model in found
        for index, alias in enumerate(model.aliases)
    ]
    document.unique("name", names)
    document.unique(
        "id",
        [
            (f"{at}.instances[{index}].id", instance.id)
            for at, model in found
            for index, instance in enumerate(model.instances)
        ],
    )
    if document.faults:
        raise ConfigurationError(document.faults, [setting])
    return Catalog(model for _, model in found)


def _model(
    document: Document,
    at: str,
    item: dict[str, Any],
    providers: Mapping[str, type[Instance]],
    variables: Mapping[str, str],
) -> Model | None:
    faults = len(document.faults)
    for index, capability in enumerate(_list(item.get("capabilities"))):
        if capability not in _CAPABILITIES:
            document.fault(
                f"{at}.capabilities[{index}]",
                f"{capability!r} is not a capability; use {_or(_CAPABILITIES)}",
            )
    instances = [
        _instance(document, f"{at}.instances[{index}]", instance, providers, variables)
        for index, instance in enumerate(_list(item.get("instances")))
    ]
    if len(document.faults) > faults:
        # The rest of the model is checked too, without the parts that are known to be wrong.
        document.check(_Head, {k: v for k, v in item.items() if k not in _PARTS}, at)
        return None
    return document.check(Model, {**item, "instances": instances} if instances else item, at)


class _Head(Strict):
    id: str = Field(min_length=1)
    aliases: tuple[str, ...] = ()


_PARTS = {"capabilities", "instances"}


def _instance(
    document: Document,
    at: str,
    item: Any,
    providers: Mapping[str, type[Instance]],
    variables: Mapping[str, str],
) -> Instance | None:
    if not isinstance(item, dict):
        document.fault(at, "has to be an object")
        return None
    expanded = {}
    for key, value in item.items():
        expanded[key] = _expanded(document, f"{at}.{key}", value, variables)
    provider = expanded.get("provider")
    if provider is None:
        document.fault(f"{at}.provider", f"is missing; use {_or(providers)}")
        return None
    if provider not in providers:
        document.fault(f"{at}.provider", f"{provider!r} is not a provider; use {_or(providers)}")
        return None
    return document.check(providers[provider], expanded, at)


def _expanded(document: Document, at: str, value: Any, variables: Mapping[str, str]) -> Any:
    if not isinstance(value, str):
        return value
    for name in _VARIABLE.findall(value):
        if name not in variables:
            document.fault(at, f"the variable ${{{name}}} is not set")
    return _VARIABLE.sub(lambda found: variables.get(found[1], found[0]), value)


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _or(values: Iterable[str]) -> str:
    *most, last = [f"'{value}'" for value in values]
    return f"{', '.join(most)} or {last}" if most else last
