"""Every block of the READMEs, in their order, in a fresh clone: run as it stands, or not, and why.

A block that is not listed here fails the test, so that none is written which nobody has run. Ports
are others than in the text; `python3` and `.venv` are what the tests have, so nothing is fetched.
"""

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import pytest
from markdown_it import MarkdownIt

from tests.clients import ENVIRON
from tests.services import PROJECT, cannot_be_had, free_port, wait_until_answers

EXAMPLES = sorted(PROJECT.glob("examples/**/README.md"))
PROGRAM = "python -c "
# A line that serves until it is told to end, and where it then answers.
SERVES = {
    "simulate": ("sim", "/"),
    "run.py check": None,
    "run.py keys": None,
    "run.py outbox": None,
    "run.py test": None,
    "run.py": ("gateway", "/health/live"),
    "-m llamaxing serve": ("gateway", "/health/live"),
    "serve_model.py": ("model", "/health"),
}


@dataclass(frozen=True)
class Runs:
    """A block that is run, and what has to be found in what it prints. `then` looks at what came of
    it. `environ` is what its text says to have set, `given` a file that it says is there.
    """

    begins: str
    prints: str = ""
    environ: Mapping[str, str] = field(default_factory=dict)
    given: str = ""
    then: "Callable[[Clone], None]" = lambda _: None


@dataclass(frozen=True)
class IsNot:
    """A block that is not run, and why."""

    begins: str
    why: str


class Clone:
    """A clone of this repository, with what is not committed yet, and ports of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "llamaxing"
        self._running: dict[str, subprocess.Popen[bytes]] = {}
        self.ports = {"gateway": free_port(), "sim": free_port(), "model": free_port()}
        git("clone", "-q", str(PROJECT), str(self.folder))
        for name in git("ls-files", "-mo", "--exclude-standard").splitlines():
            if (PROJECT / name).exists():
                (self.folder / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(PROJECT / name, self.folder / name)
        (self.folder / ".venv").symlink_to(sys.prefix)
        for sample in self.folder.glob("examples/**/.env.sample"):
            sample.write_text(self.ported(sample.read_text()))
        base = f"{self.url('gateway')}/v1"
        self.environ = {**ENVIRON, "HOME": str(folder), "LLAMAXING_BASE_URL": base}
        self.environ["PATH"] = f"{Path(sys.executable).parent}:{os.environ['PATH']}"

    def url(self, server: str) -> str:
        return f"http://127.0.0.1:{self.ports[server]}"

    def ported(self, text: str) -> str:
        for name, usual in (("gateway", "8000"), ("sim", "9000"), ("model", "8081")):
            text = re.sub(rf"(?<=:){usual}\b", str(self.ports[name]), text)
        return text

    def run(self, block: Runs, text: str) -> None:
        printed = ""
        if block.given:
            (self.folder / block.given).touch()
        for line in commands(text):
            server = next((it for part, it in SERVES.items() if part in line), None)
            if server is None:
                printed += self._finish(line, block.environ)
            else:
                self._serve(line, *server, block.environ)
        assert re.search(block.prints, printed), printed
        block.then(self)

    def _finish(self, line: str, environ: Mapping[str, str]) -> str:
        shell = ["bash", "-euo", "pipefail", "-c", self.ported(line)]
        done = subprocess.run(
            shell,
            cwd=self.folder,
            env={**self.environ, **environ},
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def _serve(self, line: str, name: str, path: str, environ: Mapping[str, str]) -> None:
        """Until another has to answer there, or the README is at its end."""
        self._end(name)
        command = f"{self.ported(line.partition('  #')[0])} --port {self.ports[name]}"
        self._running[name] = subprocess.Popen(
            ["bash", "-c", f"exec env {command}"],
            cwd=self.folder,
            env={**self.environ, **environ},
            start_new_session=True,
        )
        wait_until_answers(f"{self.url(name)}{path}", 60)

    def end(self) -> None:
        for name in reversed(list(self._running)):
            self._end(name)

    def _end(self, name: str) -> None:
        if process := self._running.pop(name, None):
            os.killpg(process.pid, signal.SIGTERM)
            process.wait(60)


def git(*arguments: str) -> str:
    return subprocess.check_output(["git", *arguments], cwd=PROJECT, text=True)


def commands(text: str) -> Sequence[str]:
    """Each command of a block, without what it prints where the block shows that too."""
    if text.startswith("$ "):
        return re.findall(r"^\$ (.*)$", text, re.MULTILINE)
    if text.startswith(PROGRAM):
        return [text]
    return re.split(r"(?<!\\)\n(?! )", text.strip())


def blocks(readme: Path) -> Sequence[str]:
    tokens = MarkdownIt().parse(readme.read_text())
    found = [it for it in tokens if it.type in ("fence", "code_block")]
    return [as_command(it.content) if it.info == "python" else it.content for it in found]


def as_command(program: str) -> str:
    return f"{PROGRAM}{shlex.quote(program)}"


def answers(clone: Clone, model: str, status: int = 200, **headers: str) -> None:
    body = {"model": model, "max_tokens": 4, "messages": [{"role": "user", "content": "Hello"}]}
    url = f"{clone.url('gateway')}/v1/chat/completions"
    reply = httpx.post(url, json=body, headers=headers, timeout=60, trust_env=False)
    assert reply.status_code == status, reply.text


def knows_its_callers(clone: Clone) -> None:
    answers(clone, "smollm2", 401)
    answers(clone, "smollm2", authorization="Bearer sample-team-a")


def fails_over(clone: Clone) -> None:
    for _ in range(20):
        answers(clone, "sim")
    found = httpx.get(clone.url("sim"), trust_env=False).json()
    assert found["b"]["answered"].get("200")


def own(clone: Clone) -> None:
    answers(clone, "gpt-6-luna", 401)
    for name in (".env", "models.json", "identities.json"):
        (clone.folder / name).unlink()


def left_behind(*names: str) -> Callable[[Clone], None]:
    """What a block has put into the folder of the clone, which others do not expect there."""

    def look(clone: Clone) -> None:
        for name in names:
            assert json.loads((clone.folder / name).read_text())
            (clone.folder / name).unlink()

    return look


SETTINGS = left_behind("models.json", "local.settings.json")
FILES = left_behind("models.json", "identities.json", "local.settings.json")
DONE = r"data: \[DONE\]"
AZURE = "a subscription of Azure"
ENTRA = "Entra ID; tests/e2e/test_examples.py runs the rest of it with another issuer"
SHOWN = "what something prints; "
CORE_TOOLS = "an environment from PyPI, and Core Tools, which are not on it"
JSON = "tests/test_readme.py reads it"
PLUGIN = "tests/e2e/test_extend.py runs it"
RECORDS = {"LOGGING_CLIENT": "jsonl"}

READMES: Mapping[str, Sequence[Runs | IsNot]] = {
    "README.md": [
        Runs("python3 run.py"),
        Runs("curl -N http://localhost:8000", DONE),
        # A small model may say it with a picture.
        Runs("python -c 'from openai import OpenAI", r"\S"),
        Runs("cp examples/02-simple-apikey/models.json"),
        Runs("python3 run.py check", "callers are known by apikey", then=own),
        IsNot("python3 run.py test", "it is what runs this"),
        Runs("$ python3 run.py keys new", r'"id": "team-a", "api_keys"'),
        IsNot("AUTH_METHOD=jwt", "settings; tests/e2e/test_oidc.py has them"),
        IsNot('[\n  {"id": "ann"', JSON),
        IsNot("SIDECAR_UPSTREAM_URL=", "settings; tests/e2e/test_sidecar.py has them"),
        IsNot("$ APP_MODE=sidecar", f"{ENTRA}, and tests/e2e/test_sidecar.py"),
        IsNot(
            "python -c 'client.chat.completions.create",
            "a call, as in examples/demos/langfuse_traces.py",
        ),
        Runs("python3 run.py outbox status", "jsonl: 0 waiting", RECORDS, "shim.log"),
        Runs("python3 run.py simulate --fault a:429", then=fails_over),
        IsNot("instance  200  429", f"{SHOWN}tests/test_simulate.py"),
        IsNot("LLMock resilience verdict: 22", f"{SHOWN}tests/e2e/test_llmock.py"),
        IsNot("LLMock resilience verdict: 24", f"{SHOWN}tests/e2e/test_llmock.py"),
        IsNot("python3 -m venv .venv-func", CORE_TOOLS),
        Runs("python -m llamaxing simulate", then=left_behind("models.json")),
        IsNot("python -m llamaxing keys new --id me", CORE_TOOLS),
        IsNot("KEY=llx-…", CORE_TOOLS),
        IsNot("azd auth login", AZURE),
        IsNot("az storage blob upload", AZURE),
        IsNot("azd env set OPENAI_ACCOUNTS", AZURE),
        IsNot("az keyvault secret set", AZURE),
        IsNot("python3.13 infra/package.py", f"{AZURE}; tests/test_package.py makes the zip"),
        IsNot(
            "python -c 'from openai import OpenAI",
            f"{AZURE}; tests/test_functions.py sends such keys",
        ),
        IsNot('python -c \'"""A model server of our own', PLUGIN),
        IsNot('python -c \'"""Each record, posted', PLUGIN),
        IsNot('python -c \'"""HTTP Basic', PLUGIN),
        IsNot('[\n  {\n    "id": "gpt-4o"', JSON),
        IsNot("models.json: [0].instances[0].provider", f"{SHOWN}tests/test_faults.py"),
        IsNot('[\n  {\n    "id": "team-a"', JSON),
        IsNot("$ python3 run.py check --probe", f"{AZURE}; tests/test_check.py has what it prints"),
    ],
    "examples/00-local-model/README.md": [
        Runs(".venv/bin/python examples/00-local-model/serve_model.py"),
        Runs("curl -N", DONE),
        Runs("python examples/demos/chat_streamed.py", r"tokens\)"),
        Runs("AUTH_METHOD=apikey", then=knows_its_callers),
    ],
    "examples/01-simple-noauth/README.md": [
        Runs("python3 run.py simulate"),
        Runs("cp examples/01-simple-noauth/.env.sample"),
        Runs("curl http://localhost:8000", "simulator"),
        Runs("cp examples/01-simple-noauth/models.json", then=SETTINGS),
    ],
    "examples/02-simple-apikey/README.md": [
        Runs("python3 run.py simulate"),
        Runs("cp examples/02-simple-apikey/.env.sample"),
        Runs("curl -N", DONE),
        Runs("curl http://localhost:8000/v1/embeddings", "model_not_allowed"),
        Runs("curl -X PUT localhost:9000/azure"),
        Runs("curl -X PUT localhost:9000/azure"),
        Runs("python3 run.py keys new", '"id": "team-c"'),
        Runs("cp examples/02-simple-apikey/models.json", then=FILES),
    ],
    "examples/03-azure-jwt-entra/README.md": [
        Runs("python3 run.py simulate"),
        Runs("cp examples/03-azure-jwt-entra/.env.sample"),
        Runs("curl http://localhost:8000/v1/chat/completions", "simulator"),
        IsNot("az login", ENTRA),
        IsNot("ME=$(az ad", ENTRA),
        IsNot("CLIENT_ID=$(az ad", ENTRA),
        Runs("python3 run.py simulate"),
        IsNot("cp examples/03-azure-jwt-entra/.env.sample", ENTRA),
        IsNot("TOKEN=$(az account", ENTRA),
        IsNot("python -c 'from azure.identity", ENTRA),
        IsNot("az ad app update", f"{ENTRA}, and OAuth2 Proxy"),
        IsNot("SITE=$(az functionapp", AZURE),
        Runs("cp examples/03-azure-jwt-entra/models.json", then=FILES),
    ],
    "examples/04-azure-jwt-full-stack/README.md": [
        IsNot("application ──>", "a picture"),
        IsNot("docker compose", "Docker; tests/e2e/test_examples.py has a mongod"),
        IsNot("cp examples/04-azure-jwt-full-stack/.env.sample", ENTRA),
        IsNot("cp examples/04-azure-jwt-full-stack/sidecar/.env.sample", ENTRA),
        IsNot("curl http://localhost:8001/v1/embeddings", ENTRA),
        IsNot("export LLAMAXING_API_KEY", ENTRA),
        IsNot("docker compose", "Docker; tests/e2e/test_examples.py reads the records"),
        Runs("cp examples/04-azure-jwt-full-stack/models.json", then=FILES),
    ],
    "examples/05-multi-region-ptu/README.md": [
        Runs("python3 run.py simulate"),
        Runs("cp examples/05-multi-region-ptu/.env.sample"),
        Runs("curl -i", "x-llamaxing-instance: ptu"),
        Runs("curl -X PUT localhost:9000/ptu", "instances"),
        Runs("curl -X PUT localhost:9000/ptu"),
        IsNot("az functionapp identity assign", AZURE),
        Runs("cp examples/05-multi-region-ptu/models.json", then=FILES),
    ],
    "examples/README.md": [Runs("cp examples/02-simple-apikey/.env.sample")],
    "examples/demos/README.md": [
        IsNot("python3 -m venv", "an environment from PyPI; tests/e2e/test_examples.py runs them"),
        IsNot("LLAMAXING_API_KEY=", "tests/e2e/test_examples.py runs it"),
    ],
}


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Clone:
    if missing := [it for it in ("bash", "curl", "git") if shutil.which(it) is None]:
        cannot_be_had(f"the READMEs are followed with {' and '.join(missing)}")
    return Clone(tmp_path_factory.mktemp("clone"))


def test_every_readme_that_a_newcomer_follows_is_here() -> None:
    written = {"README.md", *(str(it.relative_to(PROJECT)) for it in EXAMPLES)}

    assert READMES.keys() == written


@pytest.mark.parametrize("readme", READMES)
def test_every_block_is_run_or_is_listed_with_the_reason(readme: str) -> None:
    begin = [block.begins for block in READMES[readme]]

    assert [
        text[: len(begin[at])] if at < len(begin) else text
        for at, text in enumerate(blocks(PROJECT / readme))
    ] == begin


@pytest.mark.parametrize("readme", READMES)
def test_what_can_be_run_runs_in_a_fresh_clone(clone: Clone, readme: str) -> None:
    texts = blocks(clone.folder / readme)
    try:
        for block, text in zip(READMES[readme], texts, strict=True):
            if isinstance(block, Runs):
                clone.run(block, text)
    finally:
        clone.end()
