"""What is deployed: small, nothing in it that is only ours, at home in the platform's worker."""

import glob
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pathspec
import pytest

from tests.conftest import configure, model, openai
from tests.fakes import CHAT, DONE, Upstream, chunk
from tests.functions_host import Host
from tests.services import PROJECT, cannot_be_had

SCRIPT = PROJECT / "infra" / "package.py"
HERE = "{}.{}".format(*sys.version_info)
# What the worker of each version brings along, as far as it could be in the way of ours.
WORKER = {
    "3.11": ["azure-functions==1.22.*", "protobuf==4.25.*", "grpcio>=1.54,<1.71"],
    "3.13": ["azure-functions==2.3.*", "protobuf==5.29.*", "grpcio>=1.70,<1.71"],
}
RUNTIME = ["azure-functions-runtime==1.3.0", "azurefunctions-extensions-base"]
MOST = 80_000_000


@dataclass(frozen=True)
class Deployed:
    """`python`: the version; `worker`: the folder of the worker's own packages."""

    python: str
    program: str
    zip: Path
    app: Path
    worker: Path

    @property
    def packages(self) -> Path:
        return self.app / ".python_packages" / "lib" / "site-packages"

    def path(self, order: str) -> str:
        """PYTHONPATH, with ours or with the worker's first."""
        found = [self.packages, self.worker]
        return os.pathsep.join(map(str, found if order == "ours first" else reversed(found)))


def program(version: str) -> str | None:
    """A Python of this version, without what is installed for the tests."""
    if version == HERE:
        return str(sys._base_executable)  # type: ignore[attr-defined]
    pyenv = os.environ.get("PYENV_ROOT") or str(Path.home() / ".pyenv")
    found = [f"python{version}", *glob.glob(f"{pyenv}/versions/{version}.*/bin/python{version}")]
    # pyenv puts programs on the PATH that say they are not switched on.
    runs = [it for it in found if shutil.which(it) and not subprocess.call([it, "-V"], stderr=-3)]
    return runs[0] if runs else None


@pytest.fixture(scope="module", params=WORKER)
def deployed(request: pytest.FixtureRequest, tmp_path_factory: Any) -> Deployed:
    version: str = request.param
    python = program(version)
    if python is None:
        pytest.skip(f"there is no Python {version} here")
    folder = tmp_path_factory.mktemp(f"python{version}")
    zip, app, worker = folder / "llamaxing.zip", folder / "app", folder / "worker"
    command = [python, "-m", "pip", "install", "-qq", "--disable-pip-version-check", "--no-deps"]
    command += ["--no-compile", "--ignore-requires-python", "--target", str(worker)]
    made = subprocess.Popen([python, str(SCRIPT), "--output", str(zip)])
    installed = subprocess.call([*command, *RUNTIME, *WORKER[version]])
    if made.wait() != 0 or installed != 0:
        cannot_be_had("pip could not install what is deployed, or what the worker has")
    with zipfile.ZipFile(zip) as file:
        file.extractall(app)
    return Deployed(version, python, zip, app, worker)


def test_it_is_small(deployed: Deployed) -> None:
    unpacked = sum(path.stat().st_size for path in deployed.app.rglob("*") if path.is_file())

    assert deployed.zip.stat().st_size < MOST / 3
    assert unpacked < MOST


def test_it_holds_no_test_key_or_cache(deployed: Deployed) -> None:
    names = {path.name for path in deployed.app.rglob("*")}
    top = {path.name for path in deployed.app.iterdir()}

    theirs = {"models.json", "identities.json"}
    ours = {"function_app.py", "host.json", "llamaxing", "requirements.txt"}
    assert top - theirs == {*ours, ".python_packages", "__pycache__"}
    assert not {"tests", "test", "conftest.py", ".env", "local.settings.json", "infra"} & names
    keys = [name for name in names if name.endswith((".db", ".jsonl", ".pem", ".key"))]
    assert keys == ["cacert.pem"]  # of certifi: those that everybody trusts


def test_it_brings_nothing_that_would_replace_the_workers_own(deployed: Deployed) -> None:
    packages = {path.name for path in deployed.packages.iterdir()}

    assert not {"google", "grpc", "azure_functions_runtime", "uvloop"} & packages
    # FastAPI asks for the bare interface, which the worker takes from the app.
    telemetry = {path.name for path in (deployed.packages / "opentelemetry").iterdir()}
    assert not {"sdk", "exporter", "proto"} & telemetry


def test_every_module_is_compiled_and_never_compared_with_its_source(deployed: Deployed) -> None:
    tag = f"cpython-{deployed.python.replace('.', '')}"
    sources = [deployed.app / "function_app.py", *(deployed.app / "llamaxing").rglob("*.py")]
    sources += [deployed.packages / "httpx" / "__init__.py"]

    for source in sources:
        header = (source.parent / "__pycache__" / f"{source.stem}.{tag}.pyc").read_bytes()[4:8]
        assert int.from_bytes(header, "little") == 0b01  # by a hash, and unchecked: PEP 552


@pytest.mark.parametrize("order", ["ours first", "theirs first"])
def test_our_packages_and_the_workers_go_together(deployed: Deployed, order: str) -> None:
    """Deployed ours are found first, under Core Tools the worker's."""
    code = (
        "import sys, json, function_app, azure_functions_runtime, grpc\n"
        "import llamaxing.sinks.mongodb, llamaxing.sinks.langfuse, llamaxing.auth.jwt\n"
        "import azure.identity, google.protobuf.message\n"
        "names = ['llamaxing', 'azure.functions', 'google.protobuf.message', 'grpc', 'httpx']\n"
        "print(json.dumps({name: sys.modules[name].__file__ for name in names}))"
    )
    env = {"PYTHONPATH": deployed.path(order), "PYTHON_ENABLE_INIT_INDEXING": "1"}
    ran = subprocess.run(
        [deployed.program, "-s", "-c", code],
        cwd=deployed.app,
        env=env,
        capture_output=True,
        text=True,
    )

    assert ran.returncode == 0, ran.stderr
    found = {name: Path(file) for name, file in json.loads(ran.stdout).items()}
    assert found["llamaxing"].is_relative_to(deployed.app)
    assert found["httpx"].is_relative_to(deployed.packages)
    first = deployed.packages if order == "ours first" else deployed.worker
    assert found["azure.functions"].is_relative_to(first)
    for name in ("grpc", "google.protobuf.message"):
        assert found[name].is_relative_to(deployed.worker)


@pytest.mark.parametrize("order", ["ours first", "theirs first"])
async def test_it_streams_from_an_empty_folder_in_the_worker_library(
    deployed: Deployed, order: str, tmp_path: Path, upstream: Upstream
) -> None:
    upstream.streams("i1", [chunk("Hello"), DONE])
    settings = configure(tmp_path, [model(openai(upstream, "i1"))])
    env = {**settings, "PYTHONPATH": deployed.path(order), "PYTHON_ENABLE_INIT_INDEXING": "1"}
    host = await Host(deployed.app, env=env, python=deployed.program).start()
    try:
        async with httpx.AsyncClient(base_url=host.url, timeout=30, verify=False) as client:
            body = {**CHAT, "stream": True}
            reply = await client.post("/v1/chat/completions", json=body)
            page = await client.get("/")
        await host.settled()
    finally:
        await host.stop()

    assert (reply.status_code, reply.content) == (200, chunk("Hello") + DONE)
    assert page.status_code == 200
    assert not list(deployed.app.glob("*.db"))


def test_only_what_runs_is_published(tmp_path: Path) -> None:
    """Of what is in the repository, and of what a developer has lying about."""
    listed = subprocess.check_output(["git", "ls-files", "-co", "--exclude-standard"], cwd=PROJECT)
    litter = [".env", ".venv/pyvenv.cfg", "local.settings.json", "a.db", "a.db-wal", "calls.jsonl"]
    litter += ["llamaxing/__pycache__/a.pyc", "dist/llamaxing.zip", "models.json"]
    names = {*listed.decode().splitlines(), *litter}
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    shutil.copy(PROJECT / ".funcignore", tmp_path)
    spec = importlib.util.spec_from_file_location("package", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    package = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(package)

    published = {path.as_posix() for path in package.published(tmp_path)}

    top = {name.partition("/")[0] for name in published}
    assert top == {"function_app.py", "host.json", "llamaxing", "requirements.txt", "models.json"}
    # Core Tools and azd read the file as git reads such files.
    ignored = pathspec.GitIgnoreSpec.from_lines((tmp_path / ".funcignore").read_text().splitlines())
    assert published == set(ignored.match_files(names, negate=True))
