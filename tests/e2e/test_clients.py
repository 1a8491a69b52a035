"""Clients as they are published, by base URL and key alone, at two gateways on one configuration.

One gateway is the Functions app, the other the shim, and each prefers another of two upstreams:
what a conversation refers to is where it is only because its ids say so. The upstreams are aimock
and a real model; the README's table of clients is made of what runs here.
"""

import asyncio
import json
import re
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import httpx
import pytest
import pytest_asyncio

from tests.clients import CLIENTS, ENVIRON, Client, talk
from tests.conftest import configure
from tests.e2e import functions_app, uvicorn_shim
from tests.services import Aimock, LocalModel, cannot_be_had

ID = re.compile(r'"(?:id|previous_response_id)": ?"([^"]+)"')

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def upstreams(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[list[Aimock]]:
    folder = tmp_path_factory.mktemp("aimock")
    answers = talk.answers()
    with Aimock(folder, "key-one", answers) as one, Aimock(folder, "key-two", answers) as two:
        yield [one, two]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def gateways(
    tmp_path_factory: pytest.TempPathFactory, upstreams: list[Aimock], local_model: LocalModel
) -> AsyncIterator[list[str]]:
    """The URLs of two that serve the same, and ask the two upstreams in opposite order."""
    one, other = (tmp_path_factory.mktemp(name) for name in ("functions", "uvicorn"))
    someone = [{"id": "someone", "auth_key": talk.KEY}]
    async with (
        functions_app(configure(one, serving(upstreams, local_model, 0), someone), one) as app,
        uvicorn_shim(configure(other, serving(upstreams, local_model, 1), someone), other) as shim,
    ):
        yield [app.url, shim.url]


def serving(upstreams: list[Aimock], local: LocalModel, first: int) -> list[dict[str, Any]]:
    one, two = upstreams
    openai = {
        "id": "one",
        "provider": "openai",
        "openai_base_url": f"{one.url}/v1",
        "openai_api_key": one.key,
        "priority": first,
    }
    azure = {
        "id": "two",
        "provider": "azure",
        "azure_endpoint": two.url,
        "azure_deployment": "at-two",
        "azure_api_key": two.key,
        "azure_api_version": "2025-04-01-preview",
        "priority": 1 - first,
    }
    embedding = {
        "id": "local",
        "provider": "openai",
        "openai_base_url": f"{local.url}/v1",
        "openai_api_key": local.api_key,
    }
    return [
        {
            "id": talk.CHAT_MODEL,
            "capabilities": ["chat_completions", "responses"],
            "instances": [openai, azure],
        },
        {
            "id": talk.TOKEN_EMBEDDING_MODEL,
            "capabilities": ["embeddings"],
            "instances": [
                {**openai, "id": "one-embed"},
                {**azure, "id": "two-embed"},
            ],
        },
        {"id": talk.EMBEDDING_MODEL, "capabilities": ["embeddings"], "instances": [embedding]},
    ]


@pytest.fixture(scope="module")
def embedded(local_model: LocalModel) -> list[Any]:
    """The vectors, had from the model itself."""
    asked = {"model": talk.EMBEDDING_MODEL, "input": talk.TEXTS, "encoding_format": "float"}
    headers = {"authorization": f"Bearer {local_model.api_key}"}
    reply = httpx.post(
        f"{local_model.url}/v1/embeddings", json=asked, headers=headers, trust_env=False
    )
    return [pytest.approx(it["embedding"], abs=1e-3) for it in reply.json()["data"]]


@pytest.mark.parametrize("client", CLIENTS, ids=lambda it: f"{it.name}-{it.version}")
async def test_a_client_sees_what_upstream_said(
    client: Client,
    gateways: list[str],
    upstreams: list[Aimock],
    embedded: list[Any],
    tmp_path: Path,
) -> None:
    expected = talk.seen(embedded)
    for upstream in upstreams:
        upstream.take_calls()

    told = await run(client, gateways, tmp_path)

    assert told == {
        (row.classes, case, gateway): expected[case]
        for row in client.rows
        for case in row.cases
        for gateway in gateways
    }
    refers_to_what_it_made(upstreams)


def refers_to_what_it_made(upstreams: Sequence[Aimock]) -> None:
    """Ids reach upstreams as they were made, and what is only an id reaches the one that made it.

    An item that is told in full, with its id, may go to either.
    """
    calls = [upstream.take_calls() for upstream in upstreams]
    made = [set(ID.findall("".join(call["answered"] for call in its))) for its in calls]
    for its, own in zip(calls, made, strict=True):
        for call in (it for it in its if "/responses" in it["path"]):
            assert {*ID.findall(call["asked"])} <= set.union(*made), call
            asked = json.loads(call["asked"])
            items = asked["input"] if isinstance(asked["input"], list) else []
            only = {it["id"] for it in items if it.get("type") == "item_reference"}
            assert only | {asked.get("previous_response_id")} <= {*own, None}, call


async def run(client: Client, gateways: Sequence[str], home: Path) -> dict[Any, Any]:
    """What the client's script tells, by row, case and gateway."""
    if not client.folder.exists():
        cannot_be_had(f"{client.name} is not installed: `python3 run.py test` does that")
    process = await asyncio.create_subprocess_exec(
        *(*client.command, talk.asked(gateways)),
        cwd=home,
        env={**ENVIRON, "HOME": str(home)},
        stdout=asyncio.subprocess.PIPE,
    )
    out, _ = await process.communicate()
    assert process.returncode == 0, out.decode()
    told = [json.loads(line) for line in out.decode().splitlines() if line.startswith("{")]
    return {(it["classes"], it["case"], it["gateway"]): it["seen"] for it in told}
