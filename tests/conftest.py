"""Fixtures: a scripted upstream, the gateway in front of it on a real socket, and a real model."""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Generator, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn
from pymongo import monitoring

from llamaxing.build import application
from llamaxing.endpoints import CAPABILITIES
from tests import services
from tests.canaries import NET, Documents, Watched
from tests.fakes import Upstream
from tests.managed_identity import ManagedIdentity

monitoring.register(Documents())

local_model = services.local_model
azurite = services.azurite
azurite_oauth = services.azurite_oauth
simulator = services.simulator
other_simulator = services.other_simulator
mongodb = services.mongodb
mongod = services.mongod


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, Any]:
    """A secret that a test has used is not in what was printed or logged meanwhile, by this process
    or by programs that it started, in a reply, or in a record."""
    report = yield
    if report.when == "teardown":
        for where, text in report.sections:
            NET.look(where, text)
        if found := NET.drawn():
            report.outcome = "failed"
            report.longrepr = "\n".join(["secrets turned up:", *dict.fromkeys(found)])
    return report


# Without responses, which want a secret.
EVERYTHING = [it for it in CAPABILITIES if it != "responses"]


def openai(upstream: Upstream, id: str, **more: Any) -> dict[str, Any]:
    """An instance of the scripted upstream, reached as OpenAI."""
    base = {"provider": "openai", "openai_api_key": f"sk-{id}"}
    return {"id": id, **base, "openai_base_url": upstream.url(id) + "/v1", **more}


def azure(upstream: Upstream, id: str, **more: Any) -> dict[str, Any]:
    """An instance of the scripted upstream, reached as Azure OpenAI."""
    base = {"provider": "azure", "azure_api_key": f"key-{id}", "azure_deployment": f"at-{id}"}
    there = {"azure_endpoint": upstream.url(id), "azure_api_version": "2024-10-21"}
    return {"id": id, **base, **there, **more}


def llamaxing(upstream: Upstream, id: str, **more: Any) -> dict[str, Any]:
    """An instance of the scripted upstream, reached as another gateway."""
    base = {"provider": "llamaxing", "llamaxing_api_key": f"key-{id}"}
    return {"id": id, **base, "llamaxing_url": upstream.url(id), **more}


def model(*instances: dict[str, Any], id: str = "m", **more: Any) -> dict[str, Any]:
    return {"id": id, "capabilities": EVERYTHING, "instances": list(instances), **more}


class Served:
    """A gateway that is running, and a caller of it."""

    def __init__(self, url: str, client: httpx.AsyncClient, folder: Path) -> None:
        self.url = url
        self.client = client
        self.get, self.post, self.stream = client.get, client.post, client.stream
        self._records = folder / "records.jsonl"

    @property
    def records(self) -> list[dict[str, Any]]:
        """What the jsonl sink has written: complete once a reply has been read to its end."""
        if not self._records.exists():
            return []
        return [json.loads(line) for line in self._records.read_text().split("\n")[:-1]]

    async def recorded(self, number: int = 1) -> list[dict[str, Any]]:
        """The records, once there are so many: for callers who did not wait for the end."""
        while len(self.records) < number:  # noqa: ASYNC110  a file has no event
            await asyncio.sleep(0.01)
        return self.records


Serve = Callable[..., Awaitable[Served]]


@pytest.fixture
async def upstream() -> AsyncIterator[Upstream]:
    async with Upstream() as server:
        yield server


@pytest.fixture
def identity(monkeypatch: pytest.MonkeyPatch) -> Iterator[ManagedIdentity]:
    """azure-identity reads where the platform's endpoint is from the environment alone."""
    with ManagedIdentity() as found:
        for name, value in found.environ.items():
            monkeypatch.setenv(name, value)
        yield found


@pytest.fixture
async def serve(tmp_path: Path, upstream: Upstream) -> AsyncIterator[Serve]:
    """`await serve(models, identities, SETTING="value")`: a gateway with records in a file.

    By default its model `m` has the instances i1 and i2, and i1 is asked first.
    """
    default = [model(openai(upstream, "i1"), openai(upstream, "i2", priority=1), aliases=["alias"])]
    async with AsyncExitStack() as stack:

        async def start(
            models: Sequence[dict[str, Any]] = default,
            identities: Sequence[dict[str, Any]] = (),
            clock: Callable[[], float] = time.monotonic,
            **settings: str,
        ) -> Served:
            environ = configure(tmp_path, models, identities) | settings
            return await stack.enter_async_context(running(environ, tmp_path, clock))

        yield start


def configure(
    folder: Path, models: Sequence[dict[str, Any]], identities: Sequence[dict[str, Any]] = ()
) -> dict[str, str]:
    """The files in the folder, and the settings that name them."""
    NET.know([*models, *identities])
    (folder / "models.json").write_text(json.dumps(list(models)))
    environ = {
        "MODELS_SOURCE": f"file:{folder / 'models.json'}",
        "LOGGING_CLIENT": "jsonl",
        # A reply that has been read to its end is in the file.
        "OUTBOX": "none",
        "LOGGING_CLIENT_JSONL_FILENAME": str(folder / "records.jsonl"),
    }
    if identities:
        (folder / "identities.json").write_text(json.dumps(list(identities)))
        environ |= {
            "AUTH_METHOD": "apikey",
            "ID_SECRET": "a long text for the tests",
            "IDENTITY_STORE": "json",
            "IDENTITY_STORE_JSON_FILENAME": str(folder / "identities.json"),
        }
    return environ


@asynccontextmanager
async def running(
    environ: dict[str, str], folder: Path, clock: Callable[[], float] = time.monotonic
) -> AsyncIterator[Served]:
    """The gateway under uvicorn, in this process."""
    NET.know(environ)
    config = uvicorn.Config(application(environ, clock), port=0, log_level="warning", lifespan="on")
    config.load()
    # The parts of `serve()` without its waits, which are a tenth of a second each.
    server = uvicorn.Server(config)
    server.lifespan = config.lifespan_class(config)
    await server.startup()
    assert server.started, "the gateway did not start"
    port = server.servers[0].sockets[0].getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    try:
        transport = Watched(verify=False)
        async with httpx.AsyncClient(base_url=url, timeout=30, transport=transport) as client:
            yield Served(url, client, folder)
    finally:
        NET.look_at_files(folder)
        for listener in server.servers:
            listener.close()
        await server.lifespan.shutdown()


@pytest.fixture
async def gateway(serve: Serve) -> Served:
    """The default gateway, open to everybody."""
    return await serve()
