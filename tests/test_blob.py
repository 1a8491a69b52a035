"""The configuration in Azure's Blob storage, with Azurite: started from, changed, taken away."""

import asyncio
import json
import subprocess
import sys
import uuid
from asyncio.subprocess import PIPE
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
from azure.storage.blob import BlobSasPermissions, BlobServiceClient, generate_blob_sas

from llamaxing.build import Build, application
from llamaxing.credentials.entra import Entra
from llamaxing.errors import ConfigurationError
from tests.conftest import model, openai, running
from tests.e2e import start_shim, uvicorn_shim
from tests.fakes import CHAT, DONE, Upstream, chunk
from tests.managed_identity import ManagedIdentity, TokenRequest
from tests.services import PROJECT, Azurite, free_port

PATH = "/v1/chat/completions"
SOON = {"CONFIGURATION_RELOAD_INTERVAL": "0.001"}
MODELS = [
    {
        "id": "m",
        "capabilities": ["chat_completions"],
        "instances": [{"id": "i", "provider": "openai", "openai_api_key": "k"}],
    }
]


class Blob:
    """models.json in a container of its own, written by Azure's SDK."""

    def __init__(self, azurite: Azurite, container: str) -> None:
        self.azurite, self.container = azurite, container
        self.url = f"{azurite.blob_url}/{container}/models.json"
        verify = {"connection_verify": str(azurite.ca)} if azurite.ca.exists() else {}
        self._service = BlobServiceClient.from_connection_string(
            azurite.connection_string, **verify
        )

    async def create(self) -> None:
        await asyncio.to_thread(self._service.create_container, self.container)

    async def write(self, models: object) -> None:
        raw = models if isinstance(models, bytes) else json.dumps(models).encode()
        blob = self._service.get_blob_client(self.container, "models.json")
        await asyncio.to_thread(blob.upload_blob, raw, overwrite=True)

    def signature(self) -> str:
        return generate_blob_sas(
            self.azurite.account,
            self.container,
            "models.json",
            account_key=self.azurite.key,
            permission=BlobSasPermissions(read=True),
            expiry=datetime.now(UTC) + timedelta(minutes=5),
        )

    def close(self) -> None:
        self._service.close()


@pytest.fixture
async def blob(azurite: Azurite) -> AsyncIterator[Blob]:
    found = Blob(azurite, f"c{uuid.uuid4().hex}")
    await found.create()
    yield found
    found.close()


async def served(environ: dict[str, str]) -> list[str]:
    built = await Build(environ).all()
    await built.gateway.aclose()
    return [model.id for model in built.live.current.catalog.models]


async def test_a_gateway_starts_by_a_connection_string(blob: Blob, tmp_path: Path) -> None:
    await blob.write(MODELS)
    text = blob.azurite.connection_string
    sas = f"BlobEndpoint={blob.azurite.blob_url};SharedAccessSignature={blob.signature()}"
    copies = {"CONFIGURATION_COPIES": str(tmp_path)}

    for environ in (
        {"MODELS_SOURCE": f"blob:{blob.container}/models.json", "AzureWebJobsStorage": text},
        {"MODELS_SOURCE": f"blob:{blob.url}", "BLOB_CONNECTION": "STORAGE", "STORAGE": text},
        {"MODELS_SOURCE": f"blob:{blob.url}", "BLOB_CONNECTION": "STORAGE", "STORAGE": sas},
        {"MODELS_SOURCE": f"blob:{blob.url}?{blob.signature()}"},
    ):
        assert await served({**environ, **copies}) == ["m"]


async def test_a_wrong_key_and_a_missing_blob_are_told_without_the_key(blob: Blob) -> None:
    stranger = f"AccountName={blob.azurite.account};AccountKey=c3RyYW5nZXI="
    environ = {"MODELS_SOURCE": f"blob:{blob.url}", "BLOB_CONNECTION": "STORAGE"}
    environ["CONFIGURATION_COPIES"] = "none"

    with pytest.raises(ConfigurationError) as refused:
        await served({**environ, "STORAGE": stranger})
    with pytest.raises(ConfigurationError) as missing:
        await served({**environ, "STORAGE": blob.azurite.connection_string})

    assert refused.value.faults == [
        "models_source: models.json cannot be read: its server answers 403"
    ]
    assert refused.value.heals
    assert missing.value.faults == [
        "models_source: models.json cannot be read: there is nothing at this URL (404)"
    ]
    assert not missing.value.heals


@pytest.fixture
def identity(monkeypatch: pytest.MonkeyPatch) -> Iterator[ManagedIdentity]:
    with ManagedIdentity() as found:
        for name, value in found.environ.items():
            monkeypatch.setenv(name, value)
        yield found


@pytest.mark.parametrize(
    ("environ", "client"),
    [
        ({}, None),
        ({"AZURE_CLIENT_ID": "app-1"}, "app-1"),
        (
            {
                "BLOB_CONNECTION": "AzureWebJobsStorage",
                "AzureWebJobsStorage__accountName": "llamaxing",
                "AzureWebJobsStorage__credential": "managedidentity",
                "AzureWebJobsStorage__clientId": "app-2",
            },
            "app-2",
        ),
    ],
    ids=["the app's own", "one of several", "as Functions name it"],
)
async def test_a_gateway_starts_by_a_managed_identity(
    azurite_oauth: Azurite,
    identity: ManagedIdentity,
    environ: dict[str, str],
    client: str | None,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    blob = Blob(azurite_oauth, f"identity-{client or 'none'}")
    await blob.create()
    await blob.write(MODELS)
    blob.close()
    monkeypatch.setenv("SSL_CERT_FILE", str(azurite_oauth.ca))
    environ = {**environ, "CONFIGURATION_COPIES": str(tmp_path)}

    assert await served({**environ, "MODELS_SOURCE": f"blob:{blob.url}"}) == ["m"]

    assert identity.requests == [TokenRequest("https://storage.azure.com", client)]


async def test_a_container_of_the_account_that_an_identity_based_connection_names(
    azurite_oauth: Azurite,
    identity: ManagedIdentity,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    blob = Blob(azurite_oauth, "by-service-uri")
    await blob.create()
    await blob.write(MODELS)
    blob.close()
    monkeypatch.setenv("SSL_CERT_FILE", str(azurite_oauth.ca))

    assert await served(
        {
            "MODELS_SOURCE": "blob:by-service-uri/models.json",
            "AzureWebJobsStorage__blobServiceUri": azurite_oauth.blob_url,
            "CONFIGURATION_COPIES": str(tmp_path),
        }
    ) == ["m"]


async def test_fifty_who_wait_for_a_token_get_one(identity: ManagedIdentity) -> None:
    from azure.identity import ManagedIdentityCredential

    clock = [0.0]
    entra = Entra("https://storage.azure.com/.default", ManagedIdentityCredential, lambda: clock[0])

    tokens = await asyncio.gather(*(entra.token() for _ in range(50)))
    assert len(identity.requests) == 1
    assert len({token.get_secret_value() for token in tokens}) == 1

    # Fetched anew before it ends.
    clock[0] = 1e12
    await entra.token()
    assert len(identity.requests) == 2
    assert tokens[0].get_secret_value() not in repr(tokens[0])


async def test_an_identity_without_a_token_is_a_fault_that_may_heal(
    identity: ManagedIdentity,
) -> None:
    identity.status = 500

    with pytest.raises(ConfigurationError) as error:
        await served(
            {
                "MODELS_SOURCE": "blob:https://127.0.0.1:1/account/c/models.json",
                "BLOB_CONNECTION": "X",
                "X__credential": "managedidentity",
                "CONFIGURATION_COPIES": "none",
            }
        )

    assert error.value.heals
    [fault] = error.value.faults
    assert fault.startswith("models_source: models.json cannot be read: no token from Entra ID: ")


# While calls run


@asynccontextmanager
async def calling(gateway: Any) -> AsyncIterator[list[int]]:
    """Calls all the while, and the status of each."""
    seen: list[int] = []

    async def call() -> None:
        while True:
            seen.append((await gateway.post(PATH, json=CHAT)).status_code)

    calls = [asyncio.create_task(call()) for _ in range(4)]
    try:
        yield seen
    finally:
        for task in calls:
            task.cancel()
        await asyncio.gather(*calls, return_exceptions=True)


async def until_stale(gateway: Any, wanted: bool) -> dict[str, Any]:
    while True:
        ready = await gateway.get("/health/ready")
        assert ready.status_code == 200
        detail: dict[str, Any] = ready.json()["configuration"]["models"]
        if (detail["stale_since"] is not None) == wanted:
            return detail


async def test_a_blob_changes_while_calls_run(
    blob: Blob, upstream: Upstream, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A new model, and three that are bad, under load; a stream ends where it began."""
    old = [model(openai(upstream, "i1"))]
    new = [model(openai(upstream, "i2"), aliases=["new"])]
    await blob.write(old)
    environ = {
        "MODELS_SOURCE": f"blob:{blob.container}/models.json",
        "AzureWebJobsStorage": blob.azurite.connection_string,
        "CONFIGURATION_COPIES": str(tmp_path / "copies"),
        "UPSTREAM_CONNECTIONS": "100",
        **SOON,
    }
    held = upstream.streams("i1", [chunk("a"), DONE], lock_step=True)
    upstream.replies("i1")

    async with (
        running(environ, tmp_path) as gateway,
        gateway.stream("POST", PATH, json={**CHAT, "stream": True}) as reply,
    ):
        async with calling(gateway) as statuses:
            await blob.write(new)
            while (await gateway.get("/v1/models/new")).status_code != 200:
                pass
            for spoilt in (
                json.dumps(old).encode()[:50],
                b'[{"id": }]',
                json.dumps(old).replace("sk-i1", "${UNSET_VARIABLE}").encode(),
            ):
                caplog.clear()
                await blob.write(spoilt)
                stale = await until_stale(gateway, True)
                errors = [it for it in caplog.records if it.levelname == "ERROR"]
                assert len(errors) == 1
                assert (await gateway.get("/v1/models/new")).status_code == 200
                assert datetime.fromisoformat(stale["stale_since"]) <= datetime.now(UTC)
                await blob.write(new)
                await until_stale(gateway, False)
        held.release()
        held.release()
        streamed = b"".join([piece async for piece in reply.aiter_raw()])

    assert set(statuses) == {200}
    assert len(statuses) > 10
    assert streamed == chunk("a") + DONE
    assert upstream.asked[0] == "i1"
    assert upstream.asked[-1] == "i2"


async def test_storage_goes_away_while_serving_and_before_a_cold_start(
    upstream: Upstream, tmp_path: Path
) -> None:
    with_copy = {"CONFIGURATION_COPIES": str(tmp_path / "copies")}
    with Azurite(tmp_path) as azurite:
        blob = Blob(azurite, "goes-away")
        await blob.create()
        await blob.write([model(openai(upstream, "i1"))])
        blob.close()
        environ = {
            "MODELS_SOURCE": "blob:goes-away/models.json",
            "AzureWebJobsStorage": azurite.connection_string,
            **SOON,
        }
        async with (
            uvicorn_shim({**environ, **with_copy}, tmp_path) as program,
            httpx.AsyncClient(base_url=program.url) as caller,
        ):
            await asyncio.to_thread(azurite.kill)
            await until_stale(caller, True)
            assert (await caller.post(PATH, json=CHAT)).status_code == 200

        async with (
            uvicorn_shim({**environ, **with_copy}, tmp_path) as program,
            httpx.AsyncClient(base_url=program.url) as caller,
        ):
            detail = await until_stale(caller, True)
            assert (await caller.post(PATH, json=CHAT)).status_code == 200
            assert detail["read_at"] <= detail["stale_since"]

        app = application({**environ, "CONFIGURATION_COPIES": "none"})
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://gateway") as caller:
            refused = await caller.post(PATH, json=CHAT)
        await asyncio.to_thread(azurite.start)

    assert refused.status_code == 503
    assert refused.json()["error"]["code"] == "config_error"
    assert "models_source" in refused.json()["error"]["message"]
    assert upstream.asked == ["i1", "i1"]


async def test_a_shim_whose_storage_is_away_at_its_start_tells_callers_and_heals(
    upstream: Upstream, tmp_path: Path
) -> None:
    with Azurite(tmp_path, durable=True) as azurite:
        blob = Blob(azurite, "comes-back")
        await blob.create()
        await blob.write([model(openai(upstream, "i1"))])
        blob.close()
        environ = {
            "MODELS_SOURCE": "blob:comes-back/models.json",
            "AzureWebJobsStorage": azurite.connection_string,
            "CONFIGURATION_COPIES": "none",
        }
        await asyncio.to_thread(azurite.kill)
        port = free_port()
        process = await start_shim(environ, tmp_path, "--port", str(port), stderr=PIPE)
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}") as caller:
            refused = await until_answered(caller)
            await asyncio.to_thread(azurite.start)
            while (await caller.post(PATH, json=CHAT)).status_code != 200:  # noqa: ASYNC110
                await asyncio.sleep(0.1)
        process.terminate()
        _, told = await process.communicate()

    assert refused.status_code == 503
    assert "models_source" in refused.json()["error"]["message"]
    assert b"models_source: models.json cannot be read: its server cannot be reached" in told
    assert process.returncode == 0


async def until_answered(caller: httpx.AsyncClient) -> httpx.Response:
    while True:
        try:
            return await caller.post(PATH, json=CHAT)
        except httpx.TransportError:
            await asyncio.sleep(0.05)


async def test_two_processes_on_one_blob_converge(
    blob: Blob, upstream: Upstream, tmp_path: Path
) -> None:
    await blob.write([model(openai(upstream, "i1"))])
    environ = {
        "MODELS_SOURCE": f"blob:{blob.container}/models.json",
        "AzureWebJobsStorage": blob.azurite.connection_string,
        "CONFIGURATION_COPIES": str(tmp_path / "copies"),
        **SOON,
    }
    async with (
        uvicorn_shim(environ, tmp_path) as one,
        uvicorn_shim(environ, tmp_path) as two,
        httpx.AsyncClient() as caller,
    ):

        async def version(url: str) -> str:
            ready = await caller.get(f"{url}/health/ready")
            found: str = ready.json()["configuration"]["version"]
            return found

        first = await version(one.url)
        assert await version(two.url) == first

        await blob.write([model(openai(upstream, "i2"))])
        while {await version(one.url), await version(two.url)} & {first}:
            pass

        assert await version(one.url) == await version(two.url)
        for url in (one.url, two.url):
            await caller.post(f"{url}{PATH}", json=CHAT)
    assert upstream.asked == ["i2", "i2"]


# What is imported


@pytest.mark.parametrize(
    "source",
    ["file:models.json", "env:MODELS", "blob:{url}?{signature}", "blob:{container}/models.json"],
)
async def test_azures_sdk_is_not_imported_where_no_token_is_wanted(
    blob: Blob, tmp_path: Path, source: str
) -> None:
    await blob.write(MODELS)
    (tmp_path / "models.json").write_text(json.dumps(MODELS))
    source = source.format(url=blob.url, signature=blob.signature(), container=blob.container)
    environ = {
        "MODELS_SOURCE": source,
        "MODELS": json.dumps(MODELS),
        "AzureWebJobsStorage": blob.azurite.connection_string,
        "CONFIGURATION_COPIES": "none",
    }
    code = (
        "import asyncio, sys\n"
        "from llamaxing.build import Build\n"
        f"asyncio.run(Build({environ!r}).all())\n"
        "print([name for name in ('azure.identity', 'azure.core')"
        " if name in sys.modules])"
    )

    ran = await asyncio.to_thread(
        lambda: subprocess.run(
            [sys.executable, "-c", code],
            cwd=tmp_path,
            env={"PYTHONPATH": str(PROJECT)},
            capture_output=True,
            text=True,
        )
    )

    assert ran.stdout.strip() == "[]"
