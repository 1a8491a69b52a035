"""The MongoDB sink, against MongoDB's own server: what it writes, and what when that is away."""

import asyncio
import itertools
import re
import sys
from asyncio.subprocess import PIPE
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import httpx
import pymongo
import pytest
from pymongo.errors import PyMongoError

from llamaxing.plugins import Surroundings
from llamaxing.sinks import Record
from llamaxing.sinks.mongodb import MongoDB
from tests.conftest import Serve
from tests.fakes import CHAT
from tests.services import PROJECT, Mongod

# Milliseconds that an answer may take where it is to stay away.
SOON = "/?serverSelectionTimeoutMS=300&connectTimeoutMS=300&socketTimeoutMS=300"
# A fail point tells of a change that the server's own monitoring knows nothing of.
SOON += "&serverMonitoringMode=poll&heartbeatFrequencyMS=500"
numbers = itertools.count()


def record(id: str | None = None, **more: Any) -> Record:
    """What an exchange makes, as far as this sink looks at it."""
    return {
        "id": id or f"id-{next(numbers)}",
        "started": "2026-11-23T18:00:00.123456+00:00",
        "first_byte": None,
        "finished": "2026-11-23T18:00:01+00:00",
        "endpoint": "chat_completions",
        "model": "m",
        "attempts": [{"started": "2026-11-23T18:00:00.200000+00:00", "finished": None}],
        "identity": {"id": "team-a", "name": "Team A", "info": {"cost": 7}},
        "metadata": {"trace_id": "t"},
        "request": {"model": "m"},
        "response": {"choices": []},
        "truncated": False,
        "complete": True,
        **more,
    }


def begun(id: str) -> Record:
    return record(id, finished=None, complete=False, response=None)


async def delivered(sink: "Sink", *records: Record) -> int:
    """Tries until they are; how many times it failed before."""
    for failures in itertools.count():
        try:
            assert await sink.deliver(*records) == {}
        except PyMongoError:
            continue
        return failures
    raise AssertionError


class Sink:
    """The sink under test, and what it has written."""

    def __init__(self, uri: str, database: str, **options: Any) -> None:
        given = {"logging_client_mongodb_uri": uri, "logging_client_mongodb_db_name": database}
        web = httpx.AsyncClient(verify=False)
        self._sink = MongoDB(MongoDB.Options.model_validate(given | options), Surroundings({}, web))
        # Not through the client under test.
        anybody = re.sub("//.*@", "//", uri.partition("/?")[0])
        self._reader = pymongo.AsyncMongoClient[dict[str, Any]](anybody, tz_aware=True)
        self.apicalls = self._reader[database]["apicalls"]

    async def deliver(self, *records: Record) -> Mapping[str, str]:
        return await self._sink.deliver(records)

    async def found(self, **query: Any) -> list[dict[str, Any]]:
        return await self.apicalls.find(query).sort("_id").to_list()

    async def aclose(self) -> None:
        await self._sink.aclose()
        await self._reader.drop_database(self.apicalls.database.name)
        await self._reader.close()


Open = Callable[..., Sink]


@pytest.fixture
async def open_sink(request: pytest.FixtureRequest) -> AsyncIterator[Open]:
    sinks: list[Sink] = []
    name = re.sub(r"\W", "_", request.node.name)[:50]

    def start(uri: str, **options: Any) -> Sink:
        sinks.append(Sink(uri, name, **options))
        return sinks[-1]

    yield start
    for sink in sinks:
        await sink.aclose()


@pytest.fixture
def sink(mongodb: str, open_sink: Open) -> Sink:
    return open_sink(mongodb)


async def test_a_record_is_a_document_that_can_be_asked_for(sink: Sink) -> None:
    refused = await sink.deliver(record("a"))

    assert refused == {}
    [found] = await sink.found(**{"metadata.caller.id": "team-a", "request.model": "m"})
    assert found["_id"] == "a"
    assert found["endpoint"] == "chat_completions"
    assert found["metadata"] == {"trace_id": "t", "caller": record()["identity"]}
    assert found["response"] == {"choices": []}
    # A BSON date has milliseconds.
    assert found["started"] == datetime(2026, 11, 23, 18, 0, 0, 123_000, UTC)
    assert found["attempts"][0]["started"] == datetime(2026, 11, 23, 18, 0, 0, 200_000, UTC)
    assert found["first_byte"] is None


async def test_a_second_delivery_changes_nothing(sink: Sink) -> None:
    await sink.deliver(record("a", model="first"))

    refused = await sink.deliver(record("a", model="second"), record("b"))

    assert refused == {}
    assert [(it["_id"], it["model"]) for it in await sink.found()] == [("a", "first"), ("b", "m")]


@pytest.mark.parametrize(
    "batches",
    [
        [[begun("a")], [record("a")]],
        [[record("a")], [begun("a")]],
        [[begun("a"), record("a")]],
        [[record("a"), begun("a")]],
        [[begun("a")], [record("a"), begun("a")], [begun("a")]],
    ],
)
async def test_the_whole_of_an_exchange_wins_over_its_beginning(
    sink: Sink, batches: Sequence[Sequence[Record]]
) -> None:
    for batch in batches:
        assert await sink.deliver(*batch) == {}

    [found] = await sink.found()
    assert found["complete"] is True
    assert found["response"] == {"choices": []}


async def test_a_beginning_without_an_end_is_kept(sink: Sink) -> None:
    await sink.deliver(begun("a"))
    await sink.deliver(begun("a"))

    [found] = await sink.found()
    assert found["complete"] is False


async def test_what_is_json_and_no_bson_is_kept_as_near_to_it_as_can_be(sink: Sink) -> None:
    deep: Any = "the end"
    for _ in range(80):
        deep = [deep]
    request = {"$ref": "#/$defs/x", "a.b": {"$where": 1}, "": 2, "nul\0": "\0", "big": 2**64}
    request |= {"small": -(2**63), "float": 1.5, "text": "ü\ufffd🦙", "deep": deep, "id": None}

    refused = await sink.deliver(record("a", request=request))

    assert refused == {}
    [found] = await sink.found()
    kept = found["request"]
    del request["nul\0"]
    assert kept == request | {"nul\u2400": "\0", "big": "18446744073709551616"}


async def test_the_largest_texts_of_a_large_record_are_cut_and_say_so(sink: Sink) -> None:
    large = record("large", request={"long": "ü" * 9_000_000, "short": "whole"}, response="r" * 500)

    refused = await sink.deliver(large, record("small"))

    assert refused == {}
    [found, small] = await sink.found()
    assert found["request"]["short"] == "whole"
    assert found["response"] == "r" * 500
    assert found["truncated"] is True
    assert found["request"]["long"].endswith("ü… [cut, of 18,000,000 bytes]")
    # As much is left as there is room for.
    assert 15_990_000 < len(found["request"]["long"].encode()) < 16_000_000
    assert small["truncated"] is False


async def test_a_record_of_too_many_numbers_is_kept_as_text(mongodb: str, open_sink: Open) -> None:
    sink = open_sink(mongodb, logging_client_mongodb_document_limit=1_000_000)

    await sink.deliver(record("a", request={"input": [7] * 500_000}))

    [found] = await sink.found()
    assert found["request"].startswith('{"input":[7,7,7')
    assert found["request"].endswith(" bytes]")
    assert found["truncated"] is True


async def test_only_what_the_collection_refuses_is_refused(sink: Sink) -> None:
    validator = {"model": {"$ne": "forbidden"}}
    await sink.apicalls.database.create_collection("apicalls", validator=validator)

    refused = await sink.deliver(record("a"), record("b", model="forbidden"), record("c"))

    assert refused == {"b": "Document failed validation (code 121)"}
    assert [it["_id"] for it in await sink.found()] == ["a", "c"]


@pytest.mark.parametrize(
    "strange",
    [{"id": "b"}, {"id": "b", "attempts": 1}, record("b", started="yesterday")],
    ids=["bare", "no list", "no date"],
)
async def test_what_is_no_record_of_ours_is_refused_and_holds_up_no_other(
    sink: Sink, strange: dict[str, Any]
) -> None:
    refused = await sink.deliver(record("a"), strange, record("c"))

    assert list(refused) == ["b"]
    assert [it["_id"] for it in await sink.found()] == ["a", "c"]


async def test_a_whole_that_the_collection_refuses_is_refused_though_its_beginning_is_there(
    sink: Sink,
) -> None:
    validator = {"$or": [{"finished": None}, {"model": {"$ne": "forbidden"}}]}
    await sink.apicalls.database.create_collection("apicalls", validator=validator)
    await sink.deliver(begun("a"), begun("b"))

    refused = await sink.deliver(record("a"), record("b", model="forbidden"))

    assert refused == {"b": "Document failed validation (code 121)"}
    assert [it["complete"] for it in await sink.found()] == [True, False]


async def test_one_record_that_makes_a_server_refuse_all_is_found_out(
    mongod: Mongod, open_sink: Open
) -> None:
    sink = open_sink(mongod.uri)
    await sink.deliver(record("first"))
    # The batch, then the second of its three records.
    await asyncio.to_thread(mongod.fails, "insert", times=1, errorCode=15)
    first = asyncio.create_task(sink.deliver(record("a")))

    assert list(await first) == ["a"]
    await asyncio.to_thread(mongod.fails, "insert", times=2, errorCode=15)
    refused = await sink.deliver(record("b"), record("c"))

    assert list(refused) == ["b"]
    assert [it["_id"] for it in await sink.found()] == ["c", "first"]


async def test_the_indexes_are_made_once_and_follow_the_setting(
    mongodb: str, open_sink: Open
) -> None:
    sink = open_sink(mongodb)
    await sink.deliver(record())
    plain = await sink.apicalls.index_information()

    changed = open_sink(mongodb, logging_client_mongodb_keep_days=2)
    await changed.deliver(record())
    expiring = await sink.apicalls.index_information()

    assert {"started_1", "identity.id_1_started_-1", "model_1_started_-1"} < set(plain)
    assert "expireAfterSeconds" not in plain["started_1"]
    assert expiring["started_1"]["expireAfterSeconds"] == 2 * 86_400


async def test_a_server_that_refuses_indexes_takes_records(
    mongod: Mongod, open_sink: Open, caplog: pytest.LogCaptureFixture
) -> None:
    await asyncio.to_thread(mongod.fails, "createIndexes", errorCode=13)
    sink = open_sink(mongod.uri)

    await sink.deliver(record("a"))
    await sink.deliver(record("b"))

    assert len(await sink.found()) == 2
    assert caplog.text.count("MongoDB refuses the indexes of apicalls: code 13") == 1


async def test_a_server_that_is_down_at_the_start_takes_the_records_later(
    mongod: Mongod, open_sink: Open
) -> None:
    sink = open_sink(mongod.uri + SOON)
    await asyncio.to_thread(mongod.kill)

    with pytest.raises(PyMongoError):
        await sink.deliver(record("a"))
    await asyncio.to_thread(mongod.start)
    await delivered(sink, record("a"))

    assert [it["_id"] for it in await sink.found()] == ["a"]


REFUSALS: dict[str, dict[str, Any]] = {
    "shutting down": {"errorCode": 91},
    "not the primary": {"errorCode": 10107},
    "not allowed": {"errorCode": 13},
    "throttled, as Cosmos DB says it": {"errorCode": 16500},
    "hung up": {"closeConnection": True},
    "not replicated": {"writeConcernError": {"code": 64, "errmsg": "waiting for replication"}},
}


@pytest.mark.parametrize("how", REFUSALS.values(), ids=REFUSALS)
async def test_a_server_that_refuses_writes_has_them_delivered_again(
    mongod: Mongod, open_sink: Open, how: dict[str, Any]
) -> None:
    sink = open_sink(mongod.uri + SOON)
    await sink.deliver(record("before"))
    await asyncio.to_thread(mongod.fails, "insert", **how)

    for _ in range(2):
        with pytest.raises(PyMongoError):
            await sink.deliver(record("a"), record("b"))
    await asyncio.to_thread(mongod.heals)
    await delivered(sink, record("a"), record("b"))

    assert [it["_id"] for it in await sink.found()] == ["a", "b", "before"]


async def test_a_frozen_server_has_each_record_once_when_it_thaws(
    mongod: Mongod, open_sink: Open
) -> None:
    sink = open_sink(mongod.uri + SOON)
    await sink.deliver(record("before"))
    mongod.freeze()

    with pytest.raises(PyMongoError):
        await sink.deliver(record("a"), record("b"))
    mongod.thaw()
    await delivered(sink, record("a"), record("b"))

    # What it was given while frozen it has done meanwhile, or not: either is once.
    assert [it["_id"] for it in await sink.found()] == ["a", "b", "before"]


async def test_what_was_delivered_survives_a_server_that_is_killed(
    mongod: Mongod, open_sink: Open
) -> None:
    sink = open_sink(mongod.uri + SOON)
    done: list[str] = []
    enough = asyncio.Event()
    failures = 0

    async def write(writer: int) -> None:
        nonlocal failures
        for batch in range(50):
            records = [record(f"{writer}-{batch}-{number}") for number in range(3)]
            failures += await delivered(sink, *records)
            done.extend(it["id"] for it in records)
            if len(done) > 100:
                enough.set()

    writers = [asyncio.create_task(write(number)) for number in range(4)]
    await enough.wait()
    await asyncio.to_thread(mongod.kill)
    await asyncio.to_thread(mongod.start)
    await asyncio.gather(*writers)

    assert failures
    assert [it["_id"] for it in await sink.found()] == sorted(done)
    assert len(done) == 600


async def test_no_password_is_told(mongodb: str, open_sink: Open) -> None:
    uri = mongodb.replace("//", "//somebody:hush-hush@") + SOON
    sink = open_sink(uri)

    with pytest.raises(PyMongoError) as refused:
        await sink.deliver(record())

    assert "hush" not in str(refused.value)
    assert "hush" not in repr(MongoDB.Options(logging_client_mongodb_uri=uri))  # type: ignore[arg-type]


async def test_a_whole_call_is_a_document(serve: Serve, mongodb: str) -> None:
    settings = {"LOGGING_CLIENT": "mongodb", "LOGGING_CLIENT_MONGODB_URI": mongodb}
    name = "test_a_whole_call_is_a_document"
    gateway = await serve(**settings, LOGGING_CLIENT_MONGODB_DB_NAME=name)

    reply = await gateway.post("/v1/chat/completions", json=CHAT)

    async with pymongo.AsyncMongoClient[dict[str, Any]](mongodb) as client:
        while not (found := await client[name]["apicalls"].find().to_list()):
            pass
        await client.drop_database(name)
    assert [it["request_id"] for it in found] == [reply.headers["x-request-id"]]
    assert found[0]["request"] == CHAT
    assert found[0]["response"] == reply.json()
    assert found[0]["metadata"] == {"caller": found[0]["identity"]}
    assert found[0]["instance"] == "i1"


# What is imported where streams wait for it; DNS is asked nothing.
WATCHED = """
import asyncio, sys, threading, httpx
from llamaxing.plugins import Surroundings
from llamaxing.sinks.mongodb import MongoDB

def watch(event, arguments):
    loop = threading.current_thread() is threading.main_thread()
    heavy = ("pymongo", "bson", "dns.resolver", "dns.asyncresolver", "dns.message")
    if event == "import" and loop and arguments[0].startswith(heavy):
        print(arguments[0])
    if event in ("socket.connect", "socket.sendto"):
        raise OSError("there is no network")

async def main():
    given = {"logging_client_mongodb_uri": "mongodb+srv://there.invalid/?serverSelectionTimeoutMS=9"}
    sink = MongoDB(MongoDB.Options.model_validate(given), Surroundings({}, httpx.AsyncClient()))
    sys.addaudithook(watch)
    try:
        await sink.deliver([{"id": "a"}])
    except Exception as error:
        print(type(error).__name__)

asyncio.run(main())
"""


async def test_what_a_server_named_by_dns_needs_is_imported_off_the_loop() -> None:
    ran = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", WATCHED), cwd=PROJECT, stdout=PIPE, stderr=PIPE
    )
    out, err = await ran.communicate()

    assert out.decode().split() == ["ConfigurationError"], err.decode()
