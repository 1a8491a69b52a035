"""Imports point down the list of the architecture and never up; what is heavy is not imported."""

import ast
import subprocess
import sys
from pathlib import Path

import llamaxing

PACKAGE = Path(llamaxing.__file__).parent
# From the top to the bottom: a module imports what stands below it, or beside it in a folder.
LAYERS = [
    ["__main__", "functions"],
    ["shim"],
    ["check", "upkeep", "simulate"],
    ["build"],
    ["sidecar"],
    ["asgi", "safety", "recording"],
    ["settings"],
    ["gateway"],
    ["asked", "audit"],
    ["ids"],
    ["pages", "relay"],
    ["configuration"],
    ["reference", "forward", "recorder"],
    ["outbox"],
    ["delivery", "commits", "table", "storage", "queued"],
    ["selection"],
    ["answer"],
    ["form"],
    ["catalog", "upstream", "payload", "copies"],
    ["providers", "auth", "sinks", "sources"],
    ["pool"],
    ["http1"],
    ["issuers"],
    ["credentials", "plugins", "jwks"],
    ["headers", "exchange", "cors", "clock", "hosting"],
    ["replies", "documents", "closing"],
    ["identity", "sse", "fitting", "generation", "merging"],
    ["endpoints", "document", "trimming"],
    ["http"],
    ["corked", "errors", "logs", "otlp", "patience"],
    ["__init__"],
]
LAYER = {name: depth for depth, names in enumerate(LAYERS) for name in names}
OUTSIDE = {"fastapi", "starlette", "uvicorn"}
# What an app must not bring along: it would replace the Functions worker's own.
OUTSIDE |= {"langfuse", "opentelemetry", "google"}
OURS_ALONE = {
    "azure": {"functions", "entra"},
    "azurefunctions": {"functions"},
    "uvicorn": {"shim"},
    "os": {"__main__", "build", "copies", "document", "jsonl", "shim", "sqlite"},
}


def imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module == "llamaxing":
            found |= {f"llamaxing.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
    return found


def room(path: Path) -> str:
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return parts[0]


def test_every_import_points_down() -> None:
    wrong = []
    for path in PACKAGE.rglob("*.py"):
        for name in imports(path):
            if not name.startswith("llamaxing."):
                continue
            target = name.split(".")[1]
            target = target if target in LAYER else "__init__"
            if target != room(path) and LAYER[target] <= LAYER[room(path)]:
                wrong.append(f"{path.relative_to(PACKAGE)} imports {name}")
    assert wrong == []


def test_servers_and_platforms_stay_at_the_edge() -> None:
    wrong = [
        f"{path.relative_to(PACKAGE)} imports {name}"
        for path in PACKAGE.rglob("*.py")
        for name in (it.split(".")[0] for it in imports(path))
        if name in OUTSIDE | set(OURS_ALONE) and path.stem not in OURS_ALONE.get(name, set())
    ]
    assert wrong == []


def test_nothing_heavy_is_imported_that_is_not_chosen() -> None:
    heavy = ["langfuse", "azure.identity", "azure.storage", "pymongo", "tiktoken", "jwt", "dotenv"]
    heavy += ["fastapi", "starlette", "uvicorn", "openai", "pydantic_settings"]
    code = f"import sys, llamaxing.build; print([m for m in {heavy} if m in sys.modules])"

    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert shown.stdout.strip() == "[]"


def test_a_command_imports_what_it_needs_when_it_runs() -> None:
    """A start waits for its imports most of all."""
    code = "import sys, llamaxing.__main__; print(*(m for m in sys.modules if 'llamaxing.' in m))"

    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert shown.stdout.split() == ["llamaxing.errors", "llamaxing.__main__"]
