"""Two gateways on one configuration, as a platform runs them: neither remembers what the other did.

The outside witness is openai-python, whose calls go now to one, now to the other.
"""

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import openai as sdk
import pytest

from tests.conftest import configure, model, openai
from tests.e2e import uvicorn_shim
from tests.fakes import Upstream

PEOPLE = [{"id": "ann", "auth_key": "key-ann"}, {"id": "bob", "auth_key": "key-bob"}]


def response(number: int, text: str, previous: str | None = None) -> dict[str, Any]:
    content = [{"type": "output_text", "text": text, "annotations": []}]
    message = {"type": "message", "id": f"msg_{number}", "role": "assistant", "content": content}
    return {
        "id": f"resp_{number}",
        "object": "response",
        "created_at": 1700000000,
        "model": "m",
        "status": "completed",
        "previous_response_id": previous,
        "output": [{**message, "status": "completed"}],
        "parallel_tool_calls": True,
        "tool_choice": "auto",
        "tools": [],
    }


def event(number: int, type: str, **more: Any) -> bytes:
    data = {"type": type, "sequence_number": number, **more}
    return f"event: {type}\ndata: {json.dumps(data)}\n\n".encode()


def streamed(final: dict[str, Any]) -> list[bytes]:
    begun = {**final, "status": "in_progress", "output": []}
    delta = {"item_id": final["output"][0]["id"], "output_index": 0, "content_index": 0}
    return [
        event(0, "response.created", response=begun),
        event(1, "response.output_text.delta", **delta, delta="Hi", logprobs=[]),
        event(2, "response.completed", response=final),
    ]


class Two:
    """The same callers at two gateways."""

    def __init__(self, urls: list[str]) -> None:
        self.ann, self.anns_other = (self._client(url, "key-ann") for url in urls)
        self.bobs = self._client(urls[1], "key-bob")

    def _client(self, url: str, key: str) -> sdk.AsyncOpenAI:
        return sdk.AsyncOpenAI(base_url=f"{url}/v1", api_key=key, max_retries=0, timeout=30)

    async def aclose(self) -> None:
        for client in (self.ann, self.anns_other, self.bobs):
            await client.close()


@pytest.fixture
async def two(tmp_path: Path, upstream: Upstream) -> AsyncIterator[Two]:
    places = [openai(upstream, "i1"), openai(upstream, "i2", priority=1)]
    settings = configure(tmp_path, [model(*places, capabilities=["responses"])], PEOPLE)
    async with (
        uvicorn_shim(settings, tmp_path) as one,
        uvicorn_shim(settings, tmp_path) as other,
    ):
        callers = Two([one.url, other.url])
        yield callers
        await callers.aclose()


async def test_a_response_made_through_one_is_had_through_the_other_where_it_is(
    two: Two, upstream: Upstream
) -> None:
    upstream.replies("i1", 503)
    upstream.replies("i2", 200, response(1, "Hello"))
    made = await two.ann.responses.create(model="m", input="Hi")
    upstream.forget("i1")

    found = await two.anns_other.responses.retrieve(made.id)
    upstream.forget("i2")
    upstream.streams("i2", streamed(response(2, "Hi again", previous="resp_1")))
    stream = await two.anns_other.responses.create(
        model="m", input="Again", previous_response_id=made.id, stream=True
    )
    events = [it async for it in stream]
    upstream.forget("i2")
    upstream.streams("i2", streamed(response(2, "Hi again", previous="resp_1"))[1:])
    goes_on = await two.ann.responses.retrieve(
        events[-1].response.id, stream=True, starting_after=0
    )
    rest = [it async for it in goes_on]
    upstream.forget("i2")
    upstream.replies("i2", 200, {"id": "resp_1", "object": "response", "deleted": True})
    await two.anns_other.responses.delete(made.id)

    assert made.output_text == found.output_text == "Hello"
    assert found.id == made.id
    assert [it.type for it in events] == [
        "response.created",
        "response.output_text.delta",
        "response.completed",
    ]
    assert events[0].response.id == events[-1].response.id
    assert events[-1].response.previous_response_id == made.id
    assert [it.model_dump() for it in rest] == [it.model_dump() for it in events[1:]]
    assert upstream.asked == ["i1", *["i2"] * 5]
    assert [(asked.method, asked.path) for asked in upstream.journal[2:]] == [
        ("GET", "/v1/responses/resp_1"),
        ("POST", "/v1/responses"),
        ("GET", "/v1/responses/resp_2?starting_after=0&stream=true"),
        ("DELETE", "/v1/responses/resp_1"),
    ]
    assert upstream.journal[3].json["previous_response_id"] == "resp_1"


async def test_nobody_else_has_it_through_either_and_no_upstream_is_asked(
    two: Two, upstream: Upstream
) -> None:
    upstream.replies("i1", 200, response(1, "Hello"))
    made = await two.ann.responses.create(model="m", input="Hi")
    asked = list(upstream.asked)

    for id in (made.id, "resp_1", made.id[:-1], made.id.replace("resp_1", "resp_2")):
        with pytest.raises(sdk.NotFoundError):
            await two.bobs.responses.retrieve(id)
        with pytest.raises(sdk.NotFoundError):
            await two.bobs.responses.create(model="m", input="Hi", previous_response_id=id)
        with pytest.raises(sdk.NotFoundError):
            await two.bobs.responses.delete(id)

    assert upstream.asked == asked
