"""From an environment to a gateway, or to every reason why not."""

import asyncio
import json
import logging
from pathlib import Path
from typing import Any

import httpx
import pytest

from llamaxing.asgi import Application, Opened
from llamaxing.build import Build, application
from llamaxing.errors import ConfigurationError
from llamaxing.http import BodyLimits
from tests.conftest import configure

MODELS = [
    {
        "id": "m",
        "capabilities": ["chat_completions"],
        "instances": [{"id": "i", "provider": "openai", "openai_api_key": "k"}],
    }
]


async def faults(environ: dict[str, str]) -> list[str]:
    with pytest.raises(ConfigurationError) as error:
        await Build(environ).all()
    return error.value.faults


async def get(app: Application, path: str) -> httpx.Response:
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://gateway") as client:
        return await client.get(path)


async def test_every_fault_of_every_part_is_told_at_once(tmp_path: Path) -> None:
    environ = configure(tmp_path, [], [{"id": "a", "auth_key": ""}])

    found = await faults(environ | {"LOGGING_CLIENT_JSONL_FILENAME": ""})

    assert [fault.partition(":")[0] for fault in found] == ["models.json", "identities.json"]


async def test_a_missing_file_is_a_fault_of_its_setting(tmp_path: Path) -> None:
    [found] = await faults({"MODELS_SOURCE": f"file:{tmp_path / 'no.json'}"})

    assert found == "models_source: no.json cannot be read: No such file or directory"


async def test_keys_need_a_store_of_identities(tmp_path: Path) -> None:
    [found] = await faults(configure(tmp_path, MODELS) | {"AUTH_METHOD": "apikey"})

    assert found == (
        "identity_store: auth_method=apikey needs identities; set identity_store=json, or "
        "identities_source"
    )


@pytest.mark.parametrize("marker", ["WEBSITE_INSTANCE_ID", "WEBSITE_SKU"])
async def test_a_gateway_on_azure_is_not_open_by_accident(tmp_path: Path, marker: str) -> None:
    """The second marker alone is there on Flex Consumption."""
    on_azure = configure(tmp_path, MODELS) | {marker: "x"}

    [found] = await faults(on_azure)
    built = await Build(on_azure | {"AUTH_NONE_ON_AZURE": "true"}).all()

    assert found.startswith("auth_method: 'none' would let everybody in")
    await built.gateway.aclose()


async def test_the_timeout_is_capped_on_azure_and_that_is_logged(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    on_azure = {"WEBSITE_INSTANCE_ID": "x", "AUTH_NONE_ON_AZURE": "true"}

    built = await Build(configure(tmp_path, MODELS) | on_azure).all()

    assert "app_requests_timeout is capped at 220 s" in caplog.text
    await built.gateway.aclose()


@pytest.mark.parametrize(
    ("setting", "warning"),
    [({}, "everybody who reaches"), ({"DEBUG_LEVEL": "3"}, "the log holds the credentials")],
)
async def test_what_is_unsafe_is_warned_of(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, setting: dict[str, str], warning: str
) -> None:
    built = await Build(configure(tmp_path, MODELS) | setting).all()
    await built.gateway.aclose()
    logging.getLogger("llamaxing").setLevel(logging.INFO)

    assert warning in caplog.text


async def test_the_keys_of_the_examples_are_warned_of_and_refused_on_azure(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    environ = configure(tmp_path, MODELS, [{"id": "a", "auth_key": "sample-key-of-a"}])
    what = "a key that begins with 'sample-' is known to everybody; make one of your own"

    built = await Build(environ).all()
    await built.gateway.aclose()
    [found] = await faults(environ | {"WEBSITE_INSTANCE_ID": "x"})

    assert f"identity 'a': {what}" in caplog.text
    assert found == f"identity_store_json_filename: 'a': {what}"
    assert "sample-key-of-a" not in caplog.text


@pytest.mark.parametrize(
    ("url", "warned"),
    [
        ("http://10.0.0.7/v1", True),
        ("http://localhost:1/v1", False),
        ("http://127.0.0.1:1/v1", False),
        ("http://[::1]:1/v1", False),
        ("https://10.0.0.7/v1", False),
    ],
)
async def test_a_key_that_crosses_a_network_in_the_clear_is_warned_of(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, url: str, warned: bool
) -> None:
    [model] = MODELS
    [instance] = model["instances"]  # type: ignore[misc]
    there = {**model, "instances": [{**instance, "openai_base_url": url}]}  # type: ignore[dict-item]

    built = await Build(configure(tmp_path, [there])).all()
    await built.gateway.aclose()

    assert ("instance i is reached by http: its key can be read" in caplog.text) == warned


async def test_callers_get_503_that_names_the_setting_and_no_file(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    app = application({"MODELS_SOURCE": f"file:{tmp_path / 'no.json'}"})

    replies = await asyncio.gather(*(get(app, "/v1/models") for _ in range(5)))

    for reply in replies:
        assert reply.status_code == 503
        error: dict[str, Any] = reply.json()["error"]
        assert error["code"] == "config_error"
        assert "models_source" in error["message"]
        assert str(tmp_path) not in reply.text
        assert len(reply.headers["x-request-id"]) == 32
        assert reply.headers["retry-after"] == "5"
    assert caplog.text.count("cannot be read") == 1


async def test_a_process_without_a_configuration_is_alive_and_not_ready(tmp_path: Path) -> None:
    app = application({"MODELS_SOURCE": f"file:{tmp_path / 'no.json'}"})

    assert (await get(app, "/health/live")).status_code == 200
    assert (await get(app, "/health/ready")).status_code == 503


async def test_fifty_first_calls_at_once_open_one_gateway(tmp_path: Path) -> None:
    environ = configure(tmp_path, MODELS)
    opened = []

    async def open_gateway() -> Any:
        opened.append(1)
        await asyncio.sleep(0)
        return Opened((await Build(environ).all()).gateway, BodyLimits(1000), 0)

    app = Application(open_gateway)

    replies = await asyncio.gather(*(get(app, "/health/live") for _ in range(50)))

    assert {reply.status_code for reply in replies} == {200}
    assert len(opened) == 1


async def test_a_gateway_that_cannot_be_opened_for_a_fault_of_ours_is_500(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def broken() -> Any:
        raise RuntimeError("details")

    reply = await get(Application(broken), "/health/live")

    assert (reply.status_code, reply.json()["error"]["code"]) == (500, "internal_error")
    assert "RuntimeError: details" in caplog.text


async def test_the_settings_of_a_file_count_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    configure(tmp_path, MODELS)
    (tmp_path / ".env").write_text("APP_NAME=from-the-file\nMODELS_SOURCE=file:models.json\n")
    monkeypatch.chdir(tmp_path)

    reply = await get(application({}), "/v1/models")

    assert json.loads(reply.content)["data"][0]["proxied_by"] == "from-the-file"
