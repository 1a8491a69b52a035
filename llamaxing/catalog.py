"""models.json: which models there are, and where each runs."""

from collections.abc import Iterable, Mapping, Sequence
from functools import reduce
from operator import or_
from typing import Annotated, Any

from pydantic import AfterValidator, Field, WithJsonSchema, create_model

from llamaxing.document import Document, Strict, either
from llamaxing.endpoints import CAPABILITIES, Endpoint
from llamaxing.errors import ConfigurationError, ModelNotAllowed, ModelNotFound, NotForThisEndpoint
from llamaxing.identity import Identity
from llamaxing.providers import Instance


def _capability(name: str) -> str:
    if name not in CAPABILITIES:
        raise ValueError(f"{name!r} is not a capability; use {either(CAPABILITIES)}")
    return name


Capability = Annotated[
    str, AfterValidator(_capability), WithJsonSchema({"type": "string", "enum": list(CAPABILITIES)})
]


class Model(Strict):
    """What callers ask for, by its id or an alias."""

    id: str = Field(min_length=1)
    aliases: tuple[Annotated[str, Field(min_length=1)], ...] = ()
    capabilities: tuple[Capability, ...] = Field(min_length=1)
    instances: tuple[Instance, ...] = Field(min_length=1)

    @property
    def names(self) -> Sequence[str]:
        return (self.id, *self.aliases)


def model_schema(providers: Mapping[str, type[Instance]]) -> type[Model]:
    """`Model` as models.json has it: each of its instances is one of a provider's."""
    instance: Any = Annotated[reduce(or_, providers.values()), Field(discriminator="provider")]
    return create_model(
        "Model",
        __base__=Model,
        __doc__=Model.__doc__,
        instances=(tuple[instance, ...], Field(min_length=1)),
    )


class Catalog:
    """Every model that is served."""

    def __init__(self, models: Iterable[Model]) -> None:
        self.models = tuple(models)
        self._by_name = {name: model for model in self.models for name in model.names}

    def find(self, name: str, endpoint: Endpoint, identity: Identity) -> Model:
        """Raises `ModelNotFound`, `ModelNotAllowed` or `NotForThisEndpoint`."""
        model = self._by_name.get(name)
        if model is None:
            raise ModelNotFound(name)
        if not identity.may_use(model.id):
            raise ModelNotAllowed(name)
        if endpoint.capability not in model.capabilities:
            raise NotForThisEndpoint(name, endpoint.capability, model.capabilities)
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
    raw: bytes, name: str, setting: str, schema: type[Model], variables: Mapping[str, str]
) -> Catalog:
    """The catalog that a models.json describes; `schema` is a `model_schema`.

    `${VAR}` in an instance is taken from `variables`.
    Raises `ConfigurationError` with every fault of the file.
    """
    document = Document(name)
    found = []
    for at, item in document.items(raw):
        if "instances" in item:
            item["instances"] = document.expanded(item["instances"], f"{at}.instances", variables)
        if model := document.check(schema, item, at):
            found.append((at, model))
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
