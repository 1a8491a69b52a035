"""`python -m llamaxing outbox`, as an operator runs it beside the gateway."""

import asyncio
import json
from pathlib import Path

from llamaxing.outbox import Waiting
from tests.conftest import configure, model, openai, running
from tests.e2e import command
from tests.fakes import CHAT, Upstream
from tests.test_outbox import Scripted, made, put

NOWHERE = "/no/such/folder/records.jsonl"


def environment(folder: Path, upstream: Upstream) -> dict[str, str]:
    return configure(folder, [model(openai(upstream, "i1"))]) | {
        "OUTBOX": "sqlite",
        "OUTBOX_PATH": str(folder / "outbox.db"),
    }


async def test_status_has_a_line_a_sink(tmp_path: Path, upstream: Upstream) -> None:
    environ = environment(tmp_path, upstream)
    outbox = made(tmp_path, jsonl=Scripted())
    await put(outbox, 3)
    await outbox.aclose(0)

    code, out, err = await command(tmp_path, environ, "outbox", "status")

    assert (code, err) == (0, "")
    assert out.startswith("jsonl: 3 waiting, the oldest for ")
    assert out.endswith(" s; 0 poison\n")


async def test_a_sink_that_is_away_shows_in_the_health_of_those_who_may_ask(
    tmp_path: Path, upstream: Upstream
) -> None:
    environ = environment(tmp_path, upstream) | {"LOGGING_CLIENT_JSONL_FILENAME": NOWHERE}
    async with running(environ, tmp_path) as gateway:
        await gateway.post("/v1/chat/completions", json=CHAT)

        ready = (await gateway.get("/health/ready")).json()

    assert ready["status"] == "ok"
    assert ready["outbox"]["jsonl"]["waiting"] == 1
    assert ready["outbox"]["jsonl"]["poison"] == 0
    assert ready["outbox"]["jsonl"]["oldest"] >= 0


async def test_poison_is_brought_home_or_dropped(tmp_path: Path, upstream: Upstream) -> None:
    environ = environment(tmp_path, upstream)
    sink = Scripted()
    sink.refuses = {"0000": "no", "0001": "no"}
    outbox = made(tmp_path, jsonl=sink)
    await outbox.open()
    outbox.start()
    await put(outbox, 2)
    while (await outbox.status())["jsonl"] != Waiting(0, 2):  # noqa: ASYNC110
        await asyncio.sleep(0)
    await outbox.aclose(5)

    again = await command(tmp_path, environ, "outbox", "replay")
    poison = await command(tmp_path, environ, "outbox", "purge", "poison")
    waiting = await command(tmp_path, environ, "outbox", "purge", "waiting", "--sink", "jsonl")

    assert again == (0, "jsonl: 2 to be delivered again\n", "")
    assert poison == (0, "jsonl: 0 dropped\n", "")
    assert waiting == (0, "jsonl: 2 dropped\n", "")


async def test_what_only_the_log_has_is_taken_in(tmp_path: Path, upstream: Upstream) -> None:
    environ = environment(tmp_path, upstream)
    lines = [
        "2026-11-23 18:40:52,850 INFO llamaxing: chat_completions 200 model='m'",
        '2026-11-23 18:40:52,850 ERROR llamaxing: record for jsonl: {"id": "a", "n": "\\u00e9"}',
        'ERROR llamaxing: record for mongodb,jsonl: {"id": "b"}',
    ]

    taken = await command(
        tmp_path, environ, "outbox", "replay", "--log", "-", stdin="\n".join(lines)
    )
    async with running(environ, tmp_path) as gateway:
        records = await gateway.recorded(2)

    assert taken == (0, "2 from the log to be delivered\n", "")
    assert sorted(records, key=json.dumps) == [{"id": "a", "n": "é"}, {"id": "b"}]


async def test_what_cannot_be_done_is_said_in_a_line(tmp_path: Path, upstream: Upstream) -> None:
    environ = environment(tmp_path, upstream)
    no_sink = environ | {"LOGGING_CLIENT": "none"}
    no_folder = environ | {"OUTBOX_PATH": "/no/such/folder/outbox.db"}

    unknown = await command(tmp_path, environ, "outbox", "replay", "--sink", "mongodb")
    no_log = await command(tmp_path, environ, "outbox", "replay", "--log", "shim.log")
    without = await command(tmp_path, no_sink, "outbox", "status")
    nowhere = await command(tmp_path, no_folder, "outbox", "status")

    assert no_log == (1, "", "outbox: shim.log is no file\n")
    assert unknown == (1, "", "mongodb is not a sink of this gateway\n")
    assert without[0] == 1
    assert without[2].startswith("logging_client: nothing is recorded")
    assert nowhere == (1, "", "outbox: /no/such/folder/outbox.db: No such file or directory\n")
