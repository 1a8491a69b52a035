"""audit_required: nothing is spent without a record of it, and nobody has a reply without one."""

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any, SupportsBytes

import pytest

from llamaxing.audit import recorded
from llamaxing.build import Build
from llamaxing.endpoints import ENDPOINTS
from llamaxing.errors import ConfigurationError
from llamaxing.exchange import Exchange, Kept
from llamaxing.outbox import OutboxFailed
from llamaxing.recorder import Recorder
from llamaxing.relay import BrokenOff
from tests.conftest import Serve, configure, model, openai
from tests.fakes import CHAT, DONE, Upstream, chunk

PATH = "/v1/chat/completions"
STREAM = {**CHAT, "stream": True}
AUDIT = {"OUTBOX": "sqlite", "AUDIT_REQUIRED": "true"}
CHATS = next(it for it in ENDPOINTS if it.name == "chat_completions")
RESPONSES = next(it for it in ENDPOINTS if it.name == "responses")
COMPLETED = b'event: response.completed\ndata: {"type": "response.completed"}\n\n'


class Gate:
    """An outbox that takes a record when it is told to."""

    def __init__(self, *, fails: bool = False) -> None:
        self.asked = asyncio.Event()
        self.opened = asyncio.Event()
        self.fails = fails
        self.kept: list[Any] = []

    async def put(self, id: str, record: SupportsBytes, intent: Any = None) -> None:
        self.asked.set()
        await self.opened.wait()
        if self.fails:
            raise OutboxFailed("it is full")
        self.kept.append(json.loads(bytes(record)))


async def body(pieces: Sequence[bytes], exchange: Exchange) -> AsyncIterator[bytes]:
    for piece in pieces:
        exchange.reply.add(piece)
        yield piece
    exchange.complete = True


def exchange(content_type: str, endpoint: Any = CHATS) -> Exchange:
    found = Exchange(endpoint, "e", "r", Kept(10_000))
    found.content_type = content_type
    return found


EVENTS = "text/event-stream"
WITHOUT = (
    "audit_required: needs a sink and an outbox; set logging_client, and outbox to 'sqlite' or "
    "'azure_queue'"
)


@pytest.mark.parametrize(
    ("content_type", "endpoint", "pieces", "at_once"),
    [
        ("application/json", CHATS, [b"{}"], []),
        ("application/json", CHATS, [b"{", b'"a": 1', b"}"], [b"{", b'"a": 1']),
        (EVENTS, CHATS, [chunk("a"), chunk("b"), DONE], [chunk("a"), chunk("b")]),
        (EVENTS, CHATS, [chunk("a"), b"data: [DO", b"NE]", b"\n\n"], [chunk("a"), b"data: [DO"]),
        (EVENTS, CHATS, [chunk("a") + DONE], []),
        (EVENTS, RESPONSES, [b": hello\n\n", COMPLETED[:50], COMPLETED[50:]], [b": hello\n\n"]),
    ],
)
async def test_what_completes_a_reply_comes_when_its_record_is_kept(
    content_type: str, endpoint: Any, pieces: list[bytes], at_once: list[bytes]
) -> None:
    gate = Gate()
    one = exchange(content_type, endpoint)
    passing = recorded(body(pieces, one), one, Recorder([gate], copy_up_to=10, audit_age=60))

    seen: list[bytes] = []
    reading = asyncio.create_task(_into(passing, seen))
    await gate.asked.wait()
    assert seen == at_once
    gate.opened.set()
    await reading

    assert b"".join(seen) == b"".join(pieces)
    [record] = gate.kept
    assert record["complete"] is True
    assert record["finished"] is not None


async def _into(passing: AsyncIterator[bytes], seen: list[bytes]) -> None:
    """As they come: who waits elsewhere sees those that are there."""
    async for piece in passing:
        seen.append(piece)  # noqa: PERF401


async def test_a_stream_whose_record_cannot_be_kept_ends_with_an_error_and_without_done() -> None:
    gate = Gate(fails=True)
    gate.opened.set()
    one = exchange(EVENTS)
    recorder = Recorder([gate], copy_up_to=10, audit_age=60)
    seen: list[bytes] = []

    await _into(recorded(body([chunk("a"), DONE], one), one, recorder), seen)

    assert seen[0] == chunk("a")
    assert json.loads(seen[1].removeprefix(b"data: "))["error"]["code"] == "audit_unavailable"
    assert len(seen) == 2
    assert (one.complete, one.error) == (False, "audit_unavailable")


async def test_an_sdk_finds_the_error_though_it_has_the_beginning_of_the_event_before() -> None:
    gate = Gate(fails=True)
    gate.opened.set()
    one = exchange(EVENTS)
    recorder = Recorder([gate], copy_up_to=10, audit_age=60)
    begun, rest = chunk("a")[:-30], chunk("a")[-30:]
    seen: list[bytes] = []

    await _into(recorded(body([begun, rest + DONE], one), one, recorder), seen)

    assert seen[0] == begun
    events = b"".join(seen).removesuffix(b"\n\n").split(b"\n\n")
    told = [json.loads(event.removeprefix(b"data: "))["error"]["code"] for event in events]
    assert told == ["audit_unavailable", "audit_unavailable"]


async def test_a_plain_reply_whose_record_cannot_be_kept_is_broken_off() -> None:
    gate = Gate(fails=True)
    gate.opened.set()
    one = exchange("application/json")
    seen: list[bytes] = []
    passing = recorded(body([b"{", b"}"], one), one, Recorder([gate], copy_up_to=10, audit_age=60))

    with pytest.raises(BrokenOff):
        await _into(passing, seen)

    assert seen == [b"{"]
    assert one.complete is False


@pytest.mark.parametrize("call", [CHAT, STREAM])
async def test_a_call_that_cannot_be_recorded_is_503_and_asks_no_upstream(
    serve: Serve, upstream: Upstream, tmp_path: Path, call: dict[str, Any]
) -> None:
    gateway = await serve(**AUDIT, OUTBOX_PATH=str(tmp_path / "outbox.db"), OUTBOX_LIMIT="1")

    reply = await gateway.post(PATH, json=call)

    assert (reply.status_code, reply.json()["error"]["code"]) == (503, "audit_unavailable")
    assert reply.headers["retry-after"] == "5"
    assert upstream.journal == []
    # It is an exchange all the same: the sink takes it directly.
    [record] = await gateway.recorded()
    assert (record["status"], record["error"]) == (503, "audit_unavailable")


async def test_a_call_is_recorded_once_with_its_end(
    serve: Serve, upstream: Upstream, tmp_path: Path
) -> None:
    upstream.streams("i1", [chunk("a"), DONE])
    gateway = await serve(**AUDIT, OUTBOX_PATH=str(tmp_path / "outbox.db"))

    await gateway.post(PATH, json=STREAM)
    upstream.forget("i1")
    upstream.replies("i1", 418, {"error": {"message": "no"}})
    await gateway.post(PATH, json=CHAT)
    await gateway.post(PATH, json={"model": "unknown"})

    records = await gateway.recorded(3)
    assert {(it["status"], it["complete"], it["error"]) for it in records} == {
        (200, True, None),
        (418, True, None),
        (404, True, "model_not_found"),
    }
    detail = (await gateway.get("/health/ready")).json()
    while detail["outbox"]["jsonl"]["waiting"]:
        detail = (await gateway.get("/health/ready")).json()
    assert len(gateway.records) == 3


async def test_a_caller_who_hangs_up_is_recorded_so(
    serve: Serve, upstream: Upstream, tmp_path: Path
) -> None:
    upstream.streams("i1", [chunk("a")], ends="silent-after")
    gateway = await serve(**AUDIT, OUTBOX_PATH=str(tmp_path / "outbox.db"))

    async with gateway.stream("POST", PATH, json=STREAM) as reply:
        await anext(reply.aiter_raw())

    [record] = await gateway.recorded()
    assert (record["complete"], record["error"]) == (False, "caller_hung_up")


async def test_nothing_is_kept_of_an_identity_that_says_none(
    serve: Serve, upstream: Upstream, tmp_path: Path
) -> None:
    gateway = await serve(
        identities=[{"id": "a", "auth_key": "k", "record": "none"}],
        **AUDIT,
        OUTBOX_PATH=str(tmp_path / "outbox.db"),
        OUTBOX_LIMIT="1",
    )

    reply = await gateway.post(PATH, json=CHAT, headers={"api-key": "k"})

    assert reply.status_code == 200
    assert gateway.records == []


@pytest.mark.parametrize(
    ("settings", "fault"),
    [
        (
            {"OUTBOX": "none"},
            WITHOUT,
        ),
        (
            {"LOGGING_CLIENT": "none"},
            WITHOUT,
        ),
        (
            {"AUDIT_MAX_AGE": "3600"},
            "audit_max_age: has to be more than stream_max_age and app_requests_timeout",
        ),
        (
            {"STREAM_MAX_AGE": "0"},
            "audit_max_age: has to be more than stream_max_age and app_requests_timeout",
        ),
    ],
)
async def test_an_audit_that_could_not_be_is_a_fault(
    tmp_path: Path, upstream: Upstream, settings: dict[str, str], fault: str
) -> None:
    environ = configure(tmp_path, [model(openai(upstream, "i1"))]) | AUDIT

    with pytest.raises(ConfigurationError) as error:
        await Build({**environ, **settings}).all()

    assert error.value.faults == [fault]
