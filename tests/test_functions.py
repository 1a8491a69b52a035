"""The gateway through function_app.py, loaded by the real worker library."""

import asyncio
import json
import os
import re
import shutil
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, cast

import azure.functions as func
import httpx
import pytest

from llamaxing import functions
from llamaxing.endpoints import CAPABILITIES, ENDPOINTS
from llamaxing.errors import ConfigurationError
from tests.conftest import configure, model, openai
from tests.fakes import CHAT, DONE, Upstream, chunk
from tests.functions_host import Host

ROOT = Path(__file__).parent.parent
PATH = "/v1/chat/completions"
STREAM = {**CHAT, "stream": True}


def environment(folder: Path, upstream: Upstream, **more: str) -> dict[str, str]:
    counted = {name: os.environ[name] for name in os.environ if name.startswith("COV")}
    models = configure(folder, [model(openai(upstream, "i1"), capabilities=list(CAPABILITIES))])
    return {"PYTHON_ENABLE_INIT_INDEXING": "1", **counted, **models, **more}


@pytest.fixture
async def host(tmp_path: Path, upstream: Upstream) -> AsyncIterator[Host]:
    running = await Host(ROOT, env=environment(tmp_path, upstream)).start()
    yield running
    await running.stop()


@pytest.fixture
async def client(host: Host) -> AsyncIterator[httpx.AsyncClient]:
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(
        base_url=host.url, timeout=60, limits=limits, verify=False
    ) as client:
        yield client


async def test_each_chunk_reaches_the_caller_before_the_next_is_sent(
    upstream: Upstream, host: Host, client: httpx.AsyncClient
) -> None:
    chunks = [chunk("Hel"), chunk("lo"), DONE]
    sending = upstream.streams("i1", chunks, lock_step=True)
    async with client.stream("POST", PATH, json=STREAM) as reply:
        arriving = reply.aiter_raw()

        for sent in chunks:
            sending.release()
            assert await anext(arriving) == sent
    await host.settled()


async def test_a_hang_up_closes_upstream(
    upstream: Upstream, client: httpx.AsyncClient, tmp_path: Path
) -> None:
    upstream.streams("i1", [chunk("Hel")], ends="silent-after")
    async with client.stream("POST", PATH, json=STREAM) as reply:
        await anext(reply.aiter_raw())

    await upstream.journal[0].hung_up.wait()
    [record] = await recorded(tmp_path, 1)
    assert (record["complete"], record["error"]) == (False, "caller_hung_up")


async def recorded(folder: Path, number: int) -> list[dict[str, Any]]:
    file = folder / "records.jsonl"
    while not file.exists() or len(file.read_text().splitlines()) < number:  # noqa: ASYNC110
        await asyncio.sleep(0.02)
    return [json.loads(line) for line in file.read_text().splitlines()]


async def test_a_hang_up_on_a_plain_call_closes_upstream(
    upstream: Upstream, client: httpx.AsyncClient
) -> None:
    upstream.fails("i1", "silent")
    call = asyncio.create_task(client.post(PATH, json=CHAT))
    asked = await upstream.request()

    call.cancel()

    await asked.hung_up.wait()


async def test_three_hundred_streams_at_once_are_all_whole_and_recorded(
    upstream: Upstream, host: Host, client: httpx.AsyncClient, tmp_path: Path
) -> None:
    chunks = [chunk(f"piece {n}") for n in range(20)] + [DONE]
    sending = upstream.streams("i1", chunks, lock_step=True)

    calls = [asyncio.create_task(client.post(PATH, json=STREAM)) for _ in range(300)]
    await upstream.request(299)
    for _ in range(300 * len(chunks)):
        sending.release()
    replies = await asyncio.gather(*calls)

    assert {reply.content for reply in replies} == {b"".join(chunks)}
    records = await recorded(tmp_path, 300)
    assert [record["complete"] for record in records] == [True] * 300
    await host.settled()


async def test_log_lines_of_concurrent_calls_carry_their_own_invocations_id(
    upstream: Upstream, host: Host, client: httpx.AsyncClient
) -> None:
    upstream.streams("i1", [chunk("a"), DONE])

    await asyncio.gather(
        *(client.post(PATH, json=STREAM, headers={"x-request-id": f"r-{n}"}) for n in range(40))
    )

    lines = re.findall(r"\[(\S+)\] chat_completions 200 .* id=(r-\d+) ", host.log)
    assert len({request for _, request in lines}) == 40
    for invocation, request in lines:
        assert host.invocations[invocation].request["x-request-id"] == request


async def test_a_caller_who_leaves_within_the_request_is_recorded(
    host: Host, tmp_path: Path
) -> None:
    url = httpx.URL(host.url)
    _, writer = await asyncio.open_connection(url.host, url.port)
    writer.write(f"POST {PATH} HTTP/1.1\r\nhost: {url.host}\r\n".encode())
    writer.write(b"content-type: application/json\r\ncontent-length: 1000\r\n\r\n{")
    while not host.invocations:  # noqa: ASYNC110
        await asyncio.sleep(0.01)
    await host.settled()

    writer.close()

    [record] = await recorded(tmp_path, 1)
    assert (record["status"], record["error"]) == (499, "caller_hung_up")


async def test_a_body_that_comes_in_chunks_without_a_length_arrives_whole(
    upstream: Upstream, client: httpx.AsyncClient, tmp_path: Path
) -> None:
    body = json.dumps(CHAT).encode()

    async def pieces() -> AsyncIterator[bytes]:
        for start in range(0, len(body), 10):
            yield body[start : start + 10]

    reply = await client.post(PATH, content=pieces(), headers={"content-type": "application/json"})

    assert reply.request.headers["transfer-encoding"] == "chunked"
    assert reply.status_code == 200
    assert [asked.body for asked in upstream.journal] == [body]
    [record] = await recorded(tmp_path, 1)
    assert record["request"] == CHAT


async def test_every_path_that_the_gateway_serves_is_routed_to_it(
    host: Host, client: httpx.AsyncClient
) -> None:
    pages = ["/", "/health/live", "/health/ready", "/v1/openapi.json", "/v1/models", "/models/m"]
    for path in pages:
        assert (await client.get(path)).status_code == 200, path
    for prefix in ("/v1/", "/", "/openai/", "/openai/v1/", "/openai/deployments/m/"):
        for endpoint in ENDPOINTS:
            path = prefix + endpoint.path.replace("{id}", "x")
            reply = await client.request(endpoint.method, path, json=CHAT)
            unserved = endpoint.name == "chat_completions_list" or (
                "{id}" in endpoint.path and "deployments" in prefix
            )
            assert reply.status_code == 200 or unserved, path
            assert reply.headers["content-type"] == "application/json"
    # What another method gets is ours to say: the platform leaves an unlisted one unanswered.
    assert all(route.methods == set(functions.METHODS) for route in host.routes)
    await host.settled()


@pytest.mark.parametrize("method", ["GET", "PUT", "PATCH", "DELETE", "OPTIONS"])
async def test_another_method_gets_our_answer(client: httpx.AsyncClient, method: str) -> None:
    reply = await client.request(method, PATH)

    assert (reply.status_code, reply.json()["error"]["code"]) == (405, "method_not_allowed")


async def test_head_gets_our_answer_without_its_body(client: httpx.AsyncClient) -> None:
    reply = await client.head(PATH)

    assert (reply.status_code, reply.headers["allow"], reply.content) == (405, "POST", b"")


async def test_a_configuration_that_cannot_be_read_is_503_and_no_invocation_is_left_pending(
    tmp_path: Path, upstream: Upstream
) -> None:
    environ = environment(tmp_path, upstream, MODELS_SOURCE="file:not-there.json")
    host = await Host(ROOT, env=environ).start()
    try:
        async with httpx.AsyncClient(base_url=host.url, verify=False) as client:
            reply = await client.post(PATH, json=CHAT)

        assert (reply.status_code, reply.json()["error"]["code"]) == (503, "config_error")
        assert "models_source: not-there.json cannot be read" in host.log
        await host.settled()
    finally:
        await host.stop()


BEFORE_A_REPLY = ""
WITHIN_A_REPLY = """
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"some", "more_body": True})
"""


@pytest.mark.parametrize("until_then", [BEFORE_A_REPLY, WITHIN_A_REPLY], ids=["before", "within"])
async def test_an_exception_in_the_application_leaves_no_invocation_pending(
    tmp_path: Path, upstream: Upstream, until_then: str
) -> None:
    app = tmp_path / "app"
    shutil.copytree(ROOT / "llamaxing", app / "llamaxing")
    for name in ("function_app.py", "host.json"):
        shutil.copy(ROOT / name, app)
    with (app / "function_app.py").open("a") as file:
        file.write("\nasync def gateway(scope, receive, send):\n    pass\n" + until_then)
        file.write("    raise RuntimeError('broken')\n")
    host = await Host(app, env=environment(tmp_path, upstream)).start()
    try:
        async with httpx.AsyncClient(base_url=host.url, verify=False) as client:
            if until_then:
                with pytest.raises(httpx.RemoteProtocolError):
                    await client.post(PATH, json=CHAT)
            else:
                reply = await client.post(PATH, json=CHAT)
                assert (reply.status_code, reply.text) == (500, "Internal Server Error")

        assert len(host.invocations) == 1
        await host.settled()
    finally:
        await host.stop()


async def test_a_function_key_is_asked_for_by_a_setting_and_goes_no_further(
    tmp_path: Path, upstream: Upstream
) -> None:
    upstream.streams("i1", [DONE])
    environ = environment(tmp_path, upstream, FUNCTIONS_AUTH_LEVEL="Function")
    host = await Host(ROOT, env=environ, key="host-key").start()
    try:
        async with httpx.AsyncClient(base_url=host.url, verify=False) as client:
            without = await client.post(PATH, json=STREAM)
            header = await client.post(PATH, json=STREAM, headers={"x-functions-key": "host-key"})
            query = await client.post(f"{PATH}?code=host-key", json=STREAM)
            probe = await client.get("/health/live")
        log = host.log
    finally:
        await host.stop()

    statuses = [reply.status_code for reply in (without, header, query, probe)]
    assert statuses == [401, 200, 200, 200]
    assert len(upstream.journal) == 2
    assert all("host-key" not in f"{asked.path} {asked.headers}" for asked in upstream.journal)
    # Nor into the log, where the worker's server would write each call with its query.
    assert log.count("chat_completions 200") == 2
    assert "host-key" not in log


async def test_an_unknown_auth_level_is_refused_with_the_values_there_are() -> None:
    with pytest.raises(ConfigurationError, match="has to be 'anonymous' or 'function'"):
        functions.auth_level({"FUNCTIONS_AUTH_LEVEL": "admin"})


async def test_the_auth_level_of_a_file_counts_too(tmp_path: Path) -> None:
    (tmp_path / ".env").write_text("functions_auth_level=function\n")

    assert functions.auth_level({}, tmp_path) == func.AuthLevel.FUNCTION


async def test_the_sample_of_local_settings_starts_a_gateway(
    tmp_path: Path, upstream: Upstream
) -> None:
    sample = json.loads((ROOT / "local.settings.sample.json").read_text())["Values"]
    configure(tmp_path, [model(openai(upstream, "i1"))], [{"id": "a", "auth_key": "key"}])
    shutil.copytree(ROOT / "llamaxing", tmp_path / "llamaxing")
    for name in ("function_app.py", "host.json"):
        shutil.copy(ROOT / name, tmp_path)
    host = await Host(tmp_path, env=sample).start()
    try:
        async with httpx.AsyncClient(base_url=host.url, verify=False) as client:
            without = await client.post(PATH, json=CHAT)
            with_key = await client.post(PATH, json=CHAT, headers={"api-key": "key"})
    finally:
        await host.stop()

    assert [without.status_code, with_key.status_code] == [401, 200]


async def test_the_application_gets_a_plain_scope_in_a_task_with_the_invocations_id() -> None:
    scope = {"type": "http", "path": "/v1/models", "headers": [], "app": "theirs", "router": "too"}
    seen: dict[str, Any] = {}

    async def application(scope: Any, *_: Any) -> None:
        task = asyncio.current_task()
        seen.update(scope=scope, id=getattr(task, "__azure_function_invocation_id__", None))

    await functions.Passthrough(cast(Any, application), "i-1")(
        scope, cast(Any, None), cast(Any, None)
    )

    plain = {"type": "http", "path": "/v1/models", "headers": []}
    assert seen == {"scope": plain, "id": "i-1"}


@pytest.mark.parametrize("value", ["1", "True", " yes "])
def test_init_indexing_may_be_asked_for_in_the_workers_own_words(value: str) -> None:
    functions.require_init_indexing({"PYTHON_ENABLE_INIT_INDEXING": value}, (3, 11))


@pytest.mark.parametrize("value", [{}, {"PYTHON_ENABLE_INIT_INDEXING": "0"}])
def test_missing_init_indexing_is_said_in_a_sentence(value: dict[str, str]) -> None:
    with pytest.raises(ConfigurationError, match="PYTHON_ENABLE_INIT_INDEXING has to be 1"):
        functions.require_init_indexing(value, (3, 11))
    functions.require_init_indexing(value, (3, 13))


@pytest.mark.skipif(sys.version_info >= (3, 13), reason="the worker always indexes at its start")
async def test_a_worker_without_init_indexing_says_so_and_does_not_hang(
    tmp_path: Path, upstream: Upstream
) -> None:
    environ = environment(tmp_path, upstream, PYTHON_ENABLE_INIT_INDEXING="")

    with pytest.raises(RuntimeError, match="PYTHON_ENABLE_INIT_INDEXING has to be 1"):
        await Host(ROOT, env=environ).start()


def test_routes_keep_clear_of_the_platforms_traps() -> None:
    routes = {**functions.ROUTES, **functions.HEALTH}
    own_pages_of_the_worker = {"docs", "redoc", "openapi.json", "{*path}"}

    for route in routes.values():
        assert route
        assert not route.startswith(("admin", "runtime"))
        assert route not in own_pages_of_the_worker
    # A recent worker reads the file as text, and takes these for another kind of app.
    text = (ROOT / "function_app.py").read_text()
    assert "FastAPI()" not in text
    assert "from fastapi import" not in text


def test_uvloop_is_not_among_what_a_deployment_installs() -> None:
    lines = (ROOT / "requirements.txt").read_text().splitlines()

    assert not any(line.startswith(("uvloop", "uvicorn[")) for line in lines)
