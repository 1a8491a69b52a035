"""The files of the examples go together, and name nothing that would count for nothing."""

import fnmatch
import importlib.util
import json
import re
from pathlib import Path
from types import ModuleType
from typing import Any

import jsonschema
import pytest
import yaml
from dotenv import dotenv_values

from llamaxing import __main__ as command_line
from llamaxing.settings import every_setting
from tests.services import PROJECT
from tests.test_images import found_by

EXAMPLES = sorted(PROJECT.glob("examples/0*"))
READMES = sorted(PROJECT.glob("examples/**/README.md"))
SIDECAR = PROJECT / "examples" / "04-azure-jwt-full-stack" / "sidecar"
# Of the platform, and of azure-identity.
THEIRS = {
    *("FUNCTIONS_WORKER_RUNTIME", "PYTHON_ENABLE_INIT_INDEXING", "FUNCTIONS_WORKER_PROCESS_COUNT"),
    *("AzureWebJobsStorage", "AzureWebJobsDisableHomepage"),
    *("AZURE_TENANT_ID", "AZURE_CLIENT_ID", "AZURE_CLIENT_SECRET", "AZURE_CREDENTIAL"),
}


def on_azure(example: Path) -> dict[str, str]:
    values: dict[str, str] = json.loads((example / "local.settings.sample.json").read_text())[
        "Values"
    ]
    return values


def here(folder: Path) -> dict[str, str]:
    return {name: value or "" for name, value in dotenv_values(folder / ".env.sample").items()}


def variables(example: Path) -> set[str]:
    texts = [file.read_text() for file in example.glob("*.json") if "settings" not in file.name]
    return set(re.findall(r"\$\{(\w+)\}", "".join(texts)))


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda it: it.name)
def test_an_example_is_whole(example: Path) -> None:
    for name in ("README.md", "models.json", "identities.json", ".env.sample"):
        assert (example / name).is_file(), name
    assert (example / "local.settings.sample.json").is_file()
    assert f"({example.name}/README.md)" in (PROJECT / "examples" / "README.md").read_text()


@pytest.mark.parametrize("folder", [*EXAMPLES, SIDECAR], ids=lambda it: it.name)
def test_every_name_in_its_settings_counts_for_something(folder: Path) -> None:
    known = {name.upper() for name in every_setting()} | variables(folder) | THEIRS

    assert here(folder).keys() <= known
    if folder != SIDECAR:
        assert on_azure(folder).keys() <= known
        assert variables(folder) <= on_azure(folder).keys() & here(folder).keys()


@pytest.mark.parametrize("file", sorted(PROJECT.glob("examples/*/identities.json")), ids=str)
def test_an_editor_that_knows_the_schema_finds_no_fault_in_identities(file: Path) -> None:
    schema = json.loads((PROJECT / "examples" / "identities.schema.json").read_text())

    jsonschema.validate(json.loads(file.read_text()), schema)


def test_an_editor_knows_the_schema_of_each_file() -> None:
    told = json.loads((PROJECT / ".vscode" / "settings.json").read_text())["json.schemas"]

    for name in ("models", "identities"):
        [patterns] = [it["fileMatch"] for it in told if it["url"].endswith(f"/{name}.schema.json")]
        files = {it.name for it in PROJECT.glob(f"examples/**/{name}*.json")}
        for file in files - {f"{name}.schema.json"}:
            assert any(fnmatch.fnmatch(file, it) for it in patterns), file


def test_no_secret_stands_in_what_is_for_azure() -> None:
    for example in EXAMPLES:
        for name, value in on_azure(example).items():
            assert value == "" or not re.search(r"SECRET|KEY$|URI$|AzureWebJobsStorage", name), name


def test_the_services_of_the_full_stack_are_a_compose_file() -> None:
    schema = ("--builtin-schema", "vendor.compose-spec")

    assert found_by("check-jsonschema", *schema, SIDECAR.parent / "docker-compose.yml") == ""


def test_the_services_of_the_full_stack_are_where_its_settings_say() -> None:
    example = SIDECAR.parent
    services: dict[str, Any] = yaml.safe_load((example / "docker-compose.yml").read_text())[
        "services"
    ]
    told, langfuse = here(example), services["langfuse-web"]["environment"]

    published = [port for it in services.values() for port in it.get("ports", ())]
    assert published == ["127.0.0.1:27017:27017", "127.0.0.1:3000:3000"]
    assert told["LOGGING_CLIENT_MONGODB_URI"].endswith("127.0.0.1:27017")
    assert told["OBSERVABILITY_CLIENT_LANGFUSE_HOST"].endswith("127.0.0.1:3000")
    for name in ("PUBLIC_KEY", "SECRET_KEY"):
        key = told[f"OBSERVABILITY_CLIENT_LANGFUSE_{name}"]
        assert key == langfuse[f"LANGFUSE_INIT_PROJECT_{name}"]
    for it in services.values():
        for other in it.get("depends_on", ()):
            assert "healthcheck" in services[other]


def test_a_program_that_easy_auth_lets_in_is_one_that_the_registration_names() -> None:
    example = PROJECT / "examples" / "03-azure-jwt-entra"
    easy, app, cli = (
        json.loads((example / name).read_text())
        for name in ("easy-auth.json", "app-registration.json", "app-azure-cli.json")
    )
    entra = easy["properties"]["identityProviders"]["azureActiveDirectory"]["validation"]
    [client] = cli["api"]["preAuthorizedApplications"]
    [scope], [role] = app["api"]["oauth2PermissionScopes"], app["appRoles"]
    identities = json.loads((example / "identities.json").read_text())
    readme = (example / "README.md").read_text()

    assert client["appId"] in entra["defaultAuthorizationPolicy"]["allowedApplications"]
    assert client["delegatedPermissionIds"] == [scope["id"]]
    assert role["value"] in [it["claims"].get("roles") for it in identities]
    for said in (role["id"], role["value"], scope["value"], client["appId"]):
        assert said in readme


# What READMEs say


@pytest.mark.parametrize("readme", READMES, ids=lambda it: it.parent.name)
def test_what_a_readme_leads_to_is_there(readme: Path) -> None:
    text = readme.read_text()

    for path in re.findall(r"(?<![\w/.])examples/[\w./-]+\w", text):
        made = path.endswith(".env") and (PROJECT / f"{path}.sample").is_file()
        assert made or (PROJECT / path).exists(), path
    for link in re.findall(r"\]\((?!http)([^)#]*)(?:#[^)]*)?\)", text):
        assert (readme.parent / link).exists(), link


@pytest.mark.parametrize("readme", READMES, ids=lambda it: it.parent.name)
def test_every_command_of_a_readme_is_one(
    run: ModuleType, readme: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(PROJECT)
    commands = re.findall(r"python3 run\.py((?: (?!#)[^\s`]+)*)", readme.read_text())

    for words in (it.split() for it in commands):
        if words and words[0] in run.COMMANDS:
            command_line._arguments(words).parse_args(words)
        elif words:
            run.existing(words[0])


# run.py


@pytest.fixture(scope="module")
def run() -> ModuleType:
    spec = importlib.util.spec_from_file_location("run", PROJECT / "run.py")
    assert spec is not None
    assert spec.loader is not None
    found = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(found)
    return found


@pytest.mark.parametrize(
    ("folder", "settings", "models"),
    [
        ("02-simple-apikey", {"OPENAI_API_KEY": "k"}, None),
        ("04-azure-jwt-full-stack/sidecar", {"APP_MODE": "sidecar"}, None),
        ("00-local-model", {}, "00-local-model/models.json"),
        ("demos", {"OPENAI_API_KEY": "k"}, "models-openai.json"),
        (
            "demos",
            dict.fromkeys(
                ("AZURE_OPENAI_ENDPOINT", "AZURE_OPENAI_API_KEY", "AZURE_OPENAI_DEPLOYMENT"), "a"
            ),
            "01-simple-noauth/models.json",
        ),
        ("demos", {}, "00-local-model/models.json"),
    ],
)
def test_a_folders_own_models_are_served_or_those_of_the_keys_there_are(
    run: ModuleType, folder: str, settings: dict[str, str], models: str | None
) -> None:
    _, told = run.choose(PROJECT / "examples" / folder, settings)

    expected = models and f"file:{PROJECT / 'examples' / models}"
    assert told.get("MODELS_SOURCE") == expected


@pytest.mark.parametrize(
    ("settings", "there"),
    [({}, True), ({"APP_PAGE": "False"}, False), ({"APP_MODE": "sidecar"}, False)],
)
def test_the_page_is_named_where_there_is_one(
    run: ModuleType, settings: dict[str, str], there: bool
) -> None:
    assert run.has_page(settings) is there


@pytest.mark.parametrize(
    ("arguments", "environ", "models"),
    [
        ([], {"OPENAI_API_KEY": "k"}, "models-openai.json"),
        (["--probe"], {}, "00-local-model/models.json"),
        (["--folder", "examples/02-simple-apikey"], {"OPENAI_API_KEY": "k"}, None),
        (["--folder=examples/demos"], {"MODELS_SOURCE": "env:MINE"}, None),
    ],
)
def test_check_is_of_what_would_be_served(
    run: ModuleType,
    arguments: list[str],
    environ: dict[str, str],
    models: str | None,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    # A developer's own configuration is not that of a clone.
    monkeypatch.setattr(run, "HERE", tmp_path)
    (tmp_path / "examples").symlink_to(PROJECT / "examples")
    monkeypatch.setattr(run.os, "environ", environ)

    told = run.told_to_check(arguments)

    assert told.get("MODELS_SOURCE") == (models and f"file:{tmp_path / 'examples' / models}")


def test_a_port_that_cannot_be_is_a_line(run: ModuleType) -> None:
    with pytest.raises(SystemExit, match=r"^run.py: cannot listen: a port is a number from 0"):
        run.check_port("127.0.0.1", 80000)


def test_a_port_that_cannot_be_is_refused_and_not_waited_for(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit):
        command_line._arguments([]).parse_args(["serve", "--port", "80000"])

    assert "80000 is no number from 0 to 65535" in capsys.readouterr().err


def test_it_has_every_command_but_serve_which_is_its_own(run: ModuleType) -> None:
    usage = command_line._arguments([]).format_usage()

    listed = re.findall(r"\w+", usage.partition("{")[2].partition("}")[0])
    assert sorted({*listed} - {"serve"}) == sorted(run.COMMANDS)
