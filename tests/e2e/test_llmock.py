"""What llmock says of its client, when that is openai-python with a gateway between.

It sees each attempt and when it came: `retry_after_ignored` is one that came before the wait was
over that an answer had asked for, `retry_storm` more than ten of one call. It knows one instance,
so a call that another answers has `gave_up` here, which is a warning.
"""

import asyncio
import re
import signal
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import openai
import pytest

from tests.conftest import configure, model
from tests.e2e import uvicorn_shim
from tests.services import cannot_be_had, free_port, until_answers

# The options of each instance; callers at once, and calls: more than a limit lets in at first.
RUNS: dict[str, tuple[Sequence[Sequence[str]], int, int]] = {
    "one instance over its limit": ([["--rpm", "20"]], 1, 22),
    "two instances over their limits": ([["--rpm", "20"]] * 2, 1, 44),
    "two instances that often fail": ([["--error-rate", "503=0.3"]] * 2, 4, 40),
}


class LLMock:
    def __init__(self, url: str) -> None:
        self.url = url
        self.verdict = ""

    def instance(self, id: str) -> dict[str, Any]:
        there = {"openai_base_url": f"{self.url}/v1", "openai_api_key": "any"}
        return {"id": id, "provider": "openai", **there}


@asynccontextmanager
async def llmock(*options: str) -> AsyncIterator[LLMock]:
    """Until the end of it, when it prints its verdict."""
    if find_spec("llmock") is None:
        cannot_be_had("llmock is not installed: requirements-dev.txt has it")
    port = free_port()
    found = LLMock(f"http://127.0.0.1:{port}")
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "llmock.cli", "serve", f"--port={port}", "--report", *options),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
    )
    try:
        await until_answers(f"{found.url}/health")
        yield found
    finally:
        process.send_signal(signal.SIGINT)
        printed, _ = await process.communicate()
        found.verdict = printed.decode().partition("LLMock resilience verdict: ")[2]


@pytest.mark.parametrize(("instances", "at_once", "calls"), RUNS.values(), ids=RUNS)
async def test_no_retry_comes_before_its_time_and_there_is_no_storm(
    tmp_path: Path, instances: Sequence[Sequence[str]], at_once: int, calls: int
) -> None:
    async with AsyncExitStack() as stack:
        mocks = [await stack.enter_async_context(llmock(*options)) for options in instances]
        served = model(*(mock.instance(f"i{number}") for number, mock in enumerate(mocks)))
        gateway = await stack.enter_async_context(
            uvicorn_shim(configure(tmp_path, [served]), tmp_path)
        )
        client = await stack.enter_async_context(
            openai.AsyncOpenAI(base_url=f"{gateway.url}/v1", api_key="any", max_retries=9)
        )
        turn = asyncio.Semaphore(at_once)

        async def call(number: int) -> None:
            question: Any = [{"role": "user", "content": f"What is {number} and {number}?"}]
            async with turn:
                stream: Any = await client.chat.completions.create(
                    model="m", messages=question, stream=True
                )
                assert [it async for it in stream if it.choices][-1].choices[0].finish_reason

        await asyncio.gather(*map(call, range(calls)))

    faults = 0
    for mock in mocks:
        print(mock.verdict)  # noqa: T201  pytest's -s shows it
        assert "PASS" in mock.verdict or "\n0 error(s), " in mock.verdict
        [injected] = re.findall(r"(\d+) fault\(s\) injected", mock.verdict)
        faults += int(injected)
    assert faults > 0
    assert len(mocks) > 1 or "PASS" in mocks[0].verdict
