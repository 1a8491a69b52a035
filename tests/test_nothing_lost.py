"""Each call is a document in MongoDB, once, and agrees with both of its ends: in all weathers."""

import asyncio
import json
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pymongo
import pytest
from pydantic import SecretStr

from llamaxing.plugins import Surroundings
from llamaxing.sinks.mongodb import MongoDB
from tests.conftest import configure
from tests.e2e import command, uvicorn_shim
from tests.journals import (
    IDENTITIES,
    Journal,
    callers,
    calls,
    known,
    models,
    seeded,
    told,
)
from tests.services import Mongod
from tests.test_outbox import Moving, made, running

# Short waits, so that an outage is over soon after its end.
SOON = "/?serverSelectionTimeoutMS=300&connectTimeoutMS=300&socketTimeoutMS=300"


@dataclass(frozen=True)
class Weather:
    """What MongoDB suffers, of so many calls: from its `begin` on, once upstream has been asked
    for `after` calls, to its `end`, when the gateway has noticed. After 0 is before the gateway
    starts."""

    calls: int
    after: int = 0
    begin: Callable[[Mongod], None] | None = None
    end: Callable[[Mongod], None] | None = None

    async def passes(self, mongod: Mongod, upstream: Journal, log: Path) -> None:
        if self.after and self.begin:
            await upstream.request(self.after - 1)
            await asyncio.to_thread(self.begin, mongod)
        if self.end:
            await until_it_says(log, "mongodb takes no records")
            await upstream.request(self.calls // 2)
            await asyncio.to_thread(self.end, mongod)
            await until_it_says(log, "mongodb takes records again")


def refuse(mongod: Mongod) -> None:
    mongod.fails("insert", errorCode=13)


def write_and_not_say_so(mongod: Mongod) -> None:
    mongod.fails("insert", writeConcernError={"code": 64, "errmsg": "waiting for replication"})


WEATHERS = {
    "fair": Weather(1000),
    "down at the start": Weather(250, 0, Mongod.kill, Mongod.start),
    "killed, and started again": Weather(250, 50, Mongod.kill, Mongod.start),
    "frozen": Weather(250, 50, Mongod.freeze, Mongod.thaw),
    "refusing writes": Weather(250, 50, refuse, Mongod.heals),
    "writing, and not saying so": Weather(250, 50, write_and_not_say_so, Mongod.heals),
}


@pytest.mark.parametrize("weather", WEATHERS.values(), ids=WEATHERS)
async def test_each_call_is_one_document_that_agrees_with_both_ends(
    tmp_path: Path, mongod: Mongod, weather: Weather
) -> None:
    chance = seeded()
    ids = calls(weather.calls, chance)
    log = tmp_path / "log"
    if weather.begin and not weather.after:
        await asyncio.to_thread(weather.begin, mongod)
    async with Journal() as upstream:
        environ = configure(tmp_path, models(upstream), IDENTITIES) | recorded_in(mongod)
        with log.open("wb") as file:
            async with uvicorn_shim(environ, tmp_path, stderr=file.fileno()) as shim:
                passing = asyncio.create_task(weather.passes(mongod, upstream, log))
                journal = await callers(shim.url, upstream, ids, 24, chance)
                await passing
                documents = await recorded(mongod, len(ids))
        status = await command(tmp_path, environ, "outbox", "status")
        asked = upstream.asked_for()

    assert status == (0, "mongodb: 0 waiting; 0 poison\n", "")
    assert Counter(it["request_id"] for it in documents) == Counter(ids)
    found = {it["request_id"]: told(it) for it in documents}
    assert found == {it.id: known(it, asked.get(it.id, [])) for it in journal}
    # And nobody was asked of whom no record tells.
    assert set(asked) <= set(found)


async def until_it_says(log: Path, text: str) -> None:
    def said() -> bool:
        return text in log.read_text()

    while not said():  # noqa: ASYNC110  a file has no event
        await asyncio.sleep(0.05)


def recorded_in(mongod: Mongod) -> Mapping[str, str]:
    return {
        "OUTBOX": "sqlite",
        "LOGGING_CLIENT": "mongodb",
        "LOGGING_CLIENT_MONGODB_URI": mongod.uri + SOON,
        "DELIVERY_PAUSE_LIMIT": "0.5",
    }


async def recorded(mongod: Mongod, number: int) -> list[dict[str, Any]]:
    """All that is there, once there is so much."""
    async with pymongo.AsyncMongoClient[dict[str, Any]](mongod.uri) as client:
        apicalls = client["llamaxing"]["apicalls"]
        while await apicalls.count_documents({}) < number:  # noqa: ASYNC110
            await asyncio.sleep(0.1)
        return await apicalls.find().to_list()


async def test_a_mongodb_that_is_away_for_ten_minutes_gets_everything_once(
    tmp_path: Path, mongod: Mongod
) -> None:
    """By the clock of whoever delivers, which a wait moves on."""
    clock = Moving()
    began = clock.now()
    sink = open_mongodb(mongod)
    outbox = made(tmp_path, clock, mongodb=sink)
    await asyncio.to_thread(mongod.kill)
    async with running(outbox):
        for at in range(10):
            await asyncio.gather(*(outbox.put(*whole(at * 30 + n)) for n in range(30)))
            while clock.now() < began + (at + 1) * 60:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        waiting = await outbox.status()
        await asyncio.to_thread(mongod.start)
        documents = await recorded(mongod, 300)
    await sink.aclose()

    assert waiting["mongodb"].waiting == 300
    assert (waiting["mongodb"].oldest or 0) >= 540
    assert sorted(it["_id"] for it in documents) == [f"{n:04}" for n in range(300)]


def open_mongodb(mongod: Mongod) -> MongoDB:
    uri = SecretStr(mongod.uri + SOON.replace("300", "50"))
    options = MongoDB.Options(logging_client_mongodb_uri=uri)
    return MongoDB(options, Surroundings({}, httpx.AsyncClient()))


def whole(number: int) -> tuple[str, bytes]:
    id, moment = f"{number:04}", "2026-01-01T00:00:00+00:00"
    record = {"id": id, "started": moment, "finished": moment, "attempts": [], "identity": None}
    return id, json.dumps(record).encode()
