"""The README, the examples and the reference say what the code does."""

import ast
import json
import re
from pathlib import Path

import jsonschema
import pytest
from markdown_it import MarkdownIt

from llamaxing import plugins, settings
from llamaxing.catalog import model_schema, read_models
from llamaxing.endpoints import ENDPOINTS
from llamaxing.identity import read_identities
from llamaxing.reference import Reference
from tests import clients

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
JSON_BLOCKS = re.findall(r"```json\n(.*?)```", README, re.DOTALL)
EXAMPLES = sorted(
    path for path in ROOT.glob("examples/**/models*.json") if ".schema." not in path.name
)
SCHEMA = model_schema(
    {name: plugins.load("providers", name) for name in plugins.names("providers")}
)


class Anything(dict[str, str]):
    """Every variable is set."""

    def __contains__(self, name: object) -> bool:
        return True

    def __getitem__(self, name: str) -> str:
        return "https://set"

    def get(self, name: str, default: object = None) -> str:  # type: ignore[override]
        return "https://set"


def settings_table() -> str:
    lines = ["| setting | default | what it does |", "|---|---|---|"]
    for name, field in settings.every_setting().items():
        default = str(field.default).lower() if field.default in (True, False) else field.default
        empty = field.is_required() or field.default in (None, "")
        shown = "" if empty else f"`{default}`"
        lines.append(f"| `{name}` | {shown} | {field.description} |")
    return "\n".join(lines) + "\n\n"


TABLE = re.compile(r"\| setting \| default \|.*?\n\n", re.DOTALL)


def test_the_table_has_every_setting_with_its_default_and_what_it_does() -> None:
    assert TABLE.findall(README) == [settings_table()], "python -m tests.test_readme mends it"


def test_the_files_it_shows_are_read_without_a_fault() -> None:
    claims, models, keys = (json.dumps(json.loads(block)).encode() for block in JSON_BLOCKS)

    read_models(models, "models.json", "s", SCHEMA, Anything())
    assert len(read_identities(keys, "identities.json", "s", {})) == 2
    assert len(read_identities(claims, "identities.json", "s", {})) == 3


@pytest.mark.parametrize("path", EXAMPLES, ids=str)
def test_every_example_is_read_without_a_fault(path: Path) -> None:
    read_models(path.read_bytes(), path.name, "models_source", SCHEMA, Anything())


@pytest.mark.parametrize("path", EXAMPLES, ids=str)
def test_an_editor_that_knows_the_schema_finds_no_fault_in_an_example(path: Path) -> None:
    schema = json.loads((ROOT / "examples" / "models.schema.json").read_text())

    jsonschema.validate(json.loads(path.read_text()), schema)


@pytest.mark.parametrize("provider", plugins.names("providers"))
def test_it_names_every_field_of_every_provider(provider: str) -> None:
    for name in plugins.load("providers", provider).model_fields:
        assert f"`{name}`" in README


def test_it_lists_every_endpoint() -> None:
    for endpoint in ENDPOINTS:
        assert f"`{endpoint.method} /v1/{endpoint.path}`" in README
        assert f"| `{endpoint.capability}` |" in README


def test_the_errors_that_it_explains_are_ones_that_the_gateway_tells() -> None:
    table = README.partition("## Troubleshooting")[2].partition("\n## ")[0]
    seen = [row.split(" | ")[0] for row in re.findall(r"^\| (.*) \|$", table, re.MULTILINE)]
    told = {
        node.value
        for file in ROOT.glob("llamaxing/**/*.py")
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    }

    codes = re.findall(r"\d `(\w+)`|event `(\w+)`", " ".join(seen))
    assert len(codes) > 5
    assert {one or other for one, other in codes} <= told
    words = re.findall(r"\*([^*]+)\*", " ".join(seen))
    assert len(words) > 5
    long = {re.sub("%s|%r", "", it).strip(": ") for it in told if 15 < len(it) < 200}
    assert [it for it in words if not any(part in it for part in long)] == []


def test_what_it_leads_to_is_there() -> None:
    tokens = MarkdownIt().parse(README)
    headings = [tokens[at + 1].content for at, it in enumerate(tokens) if it.type == "heading_open"]
    # As GitHub calls them.
    anchors = {re.sub(r"[^\w -]", "", it.lower()).replace(" ", "-") for it in headings}
    links = re.findall(r"\]\((?!http)([^)#]*)(?:#([^)]*))?\)", README)
    pictures = re.findall(r'(?:src|srcset)="([^"]+)"', README)

    assert len(links) > 30
    assert len(pictures) == 3
    assert [
        it for it in (*(path for path, _ in links), *pictures) if not (ROOT / it).exists()
    ] == []
    assert {anchor for path, anchor in links if not path} <= anchors


def test_the_table_of_clients_has_those_that_the_tests_run() -> None:
    assert clients.table() in README, "python -m tests.clients writes it anew"


def test_the_reference_has_every_endpoint() -> None:
    document = json.loads(Reference("ours").document)

    for endpoint in ENDPOINTS:
        assert endpoint.method.lower() in document["paths"][f"/v1/{endpoint.path}"]
    assert {
        "/v1/models",
        "/v1/models/{id}",
        "/health/live",
        "/health/ready",
        "/health/instances",
    } < set(document["paths"])


if __name__ == "__main__":
    mended = TABLE.sub(lambda _: settings_table(), README)
    (ROOT / "README.md").write_text(mended)
