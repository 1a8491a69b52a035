"""The page at `/` as a browser runs it: what it shows, and a chat."""

import asyncio
import json
from pathlib import Path
from typing import Any

from llamaxing.reference import Reference
from tests.e2e import uvicorn_shim
from tests.services import NPM, PROJECT, LocalModel, Simulator, cannot_be_had, node

JSDOM = NPM / "jsdom" / "lib" / "api.js"


async def opened(url: str, message: str = "") -> Any:
    if not JSDOM.exists():
        cannot_be_had("jsdom is not installed: `python3 run.py test` does that")
    process = await asyncio.create_subprocess_exec(
        *(node(), str(PROJECT / "tests" / "page.js"), str(JSDOM), url, message),
        stdout=asyncio.subprocess.PIPE,
    )
    out, _ = await process.communicate()
    return json.loads(out)


async def test_it_shows_each_endpoint_and_error_and_its_chat_streams(
    tmp_path: Path, local_model: LocalModel
) -> None:
    document = json.loads(Reference("llamaxing").document)
    settings = {
        "MODELS_SOURCE": f"file:{local_model.models}",
        "LOCAL_MODEL_URL": local_model.url,
    }

    async with uvicorn_shim(settings, tmp_path) as gateway:
        page = await opened(f"{gateway.url}/", "Say hello in one word.")

    assert page["faults"] == []
    assert page["model"] == "smollm2"
    assert page["endpoints"] == [path for path, it in document["paths"].items() for _ in it]
    assert {"invalid_api_key", "all_instances_throttled", "upstream_stream_broken"} < {
        *page["codes"]
    }
    assert page["answer"].strip()
    assert page["status"].startswith("200 OK")
    assert ": stop" in page["status"]


async def test_a_refusal_stands_where_the_answer_would(
    tmp_path: Path, simulator: Simulator
) -> None:
    models = [
        {
            "id": "m",
            "capabilities": ["chat_completions"],
            "instances": [simulator.openai("page", timeout=5)],
        }
    ]
    (tmp_path / "models.json").write_text(json.dumps(models))
    simulator.behave("page", faults={"429": 1}, retry_after="seconds", retry_in=7)

    async with uvicorn_shim({}, tmp_path) as gateway:
        page = await opened(f"{gateway.url}/", "Say hello.")

    assert page["faults"] == []
    assert page["answer"] == ""
    assert page["fault"].startswith("429 ")
    assert "Try again in 7 s." in page["fault"]


async def test_a_key_that_is_wanted_is_asked_for_at_its_field(
    tmp_path: Path, simulator: Simulator
) -> None:
    models = [
        {"id": "m", "capabilities": ["chat_completions"], "instances": [simulator.openai("page")]}
    ]
    (tmp_path / "models.json").write_text(json.dumps(models))
    (tmp_path / "identities.json").write_text('[{"id": "ann", "auth_key": "k"}]')

    async with uvicorn_shim(
        {"AUTH_METHOD": "apikey", "IDENTITY_STORE": "json"}, tmp_path
    ) as gateway:
        page = await opened(f"{gateway.url}/")

    assert page["faults"] == []
    assert page["key"] == "Calls need a key here, or a token."
    assert page["model"] == ""
