"""The examples as their READMEs have them run, on real components of this machine; and every demo.

The simulator stands in for Azure OpenAI and OpenAI, another issuer for Entra ID.
"""

import asyncio
import base64
import json
import re
import shutil
import sys
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pymongo
import pytest
import pytest_asyncio

from tests.authority import Authority
from tests.clients import ENVIRON
from tests.e2e import Program, command, functions_app, uvicorn_shim
from tests.langfuse_server import LangfuseServer
from tests.services import (
    NPM,
    PROJECT,
    LocalModel,
    OIDCIssuer,
    Simulator,
    cannot_be_had,
    free_port,
    node,
)
from tests.test_examples import EXAMPLES, here, on_azure

pytestmark = pytest.mark.asyncio(loop_scope="module")

DEMOS = PROJECT / "examples" / "demos"
# Where openai and instructor are, in versions that go together.
PYTHON = Path(sys.prefix) / "clients-openai2" / "bin" / "python"
CHAT = {"model": "gpt-6-luna", "messages": [{"role": "user", "content": "Say hello."}]}
EMBED = {"model": "text-embedding-3-small", "input": "a llama"}
SENTENCE = "This answer was made up by a simulator"


def bearer(key: str) -> dict[str, str]:
    return {"authorization": f"Bearer {key}"}


@pytest.fixture(scope="module")
def simulated() -> Iterator[Simulator]:
    models = "gpt-6-luna,gpt-6-luna-ptu,text-embedding-3-small,gpt-image-2"
    with Simulator("--models", models) as server:
        yield server


def copied(name: str, folder: Path) -> Path:
    """The example in a folder of the test's own, with its settings as its README has them made."""
    example = folder / name
    shutil.copytree(PROJECT / "examples" / name, example)
    for sample in example.rglob(".env.sample"):
        shutil.copy(sample, sample.with_name(".env"))
    return example


def at(simulator: Simulator, example: Path) -> dict[str, str]:
    """What of its settings says where the simulator is, which has another port here."""
    usual = "http://127.0.0.1:9000"
    told = here(example).items()
    return {name: it.replace(usual, simulator.url) for name, it in told if usual in it}


@asynccontextmanager
async def serving(example: Path, **settings: str) -> AsyncIterator[httpx.AsyncClient]:
    folder = ("--folder", str(example))
    async with (
        uvicorn_shim(settings, example.parent, *folder) as gateway,
        caller(gateway) as client,
    ):
        yield client


@asynccontextmanager
async def caller(gateway: Program) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(
        base_url=f"{gateway.url}/v1/", timeout=60, trust_env=False, verify=False
    ) as client:
        yield client


async def ask(
    client: httpx.AsyncClient, body: Mapping[str, Any] = CHAT, **headers: str
) -> httpx.Response:
    path = "embeddings" if "input" in body else "chat/completions"
    return await client.post(path, json=body, headers=headers)


async def demo(
    name: str, client: httpx.AsyncClient, home: Path, key: str = "any", model: str = ""
) -> str:
    """What it prints."""
    program = DEMOS / name
    start = str(PYTHON)
    if name.endswith(".mjs"):
        # A module finds packages beside itself, wherever NODE_PATH leads.
        program, start = home / name, node()
        shutil.copy(DEMOS / name, program)
        (home / "node_modules").symlink_to(NPM)
    if not (NPM / "openai" if name.endswith(".mjs") else PYTHON).exists():
        cannot_be_had(f"what {name} needs is not installed: `python3 run.py test` does that")
    told = {"LLAMAXING_BASE_URL": str(client.base_url).rstrip("/"), "LLAMAXING_API_KEY": key}
    process = await asyncio.create_subprocess_exec(
        *(start, str(program)),
        cwd=home,
        env={**ENVIRON, **told, **({"LLAMAXING_MODEL": model} if model else {}), "HOME": str(home)},
        stdout=asyncio.subprocess.PIPE,
    )
    out, _ = await process.communicate()
    assert process.returncode == 0, out.decode()
    return out.decode()


# Before anything is started


@pytest.mark.parametrize("name", [*(it.name for it in EXAMPLES), "04-azure-jwt-full-stack/sidecar"])
async def test_an_example_is_checked_without_a_fault(name: str, tmp_path: Path) -> None:
    example = copied(name, tmp_path)

    code, out, err = await command(tmp_path, {}, "check", "--folder", str(example))

    assert code == 0, err
    assert "instance " in out
    assert [it for it in err.splitlines() if not it.startswith("WARNING")] == []


@pytest.mark.parametrize("name", [it.name for it in EXAMPLES])
async def test_its_settings_for_azure_are_checked_without_a_fault_once_they_are_filled_in(
    name: str, tmp_path: Path
) -> None:
    example = PROJECT / "examples" / name
    for file in ("models.json", "identities.json"):
        # The keys that everybody knows are refused there.
        mine = (example / file).read_text().replace("sample-", "my-own-")
        (tmp_path / file).write_text(mine)
    filled = {
        name: value or made_up(name)
        for name, value in on_azure(example).items()
        if name != "AzureWebJobsStorage"
    }
    # A model on this machine is for `func start` there.
    where = {} if name == "00-local-model" else {"WEBSITE_INSTANCE_ID": "i"}

    code, out, err = await command(tmp_path, filled | where, "check")

    assert code == 0, err
    assert ("dummy.example.com" in out) == bool(where)


@pytest.mark.parametrize("name", ["00-local-model", "01-simple-noauth"])
async def test_an_open_example_knows_its_callers_with_two_settings_more(
    name: str, tmp_path: Path
) -> None:
    example = copied(name, tmp_path)
    told = {"AUTH_METHOD": "apikey", "IDENTITY_STORE": "json", "ID_SECRET": "a-long-random-text"}

    code, out, err = await command(tmp_path, told, "check", "--folder", str(example))

    assert code == 0, err
    assert "identity team-a: 1 key; every model\ncallers are known by apikey\n" in out


def made_up(setting: str) -> str:
    if setting.endswith("TENANT_ID"):
        return "00000000-0000-0000-0000-000000000001"
    return ("mongodb" if "MONGODB" in setting else "https") + "://dummy.example.com"


async def test_easy_auth_is_a_setting_more_where_the_platform_has_it_on(tmp_path: Path) -> None:
    example = copied("03-azure-jwt-entra", tmp_path)
    told = {"AUTH_METHOD": "easyauth"}
    checking = ("check", "--folder", str(example))

    off = await command(tmp_path, told, *checking)
    on = await command(tmp_path, {**told, "WEBSITE_AUTH_ENABLED": "True"}, *checking)

    assert (off[0], on[0]) == (1, 0)
    assert "WEBSITE_AUTH_ENABLED" in off[2]


# Run


async def test_00_a_real_model_answers_the_demos(tmp_path: Path, local_model: LocalModel) -> None:
    example = copied("00-local-model", tmp_path)
    async with serving(example, LOCAL_MODEL_URL=local_model.url) as client:
        embedded = await demo("embeddings.py", client, tmp_path)
        went_on = await demo("instruct.py", client, tmp_path)
        made = await demo("instruct_object.py", client, tmp_path)
        responded = await demo("responses.py", client, tmp_path)

    assert embedded.startswith("576 dimensions\n")
    assert went_on.startswith("Once upon a time, a llama came to a road and ")
    assert re.fullmatch(r"(order|question|complaint), (not )?urgent\n", made)
    assert "(nothing is kept there: " in responded


async def test_00_a_probe_is_of_the_model_on_this_machine(
    tmp_path: Path, local_model: LocalModel
) -> None:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "run.py", "check", "--probe", "--folder", str(tmp_path)),
        cwd=PROJECT,
        env={**ENVIRON, "HOME": str(tmp_path)},
        stdout=asyncio.subprocess.PIPE,
    )
    out, _ = await process.communicate()

    assert process.returncode == 0, out
    assert b"instance local-smollm2: answers\n" in out


async def test_01_run_py_serves_it_and_the_line_that_it_prints_is_answered(
    tmp_path: Path, simulated: Simulator
) -> None:
    example = copied("01-simple-noauth", tmp_path)
    run = ("run.py", str(example), "--port", str(free_port()))
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, *run),
        cwd=PROJECT,
        env={**ENVIRON, **at(simulated, example), "HOME": str(tmp_path)},
        stdout=asyncio.subprocess.PIPE,
    )
    try:
        assert process.stdout is not None
        async for line in process.stdout:
            if line.startswith(b"  curl "):
                break
        else:
            pytest.fail("run.py ended at once")
        curl = await asyncio.create_subprocess_shell(
            line.decode().strip(), stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
        )
        streamed, _ = await curl.communicate()
    finally:
        process.terminate()
        await process.communicate()

    assert b"gpt-6-luna" in line
    assert streamed.endswith(b"data: [DONE]\n\n")
    assert b" simulator" in streamed


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def with_keys(
    tmp_path_factory: pytest.TempPathFactory, simulated: Simulator
) -> AsyncIterator[httpx.AsyncClient]:
    example = copied("02-simple-apikey", tmp_path_factory.mktemp("example"))
    async with serving(example, **at(simulated, example)) as client:
        yield client


async def test_02_keys_have_rights_and_openai_answers_when_azure_fails(
    with_keys: httpx.AsyncClient, simulated: Simulator
) -> None:
    statuses = [
        (await ask(with_keys, body, **bearer(key))).status_code
        for key, body in [
            ("sample-team-a", CHAT),
            ("sample-team-a", {**CHAT, "model": "gpt-4o-mini"}),
            ("sample-team-b", CHAT),
            ("sample-team-b", EMBED),
            ("sample-batch-new", EMBED),
            ("sample-batch-new", CHAT),
            ("any", CHAT),
        ]
    ]
    before = simulated.answered("openai").get("200", 0)
    simulated.behave("azure", faults={"503": 1})
    failed_over = await ask(with_keys, **bearer("sample-team-a"))
    simulated.behave("azure", faults={})

    assert statuses == [200, 200, 200, 403, 200, 403, 401]
    assert failed_over.status_code == 200
    assert simulated.answered("openai") == {"200": before + 1}


async def test_02_its_settings_for_azure_serve_as_a_functions_app(
    tmp_path: Path, simulated: Simulator
) -> None:
    example = copied("02-simple-apikey", tmp_path)
    secret = ("ID_SECRET", "AZURE_OPENAI_API_KEY", "OPENAI_API_KEY")
    settings = {
        **on_azure(example),
        **{name: here(example)[name] for name in secret},
        **at(simulated, example),
        # The files are not beside function_app.py here.
        "MODELS_SOURCE": f"file:{example / 'models.json'}",
        "IDENTITY_STORE_JSON_FILENAME": str(example / "identities.json"),
    }
    async with (
        functions_app(settings, tmp_path) as app,
        httpx.AsyncClient(base_url=f"{app.url}/v1/", timeout=60, trust_env=False) as client,
    ):
        good = await ask(client, **bearer("sample-team-a"))
        refused = await ask(client, **bearer("any"))

    assert (good.status_code, refused.status_code) == (200, 401)


PRINTED = {
    "chat.py": SENTENCE,
    "chat_streamed.py": SENTENCE,
    "chat.mjs": SENTENCE,
    "embeddings.py": "8 dimensions",
    "images.py": "image.png: 70 bytes",
    "langfuse_traces.py": "session customer-4711)",
    "azure_client.py": SENTENCE,
    "responses.py": SENTENCE,
}


async def test_every_demo_is_run() -> None:
    on_a_model = {"instruct.py", "instruct_object.py", "embeddings.py"}
    demos = {it.name for it in DEMOS.iterdir()} - {"README.md"}
    listed = set(re.findall(r"^\| `(\S+)` \|", (DEMOS / "README.md").read_text(), re.MULTILINE))

    assert demos == on_a_model | set(PRINTED)
    assert demos == {it for it in listed if "." in it}


@pytest.mark.parametrize("name", PRINTED)
async def test_02_answers_a_demo(name: str, with_keys: httpx.AsyncClient, tmp_path: Path) -> None:
    printed = await demo(name, with_keys, tmp_path, "sample-team-a")

    assert PRINTED[name] in printed


# With tokens


@pytest.fixture(scope="module")
def issuer() -> Iterator[OIDCIssuer]:
    with OIDCIssuer() as found:
        yield found


def believing(issuer: OIDCIssuer) -> dict[str, str]:
    """Another issuer in Entra's place."""
    return {"AUTH_METHOD_JWT_TENANT_ID": "", "AUTH_METHOD_JWT_ISSUER": issuer.url}


def tokens(issuer: OIDCIssuer, example: Path) -> dict[str, str]:
    """Of the batch; of a person who has the role, and of one who has not."""
    told = here(example)
    audience = told["AUTH_METHOD_JWT_AUDIENCE"].split(",")[0]
    return {
        "batch": issuer.token(told["BATCH_OBJECT_ID"], audience, "Gateway.Call"),
        "staff": issuer.token("a-person", audience, "Gateway.Call"),
        "nobody": issuer.token("another", audience),
        "elsewhere": issuer.token("a-person", "another-application", "Gateway.Call"),
    }


async def test_03_a_token_says_who_calls_and_what_they_may(
    tmp_path: Path, simulated: Simulator, issuer: OIDCIssuer
) -> None:
    example = copied("03-azure-jwt-entra", tmp_path)
    having = tokens(issuer, example)
    async with serving(example, **at(simulated, example), **believing(issuer)) as client:
        statuses = {
            who: [(await ask(client, body, **bearer(token))).status_code for body in (CHAT, EMBED)]
            for who, token in having.items()
        }
        without = await ask(client)

    assert statuses == {
        "batch": [403, 200],
        "staff": [200, 200],
        "nobody": [403, 403],
        "elsewhere": [401, 401],
    }
    assert without.status_code == 401


async def test_03_behind_easy_auth_the_platforms_word_counts(
    tmp_path: Path, simulated: Simulator
) -> None:
    example = copied("03-azure-jwt-entra", tmp_path)
    claims = [("oid", "a-person"), ("roles", "Gateway.Call")]
    said = json.dumps({"claims": [{"typ": typ, "val": val} for typ, val in claims]}).encode()
    # The platform leaves the token that it has looked at where it was.
    principal = {"x-ms-client-principal": base64.b64encode(said).decode(), **bearer("eyJ.e30.e30")}
    platform = {"AUTH_METHOD": "easyauth", "WEBSITE_AUTH_ENABLED": "True"}
    async with serving(example, **at(simulated, example), **platform) as client:
        known, unknown = await ask(client, **principal), await ask(client)

    assert (known.status_code, unknown.status_code) == (200, 401)


async def test_04_an_application_without_a_credential_is_recorded_and_traced(
    tmp_path: Path, simulated: Simulator, issuer: OIDCIssuer, mongodb: str
) -> None:
    example = copied("04-azure-jwt-full-stack", tmp_path)
    having = tokens(issuer, example)
    told = here(example)
    public, secret = (f"OBSERVABILITY_CLIENT_LANGFUSE_{it}_KEY" for it in ("PUBLIC", "SECRET"))
    with (
        LangfuseServer(**{told[public]: told[secret]}) as langfuse,
        Authority(tmp_path) as authority,
        pymongo.MongoClient[dict[str, Any]](mongodb, tz_aware=True) as mongo,
    ):
        authority.mint = lambda: having["batch"]
        services = {
            "LOGGING_CLIENT_MONGODB_URI": mongodb,
            "LOGGING_CLIENT_MONGODB_DB_NAME": "example-04",
            "OBSERVABILITY_CLIENT_LANGFUSE_HOST": langfuse.url,
        }
        gateway = serving(example, **at(simulated, example), **believing(issuer), **services)
        async with gateway as client:
            upstream = {"SIDECAR_UPSTREAM_URL": str(client.base_url)}
            async with serving(example / "sidecar", **authority.environ, **upstream) as sidecar:
                embedded, refused = await ask(sidecar, EMBED), await ask(sidecar)
            printed = await demo("langfuse_traces.py", client, tmp_path, having["staff"])
            await asyncio.to_thread(langfuse.wait_for_traces, 4)
            records = await asyncio.to_thread(all_records, mongo["example-04"], 4)

    assert (embedded.status_code, refused.status_code) == (200, 403)
    assert [it["scope"] for it in authority.requests] == [
        here(example / "sidecar")["SIDECAR_AUTH_METHOD_AZURE_SCOPE"]
    ]
    assert [(it["identity"]["id"], it["status"]) for it in records] == [
        ("batch", 200),
        ("batch", 403),
        ("staff/a-person", 200),
        ("staff/a-person", 200),
    ]
    # Of the batch only what it used.
    assert [it.get("response") is None for it in records] == [True, True, False, False]
    traces = [it for it in langfuse.arrived if it.attributes.get("langfuse.trace.name") == "orders"]
    assert len({it.trace_id for it in traces}) == 1
    assert [it.name for it in sorted(traces, key=lambda it: it.start)] == ["summary", "reply"]
    assert {it.attributes["session.id"] for it in traces} == {"customer-4711"}
    assert "(trace order-" in printed


def all_records(database: Any, number: int) -> list[dict[str, Any]]:
    """In the order of their calls, once there are so many."""
    deadline = time.monotonic() + 60
    while database.apicalls.count_documents({}) < number:
        assert time.monotonic() < deadline, "the records did not come"
        time.sleep(0.05)
    return list(database.apicalls.find().sort("started", 1))


async def test_05_spills_over_when_the_provisioned_deployment_is_full_and_knows_no_key(
    tmp_path: Path, simulated: Simulator
) -> None:
    example = copied("05-multi-region-ptu", tmp_path)
    identity = {"IDENTITY_ENDPOINT": f"{simulated.url}/msi/token", "IDENTITY_HEADER": "any"}
    seen = []

    async with serving(example, **at(simulated, example), **identity) as client:

        async def told() -> tuple[int, str, str]:
            reply = await ask(client, **bearer("sample-team-a"))
            names = ("x-llamaxing-instance", "x-llamaxing-attempts")
            instance, attempts = (reply.headers[name] for name in names)
            return reply.status_code, instance, attempts

        seen.append(await told())
        full = {"faults": {"429": 1}, "retry_after": "ms", "retry_in": 60}
        simulated.behave("ptu", **full)
        seen += [await told(), await told()]
        for region in ("sweden", "france"):
            simulated.behave(region, **full)
        for _ in range(2):
            last = await told()

    assert seen[0] == (200, "ptu", "1")
    assert [it[::2] for it in seen[1:]] == [(200, "2"), (200, "1")]
    assert {it[1] for it in seen[1:]} <= {"standard-sweden", "standard-france"}
    assert last == (200, "standard-eastus", "1")
    assert "key" not in (example / "models.json").read_text()
