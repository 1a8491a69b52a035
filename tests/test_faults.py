"""Each fault of the configuration, and the whole line that its operator reads."""

import json
from pathlib import Path
from typing import Any

import pytest

from llamaxing.build import Build
from llamaxing.errors import ConfigurationError

OPENAI: dict[str, Any] = {"id": "i", "provider": "openai", "openai_api_key": "secret-1"}
AZURE: dict[str, Any] = {
    "id": "a",
    "provider": "azure",
    "azure_endpoint": "https://x.openai.azure.com",
    "azure_deployment": "d",
    "azure_api_key": "secret-2",
    "azure_api_version": "2024-10-21",
}
VAULT = (
    "is an unresolved Key Vault reference; the app's identity may not read that secret, or there is "
    "none: see the setting's status in the portal"
)
CAPABILITIES = (
    "'chat_completions', 'completions', 'embeddings', 'images_generations', 'images_edits', "
    "'images_variations', 'audio_speech', 'audio_transcriptions', 'audio_translations', "
    "'moderations' or 'responses'"
)


def model(*instances: object, **more: Any) -> dict[str, Any]:
    return {"id": "m", "capabilities": ["chat_completions"], "instances": instances, **more}


def without(name: str, given: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in given.items() if key != name}


UNCALLABLE = [
    "https://h:99999",
    "https://h:port/v1",
    "https://h h",
    "https://[::1",
    "https://a..b",
    "https://h\\v1",
    "https://h/\tv1",
    f"https://{'a' * 64}.example",
]

MODELS = {
    "broken": (b'[\n  {"id": }\n]', "line 2, column 10: broken JSON: Expecting value"),
    "half of it": (b'[{"id": "m"', "line 1, column 12: broken JSON: Expecting ',' delimiter"),
    "nothing": (b"", "line 1, column 1: broken JSON: Expecting value"),
    "not utf-8": (b'["\xff"]', "is not text in UTF-8: invalid start byte at byte 2"),
    "half a character": (
        rb'[{"id": "\ud83d"}]',
        r"has half a character, as \ud83d is alone; write the whole of it",
    ),
    "too deep": (b"[" * 99999, "is nested too deeply"),
    "deep": (
        b'[{"id": "m", "instances": ' + b"[" * 500 + b"]" * 500 + b"}]",
        "is nested too deeply",
    ),
    "nan": (b'[{"id": NaN}]', "is not JSON: NaN is not JSON"),
    "no list": ({}, "is an object; it has to be a list of objects"),
    "empty list": ([], "is an empty list; it needs at least one object"),
    "no object": ([1], "[0]: is a number; it has to be an object"),
    "key twice": (
        (
            b'[{"id": "m", "id": "n", "capabilities": ["completions"], "instances":'
            b'[{"id": "i", "provider": "openai", "openai_api_key": "k"}]}]'
        ),
        "[0]: the key 'id' stands twice in this object; keep one",
    ),
    "key twice deeper": (
        (
            b'[{"id": "m", "capabilities": ["completions"], "instances":'
            b'[{"id": "i", "provider": "openai", "openai_api_key": "k", "openai_api_key": "l"}]}]'
        ),
        "[0].instances[0]: the key 'openai_api_key' stands twice in this object; keep one",
    ),
    "no id": ([without("id", model(OPENAI))], "[0].id: is missing"),
    "empty id": ([model(OPENAI, id="")], "[0].id: is empty"),
    "id of a wrong type": ([model(OPENAI, id=7)], "[0].id: is a number; it has to be a string"),
    "aliases of a wrong type": (
        [model(OPENAI, aliases="gpt")],
        "[0].aliases: has to be a list",
    ),
    "alias of a wrong type": (
        [model(OPENAI, aliases=["gpt", None])],
        "[0].aliases[1]: is null; it has to be a string",
    ),
    "empty alias": ([model(OPENAI, aliases=["a", ""])], "[0].aliases[1]: is empty"),
    "unknown key of a model": (
        [model(OPENAI, alias=[])],
        "[0].alias: is not a known key; did you mean 'aliases'?",
    ),
    "no capability": (
        [model(OPENAI, capabilities=[])],
        "[0].capabilities: is empty; it needs at least one",
    ),
    "capabilities missing": (
        [without("capabilities", model(OPENAI))],
        "[0].capabilities: is missing",
    ),
    "unknown capability": (
        [model(OPENAI, capabilities=["completions", "chat"])],
        f"[0].capabilities[1]: 'chat' is not a capability; use {CAPABILITIES}",
    ),
    "no instance": ([model()], "[0].instances: is empty; it needs at least one"),
    "instances missing": ([without("instances", model())], "[0].instances: is missing"),
    "instances of a wrong type": (
        [{**model(), "instances": {"id": "i"}}],
        "[0].instances: is an object; it has to be a list",
    ),
    "instance of a wrong type": (
        [model("i")],
        "[0].instances[0]: has to be an object",
    ),
    "provider missing": (
        [model({"id": "i"})],
        "[0].instances[0].provider: is missing; use 'azure', 'llamaxing' or 'openai'",
    ),
    "unknown provider": (
        [model({**OPENAI, "provider": "gcp"})],
        "[0].instances[0].provider: 'gcp' is not a provider; use 'azure', 'llamaxing' or 'openai'",
    ),
    "field of the other provider": (
        [model({**OPENAI, "azure_deployment": "d"})],
        "[0].instances[0].azure_deployment: is for 'azure', and this is 'openai'; leave it out",
    ),
    "unknown key of an instance": (
        [model({**AZURE, "azure_api_keys": "d"})],
        "[0].instances[0].azure_api_keys: is not a known key; did you mean 'azure_api_key'?",
    ),
    "a key unlike any": (
        [model({**AZURE, "zzz": "d"})],
        "[0].instances[0].zzz: is not a known key; leave it out",
    ),
    "key missing": (
        [model(without("openai_api_key", OPENAI))],
        "[0].instances[0].openai_api_key: is missing",
    ),
    "deployment missing": (
        [model(without("azure_deployment", AZURE))],
        "[0].instances[0].azure_deployment: is missing",
    ),
    "empty key": (
        [model({**OPENAI, "openai_api_key": ""})],
        "[0].instances[0].openai_api_key: is empty",
    ),
    "key of a wrong type": (
        [model({**OPENAI, "openai_api_key": 12345})],
        "[0].instances[0].openai_api_key: is a number; it has to be a string",
    ),
    "key with the end of a line": (
        [model({**AZURE, "azure_api_key": "${LINE}"})],
        "[0].instances[0].azure_api_key: has white space around it; take that away",
    ),
    "key with two lines": (
        [model({**OPENAI, "openai_api_key": "secret\nsecret"})],
        ("[0].instances[0].openai_api_key: has a character that no header can have; write it anew"),
    ),
    "organization with an umlaut": (
        [model({**OPENAI, "openai_organization": "Müller"})],
        (
            "[0].instances[0].openai_organization: has a character that no header can have; write it "
            "anew"
        ),
    ),
    "url without a scheme": (
        [model({**OPENAI, "openai_base_url": "host/v1"})],
        "[0].instances[0].openai_base_url: has to be a URL that starts with https:// (or http://)",
    ),
    "url with the end of a line": (
        [model({**AZURE, "azure_endpoint": "https://h\n"})],
        "[0].instances[0].azure_endpoint: has white space around it; take that away",
    ),
    **{
        f"url no. {number}": (
            [model({**OPENAI, "openai_base_url": url})],
            (
                "[0].instances[0].openai_base_url: has a host, a port or a character that no URL can "
                "have"
            ),
        )
        for number, url in enumerate(UNCALLABLE)
    },
    "url with a query": (
        [model({**AZURE, "azure_endpoint": "https://h?api-version=1"})],
        (
            "[0].instances[0].azure_endpoint: has to be a URL without a query, a fragment or a user "
            "in it"
        ),
    ),
    "priority below 0": (
        [model({**OPENAI, "priority": -1})],
        "[0].instances[0].priority: has to be greater than or equal to 0",
    ),
    "priority of a wrong type": (
        [model({**OPENAI, "priority": "first"})],
        "[0].instances[0].priority: has to be a whole number",
    ),
    "weight of a wrong type": (
        [model({**OPENAI, "weight": True})],
        "[0].instances[0].weight: is a boolean; it has to be a number",
    ),
    "unset variable": (
        [model({**OPENAI, "openai_api_key": "${NO}"})],
        "[0].instances[0].openai_api_key: the variable ${NO} is not set; set it, or write the value",
    ),
    "unset variable of a URL": (
        [model({**AZURE, "azure_endpoint": "${NO}"})],
        "[0].instances[0].azure_endpoint: the variable ${NO} is not set; set it, or write the value",
    ),
    "variable of an unresolved secret": (
        [model({**OPENAI, "openai_api_key": "${VAULT}"})],
        f"[0].instances[0].openai_api_key: the variable ${{VAULT}} {VAULT}",
    ),
    "unresolved secret in the file": (
        [model({**OPENAI, "openai_api_key": "@Microsoft.KeyVault(SecretUri=https://v/s)"})],
        f"[0].instances[0].openai_api_key: {VAULT}",
    ),
    "model twice": (
        [model(OPENAI), model(AZURE)],
        "[1].id: this name is taken by [0].id; choose another",
    ),
    "alias of another's id": (
        [model(OPENAI), model(AZURE, id="n", aliases=["x", "m"])],
        "[1].aliases[1]: this name is taken by [0].id; choose another",
    ),
    "alias twice": (
        [model(OPENAI, aliases=["x"]), model(AZURE, id="n", aliases=["x"])],
        "[1].aliases[0]: this name is taken by [0].aliases[0]; choose another",
    ),
    "instance twice": (
        [model(OPENAI, OPENAI)],
        "[0].instances[1].id: this id is taken by [0].instances[0].id; choose another",
    ),
    "instance twice in two models": (
        [model(OPENAI), model(OPENAI, id="n")],
        "[1].instances[0].id: this id is taken by [0].instances[0].id; choose another",
    ),
}

IDENTITIES = {
    "broken": (
        b"[{]",
        "line 1, column 3: broken JSON: Expecting property name enclosed in double quotes",
    ),
    "no list": ({"id": "a"}, "is an object; it has to be a list of objects"),
    "empty list": ([], "is an empty list; it needs at least one object"),
    "no id": ([{"auth_key": "k"}], "[0].id: is missing"),
    "empty id": ([{"id": "", "auth_key": "k"}], "[0].id: is empty"),
    "empty key": (
        [{"id": "a", "auth_key": ""}],
        "[0].auth_key: is empty; write the key, or 'sha256:' and the hex digits of its SHA-256",
    ),
    "null key": (
        [{"id": "a", "auth_key": None}],
        "[0].auth_key: is null; it has to be a string",
    ),
    "key in white space": (
        [{"id": "a", "auth_key": "k\n"}],
        "[0].auth_key: has white space around it; take that away",
    ),
    "half a hash": (
        [{"id": "a", "auth_key": "sha256:ab"}],
        "[0].auth_key: has no SHA-256 after 'sha256:'; write its 64 hex digits in lower case",
    ),
    "empty one of several keys": (
        [{"id": "a", "api_keys": [{"key": "k"}, {"key": ""}]}],
        (
            "[0].api_keys[1].key: is empty; write the key, or 'sha256:' and the hex digits of its "
            "SHA-256"
        ),
    ),
    "unset variable": (
        [{"id": "a", "auth_key": "${NO}"}],
        "[0].auth_key: the variable ${NO} is not set; set it, or write the value",
    ),
    "unresolved secret in the file": (
        [{"id": "a", "auth_key": "@Microsoft.KeyVault(SecretUri=https://v/s)"}],
        f"[0].auth_key: {VAULT}",
    ),
    "variable of an unresolved secret": (
        [{"id": "a", "api_keys": [{"key": "${VAULT}"}]}],
        f"[0].api_keys[0].key: the variable ${{VAULT}} {VAULT}",
    ),
    "expiry without a zone": (
        [{"id": "a", "api_keys": [{"key": "k", "expires": "2027-01-31T00:00:00"}]}],
        "[0].api_keys[0].expires: has to name its time zone, as in 2027-01-31T00:00:00Z",
    ),
    "unknown key": (
        [{"id": "a", "auth_kee": "k"}],
        "[0].auth_kee: is not a known key; did you mean 'auth_key'?",
    ),
    "unknown key of a key": (
        [{"id": "a", "api_keys": [{"key": "k", "expire": "2027"}]}],
        "[0].api_keys[0].expire: is not a known key; did you mean 'expires'?",
    ),
    "half a pair of Langfuse keys": (
        [{"id": "a", "auth_key": "k", "observability": {"langfuse_public_key": "p"}}],
        "[0].observability.langfuse_secret_key: is missing",
    ),
    "the other half": (
        [{"id": "a", "auth_key": "k", "observability": {"langfuse_secret_key": "s"}}],
        "[0].observability.langfuse_public_key: is missing",
    ),
    "an empty half": (
        [
            {
                "id": "a",
                "auth_key": "k",
                "observability": {"langfuse_public_key": "", "langfuse_secret_key": "s"},
            }
        ],
        "[0].observability.langfuse_public_key: is empty",
    ),
    "models of a wrong type": (
        [{"id": "a", "auth_key": "k", "models": "gpt"}],
        "[0].models: has to be a list",
    ),
    "claim of a wrong type": (
        [{"id": "a", "claims": {"oid": 7}}],
        "[0].claims.oid: is a number; it has to be a list",
    ),
    "unknown record": (
        [{"id": "a", "auth_key": "k", "record": "some"}],
        "[0].record: has to be 'full', 'metadata' or 'none'",
    ),
    "identity twice": (
        [{"id": "a", "auth_key": "k"}, {"id": "a", "auth_key": "l"}],
        "[1].id: this id is taken by [0].id; choose another",
    ),
    "key twice": (
        [{"id": "a", "auth_key": "k"}, {"id": "b", "auth_key": "k"}],
        "[1].auth_key: this key is taken by [0].auth_key; choose another",
    ),
    "key twice, once by its hash": (
        [
            {"id": "a", "auth_key": "k"},
            {
                "id": "b",
                "api_keys": [
                    {"key": "other"},
                    {
                        "key": "sha256:"
                        "8254c329a92850f6d539dd376f4816ee2764517da5e0235514af433164480d7a"
                    },
                ],
            },
        ],
        "[1].api_keys[1]: this key is taken by [0].auth_key; choose another",
    ),
}

LANGFUSE = {"OBSERVABILITY_CLIENT": "langfuse"}
# Beside a models.json without a fault.
SETTINGS: dict[str, tuple[dict[str, str], str]] = {
    "no file": (
        {"MODELS_SOURCE": "file:no/models.json"},
        "models_source: models.json cannot be read: No such file or directory",
    ),
    "no file of identities": (
        {"AUTH_METHOD": "apikey", "IDENTITIES_SOURCE": "file:no/people.json"},
        "identities_source: people.json cannot be read: No such file or directory",
    ),
    "no identities": (
        {"AUTH_METHOD": "apikey"},
        (
            "identity_store: auth_method=apikey needs identities; set identity_store=json, or "
            "identities_source"
        ),
    ),
    "open on Azure": (
        {"WEBSITE_INSTANCE_ID": "x"},
        (
            "auth_method: 'none' would let everybody in; choose another, or set "
            "auth_none_on_azure=true"
        ),
    ),
    "a Langfuse key alone": (
        {**LANGFUSE, "OBSERVABILITY_CLIENT_LANGFUSE_PUBLIC_KEY": "pk"},
        (
            "observability_client_langfuse_secret_key: is missing beside the other key; set both, "
            "or neither"
        ),
    ),
    "the other one alone": (
        {**LANGFUSE, "OBSERVABILITY_CLIENT_LANGFUSE_SECRET_KEY": "secret-3"},
        (
            "observability_client_langfuse_public_key: is missing beside the other key; set both, "
            "or neither"
        ),
    ),
    "no MongoDB": ({"LOGGING_CLIENT": "mongodb"}, "logging_client_mongodb_uri: is missing"),
    "no scheme of MongoDB": (
        {"LOGGING_CLIENT": "mongodb", "LOGGING_CLIENT_MONGODB_URI": "a:secret-4@db"},
        "logging_client_mongodb_uri: has to begin with 'mongodb://' or 'mongodb+srv://'",
    ),
    "an unresolved secret": (
        {**LANGFUSE, "OBSERVABILITY_CLIENT_LANGFUSE_SECRET_KEY": "@Microsoft.KeyVault(x)"},
        f"observability_client_langfuse_secret_key: {VAULT}",
    ),
    "a source that is a folder": (
        {"MODELS_SOURCE": "file:."},
        "models_source: . cannot be read: Is a directory",
    ),
    "a sidecar's key with two lines": (
        {
            "APP_MODE": "sidecar",
            "SIDECAR_UPSTREAM_URL": "https://h",
            "SIDECAR_AUTH_METHOD_APIKEY_KEY": "secret\nsecret",
        },
        ("sidecar_auth_method_apikey_key: has a character that no header can have; write it anew"),
    ),
    "no number": (
        {"CONFIGURATION_RELOAD_INTERVAL": "soon"},
        "configuration_reload_interval: has to be a number",
    ),
    "not a number": (
        {"CONFIGURATION_RELOAD_INTERVAL": "nan"},
        "configuration_reload_interval: has to be greater than or equal to 0",
    ),
}


VARIABLES = {"VAULT": "@Microsoft.KeyVault(SecretUri=https://v/s)", "LINE": "secret-5\n"}


async def faults(folder: Path, **settings: str) -> list[str]:
    with pytest.raises(ConfigurationError) as error:
        await Build({**VARIABLES, **settings}).all()
    return error.value.faults


def write(path: Path, raw: object) -> str:
    path.write_bytes(raw if isinstance(raw, bytes) else json.dumps(raw).encode())
    return str(path)


@pytest.mark.parametrize(("raw", "line"), MODELS.values(), ids=MODELS)
async def test_a_fault_of_models_json(tmp_path: Path, raw: object, line: str) -> None:
    file = write(tmp_path / "models.json", raw)

    [found] = await faults(tmp_path, MODELS_SOURCE=f"file:{file}")

    assert found == f"models.json: {line}"


@pytest.mark.parametrize(("raw", "line"), IDENTITIES.values(), ids=IDENTITIES)
async def test_a_fault_of_identities_json(tmp_path: Path, raw: object, line: str) -> None:
    models = write(tmp_path / "models.json", [model(OPENAI)])
    file = write(tmp_path / "identities.json", raw)

    [found] = await faults(
        tmp_path,
        MODELS_SOURCE=f"file:{models}",
        AUTH_METHOD="apikey",
        IDENTITIES_SOURCE=f"file:{file}",
    )

    assert found == f"identities.json: {line}"


@pytest.mark.parametrize(("given", "line"), SETTINGS.values(), ids=SETTINGS)
async def test_a_fault_of_a_setting(tmp_path: Path, given: dict[str, str], line: str) -> None:
    models = write(tmp_path / "models.json", [model(OPENAI)])

    found = await faults(tmp_path, **{"MODELS_SOURCE": f"file:{models}", **given})

    assert found == [line]


async def test_a_setting_without_the_model_it_names_is_warned_of(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    models = write(tmp_path / "models.json", [model(OPENAI, aliases=["other"])])
    named = {"DEFAULT_IMAGE_MODEL": "other", "DEFAULT_MODERATION_MODEL": "nobody"}

    built = await Build({"MODELS_SOURCE": f"file:{models}", **named}).all()
    await built.gateway.aclose()

    assert [it.getMessage() for it in caplog.records if "default" in it.getMessage()] == [
        "default_image_model: no model 'other' serves images",
        "default_moderation_model: no model 'nobody' serves moderations",
    ]
