"""This gateway as a Functions app, in the platform's own worker library: only how it starts."""

import asyncio
import json
import sys
from importlib.util import find_spec
from pathlib import Path

from bench.gateways import PATH, Gateway, Missing, Route
from bench.rig import PROJECT, Rig, environment, free_port
from tests.services import AZURITE

_EMPTY = """
import azure.functions as func
from azurefunctions.extensions.http.fastapi import Request, Response

app = func.FunctionApp(http_auth_level=func.AuthLevel.ANONYMOUS)


@app.route("v1/{*path}", methods=["POST"])
async def call(req: Request) -> Response:
    return Response("{}")
"""


def empty(rig: Rig) -> Gateway:
    """An app that answers by itself: what the worker takes for its own start."""
    folder = rig.subfolder("worker-empty")
    (folder / "function_app.py").write_text(_EMPTY)
    (folder / "host.json").write_bytes((PROJECT / "host.json").read_bytes())
    return _gateway(rig, "worker-empty", folder)


def default(rig: Rig) -> Gateway:
    """As it is deployed: models.json in a blob, records by way of queues, and no key at all."""
    from tests.managed_identity import ManagedIdentity

    _look_for_worker()
    storage = rig.storage()
    identity = rig.stack.enter_context(ManagedIdentity())
    asyncio.run(_upload(storage.connection_string, storage.ca, _models(rig)))
    settings = {
        **identity.environ,
        "AZURE_CREDENTIAL": "managedidentity",
        "WEBSITE_INSTANCE_ID": "bench",
        "AUTH_METHOD": "none",
        "AUTH_NONE_ON_AZURE": "true",
        "MODELS_SOURCE": "blob:bench/models.json",
        "CONFIGURATION_COPIES": "none",
        "AzureWebJobsStorage__blobServiceUri": storage.blob_url,
        "AzureWebJobsStorage__queueServiceUri": storage.queue_url,
        "AzureWebJobsStorage__credential": "managedidentity",
        "LOGGING_CLIENT": "jsonl",
        "LOGGING_CLIENT_JSONL_FILENAME": str(rig.folder / "records.jsonl"),
        "SSL_CERT_FILE": str(storage.ca),
    }
    # The host has its own way to the storage, which is not the app's.
    host = ("--storage", storage.connection_string)
    return _gateway(rig, "worker", PROJECT, *host, **settings)


def _models(rig: Rig) -> bytes:
    there = {"azure_endpoint": rig.upstream, "azure_deployment": "bench"}
    instance = {"id": "i1", "provider": "azure", "azure_api_version": "2024-10-21", **there}
    model = {"id": "bench", "capabilities": ["chat_completions"], "instances": [instance]}
    return json.dumps([model]).encode()


async def _upload(connection: str, authority: Path, models: bytes) -> None:
    from azure.storage.blob.aio import BlobServiceClient

    async with BlobServiceClient.from_connection_string(
        connection, connection_verify=str(authority)
    ) as service:
        container = await service.create_container("bench")
        await container.upload_blob("models.json", models)


def _gateway(rig: Rig, name: str, app: Path, *more: str, **settings: str) -> Gateway:
    _look_for_worker()
    port = free_port()
    command = [sys.executable, str(PROJECT / "tests" / "functions_host.py"), str(app)]
    return Gateway(
        name,
        rig.subfolder(name),
        Route(f"http://127.0.0.1:{port}{PATH}"),
        None,
        [*command, "--port", str(port), *more],
        environment(**settings, PYTHON_ENABLE_INIT_INDEXING="1"),
        uncompiled=rig.uncompiled,
        only_starts=True,
    )


def _look_for_worker() -> None:
    if find_spec("azure_functions_runtime") is None or not AZURITE.exists():
        raise Missing("azure-functions-runtime or Azurite is not installed: run.py does that")
