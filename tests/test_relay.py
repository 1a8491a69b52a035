"""What upstream sends is what the caller gets: every byte, as it came and when it came."""

import asyncio
import gzip
import hashlib
import json
import zlib
from collections.abc import Sequence

import httpx
import openai
import pytest

from tests.conftest import Serve, Served
from tests.fakes import CHAT, DONE, SSE, Upstream, chunk

STREAM = {**CHAT, "stream": True}
PATH = "/v1/chat/completions"
EMOJI = 'data: {"choices":[{"index":0,"delta":{"content":"🦙"}}]}\n\n'.encode()

STREAMS = {
    "plain": [chunk("Hel"), chunk("lo"), DONE],
    "character over two chunks": [EMOJI[:48], EMOJI[48:50], EMOJI[50:], DONE],
    "crlf": [b'data: {"a": 1}\r\n\r\n', b"data: [DONE]\r\n\r\n"],
    "comments": [b": ping\n\n", chunk("x"), b":\n\n", DONE],
    "no done": [chunk("Hel"), chunk("lo")],
    "empty choices": [chunk("", choices=[]), chunk("Hi"), DONE],
    "not at event boundaries": [chunk("Hi")[:7], chunk("Hi")[7:] + DONE[:3], DONE[3:]],
    "two megabytes": [chunk("x" * 2**21), DONE],
    "no json": [b"data: \xff\xfe\n\n", b"event: what\ndata: {\n\n", DONE],
}


@pytest.mark.parametrize("chunks", STREAMS.values(), ids=STREAMS)
async def test_a_stream_is_the_same_to_the_byte(
    upstream: Upstream, gateway: Served, chunks: Sequence[bytes]
) -> None:
    upstream.streams("i1", chunks)

    reply = await gateway.post(PATH, json=STREAM)

    sent, got = b"".join(chunks), reply.content
    assert hashlib.sha256(got).hexdigest() == hashlib.sha256(sent).hexdigest()
    assert reply.headers["content-type"] == SSE["content-type"]
    [record] = gateway.records
    assert record["complete"] is True
    assert record["error"] is None


@pytest.mark.parametrize("name", ["plain", "character over two chunks", "crlf"])
async def test_each_chunk_reaches_the_caller_before_the_next_is_sent(
    upstream: Upstream, gateway: Served, name: str
) -> None:
    chunks = STREAMS[name]
    sending = upstream.streams("i1", chunks, lock_step=True)
    async with gateway.stream("POST", PATH, json=STREAM) as reply:
        arriving = reply.aiter_raw()

        for sent in chunks:
            sending.release()
            got = await anext(arriving)
            while len(got) < len(sent):
                got += await anext(arriving)
            assert got == sent


USAGE = {"prompt_tokens": 5, "completion_tokens": 2, "total_tokens": 7}
COUNTS = chunk("", choices=[], usage=USAGE)


async def test_a_stream_is_recorded_as_one_reply_with_its_usage_which_the_caller_did_not_ask_for(
    upstream: Upstream, gateway: Served
) -> None:
    upstream.streams("i1", [chunk("Hel"), chunk("lo"), COUNTS, DONE])

    reply = await gateway.post(PATH, json=STREAM)

    assert reply.content == chunk("Hel") + chunk("lo") + DONE
    assert upstream.journal[0].json == {**STREAM, "stream_options": {"include_usage": True}}
    [record] = gateway.records
    assert record["request"] == STREAM
    assert record["response"]["choices"][0]["message"]["content"] == "Hello"
    assert record["usage"] == {"input": 5, "output": 2, "cached": 0, "reasoning": 0, "exact": True}
    assert record["streamed"] is True
    assert record["started"] <= record["first_byte"] <= record["finished"]


@pytest.mark.parametrize("wanted", [True, False])
async def test_a_caller_who_says_whether_to_count_gets_what_upstream_sends(
    upstream: Upstream, gateway: Served, wanted: bool
) -> None:
    upstream.streams("i1", [chunk("Hel"), COUNTS, DONE])
    asked = {**STREAM, "stream_options": {"include_usage": wanted}}

    reply = await gateway.post(PATH, json=asked)

    assert reply.content == chunk("Hel") + COUNTS + DONE
    assert upstream.journal[0].json == asked


async def test_other_stream_options_of_the_callers_stay(
    upstream: Upstream, gateway: Served
) -> None:
    upstream.streams("i1", [chunk("Hel"), COUNTS, DONE])

    reply = await gateway.post(
        PATH, json={**STREAM, "stream_options": {"include_obfuscation": False}}
    )

    assert reply.content == chunk("Hel") + DONE
    assert upstream.journal[0].json["stream_options"] == {
        "include_obfuscation": False,
        "include_usage": True,
    }


async def test_nothing_is_added_where_nobody_reads_the_count(
    upstream: Upstream, serve: Serve
) -> None:
    gateway = await serve(LOGGING_CLIENT="none")
    upstream.streams("i1", [chunk("Hel"), COUNTS, DONE])

    reply = await gateway.post(PATH, json=STREAM)

    assert reply.content == chunk("Hel") + COUNTS + DONE
    assert upstream.journal[0].json == STREAM


async def test_an_instance_that_refuses_to_count_is_asked_again_without_and_remembered(
    upstream: Upstream, gateway: Served
) -> None:
    unknown = b'{"error": {"message": "Unrecognized request argument supplied: stream_options"}}'
    upstream.replies("i1", 400, unknown)
    upstream.streams("i1", [chunk("Hel"), DONE])

    replies = [await gateway.post(PATH, json=STREAM) for _ in range(2)]

    assert [reply.content for reply in replies] == [chunk("Hel") + DONE] * 2
    assert upstream.asked == ["i1", "i1", "i1"]
    assert ["stream_options" in asked.json for asked in upstream.journal] == [True, False, False]


async def test_a_400_for_the_callers_own_stream_options_is_theirs(
    upstream: Upstream, gateway: Served
) -> None:
    upstream.replies("i1", 400, b'{"error": {"message": "stream_options is wrong"}}')

    reply = await gateway.post(PATH, json={**STREAM, "stream_options": {"include_usage": 7}})

    assert reply.status_code == 400
    assert upstream.asked == ["i1"]


@pytest.mark.parametrize("encoding", ["gzip", "deflate"])
async def test_a_compressed_reply_passes_as_it_is_and_is_recorded_as_text(
    upstream: Upstream, gateway: Served, encoding: str
) -> None:
    text = json.dumps({"choices": [], "usage": None}).encode()
    packed = gzip.compress(text) if encoding == "gzip" else zlib.compress(text)
    upstream.replies("i1", 200, packed, content_encoding=encoding)

    async with gateway.stream("POST", PATH, json=CHAT) as reply:
        raw = b"".join([piece async for piece in reply.aiter_raw()])

    assert raw == packed
    assert reply.headers["content-encoding"] == encoding
    assert (await gateway.recorded())[0]["response"] == json.loads(text)


async def test_a_large_plain_reply_passes_whole(upstream: Upstream, gateway: Served) -> None:
    text = json.dumps({"data": "x" * 5_000_000}).encode()
    upstream.replies("i1", 200, text)

    reply = await gateway.post("/v1/embeddings", json={"model": "m", "input": "x"})

    assert reply.content == text
    [record] = await gateway.recorded()
    assert record["truncated"] is True
    assert len(record["response"]) == 2 * 1024 * 1024


async def test_a_plain_reply_without_a_length_gets_one(upstream: Upstream, gateway: Served) -> None:
    upstream.streams("i1", [b'{"a":', b" 1}"], headers={"content-type": "application/json"})

    reply = await gateway.post(PATH, json=CHAT)

    assert reply.content == b'{"a": 1}'
    assert reply.headers["content-length"] == "8"


@pytest.mark.parametrize("cut", [chunk("lo"), chunk("lo")[:20]], ids=["between", "within"])
async def test_a_stream_that_breaks_ends_with_an_error_event_and_no_done(
    upstream: Upstream, gateway: Served, cut: bytes
) -> None:
    upstream.streams("i1", [chunk("Hel"), cut], ends="cut")

    reply = await gateway.post(PATH, json=STREAM)

    assert reply.content.startswith(chunk("Hel") + cut)
    *_, last, nothing = reply.content.split(b"\n\n")
    assert nothing == b""
    assert json.loads(last.removeprefix(b"data: "))["error"]["code"] == "upstream_stream_broken"
    assert b"[DONE]" not in reply.content
    assert upstream.asked == ["i1"]
    [record] = gateway.records
    assert (record["complete"], record["error"]) == (False, "upstream_stream_broken")


async def test_an_sdk_raises_the_error_of_a_stream_that_breaks_in_the_count_of_its_tokens(
    upstream: Upstream, gateway: Served
) -> None:
    end = chunk("", choices=[{"index": 0, "delta": {}, "finish_reason": "stop"}])
    upstream.streams("i1", [chunk("Hi"), end, b'data: {"id": "chatcmpl-1", "usa'], ends="cut")
    client = openai.AsyncOpenAI(base_url=f"{gateway.url}/v1", api_key="any", max_retries=0)

    async with client:
        events = aiter(await client.chat.completions.create(**STREAM))  # type: ignore[call-overload]
        seen = [(await anext(events)).choices[0].finish_reason for _ in range(2)]
        with pytest.raises(openai.APIError, match="broke off"):
            await anext(events)

    assert seen == [None, "stop"]


async def test_a_stream_without_a_byte_is_no_answer(upstream: Upstream, gateway: Served) -> None:
    upstream.streams("i1", [])

    reply = await gateway.post(PATH, json=STREAM)

    event = json.loads(reply.content.removeprefix(b"data: "))
    assert event["error"]["code"] == "upstream_stream_broken"
    [record] = gateway.records
    assert (record["complete"], record["error"]) == (False, "upstream_stream_broken")


async def test_a_stream_that_upstream_cuts_after_done_is_complete(
    upstream: Upstream, gateway: Served
) -> None:
    upstream.streams("i1", [chunk("Hi"), DONE], ends="cut")

    reply = await gateway.post(PATH, json=STREAM)

    assert reply.content == chunk("Hi") + DONE
    assert gateway.records[0]["complete"] is True


async def test_a_silent_stream_is_broken_after_the_idle_timeout(
    upstream: Upstream, serve: Serve
) -> None:
    upstream.streams("i1", [chunk("Hel")], ends="silent-after")
    gateway = await serve(UPSTREAM_IDLE_TIMEOUT="0.2")

    reply = await gateway.post(PATH, json=STREAM)

    assert reply.content.startswith(chunk("Hel"))
    assert b"upstream_stream_broken" in reply.content
    assert upstream.journal[0].hung_up.is_set()


async def test_a_large_plain_reply_that_breaks_off_is_cut_not_completed(
    upstream: Upstream, gateway: Served
) -> None:
    pieces = [b'{"a": "' + b"x" * 3_000_000]
    upstream.streams("i1", pieces, ends="cut", headers={"content-type": "application/json"})

    with pytest.raises(httpx.RemoteProtocolError):
        await gateway.post(PATH, json=CHAT)

    [record] = await gateway.recorded()
    assert (record["complete"], record["error"]) == (False, "upstream_stream_broken")


async def test_a_hang_up_on_a_plain_call_closes_upstream_and_is_recorded(
    upstream: Upstream, gateway: Served
) -> None:
    upstream.fails("i1", "silent")
    call = asyncio.create_task(gateway.post(PATH, json=CHAT))
    asked = await upstream.request()

    call.cancel()

    await asked.hung_up.wait()
    [record] = await gateway.recorded()
    assert (record["status"], record["error"]) == (499, "caller_hung_up")
    assert record["attempts"][0]["instance"] == "i1"


async def test_a_hang_up_before_a_streams_first_byte_closes_upstream_and_is_recorded(
    upstream: Upstream, gateway: Served
) -> None:
    upstream.streams("i1", [chunk("never")], lock_step=True)
    async with gateway.stream("POST", PATH, json=STREAM):
        asked = await upstream.request()

    await asked.hung_up.wait()
    [record] = await gateway.recorded()
    assert (record["complete"], record["error"]) == (False, "caller_hung_up")
    assert record["first_byte"] is None


async def test_a_hang_up_in_the_middle_of_a_stream_closes_upstream_and_is_recorded(
    upstream: Upstream, gateway: Served
) -> None:
    upstream.streams("i1", [chunk("Hel")], ends="silent-after")
    async with gateway.stream("POST", PATH, json=STREAM) as reply:
        await anext(reply.aiter_raw())

    await upstream.journal[0].hung_up.wait()
    [record] = await gateway.recorded()
    assert (record["complete"], record["error"]) == (False, "caller_hung_up")
    assert record["response"]["choices"][0]["message"]["content"] == "Hel"


async def test_a_caller_who_leaves_at_done_has_had_a_complete_reply(
    upstream: Upstream, gateway: Served
) -> None:
    upstream.streams("i1", [chunk("Hi") + DONE], ends="silent-after")
    async with gateway.stream("POST", PATH, json=STREAM) as reply:
        await anext(reply.aiter_raw())

    [record] = await gateway.recorded()
    assert (record["complete"], record["error"]) == (True, None)


async def test_a_hang_up_while_the_body_comes_in_is_an_exchange_too(gateway: Served) -> None:
    host, port = gateway.url.removeprefix("http://").split(":")
    _, writer = await asyncio.open_connection(host, int(port))
    writer.write(
        b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
        b'content-length: 1000\r\n\r\n{"model": '
    )
    await writer.drain()

    writer.close()

    [record] = await gateway.recorded()
    assert (record["status"], record["error"]) == (499, "caller_hung_up")


async def test_the_record_is_written_before_the_end_of_a_stream(
    upstream: Upstream, gateway: Served
) -> None:
    upstream.streams("i1", [chunk("Hi"), DONE])

    await gateway.post(PATH, json=STREAM)

    assert len(gateway.records) == 1


async def test_a_slow_reader_holds_upstream_back(upstream: Upstream, gateway: Served) -> None:
    many = [chunk("x" * 100_000)] * 400
    upstream.streams("i1", many)
    async with gateway.stream("POST", PATH, json=STREAM) as reply:
        arriving = reply.aiter_raw()
        await anext(arriving)

        assert await upstream.stands_still() < 20_000_000
        got = [piece async for piece in arriving]

    assert sum(map(len, got)) > 39_000_000
