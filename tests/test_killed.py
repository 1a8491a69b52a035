"""Gateways that are killed, by SIGKILL, at moments left to chance: what is recorded all the same.

Two of them share an outbox, and one goes on while the other is away.
"""

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import httpx
import pymongo
import pytest

from tests.conftest import configure
from tests.e2e import functions_app, start_shim, until_ready
from tests.functions_host import Host
from tests.journals import (
    IDENTITIES,
    KEYS,
    Journal,
    Said,
    call,
    caller_of,
    calls,
    kind_of,
    known,
    made,
    models,
    seeded,
    told,
)
from tests.services import free_port

# Kills in each test: twenty of either way to run the gateway.
KILLS = 10
# How much upstream does between one and the next: at most, and in chunks and requests.
STEPS = 150
CALLERS = 6
# The others would be seconds of waiting, or tell no more.
OFTEN = ["plain", "streamed", "counted", "left-stream", "no-model", "second-stream", "cut-stream"]


class Gateway(Protocol):
    url: str

    async def kill(self) -> None:
        """SIGKILL."""

    async def start(self) -> None:
        """Again; returns when it serves."""


class Shim:
    def __init__(self, environ: Mapping[str, str], folder: Path) -> None:
        port = free_port()
        self.url = f"http://127.0.0.1:{port}"
        self._options = (environ, folder, "--port", str(port))

    async def start(self) -> None:
        self._process = await start_shim(*self._options)
        await until_ready(self.url, self._process)

    async def kill(self) -> None:
        self._process.kill()
        await self._process.wait()

    async def end(self) -> None:
        if self._process.returncode is None:
            self._process.terminate()
            assert await self._process.wait() == 0


class Worker:
    def __init__(self, host: Host) -> None:
        self.url = host.url
        self._host = host

    async def start(self) -> None:
        await self._host.start_worker()

    async def kill(self) -> None:
        await self._host.kill_worker()


@asynccontextmanager
async def two_shims(environ: Mapping[str, str], folder: Path) -> AsyncIterator[Sequence[Gateway]]:
    found = [Shim(environ, folder), Shim(environ, folder)]
    await asyncio.gather(*(it.start() for it in found))
    try:
        yield found
    finally:
        await asyncio.gather(*(it.end() for it in found))


@asynccontextmanager
async def two_workers(environ: Mapping[str, str], folder: Path) -> AsyncIterator[Sequence[Gateway]]:
    async with AsyncExitStack() as stack:
        hosts = [functions_app(environ, folder) for _ in range(2)]
        yield [Worker(await stack.enter_async_context(host)) for host in hosts]


GATEWAYS = {"the shim": two_shims, "a Functions worker": two_workers}


@dataclass
class Load:
    """Callers of one gateway, each of whom makes one call after another, until it is over."""

    gateway: Gateway
    upstream: Journal
    ids: Iterator[str]
    chance: random.Random
    journals: list[list[Said]] = field(default_factory=lambda: [[] for _ in range(CALLERS)])
    doubtful: set[str] = field(default_factory=set)
    """The calls that may not be recorded whole: of each caller what was going on at a kill, and
    the one before it, which may have ended within the last write to the outbox. A call whose caller
    has left goes on until the gateway leaves upstream, whatever the caller does meanwhile."""
    over: bool = False

    def __post_init__(self) -> None:
        self._serving = asyncio.Event()
        self._serving.set()

    async def run(self) -> None:
        await asyncio.gather(*map(self._calls, self.journals))

    async def _calls(self, journal: list[Said]) -> None:
        async with caller_of(self.gateway.url) as client:
            while not self.over:
                await self._serving.wait()
                journal.append(said := Said(next(self.ids), self.chance.choice(list(KEYS))))
                await call(client, self.upstream, said)

    async def killed(self) -> None:
        self._serving.clear()
        going_on = self.upstream.not_left()
        for journal in self.journals:
            left = [said for said in journal if kind_of(said.id).leaves]
            self.doubtful |= {said.id for said in (*journal[-2:], *left[-2:])}
            self.doubtful |= {said.id for said in left if said.id in going_on}
        await self.gateway.kill()
        await self.gateway.start()
        self._serving.set()


@pytest.mark.timeout(300)
@pytest.mark.parametrize("gateways", GATEWAYS.values(), ids=GATEWAYS)
@pytest.mark.parametrize("audit", [False, True], ids=["without an audit", "with an audit"])
async def test_what_a_kill_may_cost_is_what_was_going_on(
    tmp_path: Path, mongodb: str, gateways: Any, audit: bool
) -> None:
    """Without an audit: what was going on, or has ended within the last write to the outbox; but
    no stream whose end somebody has. With one: nothing; what was going on is `worker_lost`."""
    chance = seeded()
    database = f"killed-{tmp_path.name}"
    async with Journal() as upstream:
        environ = settings(tmp_path, upstream, mongodb, database, audit)
        ids = iter(calls(20_000, chance, OFTEN))
        async with gateways(environ, tmp_path) as two:
            loads = [Load(it, upstream, ids, chance) for it in two]
            running = [asyncio.create_task(it.run()) for it in loads]
            for _ in range(KILLS):
                await upstream.takes(chance.randrange(1, STEPS))
                await chance.choice(loads).killed()
            for load in loads:
                load.over = True
            await asyncio.gather(*running)
            await delivered(two[0].url)
        asked = upstream.asked_for()
        documents = await taken(mongodb, database)
    journal = {it.id: it for load in loads for calls in load.journals for it in calls}
    doubtful = set.union(*(it.doubtful for it in loads))
    found = {it["request_id"]: it for it in documents}

    assert len(found) == len(documents)
    assert set(found) <= set(journal)
    seen = {id for id, said in journal.items() if has_its_end(said, audit)}
    # Whom the platform has answered, or nobody, just before a gateway is there again.
    turned_away = {id for id, said in journal.items() if said.status is None} - set(asked)
    assert set(journal) - set(found) <= (doubtful | turned_away) - seen
    sure = [journal[id] for id in found if id in seen or id not in doubtful]
    assert {it.id: told(found[it.id]) for it in sure} == {
        it.id: known(it, asked.get(it.id, [])) for it in sure
    }
    if audit:
        assert set(asked) <= set(found)
        lost = [it for it in documents if it["error"] == "worker_lost"]
        assert {it["complete"] for it in lost} <= {False}


@pytest.mark.parametrize("gateways", GATEWAYS.values(), ids=GATEWAYS)
async def test_with_an_audit_what_was_going_on_at_a_kill_is_worker_lost(
    tmp_path: Path, mongodb: str, gateways: Any
) -> None:
    """Two are killed within their calls and one starts again: it delivers its own and the other's.
    Upstream was asked for each, and no caller has its end."""
    ids = ["left-plain.0001", "left-stream.0002", "left-plain.0003", "left-stream.0004"]
    said = [Said(id, "alice") for id in ids]
    database = f"lost-{tmp_path.name}"
    async with Journal() as upstream:
        environ = settings(tmp_path, upstream, mongodb, database, audit=True, longest=5)
        async with gateways(environ, tmp_path) as two, asyncio.TaskGroup() as callers:
            for index, it in enumerate(said):
                callers.create_task(stays(two[index // 2].url, it))
            await asyncio.gather(*(going_on(upstream, it) for it in said))
            await asyncio.gather(*(it.kill() for it in two))
            assert await taken(mongodb, database) == []
            await two[1].start()
            await delivered(two[1].url)
        asked = upstream.asked_for()
        documents = await taken(mongodb, database)

    assert [len(asked[id]) for id in ids] == [1, 1, 1, 1]
    assert sorted(it["request_id"] for it in documents) == sorted(ids)
    for document in documents:
        assert (document["complete"], document["error"]) == (False, "worker_lost")
        assert document["identity"]["id"] == "alice"
        assert document["request"]["user"] == document["request_id"]
    assert not any(it.whole for it in said)


async def stays(url: str, said: Said) -> None:
    """A caller who does not leave until the connection breaks."""
    async with caller_of(url) as client:
        with contextlib.suppress(httpx.TransportError):
            await made(client, said, replace(kind_of(said.id), leaves=False))


async def going_on(upstream: Journal, said: Said) -> None:
    """Returns when upstream has the call, and its caller what there is of a stream."""
    await upstream.has[said.id].wait()
    while kind_of(said.id).stream and not said.body:  # noqa: ASYNC110  it is bytes, without an event
        await asyncio.sleep(0.01)


def settings(
    folder: Path, upstream: Journal, mongodb: str, database: str, audit: bool, longest: int = 8
) -> Mapping[str, str]:
    recorded = {
        "OUTBOX": "sqlite",
        "OUTBOX_PATH": str(folder / "outbox.db"),
        "LOGGING_CLIENT": "mongodb",
        "LOGGING_CLIENT_MONGODB_URI": mongodb,
        "LOGGING_CLIENT_MONGODB_DB_NAME": database,
        # What a killed process had taken to deliver is another's soon after.
        "DELIVERY_TIMEOUT": "1",
    }
    ages = {name: str(longest) for name in ("STREAM_MAX_AGE", "APP_REQUESTS_TIMEOUT")}
    ages["AUDIT_MAX_AGE"] = str(longest + 1)
    audited = {"AUDIT_REQUIRED": "true", **ages} if audit else {}
    return configure(folder, models(upstream), IDENTITIES) | recorded | audited


def has_its_end(said: Said, audit: bool) -> bool:
    """Whether a caller has what its record comes before: with an audit all of the reply's content,
    otherwise the end of a body that comes in chunks."""
    if audit:
        return said.has_all
    return said.whole and kind_of(said.id).stream and said.status == 200


async def delivered(url: str) -> None:
    """Returns when nothing waits in the outbox."""
    headers = {"authorization": f"Bearer {KEYS['alice']}"}
    async with caller_of(url) as client:
        while True:
            detail = (await client.get("/health/ready", headers=headers)).json()
            if detail["outbox"]["mongodb"]["waiting"] == 0:
                assert detail["outbox"]["mongodb"]["poison"] == 0
                return
            await asyncio.sleep(0.2)


async def taken(mongodb: str, database: str) -> list[dict[str, Any]]:
    async with pymongo.AsyncMongoClient[dict[str, Any]](mongodb) as client:
        found = await client[database]["apicalls"].find().to_list()
        await client.drop_database(database)
        return found
