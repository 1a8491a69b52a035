"""Records: who gets them, and what a sink that fails does to the rest."""

import asyncio
import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, SupportsBytes

import httpx
import pytest

from llamaxing.delivery import Delivery, Pace
from llamaxing.endpoints import ENDPOINTS
from llamaxing.exchange import Exchange, Kept
from llamaxing.outbox import OutboxFailed
from llamaxing.outbox.none import NoOutbox
from llamaxing.plugins import Surroundings
from llamaxing.recorder import Recorder, in_the_log
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
        raise ConnectionError("it is away")


class Full(NoOutbox):
    async def put(self, id: str, record: SupportsBytes, intent: Any = None) -> None:
        raise OutboxFailed("it is full")


class Stuck(NoOutbox):
    async def put(self, id: str, record: SupportsBytes, intent: Any = None) -> None:
        await asyncio.Event().wait()


class Refusing(Memory):
    async def deliver(self, records: Sequence[Record]) -> Mapping[str, str]:
        return {record["id"]: "it is too large" for record in records}


def exchange() -> Exchange:
    return Exchange(ENDPOINTS[0], "e", "r", Kept(100))


def delivering(kind: type[NoOutbox], **sinks: Any) -> NoOutbox:
    deliveries = {name: Delivery(name, sink, 30, Pace()) for name, sink in sinks.items()}
    return kind(NoOutbox.Options(), Surroundings({}, httpx.AsyncClient()), deliveries)


async def test_a_sink_that_fails_or_hangs_starves_no_other(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("llamaxing.outbox.none._WITHIN", 0.05)
    memory = Memory()
    sinks = {"a": Hanging(), "b": Failing(), "c": Refusing(), "d": memory}
    recorder = Recorder([delivering(NoOutbox, **sinks)], copy_up_to=10)

    await recorder.record(one := exchange())

    assert [record["id"] for record in memory.records] == [one.id]
    assert "record for a,b,c: {" in caplog.text


async def test_where_the_outbox_fails_the_sinks_have_the_record_all_the_same(
    caplog: pytest.LogCaptureFixture,
) -> None:
    memory = Memory()
    recorder = Recorder([delivering(Full), delivering(NoOutbox, it=memory)], copy_up_to=10)

    for _ in range(3):
        await recorder.record(exchange())

    assert len(memory.records) == 3
    assert [it.getMessage() for it in caplog.records if it.levelname == "ERROR"] == [
        "the outbox fails, and sinks are tried directly: OutboxFailed('it is full')"
    ]


async def test_an_outbox_that_does_not_answer_is_not_waited_for_without_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("llamaxing.recorder._KEPT_WITHIN", 0.05)
    memory = Memory()
    recorder = Recorder([delivering(Stuck), delivering(NoOutbox, it=memory)], copy_up_to=10)

    await asyncio.gather(*(recorder.record(exchange()) for _ in range(3)))
    await recorder.record(exchange())

    assert len(memory.records) == 4


async def test_who_leaves_while_the_record_is_kept_has_not_been_given_the_whole_reply() -> None:
    recorder = Recorder([delivering(Stuck)], copy_up_to=10)
    one = exchange()
    completing = asyncio.create_task(recorder.complete(one))
    await asyncio.sleep(0)

    completing.cancel()
    await asyncio.wait({completing})

    assert completing.cancelled()
    assert (one.complete, one.recorded) == (False, False)


async def test_what_nobody_takes_can_be_read_back_from_the_log(
    caplog: pytest.LogCaptureFixture,
) -> None:
    recorder = Recorder([delivering(Full), delivering(NoOutbox, it=Failing())], copy_up_to=10)
    one = exchange()
    one.model = "line\nrecord for it: {} \u2028 é"
    one.request = b'{"messages": ["\\ud83d\\ude00"]}'

    await recorder.record(one)

    lines = [f"2026-01-01 ERROR llamaxing: {it.getMessage()}\n" for it in caplog.records]
    assert all(line.isascii() and line.count("\n") == 1 for line in lines[-1:])
    assert list(in_the_log(lines)) == [(["it"], one.record())]


async def test_it_closes_its_sinks() -> None:
    memory = Memory()

    await Recorder([delivering(NoOutbox, it=memory)], copy_up_to=10).aclose(0)

    assert memory.closed


async def test_a_copy_that_nobody_reads_is_not_made(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "llamaxing")

    assert Recorder([], copy_up_to=10).copy_up_to == 0
    assert Recorder([delivering(NoOutbox, it=Memory())], copy_up_to=10).copy_up_to == 10


@pytest.mark.parametrize("outbox", ["none", "sqlite"])
async def test_every_outbox_hands_on_a_whole_call(
    serve: Serve, outbox: str, tmp_path: Path
) -> None:
    gateway = await serve(OUTBOX=outbox, OUTBOX_PATH=str(tmp_path / "outbox.db"))

    await gateway.post("/v1/chat/completions", json=CHAT)

    [record] = await gateway.recorded()
    assert record["response"]["choices"][0]["message"]["content"] == "Hi"
    assert record["request"] == CHAT


async def test_a_whole_call_is_a_line_of_json(gateway: Served) -> None:
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
