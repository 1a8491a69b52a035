"""A configuration that changes while calls run: what serves, since when, and what is said of it."""

import asyncio
import gc
import json
import logging
import os
import sys
import threading
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import httpx
import pytest

from llamaxing.build import Build
from llamaxing.catalog import Catalog
from llamaxing.configuration import Live, Watch
from llamaxing.copies import Copies
from llamaxing.errors import ConfigurationError
from llamaxing.logs import log
from llamaxing.sources import Reading
from tests.conftest import Serve, Served, configure, model, openai
from tests.fakes import CHAT, DONE, Clock, Upstream, chunk

PATH = "/v1/chat/completions"
SOON = {"CONFIGURATION_RELOAD_INTERVAL": "0.001"}


class Shelf:
    """A source that holds what it is told to, and hands it out when it is let."""

    name = "models.json"
    copied_as = "a shelf"

    def __init__(self, content: bytes | OSError) -> None:
        self.content = content
        self.reads = 0
        self.open = asyncio.Event()
        self.open.set()

    async def read(self, known: str | None) -> Reading | None:
        self.reads += 1
        await self.open.wait()
        if isinstance(self.content, OSError):
            raise self.content
        tag = self.content.decode()
        return None if tag == known else Reading(self.content, tag)


def parse(raw: bytes) -> Any:
    """Stands for a catalog: the words of the text; `bad` is a fault."""
    if raw == b"bad":
        raise ConfigurationError(["models.json: is bad"], ["models_source"])
    return Catalog([])


async def started(shelf: Shelf, clock: Callable[[], float], folder: Path | None = None) -> Live:
    live = Live(Watch(shelf, "models_source", parse, Copies(folder)), None, 30, clock)
    await live.start()
    return live


async def test_what_is_new_serves_after_the_interval_and_not_before() -> None:
    shelf, clock = Shelf(b"one"), Clock()
    live = await started(shelf, clock)
    first = live.current.version
    shelf.content = b"two"

    clock.now += 29
    live.look()
    await live.looked()
    assert (shelf.reads, live.current.version) == (1, first)

    clock.now += 1
    live.look()
    await live.looked()
    assert shelf.reads == 2
    assert live.current.version != first

    clock.now += 29
    live.look()
    await live.looked()
    assert shelf.reads == 2


async def test_a_call_does_not_wait_for_the_look_and_a_slow_source_is_asked_once() -> None:
    shelf, clock = Shelf(b"one"), Clock()
    live = await started(shelf, clock)
    first = live.current
    shelf.content = b"two"
    shelf.open.clear()

    for _ in range(10):
        clock.now += 30
        live.look()
        await asyncio.sleep(0)

    assert (shelf.reads, live.current) == (2, first)
    shelf.open.set()
    await live.looked()
    assert live.current is not first


async def test_what_is_bad_is_told_once_and_what_was_good_serves_on(
    caplog: pytest.LogCaptureFixture,
) -> None:
    shelf, clock = Shelf(b"one"), Clock()
    live = await started(shelf, clock)
    serving = live.current

    for content in (b"bad", b"bad", ConnectionError("gone")):
        shelf.content = content
        clock.now += 30
        live.look()
        await live.looked()
        assert live.current is serving
    told = [record.getMessage() for record in caplog.records if record.levelname == "ERROR"]

    at = live.detail()["models"]["read_at"]
    assert told == [
        f"models.json stays as it was at {at}: models.json: is bad",
        f"models.json stays as it was at {at}: models_source: models.json cannot be read: gone",
    ]
    assert datetime.fromisoformat(live.detail()["models"]["stale_since"])

    shelf.content = b"one"
    clock.now += 30
    live.look()
    await live.looked()
    assert live.detail()["models"]["stale_since"] is None
    assert live.current is serving


async def test_an_error_of_ours_leaves_what_serves(caplog: pytest.LogCaptureFixture) -> None:
    shelf, clock = Shelf(b"one"), Clock()
    live = await started(shelf, clock)
    serving = live.current
    shelf.content = None  # type: ignore[assignment]

    clock.now += 30
    live.look()
    await live.looked()

    assert live.current is serving
    assert "the configuration could not be looked at" in caplog.text


async def test_a_start_without_the_source_serves_its_last_good_copy(tmp_path: Path) -> None:
    clock = Clock()
    before = await started(Shelf(b"one"), clock, tmp_path / "copies")

    live = await started(Shelf(ConnectionError("gone")), clock, tmp_path / "copies")

    assert live.current.version == before.current.version
    assert live.detail()["models"]["stale_since"]


async def test_a_copy_is_of_what_was_good(tmp_path: Path) -> None:
    clock = Clock()
    shelf = Shelf(b"one")
    live = await started(shelf, clock, tmp_path / "copies")
    shelf.content = b"bad"
    clock.now += 30
    live.look()
    await live.looked()

    after = await started(Shelf(ConnectionError("gone")), clock, tmp_path / "copies")

    assert after.current.version == live.current.version


async def test_a_start_without_source_and_copy_is_refused_and_may_heal(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError) as error:
        await started(Shelf(ConnectionError("gone")), Clock(), tmp_path)

    assert error.value.faults == ["models_source: models.json cannot be read: gone"]
    assert error.value.settings == ["models_source"]
    assert error.value.heals


@pytest.mark.parametrize("change", ["open to others", "not a folder"])
async def test_a_folder_where_others_could_put_a_copy_is_not_used(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, change: str
) -> None:
    folder = tmp_path / "copies"
    copies = Copies(folder)
    copies.keep("source", b"ours")
    if change == "open to others":
        folder.chmod(0o777)
    else:
        folder = folder.rename(tmp_path / "real")
        (tmp_path / "copies").symlink_to(folder)

    assert copies.last("source") is None
    copies.keep("source", b"theirs")
    assert "no copy of the configuration is kept" in caplog.text
    assert [file.read_bytes() for file in folder.iterdir()] == [b"ours"]


def test_a_copy_is_for_nobody_elses_eyes(tmp_path: Path) -> None:
    Copies(tmp_path / "copies").keep("source", b"keys")

    [file] = (tmp_path / "copies").iterdir()
    assert (file.stat().st_mode & 0o777, (tmp_path / "copies").stat().st_mode & 0o777) == (
        0o600,
        0o700,
    )


# Through the whole gateway, with real files


async def until(ask: Callable[[], Any], wanted: Callable[[httpx.Response], bool]) -> httpx.Response:
    """The first reply that is as wanted: each call has the sources looked at."""
    while True:
        reply: httpx.Response = await ask()
        if wanted(reply):
            return reply


def replace(file: Path, text: str) -> None:
    """At once: a look between two writes would find half of it, which is another test's case."""
    file.with_suffix(".new").write_text(text)
    file.with_suffix(".new").replace(file)


def names(reply: httpx.Response) -> list[str]:
    return [found["id"] for found in reply.json()["data"]]


async def test_a_stream_ends_on_the_instance_it_began_on_while_others_get_the_new_one(
    tmp_path: Path, upstream: Upstream, serve: Serve
) -> None:
    gateway = await serve([model(openai(upstream, "i1"))], **SOON)
    upstream.streams("i1", [chunk("a"), chunk("b"), DONE])
    held = upstream.streams("i1", [chunk("a"), chunk("b"), DONE], lock_step=True)

    async with gateway.stream("POST", PATH, json={**CHAT, "stream": True}) as reply:
        pieces = reply.aiter_raw()
        configure(tmp_path, [model(openai(upstream, "i2"), id="new", aliases=["m"])])
        await until(lambda: gateway.get("/v1/models"), lambda it: names(it) == ["new", "m"])
        other = await gateway.post(PATH, json=CHAT)
        for _ in range(3):
            held.release()
        rest = b"".join([piece async for piece in pieces])

    assert rest == chunk("a") + chunk("b") + DONE
    assert [asked.instance for asked in upstream.journal] == ["i1", "i2"]
    assert other.status_code == 200


BAD = {
    "half of it": lambda text: text[: len(text) // 2],
    "broken": lambda text: text.replace("[", "{", 1),
    "an unset variable": lambda text: text.replace("sk-i1", "${UNSET_VARIABLE}"),
    "nothing": lambda _: "",
}


@pytest.mark.parametrize("spoilt", BAD.values(), ids=BAD)
async def test_a_bad_file_never_replaces_a_good_one_and_health_says_since_when(
    tmp_path: Path, gateway: Served, serve: Serve, spoilt: Any, caplog: pytest.LogCaptureFixture
) -> None:
    gateway = await serve(**SOON)
    file = tmp_path / "models.json"
    good = file.read_text()
    await until(lambda: gateway.get("/health/ready"), lambda it: it.status_code == 200)

    replace(file, spoilt(good))
    stale = await until(
        lambda: gateway.get("/health/ready"),
        lambda it: it.json()["configuration"]["models"]["stale_since"] is not None,
    )
    calls = [await gateway.post(PATH, json=CHAT) for _ in range(3)]
    replace(file, good.replace('"alias"', '"renamed"'))
    await until(lambda: gateway.get("/v1/models"), lambda it: "renamed" in names(it))

    assert stale.status_code == 200
    assert {call.status_code for call in calls} == {200}
    errors = [record for record in caplog.records if record.levelname == "ERROR"]
    assert len(errors) == 1
    assert "models.json stays as it was at" in errors[0].getMessage()


async def test_a_file_that_is_gone_leaves_what_serves(tmp_path: Path, serve: Serve) -> None:
    gateway = await serve(**SOON)
    (tmp_path / "models.json").unlink()

    await until(
        lambda: gateway.get("/health/ready"),
        lambda it: it.json()["configuration"]["models"]["stale_since"] is not None,
    )

    assert (await gateway.post(PATH, json=CHAT)).status_code == 200


async def test_an_identity_that_is_taken_away_is_refused_and_keys_overlap_in_a_rotation(
    tmp_path: Path, upstream: Upstream, serve: Serve
) -> None:
    models = [model(openai(upstream, "i1"))]
    ann = {"id": "ann", "api_keys": [{"key": "ann-1"}]}
    gateway = await serve(models, [ann, {"id": "bob", "auth_key": "bob-1"}], **SOON)

    async def status(key: str) -> int:
        headers = {"authorization": f"Bearer {key}"}
        return (await gateway.get("/v1/models", headers=headers)).status_code

    assert [await status(key) for key in ("ann-1", "ann-2", "bob-1")] == [200, 401, 200]

    configure(tmp_path, models, [{**ann, "api_keys": [{"key": "ann-1"}, {"key": "ann-2"}]}])
    while await status("ann-2") != 200:
        pass
    assert [await status(key) for key in ("ann-1", "bob-1")] == [200, 401]

    configure(tmp_path, models, [{**ann, "api_keys": [{"key": "ann-2"}]}])
    while await status("ann-1") != 401:
        pass
    assert await status("ann-2") == 200


async def test_the_version_is_in_each_record_and_in_health_for_those_who_may_call(
    upstream: Upstream, serve: Serve
) -> None:
    gateway = await serve(identities=[{"id": "ann", "auth_key": "ann-1"}])
    key = {"api-key": "ann-1"}

    await gateway.post(PATH, json=CHAT, headers=key)
    detail = (await gateway.get("/health/ready", headers=key)).json()["configuration"]

    assert (await gateway.recorded())[0]["configuration"] == detail["version"]
    assert detail["models"]["source"] == "models.json"
    assert detail["identities"]["stale_since"] is None
    for other in ({}, {"api-key": "wrong"}):
        reply = await gateway.get("/health/ready", headers=other)
        assert (reply.status_code, reply.json()) == (200, {"status": "ok"})


def open_files() -> int:
    return len(os.listdir("/proc/self/fd")) if sys.platform == "linux" else 0


async def test_a_thousand_reloads_leave_nothing_behind(tmp_path: Path) -> None:
    """Of threads, tasks and connections by count; of memory by the objects that live."""
    models = [
        {
            "id": f"m{n}",
            "capabilities": ["chat_completions"],
            "instances": [{"id": f"i{n}", "provider": "openai", "openai_api_key": "k"}],
        }
        for n in range(20)
    ]
    clock = Clock()
    built = await Build(configure(tmp_path, models), clock).all()
    # pytest keeps each line.
    log.setLevel(logging.WARNING)
    file = tmp_path / "models.json"
    versions = set()

    async def reload(number: int) -> None:
        file.write_text(json.dumps([{**models[0], "aliases": [f"a{number}"]}, *models[1:]]))
        clock.now += 30
        built.live.look()
        await built.live.looked()
        versions.add(built.live.current.version)

    async def weigh(first: int, last: int) -> tuple[int, int, int, int]:
        for number in range(first, last):
            await reload(number)
        gc.collect()
        tasks = len(asyncio.all_tasks())
        return len(gc.get_objects()), threading.active_count(), tasks, open_files()

    # The pool of threads that reads files grows up to a size of its own.
    before = await weigh(0, 100)
    after = await weigh(100, 1100)
    await built.gateway.aclose()

    assert len(versions) == 1100
    assert after[0] - before[0] < 500
    assert after[1] <= (os.cpu_count() or 1) + 5
    assert after[2:] == before[2:]
