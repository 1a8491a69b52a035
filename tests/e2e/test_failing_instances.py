"""Gateways in processes of their own, in front of simulated instances in another."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import openai
import pytest

from tests.conftest import configure, model
from tests.e2e import uvicorn_shim
from tests.services import Simulator

Clients = list[openai.AsyncOpenAI]

HELLO: Any = [{"role": "user", "content": "Say hello."}]
WAITS = {"faults": {"429": 1}, "retry_after": "ms"}


@pytest.fixture
def first(tmp_path: Path) -> str:
    """Another one for each test."""
    return f"first-{tmp_path.name}"


@pytest.fixture
async def two(tmp_path: Path, simulator: Simulator, first: str) -> AsyncIterator[Clients]:
    """The same caller at two gateways, whose first choice is an instance that throttles."""
    instances = simulator.azure(first), simulator.openai("second", priority=1)
    settings = configure(tmp_path, [model(*instances)]) | {"INSTANCE_HEADERS": "true"}
    async with AsyncExitStack() as stack:
        clients = []
        for _ in range(2):
            program = await stack.enter_async_context(uvicorn_shim(settings, tmp_path))
            client = openai.AsyncOpenAI(base_url=f"{program.url}/v1", api_key="any", max_retries=0)
            clients.append(await stack.enter_async_context(client))
        yield clients


async def instance(client: openai.AsyncOpenAI, streamed: bool) -> str:
    """Which one has answered, to the end."""
    raw = client.chat.completions.with_raw_response
    reply: Any = await raw.create(model="m", messages=HELLO, max_tokens=2, stream=streamed)
    outcome = reply.parse()
    if streamed:
        said = [chunk async for chunk in outcome]
        assert said[-1].choices[0].finish_reason == "stop"
    else:
        assert outcome.choices[0].message.content == "This answer"
    return str(reply.headers["x-llamaxing-instance"])


async def test_each_of_two_gateways_leaves_a_throttled_instance_alone_and_comes_back(
    two: Clients, simulator: Simulator, first: str
) -> None:
    simulator.behave(first, **WAITS, retry_in=60)
    for client in two:
        assert await instance(client, streamed=False) == "second"

    answers = await asyncio.gather(
        *(instance(two[number % 2], streamed=number % 4 > 1) for number in range(100))
    )
    assert Counter(answers) == {"second": 100}
    assert simulator.answered(first) == {"429": 2}


async def test_each_of_two_gateways_asks_an_instance_again_once_its_wait_is_over(
    two: Clients, simulator: Simulator, first: str
) -> None:
    simulator.behave(first, **WAITS, retry_in=0.3)
    for client in two:
        assert await instance(client, streamed=True) == "second"
    simulator.behave(first, faults={})

    for client in two:
        while await instance(client, streamed=True) != first:  # noqa: ASYNC110  what is waited for is the clock
            await asyncio.sleep(0.05)
