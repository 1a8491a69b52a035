"""`python -m llamaxing check` and `schema`, as a deployment pipeline runs them."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import EVERYTHING, azure, configure, model, openai
from tests.e2e import command as run
from tests.fakes import Reply, Upstream
from tests.services import PROJECT


async def test_it_says_what_would_be_served_and_no_secret(
    tmp_path: Path, upstream: Upstream
) -> None:
    identities = [
        {"id": "ann", "auth_key": "key-of-ann", "models": ["m*"]},
        {"id": "bob", "api_keys": [{"key": "one-of-bob"}, {"key": "two-of-bob"}]},
    ]
    models = [model(openai(upstream, "i1"), azure(upstream, "i2", priority=1), aliases=["alias"])]

    code, out, err = await run(tmp_path, configure(tmp_path, models, identities), "check")

    assert (code, err) == (0, "")
    lines = out.splitlines()
    assert lines[0].startswith("configuration ")
    assert lines[1:] == [
        f"model m (also alias): {', '.join(EVERYTHING)}",
        f"  instance i1: {upstream.url('i1')}/v1/chat/completions (priority 0, weight 1)",
        (
            f"  instance i2: {upstream.url('i2')}/openai/deployments/at-i2/chat/completions"
            "?api-version=2024-10-21 (priority 1, weight 1)"
        ),
        "identity ann: 1 key; m*",
        "identity bob: 2 keys; every model",
        "callers are known by apikey",
    ]
    for secret in ("key-of-ann", "one-of-bob", "sk-i1", "key-i2"):
        assert secret not in out + err
    assert upstream.journal == []


async def test_faults_are_a_line_each_and_the_exit_code_is_1(tmp_path: Path) -> None:
    environ = configure(tmp_path, [{"id": "m"}], [{"id": "a", "auth_key": ""}])

    code, out, err = await run(tmp_path, environ, "check")

    assert (code, out) == (1, "")
    assert err.splitlines() == [
        "models.json: [0].capabilities: is missing",
        "models.json: [0].instances: is missing",
        (
            "identities.json: [0].auth_key: is empty; write the key, or 'sha256:' and the hex "
            "digits of its SHA-256"
        ),
    ]


async def test_what_is_unsafe_or_counts_for_nothing_is_warned_of(
    tmp_path: Path, upstream: Upstream
) -> None:
    there = openai(upstream, "i1", openai_base_url="http://vllm.internal/v1")
    environ = configure(tmp_path, [model(there)])

    code, _, err = await run(tmp_path, environ | {"MODEL_SOURCE": "file:x"}, "check")

    assert code == 0
    assert err.splitlines() == [
        "WARNING: MODEL_SOURCE: is not a setting; did you mean MODELS_SOURCE?",
        "WARNING: auth_method is none: everybody who reaches this gateway may use it",
        "WARNING: instance i1 is reached by http: its key can be read",
    ]


def refused(status: int, code: str | None, message: str = "no") -> Reply:
    body = json.dumps({"error": {"code": code, "message": message}}).encode()
    return Reply(status, {"content-type": "application/json"}, [body])


PROBES: dict[str, tuple[Reply, str, bool]] = {
    "key": (refused(401, "401"), "the key is refused (401)", False),
    "deployment": (
        refused(404, "DeploymentNotFound"),
        "the deployment, or the model, does not exist there (DeploymentNotFound)",
        False,
    ),
    "path": (
        refused(404, "404", "Resource not found"),
        "nothing is at this URL (404): the endpoint or the api-version is wrong",
        False,
    ),
    "api-version": (
        refused(400, "BadRequest", "API version not supported"),
        "the api-version is wrong (400)",
        False,
    ),
    "server": (refused(503, None), "its server fails (503)", False),
    "page": (
        Reply(200, {"content-type": "text/html"}, [b"<html>"]),
        "An instance of the model 'm' sent an HTML page instead of an answer.",
        False,
    ),
    "nobody": (Reply(ends="reset"), "the endpoint cannot be reached", False),
    "throttled": (refused(429, "429"), "answers", True),
    "parameter": (refused(400, "unsupported_parameter"), "answers", True),
}


@pytest.mark.parametrize(("reply", "verdict", "good"), PROBES.values(), ids=PROBES)
async def test_a_probe_says_what_is_wrong(
    tmp_path: Path, upstream: Upstream, reply: Reply, verdict: str, good: bool
) -> None:
    environ = configure(tmp_path, [model(azure(upstream, "i1"), openai(upstream, "i2"))])
    upstream.script("i1", reply)

    code, out, _ = await run(tmp_path, environ, "check", "--probe")

    assert out.splitlines()[-2:] == [f"instance i1: {verdict}", "instance i2: answers"]
    assert code == (0 if good else 1)
    assert sorted(upstream.asked) == ["i1", "i2"]
    assert {asked.json["max_tokens"] for asked in upstream.journal} == {1}


async def test_the_schemas_beside_the_examples_are_those_of_the_code(tmp_path: Path) -> None:
    code, out, _ = await run(tmp_path, {}, "schema")

    printed: dict[str, Any] = json.loads(out)
    assert code == 0
    for name, schema in printed.items():
        shipped = (PROJECT / "examples" / f"{name}.schema.json").read_text()
        assert json.loads(shipped) == schema
        assert json.loads((await run(tmp_path, {}, "schema", name))[1]) == schema
