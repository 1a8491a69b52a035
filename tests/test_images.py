"""Dockerfiles and GitHub's workflows: linted; the image's steps are gone through without Docker."""

import asyncio
import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import pathspec
import pytest
import yaml

from tests.conftest import configure, model, openai
from tests.fakes import Upstream
from tests.services import PROJECT, cannot_be_had, free_port, until_answers

IMAGES = ["Dockerfile", "Dockerfile.functions"]
WORKFLOWS = sorted((PROJECT / ".github" / "workflows").glob("*.yml"))
PROGRAMS = Path(sysconfig.get_path("scripts"))


def found_by(program: str, *arguments: object) -> str:
    """What a linter says; nothing where all is well."""
    path = PROGRAMS / program
    if not path.exists():
        cannot_be_had(f"{program} is not installed: requirements-dev.txt has it")
    ran = subprocess.run([path, *map(str, arguments)], cwd=PROJECT, capture_output=True, text=True)
    return "" if ran.returncode == 0 else ran.stdout + ran.stderr


@pytest.mark.parametrize("name", IMAGES)
def test_the_linter_of_dockerfiles_finds_nothing(name: str) -> None:
    assert found_by("hadolint", "--no-color", name) == ""


def test_workflows_are_as_their_schema_says() -> None:
    schema = ("--builtin-schema", "vendor.github-workflows")

    assert found_by("check-jsonschema", *schema, *WORKFLOWS) == ""


def test_the_auditor_of_workflows_finds_nothing() -> None:
    """No secret, no right that is not needed, no action by a tag that may move."""
    assert found_by("zizmor", "--offline", "--no-progress", *WORKFLOWS) == ""


def test_no_workflow_has_a_secret() -> None:
    for workflow in WORKFLOWS:
        assert "secrets." not in workflow.read_text()


def test_what_is_compiled_for_a_deployment_is_of_the_python_that_runs_it() -> None:
    workflow = yaml.safe_load((PROJECT / ".github/workflows/deploy.yml").read_text())
    steps = [it.get("with", {}) for it in workflow["jobs"]["package"]["steps"]]
    [version] = [it["python-version"] for it in steps if "python-version" in it]

    assert f"param pythonVersion string = '{version}'" in (PROJECT / "infra/main.bicep").read_text()
    for name in IMAGES:
        assert re.search(rf"^FROM \S*python\S*{version}", (PROJECT / name).read_text(), re.M)


def test_only_what_runs_goes_into_an_image() -> None:
    rules = (PROJECT / ".dockerignore").read_text().splitlines()
    # Docker's rules are git's, but that a name is one at the top, and not in every folder.
    ignored = pathspec.GitIgnoreSpec.from_lines(
        re.sub(r"^(!?)(?=[\w*])", r"\1/", it) for it in rules
    )
    litter = ["models.json", ".env", "local.settings.json", "llamaxing/__pycache__/a.pyc", "a.db"]
    names = [path.name for path in PROJECT.iterdir()] + litter + ["llamaxing/build.py"]

    assert set(ignored.match_files(names, negate=True)) - {"llamaxing"} == {
        "function_app.py",
        "host.json",
        "llamaxing/build.py",
        "requirements-shim.txt",
        "requirements.txt",
    }


# The image of the shim, step by step


class Image:
    """What `Dockerfile` makes, below a folder: its absolute paths are below that, and what pip
    would install is what the tests have."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.env = {"PATH": os.environ["PATH"]}
        self.folder = root
        self.health: Sequence[str] = ()
        self.entry: Sequence[str] = ()
        self.command: Sequence[str] = ()
        self.user = 0
        for word, rest in _steps(PROJECT / "Dockerfile"):
            getattr(self, f"_{word.lower()}")(self._here(rest))

    def _here(self, text: str) -> str:
        return re.sub(r"(?<![\w.$])/(app|build|data|venv)\b", rf"{self.root}/\1", text)

    def _from(self, rest: str) -> None:
        self.env = {"PATH": os.environ["PATH"]}

    def _env(self, rest: str) -> None:
        for name, value in re.findall(r'(\w+)=("[^"]*"|\S+)', rest):
            self.env[name] = value.strip('"').replace("$PATH", self.env["PATH"])

    def _run(self, rest: str) -> None:
        if "pip install" in rest:
            packages = sysconfig.get_path("purelib")
            [site] = (self.root / "venv").glob("lib/python*/site-packages")
            (site / "installed.pth").write_text(packages)
            return
        rest = re.sub(r"^python\b", sys.executable, rest)
        subprocess.run(["sh", "-euc", rest], cwd=self.folder, env=self.env, check=True)

    def _copy(self, rest: str) -> None:
        *sources, target = rest.split()
        if sources[0].startswith("--from"):
            return  # all stages share one folder here
        for source in sources:
            if (PROJECT / source).is_dir():
                leave = shutil.ignore_patterns("__pycache__")
                shutil.copytree(PROJECT / source, target, ignore=leave, dirs_exist_ok=True)
            else:
                Path(target).mkdir(parents=True, exist_ok=True)
                shutil.copy(PROJECT / source, target)

    def _workdir(self, rest: str) -> None:
        self.folder = Path(rest)

    def _user(self, rest: str) -> None:
        self.user = int(rest.partition(":")[0])

    def _expose(self, rest: str) -> None:
        self.port = int(rest)

    def _healthcheck(self, rest: str) -> None:
        self.health = json.loads(rest[rest.index("[") :])

    def _entrypoint(self, rest: str) -> None:
        self.entry = json.loads(rest)

    def _cmd(self, rest: str) -> None:
        self.command = json.loads(rest)


def _steps(file: Path) -> Iterator[tuple[str, str]]:
    text = re.sub(r"^#.*\n", "", file.read_text(), flags=re.M).replace("\\\n", " ")
    for line in filter(None, text.splitlines()):
        word, _, rest = line.partition(" ")
        yield word, rest.strip()


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Image:
    if os.name == "nt":
        pytest.skip("the steps are for a Unix shell")
    if os.geteuid() != 0:
        pytest.skip("only root may give a folder to the image's user, as its steps do")
    return Image(tmp_path_factory.mktemp("image"))


@asynccontextmanager
async def running(
    image: Image, environ: dict[str, str]
) -> AsyncIterator[tuple[asyncio.subprocess.Process, dict[str, str]]]:
    """Its command, on a free port, as a user who may read everything and write what is theirs."""
    port = str(free_port())
    env = {**image.env, **environ}
    command = [port if it == str(image.port) else it for it in (*image.entry, *image.command)]
    keep = "--ambient-caps=+dac_read_search", "--inh-caps=+dac_read_search"
    become = [f"--reuid={image.user}", f"--regid={image.user}", "--clear-groups", *keep]
    process = await asyncio.create_subprocess_exec(
        "setpriv", *become, "--bounding-set=-dac_override", *command, cwd=image.folder, env=env
    )
    try:
        await until_answers(f"http://127.0.0.1:{port}/health/live")
        yield process, {**env, "PORT": port}
    finally:
        if process.returncode is None:
            process.terminate()
            await process.wait()


def user_of(pid: int) -> int:
    return Path(f"/proc/{pid}").stat().st_uid


async def test_the_image_serves_as_a_user_of_its_own_and_tells_its_health(
    image: Image, upstream: Upstream, tmp_path: Path
) -> None:
    if shutil.which("setpriv") is None:
        cannot_be_had("setpriv is not installed: util-linux has it")
    environ = configure(tmp_path, [model(openai(upstream, "i1"))]) | {
        "OUTBOX": "sqlite",
        "LOGGING_CLIENT": "jsonl",
        "LOGGING_CLIENT_JSONL_FILENAME": "apicalls.jsonl",
    }

    async with running(image, environ) as (process, env):
        health = [it.replace(str(image.port), env["PORT"]) for it in image.health]
        health[0] = str(image.root / "venv" / "bin" / health[0])
        checked = await asyncio.create_subprocess_exec(*health, env=env)
        assert await checked.wait() == 0
        assert user_of(process.pid) == image.user != 0
        process.terminate()
        assert await process.wait() == 0
        checked = await asyncio.create_subprocess_exec(*health, env=env, stderr=-3)
        assert await checked.wait() == 1

    # Where it runs it may keep records; nothing else was written, and all of it is compiled.
    assert (image.folder / "llamaxing-outbox.db").exists()
    assert list((image.root / "app" / "llamaxing" / "__pycache__").glob("gateway.*.pyc"))
