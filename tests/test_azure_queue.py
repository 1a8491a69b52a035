"""Records in Azure Storage queues (Azurite), handed on by the function that each queue triggers."""

import asyncio
import base64
import json
import uuid
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from llamaxing import functions
from llamaxing.build import Build
from llamaxing.delivery import Delivery, Pace
from llamaxing.errors import ConfigurationError
from llamaxing.outbox import OutboxFailed, Refused, Waiting
from llamaxing.outbox.azure_queue import AzureQueueOutbox
from llamaxing.plugins import Surroundings
from llamaxing.upstream import Upstreams
from tests.conftest import Served, configure, model, openai
from tests.e2e import command, functions_app
from tests.fakes import CHAT, COMPLETION, Upstream
from tests.functions_host import Host
from tests.functions_queues import Queue
from tests.services import Azurite
from tests.test_outbox import Moving, Scripted, ids, record

PATH = "/v1/chat/completions"


class OnTheWay(httpx.AsyncBaseTransport):
    """To the storage: what is asked of it, and what it is away for."""

    def __init__(self) -> None:
        self.asked: list[httpx.Request] = []
        self.fails: Callable[[httpx.Request], bool] = lambda _: False
        self._transport = Upstreams(100)

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        self.asked.append(request)
        if self.fails(request):
            return httpx.Response(503, request=request)
        return await self._transport.handle_async_request(request)

    async def aclose(self) -> None:
        await self._transport.aclose()

    @property
    def pauses(self) -> list[int]:
        """In seconds, of the messages that were put."""
        puts = [it.url.params for it in self.asked if it.method == "POST"]
        return [int(query["visibilitytimeout"]) for query in puts]


@asynccontextmanager
async def outbox_at(
    azurite: Azurite,
    prefix: str,
    clock: Any = None,
    on_the_way: OnTheWay | None = None,
    /,
    **sinks: Any,
) -> AsyncIterator[AzureQueueOutbox]:
    deliveries = {name: Delivery(name, sink, 30, Pace()) for name, sink in sinks.items()}
    environ = {"AzureWebJobsStorage": azurite.connection_string}
    async with on_the_way or OnTheWay() as transport:
        web = httpx.AsyncClient(transport=transport, trust_env=False)
        options = AzureQueueOutbox.Options(outbox_queue_prefix=prefix)
        surroundings = Surroundings(environ, web, clock=clock or Moving())
        yield AzureQueueOutbox(options, surroundings, deliveries)


@pytest.fixture
def prefix() -> str:
    return f"p{uuid.uuid4().hex[:20]}"


@asynccontextmanager
async def queue_at(azurite: Azurite, name: str) -> AsyncIterator[Queue]:
    async with httpx.AsyncClient(verify=False) as client:
        queue = Queue(client, azurite.connection_string, name)
        await queue.create()
        yield queue


async def texts(queue: Queue) -> list[bytes]:
    """Of all that may be taken now."""
    return [base64.b64decode(it.text) for it in await queue.take(32, 1)]


async def test_a_record_waits_in_the_queue_of_each_sink(azurite: Azurite, prefix: str) -> None:
    one, two = Scripted(), Scripted()
    async with outbox_at(azurite, prefix, one=one, two=two) as outbox:
        await asyncio.gather(*(outbox.put(*record(n)) for n in range(5)))
        for name, sink in (("one", one), ("two", two)):
            async with queue_at(azurite, f"{prefix}-{name}") as queue:
                for text in await texts(queue):
                    await outbox.triggers[name].deliver(text)
            assert sink.ids == ids(5)


async def test_messages_never_expire(azurite: Azurite, prefix: str) -> None:
    async with (
        outbox_at(azurite, prefix, sink=Scripted()) as outbox,
        queue_at(azurite, f"{prefix}-sink") as queue,
    ):
        await outbox.put(*record(1))

        [message] = await queue.take(1, 1)

    assert message.about["ExpirationTime"].startswith("9999-")


async def test_a_large_record_waits_in_a_blob_and_arrives_whole(
    azurite: Azurite, prefix: str
) -> None:
    large = json.dumps({"id": "large", "text": "é" * 500_000}).encode()
    sink = Scripted()
    async with (
        outbox_at(azurite, prefix, sink=sink) as outbox,
        queue_at(azurite, f"{prefix}-sink") as queue,
    ):
        await outbox.put("large", large)
        [text] = await texts(queue)
        await outbox.triggers["sink"].deliver(text)
        # The platform deletes a message after its function: it may have died in between.
        await outbox.triggers["sink"].deliver(text)

    assert len(text) < 200
    assert sink.taken == [json.loads(large)]


async def test_a_sink_that_is_away_has_the_record_wait_longer_each_time(
    azurite: Azurite, prefix: str
) -> None:
    sink, way = Scripted(), OnTheWay()
    sink.fails = lambda _: True
    async with outbox_at(azurite, prefix, None, way, sink=sink) as outbox:
        await outbox.put(*record(1))
        async with queue_at(azurite, f"{prefix}-sink") as queue:
            [text] = await texts(queue)
        for _ in range(9):
            await outbox.triggers["sink"].deliver(text)
            text = sent(way.asked[-1])
        sink.fails = lambda _: False
        await outbox.triggers["sink"].deliver(text)

    assert sink.ids == ["0001"]
    assert way.pauses[0] == 0
    for doubled, pause in zip(
        [10, 20, 40, 80, 160, 320, 600, 600, 600], way.pauses[-9:], strict=True
    ):
        assert doubled / 2 <= pause <= doubled


def sent(request: httpx.Request) -> bytes:
    """The text of a message."""
    return base64.b64decode(request.content.partition(b"<MessageText>")[2].partition(b"<")[0])


async def test_records_that_fail_together_are_not_all_tried_again_at_once(
    azurite: Azurite, prefix: str
) -> None:
    sink, way = Scripted(), OnTheWay()
    sink.fails = lambda _: True
    async with (
        outbox_at(azurite, prefix, None, way, sink=sink) as outbox,
        queue_at(azurite, f"{prefix}-sink") as queue,
    ):
        await asyncio.gather(*(outbox.put(*record(n)) for n in range(20)))
        for text in await texts(queue):
            await outbox.triggers["sink"].deliver(text)

    assert len(set(way.pauses[-20:])) > 1


async def test_nothing_waits_longer_than_storage_can_have_it_wait(
    azurite: Azurite, prefix: str
) -> None:
    async with outbox_at(azurite, prefix, sink=Scripted()) as outbox:
        await outbox.intend(*record(1), 1e9)

        assert (await outbox.status())["sink"].waiting == 1


@pytest.mark.parametrize("method", ["GET", "DELETE"])
async def test_a_record_waits_while_its_blob_is_out_of_reach(
    azurite: Azurite, prefix: str, method: str
) -> None:
    """It is not poison for that, however often it is tried."""
    sink, way = Scripted(), OnTheWay()
    async with (
        outbox_at(azurite, prefix, None, way, sink=sink) as outbox,
        queue_at(azurite, f"{prefix}-sink") as queue,
    ):
        await outbox.put("large", b'{"id": "large", "text": "%s"}' % (b"x" * 100_000))
        [text] = await texts(queue)
        way.fails = lambda request: request.method == method and "-outbox/" in request.url.path
        await outbox.triggers["sink"].deliver(text)
        text = sent(way.asked[-1])
        way.fails = lambda _: False
        await outbox.triggers["sink"].deliver(text)

        assert {it["id"] for it in sink.taken} == {"large"}
        assert await outbox._blobs.get("sink/large") is None


async def test_the_status_knows_how_long_what_was_sent_back_has_waited(
    azurite: Azurite, prefix: str
) -> None:
    """Storage shows nobody what waits to be tried again."""
    clock, sink = Moving(), Scripted()
    sink.fails = lambda _: True
    async with (
        outbox_at(azurite, prefix, clock, sink=sink) as outbox,
        queue_at(azurite, f"{prefix}-sink") as queue,
    ):
        await outbox.put(*record(1))
        clock.time += 100
        await outbox.put(*record(2))
        assert (await outbox.status())["sink"] == Waiting(2, 0, 100)

        for message in await queue.take(2, 1):
            await outbox.triggers["sink"].deliver(base64.b64decode(message.text))
            await queue.delete(message)

        assert (await outbox.status())["sink"] == Waiting(2, 0, 100)
        clock.time += 11
        # They may have been delivered since, by another process.
        assert (await outbox.status())["sink"] == Waiting(2, 0, None)


@pytest.mark.parametrize("text", [b"no JSON", b"{}", b'{"id": 1}'])
async def test_a_message_that_cannot_be_read_is_refused(
    azurite: Azurite, prefix: str, text: bytes
) -> None:
    async with outbox_at(azurite, prefix, sink=Scripted()) as outbox:
        with pytest.raises(Refused, match="sink: the message cannot be read"):
            await outbox.triggers["sink"].deliver(text)


async def test_an_intent_waits_for_its_age_and_is_replaced_by_the_end_of_the_call(
    azurite: Azurite, prefix: str
) -> None:
    sink = Scripted()
    async with (
        outbox_at(azurite, prefix, sink=sink) as outbox,
        queue_at(azurite, f"{prefix}-sink") as queue,
    ):
        intent = await outbox.intend("0001", b'{"id": "0001", "error": "worker_lost"}', 4000)
        other = await outbox.intend("0002", b'{"id": "0002", "error": "worker_lost"}', 0)
        assert len(await texts(queue)) == 1
        await outbox.put("0001", b'{"id": "0001", "error": null}', intent)
        # One that somebody has taken meanwhile is no longer ours to replace.
        await outbox.put("0002", b'{"id": "0002", "error": null}', other)

        for text in await texts(queue):
            await outbox.triggers["sink"].deliver(text)

    assert {"id": "0001", "error": None} in sink.taken
    assert {"id": "0002", "error": None} in sink.taken


async def test_storage_that_is_away_is_told(prefix: str, tmp_path: Path) -> None:
    with Azurite(tmp_path) as azurite:
        async with outbox_at(azurite, prefix, sink=Scripted()) as outbox:
            await outbox.put(*record(1))
            await asyncio.to_thread(azurite.kill)

            with pytest.raises(OutboxFailed, match="storage does not answer"):
                await outbox.put(*record(2))
            with pytest.raises(OutboxFailed, match="storage does not answer"):
                await outbox.status()
        await asyncio.to_thread(azurite.start)


async def test_a_key_that_is_refused_is_told_without_it(azurite: Azurite, prefix: str) -> None:
    queue = f"AccountName={azurite.account};AccountKey=c3RyYW5nZXI=;QueueEndpoint="
    text = f"{queue}{azurite.queue_url};BlobEndpoint={azurite.blob_url}"
    deliveries = {"sink": Delivery("sink", Scripted(), 30, Pace())}
    async with Upstreams(1) as transport:
        surroundings = Surroundings(
            {"AzureWebJobsStorage": text}, httpx.AsyncClient(transport=transport)
        )
        outbox = AzureQueueOutbox(AzureQueueOutbox.Options(), surroundings, deliveries)
        with pytest.raises(OutboxFailed, match=r"^storage answers 403$"):
            await outbox.put(*record(1))


# Through function_app.py


@asynccontextmanager
async def served(
    azurite: Azurite, prefix: str, folder: Path, upstream: Upstream, **more: str
) -> AsyncIterator[tuple[Host, httpx.AsyncClient]]:
    environ = environment(azurite, prefix, folder, upstream) | more
    async with (
        functions_app(environ, folder) as host,
        httpx.AsyncClient(base_url=host.url, timeout=30, verify=False) as client,
    ):
        yield host, client


def environment(azurite: Azurite, prefix: str, folder: Path, upstream: Upstream) -> dict[str, str]:
    return configure(folder, [model(openai(upstream, "i1"))]) | {
        "OUTBOX": "azure_queue",
        "OUTBOX_QUEUE_PREFIX": prefix,
        "AzureWebJobsStorage": azurite.connection_string,
        "AzureFunctionsJobHost__extensions__queues__visibilityTimeout": "00:00:00",
    }


async def test_a_call_is_recorded_by_the_function_that_its_queue_triggers(
    azurite: Azurite, prefix: str, tmp_path: Path, upstream: Upstream
) -> None:
    async with served(azurite, prefix, tmp_path, upstream) as (host, client):
        await client.post(PATH, json=CHAT)

        [one] = await recorded(tmp_path, 1)
        await host.settled()
        called = [it.function for it in host.invocations.values() if it.ok]

    assert one["request"] == CHAT
    assert sorted(called) == ["deliver_jsonl", "v1"]


async def recorded(folder: Path, number: int) -> list[dict[str, Any]]:
    return await Served("", httpx.AsyncClient(), folder).recorded(number)


async def test_a_record_of_a_megabyte_arrives_whole(
    azurite: Azurite, prefix: str, tmp_path: Path, upstream: Upstream
) -> None:
    text = "é" * 200_000
    upstream.replies("i1", 200, {**COMPLETION, "text": text})
    async with served(azurite, prefix, tmp_path, upstream) as (_, client):
        await client.post(PATH, json=CHAT)

        [one] = await recorded(tmp_path, 1)

    assert one["response"]["text"] == text


async def test_messages_that_cannot_be_read_are_poison_and_spoil_no_replay(
    azurite: Azurite, prefix: str, tmp_path: Path, upstream: Upstream
) -> None:
    environ = environment(azurite, prefix, tmp_path, upstream)
    sink = f"{prefix}-jsonl"
    async with served(azurite, prefix, tmp_path, upstream), queue_at(azurite, sink) as queue:
        poison = Queue(queue._client, azurite.connection_string, f"{sink}-poison")
        await poison.create()
        await queue.put("no base64 at all!")
        await queue.put(base64.b64encode(b"no record").decode())
        while await poison.length() < 2:  # noqa: ASYNC110
            await asyncio.sleep(0.05)
        good = b'{"id": "a", "added": 1, "attempts": 7, "record": {"id": "a"}}'
        await poison.put(base64.b64encode(good).decode())

        told = await command(tmp_path, environ, "outbox", "replay")
        [one] = await recorded(tmp_path, 1)
        while await poison.length() < 2:  # noqa: ASYNC110
            await asyncio.sleep(0.05)
        dropped = await command(tmp_path, environ, "outbox", "purge", "poison")
        after = await command(tmp_path, environ, "outbox", "status")

    assert told == (0, "jsonl: 3 to be delivered again\n", "")
    assert one == {"id": "a"}
    assert dropped == (0, "jsonl: 2 dropped\n", "")
    assert after[1] == "jsonl: 0 waiting; 0 poison\n"


async def test_what_waits_and_what_is_poison_is_written_into_the_log_by_the_clock(
    azurite: Azurite, prefix: str, tmp_path: Path, upstream: Upstream
) -> None:
    async with served(azurite, prefix, tmp_path, upstream) as (host, _):
        async with queue_at(azurite, f"{prefix}-jsonl-poison") as poison:
            await poison.put(base64.b64encode(b"no record").decode())

        assert await host.tick("watch_outbox")
        assert "outbox sink=jsonl waiting=0 poison=1 oldest=0" in host.log


async def test_a_record_that_waits_for_long_is_told_with_its_age(
    azurite: Azurite, prefix: str, caplog: pytest.LogCaptureFixture
) -> None:
    sink, clock = Scripted(), Moving()
    sink.fails = lambda _: True
    async with (
        outbox_at(azurite, prefix, clock, sink=sink) as outbox,
        queue_at(azurite, f"{prefix}-sink") as queue,
    ):
        await outbox.put(*record(1))
        [text] = await texts(queue)

        await outbox.triggers["sink"].deliver(text)
        assert "oldest=" not in caplog.text
        clock.time += 700
        await outbox.triggers["sink"].deliver(text)

    assert "outbox sink=sink oldest=700" in caplog.text


async def test_purge_empties_the_queue_and_its_blobs(
    azurite: Azurite, prefix: str, tmp_path: Path, upstream: Upstream
) -> None:
    environ = environment(azurite, prefix, tmp_path, upstream)
    async with outbox_at(azurite, prefix, jsonl=Scripted()) as outbox:
        await outbox.put(*record(1))
        await outbox.put("large", b'{"id": "large", "text": "%s"}' % (b"x" * 100_000))

        status = await command(tmp_path, environ, "outbox", "status")
        purged = await command(tmp_path, environ, "outbox", "purge", "waiting")

        assert await outbox._blobs.get("jsonl/large") is None
        assert await outbox._blobs.get("jsonl/large") is None
        assert (await outbox.status())["jsonl"].waiting == 0
    assert status[1].startswith("jsonl: 2 waiting, the oldest for ")
    assert purged == (0, "jsonl: 2 dropped\n", "")


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"WEBSITE_INSTANCE_ID": "i", "AzureWebJobsStorage": "here"}, ["deliver_jsonl"]),
        ({"WEBSITE_INSTANCE_ID": "i", "AzureWebJobsStorage__accountName": "a"}, ["deliver_jsonl"]),
        ({"WEBSITE_INSTANCE_ID": "i"}, []),
        ({"AzureWebJobsStorage": "here"}, []),
        ({"AzureWebJobsStorage": "here", "OUTBOX": "azure_queue"}, ["deliver_jsonl"]),
        ({"OUTBOX": "azure_queue"}, []),
        ({"OUTBOX": "azure_queue", "AzureWebJobsStorage": "here", "LOGGING_CLIENT": "none"}, []),
        ({"OUTBOX": "azure_queue", "AzureWebJobsStorage": "here", "DEBUG_LEVEL": "9"}, []),
    ],
)
async def test_a_queue_triggers_a_function_only_where_records_wait_in_queues(
    azurite: Azurite, tmp_path: Path, settings: dict[str, str], expected: list[str]
) -> None:
    settings = {k: azurite.connection_string if v == "here" else v for k, v in settings.items()}

    found = functions.triggers({"LOGGING_CLIENT": "jsonl", **settings}, tmp_path)

    assert list(found) == expected


async def test_a_connection_that_names_no_storage_is_a_fault(tmp_path: Path) -> None:
    environ = configure(tmp_path, []) | {"OUTBOX": "azure_queue"}

    with pytest.raises(ConfigurationError) as error:
        await Build(environ).all()

    assert "outbox: the connection AzureWebJobsStorage names no storage account; set " in str(
        error.value
    )
