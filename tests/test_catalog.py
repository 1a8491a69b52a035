"""models.json: what it may say, and which model a name means."""

import json
from typing import Any

import pytest

from llamaxing import plugins
from llamaxing.catalog import Catalog, model_schema, read_models
from llamaxing.endpoints import BY_NAME
from llamaxing.errors import ConfigurationError, ModelNotAllowed, ModelNotFound, NotForThisEndpoint
from llamaxing.identity import ANONYMOUS, Identity

CHAT, EMBEDDINGS = BY_NAME["chat_completions"], BY_NAME["embeddings"]
SCHEMA = model_schema(
    {name: plugins.load("providers", name) for name in plugins.names("providers")}
)
OPENAI = {"id": "i", "provider": "openai", "openai_api_key": "k"}
AZURE = {
    "id": "a",
    "provider": "azure",
    "azure_endpoint": "https://x.openai.azure.com/",
    "azure_deployment": "d",
    "azure_api_key": "k",
    "azure_api_version": "2024-10-21",
}


def model(*instances: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"id": "m", "capabilities": ["chat_completions"], "instances": instances, **more}


def read(raw: object, **variables: str) -> Catalog:
    text = raw if isinstance(raw, bytes) else json.dumps(raw).encode()
    return read_models(text, "models.json", "models_source", SCHEMA, variables)


def faults(raw: object, **variables: str) -> list[str]:
    with pytest.raises(ConfigurationError) as error:
        read(raw, **variables)
    assert error.value.settings == ["models_source"]
    return error.value.faults


def test_a_model_is_found_by_its_id_and_by_an_alias() -> None:
    catalog = read([model(OPENAI, aliases=["gpt-4o"])])

    assert catalog.find("m", CHAT, ANONYMOUS) is catalog.find("gpt-4o", CHAT, ANONYMOUS)


def test_a_name_nobody_has_and_an_endpoint_it_does_not_serve_are_refused() -> None:
    catalog = read([model(OPENAI)])

    with pytest.raises(ModelNotFound, match="'x' does not exist"):
        catalog.find("x", CHAT, ANONYMOUS)
    with pytest.raises(NotForThisEndpoint, match="embeddings; it serves chat_completions"):
        catalog.find("m", EMBEDDINGS, ANONYMOUS)
    with pytest.raises(ModelNotAllowed, match="not allowed to use the model 'm'"):
        catalog.find("m", CHAT, Identity(id="a", models=("other",)))


def test_the_listing_has_aliases_and_only_what_the_identity_may_use() -> None:
    catalog = read([model(OPENAI, aliases=["gpt-4o"]), model({**AZURE}, id="n")])

    listing = catalog.listing(Identity(id="a", models=("m",)), "ours")

    assert listing == [
        {
            "id": name,
            "object": "model",
            "created": 0,
            "owned_by": "openai",
            "capabilities": ["chat_completions"],
            "proxied_by": "ours",
        }
        for name in ("m", "gpt-4o")
    ]


def test_variables_expand_in_every_string_of_an_instance() -> None:
    catalog = read([model({**OPENAI, "openai_base_url": "${BASE}/v1"})], BASE="https://h")

    [instance] = catalog.find("m", CHAT, ANONYMOUS).instances
    assert instance.url(CHAT) == "https://h/v1/chat/completions"


def test_azure_and_openai_may_be_mixed() -> None:
    catalog = read([model(OPENAI, AZURE)])

    urls = [instance.url(CHAT) for instance in catalog.find("m", CHAT, ANONYMOUS).instances]
    assert urls == [
        "https://api.openai.com/v1/chat/completions",
        "https://x.openai.azure.com/openai/deployments/d/chat/completions?api-version=2024-10-21",
    ]


def test_every_fault_is_told_at_once() -> None:
    found = faults(
        [
            model({**OPENAI, "provider": "gcp"}, {**OPENAI, "id": "j", "x": 1}, id=7),
            model(AZURE, capabilities=["no"]),
        ]
    )

    assert len(found) == 4
