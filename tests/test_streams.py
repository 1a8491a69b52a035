"""What a stream's caller gets while nothing comes from upstream, before its status or later."""

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import openai as sdk
import pytest

from llamaxing.hosting import Hosting
from tests.conftest import Serve, Served, model, openai
from tests.fakes import CHAT, COMPLETION, DONE, Reply, Upstream, chunk

PATH = "/v1/chat/completions"
STREAM = {**CHAT, "stream": True}
KEEP_ALIVE = b": keep-alive\n\n"
SOON = "0.02"


class Reading:
    """The bytes of a stream as they arrive."""

    def __init__(self, reply: httpx.Response) -> None:
        self.status = reply.status_code
        self.headers = reply.headers
        self.seen = b""
        self._arriving: AsyncIterator[bytes] = reply.aiter_raw()

    async def until(self, text: bytes, times: int = 1) -> None:
        while self.seen.count(text) < times:
            self.seen += await anext(self._arriving)

    async def rest(self) -> bytes:
        async for piece in self._arriving:
            self.seen += piece
        return self.seen

    @property
    def events(self) -> bytes:
        """Without the comments."""
        return self.seen.replace(KEEP_ALIVE, b"")


async def test_a_silent_stream_has_comments_between_its_events(
    serve: Serve, upstream: Upstream
) -> None:
    gateway = await serve(STREAM_KEEP_ALIVE=SOON)
    reply = upstream.streams("i1", [chunk("a"), chunk("b"), DONE], lock_step=True)

    async with gateway.stream("POST", PATH, json=STREAM) as response:
        reading = Reading(response)
        await reading.until(KEEP_ALIVE, times=2)
        assert reading.events == b""
        reply.release()
        await reading.until(b'"a"')
        await reading.until(KEEP_ALIVE, times=4)
        reply.release()
        reply.release()
        await reading.rest()

    assert reading.events == chunk("a") + chunk("b") + DONE
    [record] = await gateway.recorded()
    assert record["response"]["choices"][0]["message"]["content"] == "ab"


async def test_a_pause_within_an_event_has_no_comment(serve: Serve, upstream: Upstream) -> None:
    gateway = await serve(STREAM_KEEP_ALIVE=SOON)
    first, second = chunk("a")[:20], chunk("a")[20:]
    reply = upstream.streams("i1", [first, second, DONE], lock_step=True)

    async with gateway.stream("POST", PATH, json={**STREAM, **COUNTED}) as response:
        reading = Reading(response)
        reply.release()
        await reading.until(first)
        before = reading.seen
        # Ten times as long as it takes for a comment; there is no event for what does not come.
        await asyncio.sleep(0.2)
        reply.release()
        await reading.until(second)
        assert reading.seen == before + second
        reply.release()
        await reading.rest()


COUNTED = {"stream_options": {"include_usage": True}}


async def test_an_sdk_does_not_notice_the_comments(serve: Serve, upstream: Upstream) -> None:
    gateway = await serve(STREAM_KEEP_ALIVE=SOON)
    reply = upstream.streams("i1", [chunk("a"), chunk("b"), DONE], lock_step=True)
    client = sdk.AsyncOpenAI(base_url=f"{gateway.url}/v1", api_key="any", max_retries=0)

    async with client:
        stream = await client.chat.completions.create(**STREAM)  # type: ignore[call-overload]
        async with gateway.stream("POST", PATH, json=STREAM) as beside:
            # The other stream has had comments by now, and so has this one.
            reading = Reading(beside)
            await reading.until(KEEP_ALIVE, times=3)
        await upstream.journal[1].hung_up.wait()
        for _ in range(3):
            reply.release()
        texts = [part.choices[0].delta.content async for part in stream]

    assert texts == ["a", "b"]


async def test_no_comment_is_sent_where_they_are_switched_off(
    serve: Serve, upstream: Upstream
) -> None:
    gateway = await serve(STREAM_KEEP_ALIVE="0")
    reply = upstream.streams("i1", [chunk("a"), DONE], lock_step=True)

    async with gateway.stream("POST", PATH, json=STREAM) as response:
        reply.release()
        reply.release()
        got = await Reading(response).rest()

    assert got == chunk("a") + DONE


async def test_a_stream_that_is_too_old_ends_with_an_error_event(
    serve: Serve, upstream: Upstream
) -> None:
    gateway = await serve(STREAM_MAX_AGE="0.1", STREAM_KEEP_ALIVE=SOON)
    upstream.streams("i1", [chunk("a")], ends="silent-after")

    async with gateway.stream("POST", PATH, json=STREAM) as response:
        reading = Reading(response)
        await reading.rest()

    head, last = reading.events.split(b"\n\n")[:2]
    assert head + b"\n\n" == chunk("a")
    assert json.loads(last.removeprefix(b"data: "))["error"]["code"] == "stream_max_age"
    assert b"[DONE]" not in reading.seen
    await asyncio.wait_for(upstream.journal[0].hung_up.wait(), 5)
    [record] = await gateway.recorded()
    assert (record["complete"], record["error"]) == (False, "stream_max_age")


# Before an instance has answered


def slow_first(upstream: Upstream) -> list[dict[str, Any]]:
    """The first instance says nothing, and the second is asked after a third of a second."""
    upstream.fails("i1", "silent")
    return [model(openai(upstream, "i1", timeout=0.3), openai(upstream, "i2", priority=1))]


@pytest.fixture
async def early(serve: Serve, upstream: Upstream) -> Served:
    """It gives a stream its status soon."""
    models = slow_first(upstream)
    return await serve(models, STREAM_COMMIT_AFTER=SOON, STREAM_KEEP_ALIVE=SOON)


async def test_a_late_stream_has_its_status_and_comments_while_another_instance_is_tried(
    early: Served, upstream: Upstream
) -> None:
    upstream.streams("i2", [chunk("a"), DONE])

    async with early.stream("POST", PATH, json=STREAM) as response:
        reading = Reading(response)
        await reading.until(KEEP_ALIVE)
        asked_then = list(upstream.asked)
        await reading.rest()

    assert (reading.status, asked_then, upstream.asked) == (200, ["i1"], ["i1", "i2"])
    assert reading.headers["content-type"].startswith("text/event-stream")
    assert reading.headers["x-request-id"]
    assert reading.events == chunk("a") + DONE
    [record] = await early.recorded()
    assert (record["status"], record["complete"], record["error"]) == (200, True, None)
    assert record["response"]["choices"][0]["message"]["content"] == "a"


async def test_a_late_failure_is_an_error_event_in_upstreams_own_words(
    early: Served, upstream: Upstream
) -> None:
    words = {"error": {"message": "Slow\ndown", "type": "requests", "code": "429"}}
    upstream.replies("i2", 429, json.dumps(words, indent=1).encode())

    async with early.stream("POST", PATH, json=STREAM) as response:
        reading = Reading(response)
        await reading.rest()

    assert reading.status == 200
    lines = reading.events.strip().split(b"\n")
    assert all(line.startswith(b"data: ") for line in lines)
    assert json.loads(b"\n".join(line[6:] for line in lines)) == words
    [record] = await early.recorded()
    assert (record["status"], record["error"]) == (200, "upstream_status_429")


LATE: dict[str, tuple[Reply, str]] = {
    "a reset": (Reply(ends="reset"), "could be reached"),
    "a page": (Reply(503, {"content-type": "text/html"}, [b"<html>\n<p>no"]), "sent status 503"),
    "another shape": (
        Reply(400, {"content-type": "application/json"}, [b'{"detail": "no"}']),
        "sent status 400",
    ),
    "no stream": (
        Reply(200, {"content-type": "application/json"}, [json.dumps(COMPLETION).encode()]),
        "sent what is no stream",
    ),
}


@pytest.mark.parametrize(("reply", "message"), LATE.values(), ids=LATE)
async def test_a_late_failure_of_any_kind_is_an_error_that_an_sdk_raises(
    early: Served, upstream: Upstream, reply: Reply, message: str
) -> None:
    upstream.script("i2", reply)
    client = sdk.AsyncOpenAI(base_url=f"{early.url}/v1", api_key="any", max_retries=0)

    async with client:
        stream = await client.chat.completions.create(**STREAM)  # type: ignore[call-overload]
        with pytest.raises(sdk.APIError, match=message):
            await anext(aiter(stream))


async def test_a_caller_who_leaves_a_late_stream_ends_the_call_upstream(
    early: Served, upstream: Upstream
) -> None:
    async with early.stream("POST", PATH, json=STREAM) as response:
        await Reading(response).until(KEEP_ALIVE)

    await asyncio.wait_for((await upstream.request()).hung_up.wait(), 5)
    [record] = await early.recorded()
    assert record["error"] == "caller_hung_up"
    assert upstream.asked == ["i1"]


async def test_a_stream_that_is_soon_there_has_its_own_status(
    serve: Serve, upstream: Upstream
) -> None:
    gateway = await serve(STREAM_COMMIT_AFTER="30")
    upstream.replies("i1", 400)

    reply = await gateway.post(PATH, json=STREAM)

    assert reply.status_code == 400


async def test_a_plain_call_waits_for_its_status(early: Served, upstream: Upstream) -> None:
    upstream.replies("i2", 429)

    reply = await early.post(PATH, json=CHAT)

    assert reply.status_code == 429
    assert KEEP_ALIVE not in reply.content


# What the platform allows


@pytest.mark.parametrize(
    ("timeout", "wanted", "longest"),
    [
        ("00:10:00", 3600, 570),
        ("00:10:00", 60, 60),
        ("00:10:00", 0, 570),
        ("1.00:00:00", 3600, 3600),
        ("-1", 3600, 3600),
        (None, 3600, 3600),
    ],
)
def test_a_stream_ends_before_the_host_would_restart_its_worker(
    tmp_path: Path, timeout: str | None, wanted: float, longest: float
) -> None:
    host = {"version": "2.0"} | ({"functionTimeout": timeout} if timeout else {})
    (tmp_path / "host.json").write_text(json.dumps(host))

    assert Hosting({"WEBSITE_INSTANCE_ID": "x"}, tmp_path).longest_stream(wanted) == longest


def test_the_app_setting_over_host_json_says_how_long_a_stream_may_be(tmp_path: Path) -> None:
    (tmp_path / "host.json").write_text('{"functionTimeout": "00:10:00"}')
    azure = {"WEBSITE_SKU": "FlexConsumption", "AzureFunctionsJobHost__functionTimeout": "-1"}

    assert Hosting(azure, tmp_path).longest_stream(3600) == 3600


def test_streams_are_given_their_status_early_on_azure_alone(tmp_path: Path) -> None:
    azure, elsewhere = Hosting({"WEBSITE_INSTANCE_ID": "x"}, tmp_path), Hosting({}, tmp_path)

    assert (azure.commit_after(None), elsewhere.commit_after(None)) == (100, None)
    assert (azure.commit_after(0), elsewhere.commit_after(7)) == (None, 7)


# Browsers


async def test_a_page_of_a_listed_origin_may_call(serve: Serve, upstream: Upstream) -> None:
    gateway = await serve(
        identities=[{"id": "a", "auth_key": "k"}],
        CORS_ORIGINS="https://chat.example.com, http://localhost:3000",
    )
    asks = {
        "origin": "https://chat.example.com",
        "access-control-request-method": "POST",
        "access-control-request-headers": "authorization,content-type,x-stainless-os",
    }

    preflight = await gateway.client.options(PATH, headers=asks)
    call = await gateway.post(
        PATH, json=CHAT, headers={"origin": "http://localhost:3000", "api-key": "k"}
    )
    refused = await gateway.post(PATH, json=CHAT, headers={"origin": "http://localhost:3000"})
    elsewhere = await gateway.client.options(PATH, headers={**asks, "origin": "https://evil.com"})

    assert preflight.status_code == 200
    assert preflight.headers["access-control-allow-origin"] == "https://chat.example.com"
    allowed = preflight.headers["access-control-allow-headers"]
    assert allowed == asks["access-control-request-headers"]
    assert "POST" in preflight.headers["access-control-allow-methods"]
    for reply in (call, refused):
        assert reply.headers["access-control-allow-origin"] == "http://localhost:3000"
        assert "x-request-id" in reply.headers["access-control-expose-headers"]
        assert reply.headers["vary"] == "Origin"
    assert (call.status_code, refused.status_code) == (200, 401)
    assert "access-control-allow-origin" not in elsewhere.headers


async def test_without_the_setting_no_page_may_call(gateway: Served) -> None:
    asks = {"origin": "https://a.com", "access-control-request-method": "POST"}

    reply = await gateway.client.options(PATH, headers=asks)

    assert reply.status_code == 405
    assert not any(name.startswith("access-control") for name in reply.headers)
