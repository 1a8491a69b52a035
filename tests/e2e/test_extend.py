"""The plug-ins that the README shows, in a copy of the gateway: found by their files alone."""

import json
import re
import shutil
from pathlib import Path

import httpx
import pytest

from tests.conftest import model
from tests.e2e import uvicorn_shim
from tests.fakes import CHAT, Upstream
from tests.services import PROJECT

README = (PROJECT / "README.md").read_text()
SHOWN = dict(re.findall(r": `(llamaxing/\w+/\w+\.py)`,.*?```python\n(.*?)```", README, re.DOTALL))
IDENTITIES = [{"id": "team-a", "auth_key": "opensesame"}]


@pytest.fixture
def extended(tmp_path: Path) -> Path:
    """A copy of the gateway with the files that the README shows."""
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(PROJECT / "llamaxing", tmp_path / "llamaxing", ignore=ignored)
    for name, text in SHOWN.items():
        assert not (PROJECT / name).exists()
        (tmp_path / name).write_text(text)
    return tmp_path


def test_there_is_one_of_each_kind() -> None:
    assert [Path(name).parent.name for name in SHOWN] == ["providers", "sinks", "auth"]


async def test_they_work_together_with_nothing_else_changed(
    extended: Path, upstream: Upstream
) -> None:
    upstream.replies("house", 200, b'{"choices": []}')
    upstream.replies("hook", 503).replies("hook", 204)
    house = {"id": "i", "provider": "house", "house_url": upstream.url("house"), "house_key": "hk"}
    (extended / "models.json").write_text(json.dumps([model(house)]))
    (extended / "identities.json").write_text(json.dumps(IDENTITIES))
    settings = {
        "AUTH_METHOD": "basic",
        "IDENTITY_STORE": "json",
        "LOGGING_CLIENT": "webhook",
        "LOGGING_CLIENT_WEBHOOK_URL": f"{upstream.url('hook')}/records",
        "PYTHONPATH": str(extended),
    }

    async with (
        uvicorn_shim(settings, extended) as gateway,
        httpx.AsyncClient(base_url=f"{gateway.url}/v1", trust_env=False, verify=False) as client,
    ):
        statuses = [
            (await client.post("/chat/completions", json=CHAT, auth=it)).status_code
            for it in (None, ("team-a", "wrong"), ("team-b", "opensesame"))
        ]
        answered = await client.post("/chat/completions", json=CHAT, auth=("team-a", "opensesame"))
        # One call, and four records, of which the first is sent twice.
        await upstream.request(5)

    assert statuses == [401, 401, 401]
    assert (answered.status_code, answered.content) == (200, b'{"choices": []}')
    [called] = [it for it in upstream.journal if it.instance == "house"]
    assert called.headers["x-house-key"] == "hk"
    assert "authorization" not in called.headers
    records = [it.json for it in upstream.journal if it.instance == "hook"]
    assert len({it["id"] for it in records}) == 4
    [good] = [it for it in records if it["status"] == 200]
    assert good["identity"]["id"] == "team-a"
    assert good["credential"].startswith("basic ")
