"""Records: who gets them, and what a sink that fails does to the rest."""

import asyncio
import json
import logging
from collections.abc import Mapping, Sequence
from typing import Any

import pytest

from llamaxing import plugins
from llamaxing.endpoints import ENDPOINTS
from llamaxing.exchange import Exchange, Kept
from llamaxing.recorder import Recorder
from llamaxing.sinks import Record
from tests.conftest import Serve, Served
from tests.fakes import CHAT, Upstream


class Memory:
    batch = 1

    def __init__(self) -> None:
        self.records: list[Record] = []
        self.closed = False

    async def deliver(self, records: Sequence[Record]) -> Mapping[str, str]:
        self.records += records
        return {}

    async def aclose(self) -> None:
        self.closed = True


class Hanging(Memory):
    async def deliver(self, records: Sequence[Record]) -> Mapping[str, str]:
        await asyncio.Event().wait()
        return {}


class Failing(Memory):
    async def deliver(self, records: Sequence[Record]) -> Mapping[str, str]:
        raise OSError("the disk is full")


class Refusing(Memory):
    async def deliver(self, records: Sequence[Record]) -> Mapping[str, str]:
        return {record["id"]: "it is too large" for record in records}


def exchange() -> Exchange:
    return Exchange(ENDPOINTS[0], "e", "r", Kept(100))


async def test_a_sink_that_fails_or_hangs_starves_no_other(
    caplog: pytest.LogCaptureFixture,
) -> None:
    memory = Memory()
    sinks = {"a": Hanging(), "b": Failing(), "c": Refusing(), "d": memory}
    recorder = Recorder(sinks, copy_up_to=10, timeout=0.05)

    await recorder.record(one := exchange())

    assert [record["id"] for record in memory.records] == [one.id]
    assert caplog.text.count(f"record {one.id} did not reach") == 3


async def test_it_closes_its_sinks() -> None:
    memory = Memory()

    await Recorder({"a": memory}, copy_up_to=10).aclose()

    assert memory.closed


async def test_a_copy_that_nobody_reads_is_not_made(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "llamaxing")

    assert Recorder({}, copy_up_to=10).copy_up_to == 0
    assert Recorder({"a": Memory()}, copy_up_to=10).copy_up_to == 10


@pytest.mark.parametrize("sink", plugins.names("sinks"))
async def test_every_sink_takes_a_whole_call(serve: Serve, sink: str) -> None:
    gateway = await serve(LOGGING_CLIENT=sink)

    await gateway.post("/v1/chat/completions", json=CHAT)

    [record] = await gateway.recorded()
    assert record["response"]["choices"][0]["message"]["content"] == "Hi"
    assert record["request"] == CHAT
    assert record["instance"] == "i1"


@pytest.mark.parametrize(("keep", "expected"), [("full", CHAT), ("metadata", None)])
async def test_an_identity_says_how_much_is_kept(serve: Serve, keep: str, expected: Any) -> None:
    gateway = await serve(identities=[{"id": "a", "auth_key": "k", "record": keep}])

    await gateway.post("/v1/chat/completions", json=CHAT, headers={"api-key": "k"})

    [record] = await gateway.recorded()
    assert record["request"] == expected
    assert (record["response"] is None) == (expected is None)
    assert record["usage"]["input"] == 5


async def test_nothing_is_kept_of_an_identity_that_says_none(serve: Serve) -> None:
    identities = [
        {"id": "a", "auth_key": "k", "record": "none"},
        {"id": "b", "auth_key": "other"},
    ]
    gateway = await serve(identities=identities)

    await gateway.post("/v1/chat/completions", json=CHAT, headers={"api-key": "k"})
    await gateway.post("/v1/chat/completions", json=CHAT, headers={"api-key": "other"})

    assert [it["identity"]["id"] for it in await gateway.recorded()] == ["b"]


async def test_the_copy_of_a_reply_is_bounded(upstream: Upstream, serve: Serve) -> None:
    upstream.replies("i1", 200, json.dumps({"text": "x" * 1000}).encode())
    gateway = await serve(LOGGING_COPY_LIMIT="100")

    reply = await gateway.post("/v1/chat/completions", json=CHAT)

    assert len(reply.content) > 1000
    [record] = await gateway.recorded()
    assert record["truncated"] is True
    assert len(record["response"]) == 100


async def test_every_sink_line_is_json_of_its_own(gateway: Served) -> None:
    await asyncio.gather(*(gateway.post("/v1/chat/completions", json=CHAT) for _ in range(50)))

    records = await gateway.recorded(50)

    assert len({record["id"] for record in records}) == 50
