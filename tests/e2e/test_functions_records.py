"""Records on Azure Functions: callers and upstreams know of each call what MongoDB has of it.

Outside witnesses: the worker library, Azurite's queues and blobs, mongod, azure-identity.
"""

import asyncio
import base64
import contextlib
import json
import random
import uuid
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pymongo
import pytest
from azure.storage.blob import ContainerClient

from llamaxing.recorder import in_the_log
from tests.conftest import configure, model, openai
from tests.e2e import command, functions_app
from tests.fakes import COMPLETION, DONE, Upstream, chunk
from tests.functions_host import Host
from tests.functions_queues import Queue
from tests.langfuse_server import LangfuseServer
from tests.managed_identity import ManagedIdentity
from tests.services import Azurite, Mongod
from tests.test_blob import Blob
from tests.test_keyless import keyless
from tests.test_langfuse import TEAMS, team
from tests.test_mongodb import SOON
from tests.test_mongodb import record as record_of

PATH = "/v1/chat/completions"
LARGE = "é" + "x" * 1_000_000
STREAMED = [chunk("Hel"), chunk("lo"), DONE]
# What a record says of a call of each kind: status, error, the text of the reply.
KINDS: dict[str, tuple[int, str | None, str | None]] = {
    "plain": (200, None, "Hi"),
    "large": (200, None, LARGE),
    "streamed": (200, None, "Hello"),
    "broken": (200, "upstream_stream_broken", "Hel"),
    "left": (200, "caller_hung_up", "Hel"),
    "failed": (500, None, None),
    "unknown": (404, "model_not_found", None),
}


def scripted(upstream: Upstream) -> list[dict[str, Any]]:
    """A model for each kind, whose one instance has its name."""
    choice = {**COMPLETION["choices"][0], "message": {"role": "assistant", "content": LARGE}}  # type: ignore[index]
    upstream.replies("large", 200, {**COMPLETION, "choices": [choice]})
    upstream.streams("streamed", STREAMED)
    upstream.streams("broken", STREAMED[:1], ends="cut")
    upstream.streams("left", STREAMED[:1], ends="silent-after")
    upstream.replies("failed", 500)
    return [model(openai(upstream, kind), id=kind) for kind in KINDS if kind != "unknown"]


class Callers:
    """They write down what each of their calls was given: by its id, the kind and the text."""

    def __init__(self, client: httpx.AsyncClient) -> None:
        self.client = client
        self.journal: dict[str, tuple[str, str]] = {}
        self._at_once = asyncio.Semaphore(40)

    async def call(self, kind: str, key: str = "") -> None:
        id = f"r-{kind}-{len(self.journal)}"
        self.journal[id] = kind, ""
        async with self._at_once:
            # A worker that is killed meanwhile cuts it off.
            with contextlib.suppress(httpx.TransportError):
                self.journal[id] = kind, await self._given(id, kind, key)

    async def _given(self, id: str, kind: str, key: str) -> str:
        streams = kind in ("streamed", "broken", "left")
        body = {"model": kind, "messages": [{"role": "user", "content": id}], "stream": streams}
        seen = b""
        headers = {"x-request-id": id, "api-key": key}
        async with self.client.stream("POST", PATH, json=body, headers=headers) as reply:
            if "x-request-id" not in reply.headers:
                return ""  # the host's own word, for a worker that is gone
            assert reply.status_code == KINDS[kind][0]
            async for piece in reply.aiter_raw():
                seen += piece
                if kind == "left":
                    break
        return seen.decode()

    async def all_kinds(self, times: int) -> None:
        await asyncio.gather(*(self.call(kind) for kind in KINDS for _ in range(times)))


class Place:
    """Where the records of one test are on their way, and where they arrive."""

    def __init__(self, azurite: Azurite, uri: str) -> None:
        self.prefix = f"p{uuid.uuid4().hex[:20]}"
        self.azurite = azurite
        self._client = httpx.AsyncClient(verify=False)
        self._mongo = pymongo.AsyncMongoClient[dict[str, Any]](uri)
        self.database = self._mongo[self.prefix]
        self.queue = self.queue_of("mongodb")
        self.poison = self.queue_of("mongodb-poison")
        self.settings = {
            "OUTBOX": "azure_queue",
            "OUTBOX_QUEUE_PREFIX": self.prefix,
            "AzureWebJobsStorage": azurite.connection_string,
            "AzureFunctionsJobHost__extensions__queues__visibilityTimeout": "00:00:00",
            "LOGGING_CLIENT": "mongodb",
            "LOGGING_CLIENT_MONGODB_URI": uri + SOON,
            "LOGGING_CLIENT_MONGODB_DB_NAME": self.prefix,
            # With it a record waits a second at the most.
            "DELIVERY_PAUSE_LIMIT": "0.1",
        }

    def queue_of(self, name: str) -> Queue:
        return Queue(self._client, self.azurite.connection_string, f"{self.prefix}-{name}")

    @property
    def apicalls(self) -> Any:
        return self.database["apicalls"]

    async def documents(self, number: int, **query: Any) -> list[dict[str, Any]]:
        """Once there are so many, and no message is left that may bring another."""
        while await self.apicalls.count_documents(query) < number:  # noqa: ASYNC110
            await asyncio.sleep(0.05)
        while await self.queue.length():  # noqa: ASYNC110
            await asyncio.sleep(0.05)
        found: list[dict[str, Any]] = await self.apicalls.find(query).to_list()
        return found

    async def documents_of(
        self, number: int, host: Host, folder: Path, environ: Mapping[str, str]
    ) -> list[dict[str, Any]]:
        """Also of records that are in the log alone, where storage was slow to take them."""
        known = 0
        while await self.apicalls.count_documents({}) < number:
            lines = [line for line in host.log.splitlines() if "record for mongodb: " in line]
            if len(lines) > known:
                (folder / "log").write_text("\n".join(lines[known:]))
                await command(folder, environ, *REPLAY, "--log", str(folder / "log"))
                known = len(lines)
            await asyncio.sleep(0.05)
        return await self.documents(number)

    async def blobs(self) -> list[str]:
        container = ContainerClient.from_connection_string(
            self.azurite.connection_string, f"{self.prefix}-outbox"
        )
        with container:
            return await asyncio.to_thread(lambda: list(container.list_blob_names()))

    async def aclose(self) -> None:
        await self._mongo.drop_database(self.prefix)
        await self._mongo.close()
        await self._client.aclose()


@asynccontextmanager
async def place_at(azurite: Azurite, uri: str) -> AsyncIterator[Place]:
    place = Place(azurite, uri)
    try:
        yield place
    finally:
        await place.aclose()


@pytest.fixture
async def place(azurite: Azurite, mongodb: str) -> AsyncIterator[Place]:
    async with place_at(azurite, mongodb) as found:
        yield found


@asynccontextmanager
async def served(
    place: Place,
    folder: Path,
    models: Sequence[dict[str, Any]],
    identities: Sequence[dict[str, Any]] = (),
    **more: str,
) -> AsyncIterator[tuple[Host, Callers]]:
    settings = configure(folder, models, identities) | place.settings | more
    limits = httpx.Limits(max_connections=None)
    async with (
        functions_app(settings, folder) as host,
        httpx.AsyncClient(base_url=host.url, timeout=60, limits=limits, verify=False) as client,
    ):
        yield host, Callers(client)


def agree(document: dict[str, Any], journal: dict[str, tuple[str, str]], asked: set[str]) -> None:
    """What MongoDB has, what the caller saw, and what came to upstream."""
    kind, seen = journal[document["request_id"]]
    status, error, text = KINDS[kind]
    assert (document["status"], document["error"]) == (status, error)
    assert document["complete"] is (error in (None, "model_not_found"))
    assert document["request"]["messages"][0]["content"] == document["request_id"]
    assert len(document["attempts"]) == (document["request_id"] in asked)
    if text is not None:
        assert document["response"]["choices"][0]["message"]["content"] == text
    if kind in ("plain", "large"):
        assert document["response"] == json.loads(seen)
        assert document["usage"]["input"] == json.loads(seen)["usage"]["prompt_tokens"]
    elif kind in ("streamed", "left"):
        assert seen == b"".join(STREAMED if kind == "streamed" else STREAMED[:1]).decode()


async def test_each_call_is_in_mongodb_once_whatever_that_does_meanwhile(
    azurite: Azurite, mongod: Mongod, tmp_path: Path, upstream: Upstream
) -> None:
    async with place_at(azurite, mongod.uri) as place:

        async def off_and_on(end: Callable[[], None], begin: Callable[[], None]) -> None:
            calling = asyncio.create_task(callers.all_kinds(35))
            await upstream.request(len(upstream.journal) + 40)
            await asyncio.to_thread(end)
            await calling
            await callers.all_kinds(1)
            await asyncio.to_thread(begin)

        await asyncio.to_thread(mongod.kill)
        models = scripted(upstream)
        async with served(place, tmp_path, models) as (host, callers):
            await callers.all_kinds(2)
            detail = (await callers.client.get("/health/ready")).json()["outbox"]["mongodb"]
            await asyncio.to_thread(mongod.start)
            await off_and_on(mongod.kill, mongod.start)
            await off_and_on(mongod.freeze, mongod.thaw)
            # 11602: the server gives up what it was doing; 91: it is shutting down.
            await off_and_on(
                lambda: mongod.fails("insert", "update", errorCode=11602), mongod.heals
            )
            await off_and_on(lambda: mongod.fails("insert", errorCode=91, times=9), mongod.heals)
            environ = configure(tmp_path, models) | place.settings
            calls = list(callers.journal)
            assert [id for id, (_, seen) in callers.journal.items() if not seen] == []
            documents = await place.documents_of(len(calls), host, tmp_path, environ)
            await host.settled()
            taken = [it.request.get("x-request-id") for it in host.invocations.values() if it.ok]
            assert await place.poison.length() == 0
            assert await place.blobs() == []

    assert len(calls) > 1000
    # What callers asked for, what came to upstream, what the worker told the host that it has
    # answered, and what MongoDB has.
    asked = Counter(it.json["messages"][0]["content"] for it in upstream.journal)
    assert asked == Counter(id for id in calls if "unknown" not in id)
    assert Counter(id for id in taken if id) == Counter(calls)
    assert Counter(it["request_id"] for it in documents) == Counter(calls)
    for document in documents:
        agree(document, callers.journal, set(asked))
    assert detail["waiting"] > 0
    assert detail["poison"] == 0


async def test_what_the_server_refuses_is_poison_and_replay_brings_it_home(
    place: Place, tmp_path: Path, upstream: Upstream
) -> None:
    models = scripted(upstream)
    await place.database.create_collection("apicalls", validator={"model": {"$nin": ["large"]}})
    async with served(place, tmp_path, models) as (host, callers):
        await callers.call("large")
        await callers.call("plain")
        while await place.poison.length() < 1:  # noqa: ASYNC110
            await asyncio.sleep(0.05)
        [plain] = await place.documents(1)
        # What waits for good is whole.
        assert await place.blobs() != []
        await place.database.command("collMod", "apicalls", validator={})

        told = await command(tmp_path, configure(tmp_path, models) | place.settings, *REPLAY)
        both = await place.documents(2)
        await host.settled()
        assert await place.blobs() == []

    assert told == (0, "mongodb: 1 to be delivered again\n", "")
    assert plain["model"] == "plain"
    for document in both:
        agree(document, callers.journal, set(callers.journal))


REPLAY = ("outbox", "replay")


async def test_what_a_caller_has_whole_is_recorded_though_the_worker_is_killed_just_then(
    place: Place, tmp_path: Path, upstream: Upstream
) -> None:
    async with served(place, tmp_path, scripted(upstream)) as (host, callers):
        for _ in range(2):
            # A stream ends for its caller when its record is kept.
            await asyncio.gather(*(callers.call("streamed") for _ in range(10)))
            await callers.call("broken")
            await host.kill_worker()
            await host.start_worker()
        documents = await place.documents(len(callers.journal))

    assert Counter(it["request_id"] for it in documents) == Counter(list(callers.journal))
    for document in documents:
        agree(document, callers.journal, set(callers.journal))


async def test_with_audit_required_a_killed_worker_loses_no_call(
    place: Place, tmp_path: Path, upstream: Upstream
) -> None:
    seed = random.randrange(10**6)
    print(f"seed {seed}")  # noqa: T201
    chance = random.Random(seed)
    audit = {"AUDIT_REQUIRED": "true", "AUDIT_MAX_AGE": "10"}
    audit |= {"STREAM_MAX_AGE": "9", "APP_REQUESTS_TIMEOUT": "9"}
    async with served(place, tmp_path, scripted(upstream), **audit) as (host, callers):
        for _ in range(3):
            kinds = [it for it in KINDS if it != "unknown"] * 3
            chance.shuffle(kinds)
            calls = [asyncio.create_task(callers.call(kind)) for kind in kinds]
            await upstream.request(len(upstream.journal) + chance.randrange(len(kinds)))
            await host.kill_worker()
            await asyncio.gather(*calls)
            await host.start_worker()
        asked = {it.json["messages"][0]["content"] for it in upstream.journal}
        documents = await place.documents(len(asked))
        await host.settled()

    found = {it["request_id"]: it for it in documents}
    assert len(found) == len(documents)
    # What is not recorded came to no upstream, and nobody has a byte of it.
    assert asked | {id for id, (_, seen) in callers.journal.items() if seen} <= found.keys()
    for id, (kind, seen) in callers.journal.items():
        if seen and KINDS[kind][1] is None:
            agree(found[id], callers.journal, asked)
        elif id in found and found[id]["error"] == "worker_lost":
            assert found[id]["complete"] is False
            assert found[id]["request"]["messages"][0]["content"] == id
    assert "worker_lost" in {it["error"] for it in documents}


async def test_records_go_straight_to_mongodb_while_the_queues_are_away(
    mongodb: str, tmp_path: Path, upstream: Upstream
) -> None:
    with Azurite(tmp_path) as azurite:
        async with (
            place_at(azurite, mongodb) as place,
            served(place, tmp_path, scripted(upstream), LOGGING_CLIENT_MONGODB_URI=mongodb) as (
                host,
                callers,
            ),
        ):
            await asyncio.to_thread(azurite.kill)
            await callers.all_kinds(1)
            found: list[dict[str, Any]] = []
            while len(found) < len(callers.journal):
                await asyncio.sleep(0.05)
                # What MongoDB is too slow for is in the log.
                found = [record for _, record in in_the_log(host.log.splitlines())]
                found += await place.apicalls.find().to_list()
            log = host.log

    asked = {it.json["messages"][0]["content"] for it in upstream.journal}
    for record in found:
        agree(record, callers.journal, asked)
    assert Counter(it["request_id"] for it in found) == Counter(list(callers.journal))
    assert any("_id" in record for record in found)
    assert log.count("the outbox fails, and sinks are tried directly") == 1


async def test_records_wait_while_the_configuration_has_a_fault(
    place: Place, tmp_path: Path, upstream: Upstream
) -> None:
    settings = configure(tmp_path, scripted(upstream)) | place.settings
    models = tmp_path / "models.json"
    good = models.read_text()
    models.write_text("[")
    record = record_of("a record")
    message = {"id": record["id"], "added": 0, "record": record}
    await place.queue.put(base64.b64encode(json.dumps(message).encode()).decode())
    async with functions_app(settings, tmp_path) as host:
        while len(host.invocations) < 3:  # noqa: ASYNC110
            await asyncio.sleep(0.05)
        models.write_text(good)
        [document] = await place.documents(1)
        await host.settled()

    assert document["_id"] == "a record"
    assert {it.ok for it in host.invocations.values()} == {True}


async def test_traces_wait_in_a_queue_of_their_own_and_come_home_under_their_own_keys(
    place: Place, tmp_path: Path, upstream: Upstream
) -> None:
    models = scripted(upstream)
    poison = place.queue_of("langfuse-poison")
    with LangfuseServer(pk="sk", pk2="sk2") as langfuse:
        more = {
            "OBSERVABILITY_CLIENT": "langfuse",
            "OBSERVABILITY_CLIENT_LANGFUSE_HOST": langfuse.url,
            "CONFIGURATION_RELOAD_INTERVAL": "0.001",
        }
        async with served(place, tmp_path, models, TEAMS, **more) as (host, callers):
            langfuse.status = 500
            for who in "ab":
                await callers.call("plain", f"key-{who}")
                await callers.call("large", f"key-{who}")
            # What MongoDB has does not wait for Langfuse.
            await place.documents(4)
            assert langfuse.arrived == []
            langfuse.status = 200
            await asyncio.to_thread(langfuse.wait_for_traces, 4)
            # A secret is changed there, and only then here.
            langfuse.projects["pk"] = "new"
            await callers.call("plain", "key-a")
            await callers.call("plain", "key-b")
            while await poison.length() < 1:  # noqa: ASYNC110
                await asyncio.sleep(0.05)
            teams = [team("a", "pk", "new"), TEAMS[1]]
            environ = configure(tmp_path, models, teams) | place.settings | more
            told = await command(tmp_path, environ, *REPLAY)
            await asyncio.to_thread(langfuse.wait_for_traces, 6)
            await host.settled()
            log = host.log

    assert told[1].endswith("langfuse: 1 to be delivered again\n")
    assert len({it.span_id for it in langfuse.arrived}) == 6
    assert {(it.attributes["user.id"], it.public_key) for it in langfuse.arrived} == {
        ("a", "pk"),
        ("b", "pk2"),
    }
    assert log.count("langfuse refuses records for good") == 1
    assert "sk2" not in log


# In the worker, before all else: what is imported where streams wait for it.
WATCH = """
import sys, threading

def watch(event, arguments):
    name = arguments[0] if event == "import" else ""
    heavy = ("azure.identity", "azure.core", "msal", "requests", "cryptography", "pymongo", "bson")
    if name.startswith(heavy):
        where = "loop" if threading.current_thread() is threading.main_thread() else "thread"
        print(f"imported in the {where}: {name}", file=sys.stderr, flush=True)

sys.addaudithook(watch)
"""


async def test_with_no_key_at_all_calls_are_recorded_and_nothing_heavy_is_imported_on_the_loop(
    azurite_oauth: Azurite, mongodb: str, tmp_path: Path, upstream: Upstream
) -> None:
    scripted(upstream)
    models = [model(keyless(upstream, kind), id=kind) for kind in ("plain", "large")]
    (tmp_path / "sitecustomize.py").write_text(WATCH)
    async with place_at(azurite_oauth, mongodb) as place:
        blob = Blob(azurite_oauth, place.prefix)
        await blob.create()
        await blob.write(models)
        blob.close()
        settings = {
            **place.settings,
            "OUTBOX": "",
            "WEBSITE_INSTANCE_ID": "i",
            "AUTH_NONE_ON_AZURE": "true",
            "MODELS_SOURCE": f"blob:{place.prefix}/models.json",
            "CONFIGURATION_COPIES": "none",
            "AZURE_CREDENTIAL": "managedidentity",
            "AzureWebJobsStorage__queueServiceUri": azurite_oauth.queue_url,
            "AzureWebJobsStorage__blobServiceUri": azurite_oauth.blob_url,
            "AzureWebJobsStorage__credential": "managedidentity",
            "AzureWebJobsStorage__clientId": "app-3",
            "SSL_CERT_FILE": str(azurite_oauth.ca),
            "PYTHONPATH": str(tmp_path),
        }
        hosts = settings.pop("AzureWebJobsStorage")
        with ManagedIdentity() as identity:
            settings |= identity.environ
            async with (
                functions_app(settings, tmp_path, storage=hosts) as host,
                httpx.AsyncClient(base_url=host.url, timeout=60, verify=False) as client,
            ):
                callers = Callers(client)
                await asyncio.gather(callers.call("plain"), callers.call("large"))
                documents = await place.documents(2)
                await host.settled()
                log = host.log

    for document in documents:
        agree(document, callers.journal, set(callers.journal))
    assert {(it.resource, it.client_id) for it in identity.requests} == {
        ("https://storage.azure.com", "app-3"),
        ("https://cognitiveservices.azure.com", None),
    }
    assert "imported in the thread: azure.identity" in log
    assert "imported in the thread: pymongo" in log
    assert "imported in the loop" not in log
