"""The pipeline as callers see it: paths, refusals, headers."""

import asyncio
import json
import logging
import random
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import quote

import pytest

from llamaxing.build import application
from llamaxing.catalog import Catalog
from llamaxing.configuration import Configuration
from llamaxing.credentials.entra import Tokens
from llamaxing.endpoints import ENDPOINTS
from llamaxing.forward import Forwarder
from llamaxing.gateway import Gateway
from llamaxing.http import Request
from llamaxing.identity import Identities, Identity
from llamaxing.recorder import Recorder
from llamaxing.selection import Selector
from llamaxing.upstream import Timeouts, Upstreams
from tests.conftest import Serve, Served, configure, model, openai
from tests.fakes import CHAT, DONE, Upstream, chunk

PATH = "/v1/chat/completions"
JSON = {"content-type": "application/json"}
NO_BODY: Any = None
MAKING = [row for row in ENDPOINTS if row.names_model and row.capability != "responses"]
FORMS = ["/v1/{}", "/{}", "/openai/v1/{}", "/openai/{}", "/openai/deployments/m/{}?api-version=x"]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("endpoint", MAKING, ids=lambda endpoint: endpoint.name)
async def test_every_endpoint_is_reached_by_every_form_of_path(
    upstream: Upstream, gateway: Served, endpoint: Any, form: str
) -> None:
    reply = await gateway.post(form.format(endpoint.path), json=CHAT)

    assert reply.status_code == 200
    assert upstream.journal[0].path == f"/v1/{endpoint.path}"
    [record] = await gateway.recorded()
    assert (record["endpoint"], record["model"]) == (endpoint.name, "m")


async def test_the_path_names_the_model_where_the_body_does_not(
    upstream: Upstream, gateway: Served
) -> None:
    reply = await gateway.post(
        "/openai/deployments/alias/chat/completions", json={"messages": CHAT["messages"]}
    )

    assert reply.status_code == 200
    assert upstream.journal[0].json == {"messages": CHAT["messages"], "model": "m"}


REFUSED: dict[str, tuple[bytes, int, str | None, str | None]] = {
    "empty": (b"", 400, "invalid_json", None),
    "white space": (b" \n", 400, "invalid_json", None),
    "no json": (b"{", 400, "invalid_json", None),
    "nan": (b'{"model": "m", "x": NaN}', 400, "invalid_json", None),
    "infinity": (b'{"model": "m", "x": -Infinity}', 400, "invalid_json", None),
    "bad utf-8": (b'{"model": "\xff"}', 400, "invalid_json", None),
    "a byte order mark": (b'\xef\xbb\xbf{"model": "m"}', 400, "invalid_json", None),
    "utf-16": ('{"model": "m"}'.encode("utf-16"), 400, "invalid_json", None),
    "too deep": (
        b'{"model": "m", "x": ' + b"[" * 99999 + b"]" * 99999 + b"}",
        400,
        "invalid_json",
        None,
    ),
    "too long an integer": (
        b'{"model": "m", "x": ' + b"1" * 5000 + b"}",
        400,
        "invalid_json",
        None,
    ),
    "something behind": (b'{"model": "m"}{}', 400, "invalid_json", None),
    "a comment": (b'{"model": "m" /* or n */}', 400, "invalid_json", None),
    "null": (b"null", 400, "invalid_type", None),
    "a list": (b"[]", 400, "invalid_type", None),
    "no model": (b"{}", 400, "missing_required_parameter", "model"),
    "null model": (b'{"model": null}', 400, "missing_required_parameter", "model"),
    "model is a number": (b'{"model": 1}', 400, "invalid_type", "model"),
    "two models": (b'{"model": "m", "model": "m"}', 400, "invalid_json", None),
    "two models, one escaped": (
        b'{"model": "m", "\\u006dodel": "m"}',
        400,
        "invalid_json",
        None,
    ),
    "unknown model": (b'{"model": "nope"}', 404, "model_not_found", "model"),
    "metadata": (
        b'{"model": "m", "observation_metadata": 1}',
        400,
        "invalid_type",
        "observation_metadata",
    ),
}


@pytest.mark.parametrize(("body", "status", "code", "param"), REFUSED.values(), ids=REFUSED)
async def test_bad_input_is_refused_with_a_sentence_and_recorded(
    upstream: Upstream,
    gateway: Served,
    body: bytes,
    status: int,
    code: str | None,
    param: str | None,
) -> None:
    reply = await gateway.post(PATH, content=body, headers=JSON)

    assert reply.status_code == status
    assert reply.headers["content-type"] == "application/json"
    error = reply.json()["error"]
    assert (error["code"], error["param"]) == (code, param)
    assert error["message"].endswith(".")
    assert upstream.asked == []
    [record] = await gateway.recorded()
    assert (record["status"], record["error"], record["complete"]) == (status, code, True)


async def test_a_refusal_repeats_the_start_of_a_very_long_name_of_a_model(
    serve: Serve, upstream: Upstream
) -> None:
    elsewhere, closed, unknown = ("o" * 200_000, "c" * 200_000, "u" * 200_000)
    models = [
        model(openai(upstream, "i1"), id=elsewhere, capabilities=["embeddings"]),
        model(openai(upstream, "i2"), id=closed),
    ]
    gateway = await serve(models, [{"id": "a", "auth_key": "k", "models": ["o*"]}])

    replies = [
        await gateway.post(PATH, json={**CHAT, "model": name}, headers={"api-key": "k"})
        for name in (elsewhere, closed, unknown)
    ]

    assert [reply.json()["error"]["message"] for reply in replies] == [
        f"The model '{'o' * 200}' does not serve chat_completions; it serves embeddings.",
        f"You are not allowed to use the model '{'c' * 200}'.",
        f"The model '{'u' * 200}' does not exist here.",
    ]


async def test_a_model_that_does_not_serve_the_endpoint_says_which_it_serves(
    upstream: Upstream, serve: Serve
) -> None:
    gateway = await serve([model(openai(upstream, "i1"), capabilities=["embeddings"])])

    reply = await gateway.post(PATH, json=CHAT)

    assert reply.status_code == 400
    error = reply.json()["error"]
    assert (
        error["message"] == "The model 'm' does not serve chat_completions; it serves embeddings."
    )
    assert error["param"] == "model"


@pytest.mark.parametrize(
    "headers",
    [{"content-type": "text/plain"}, {**JSON, "content-encoding": "gzip"}],
    ids=["type", "encoding"],
)
async def test_what_is_not_json_by_its_headers_is_415(
    gateway: Served, headers: dict[str, str]
) -> None:
    reply = await gateway.post(PATH, content=b"{}", headers=headers)

    assert (reply.status_code, reply.json()["error"]["code"]) == (415, "unsupported_media_type")


async def test_a_charset_beside_json_is_fine(gateway: Served) -> None:
    headers = {"content-type": "Application/JSON; charset=utf-8"}

    reply = await gateway.post(PATH, content=json.dumps(CHAT).encode(), headers=headers)

    assert reply.status_code == 200


async def test_a_body_whose_caller_does_not_say_what_it_is_goes_up_as_json(
    upstream: Upstream, gateway: Served
) -> None:
    async def pieces() -> AsyncIterator[bytes]:
        for byte in json.dumps(CHAT).encode():
            yield bytes([byte])

    reply = await gateway.post(PATH, content=pieces())

    assert reply.status_code == 200
    assert upstream.journal[0].headers["content-type"] == "application/json"
    assert upstream.journal[0].json == CHAT


@pytest.mark.parametrize(
    "path",
    ["/nope", "/v1/nope", "/openai/deployments/m/nope", "/v1/", "/V1/models", "/v1//embeddings"],
)
async def test_an_unknown_path_is_404(gateway: Served, path: str) -> None:
    reply = await gateway.post(path, json=CHAT)

    assert (reply.status_code, reply.json()["error"]["code"]) == (404, "unknown_url")


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("GET", PATH, "POST"),
        ("DELETE", PATH, "POST"),
        ("OPTIONS", PATH, "POST"),
        ("POST", "/v1/models", "GET, HEAD"),
        ("DELETE", "/v1/models/m", "GET, HEAD"),
        ("OPTIONS", "/v1/models", "GET, HEAD"),
        ("POST", "/health/instances", "GET, HEAD"),
    ],
)
async def test_another_method_is_405_with_those_there_are(
    gateway: Served, method: str, path: str, allowed: str
) -> None:
    reply = await gateway.client.request(method, path)

    assert (reply.status_code, reply.json()["error"]["code"]) == (405, "method_not_allowed")
    assert reply.headers["allow"] == allowed


@pytest.mark.parametrize("path", ["/v1/models", "/v1/models/m", "/health/instances"])
async def test_what_is_read_may_be_asked_for_by_its_head(gateway: Served, path: str) -> None:
    head = await gateway.client.head(path)
    whole = await gateway.get(path)

    assert (head.status_code, head.content) == (200, b"")
    assert head.headers["content-length"] == whole.headers["content-length"]


async def test_a_refusal_that_is_cut_off_is_not_recorded_as_given(
    tmp_path: Path, upstream: Upstream
) -> None:
    gateway = application(configure(tmp_path, [model(openai(upstream, "i1"))]))
    scope = {"type": "http", "method": "POST", "path": PATH, "headers": []}
    came = asyncio.Queue[dict[str, Any]]()
    came.put_nowait({"type": "http.request", "body": json.dumps({**CHAT, "model": "no"}).encode()})

    async def send(message: Any) -> None:
        if message["type"] == "http.response.body":
            calling.cancel()
            await asyncio.sleep(0)

    calling = asyncio.create_task(gateway(scope, came.get, send))
    await asyncio.wait({calling})

    record = json.loads((tmp_path / "records.jsonl").read_text())
    assert calling.cancelled()
    assert (record["status"], record["complete"], record["error"]) == (
        404,
        False,
        "model_not_found",
    )


async def test_a_line_end_that_a_server_lets_pass_within_a_header_begins_no_other(
    tmp_path: Path, upstream: Upstream
) -> None:
    people = [{"id": "ann", "auth_key": "key-ann"}]
    gateway = application(configure(tmp_path, [model(openai(upstream, "i1"))], people))
    forged = [(b"x", b"1\nauthorization\nBearer key-ann"), (b"x", b"2")]
    scope = {"type": "http", "method": "POST", "path": PATH, "headers": forged}
    came = asyncio.Queue[dict[str, Any]]()
    came.put_nowait({"type": "http.request", "body": json.dumps(CHAT).encode()})
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    await gateway(scope, came.get, send)

    assert (sent[0]["status"], upstream.journal) == (401, [])


NAMED = ["org/ünï model:v1", "a/b", "100%/.."]


@pytest.mark.parametrize("name", NAMED)
async def test_a_model_whose_name_has_slashes_is_found_in_every_path(
    upstream: Upstream, serve: Serve, name: str
) -> None:
    gateway = await serve([model(openai(upstream, "i1"), id=NAMED[0], aliases=NAMED[1:])])
    quoted = quote(name, safe="")

    for path in (f"/v1/models/{quoted}", f"/models/{quoted}/", f"/openai/v1/models/{quoted}"):
        found = await gateway.get(path)
        assert (found.status_code, found.json()["id"]) == (200, name)
    reply = await gateway.post(
        f"/openai/deployments/{quoted}/embeddings?api-version=x", json={"input": "x"}
    )
    assert reply.status_code == 200
    assert upstream.journal[0].json["model"] == NAMED[0]


async def test_what_is_no_text_in_a_header_stays_here(upstream: Upstream, gateway: Served) -> None:
    headers = [(b"tracestate", b"\xe9"), (b"openai-beta", b"a"), (b"x-request-id", b"\xff")]

    reply = await gateway.post(PATH, json=CHAT, headers=headers)
    refused = await gateway.post(
        PATH, json=CHAT, headers=[(b"content-type", b"application/json; x=\xe9")]
    )

    assert (reply.status_code, refused.status_code) == (200, 415)
    assert "tracestate" not in upstream.journal[0].headers
    assert upstream.journal[0].headers["openai-beta"] == "a"


async def test_a_request_id_of_the_callers_is_kept_when_it_is_sane(
    upstream: Upstream, gateway: Served
) -> None:
    upstream.replies("i1", 200, x_request_id="theirs")

    kept = await gateway.post(PATH, json=CHAT, headers={"x-request-id": "trace-1.a:b"})
    made = await gateway.post(PATH, json=CHAT, headers={"x-request-id": "no spaces here"})

    assert kept.headers["x-request-id"] == "trace-1.a:b"
    assert kept.headers["x-upstream-request-id"] == "theirs"
    assert len(made.headers["x-request-id"]) == 32
    first, second = await gateway.recorded(2)
    assert first["request_id"] == "trace-1.a:b"
    assert first["id"] != second["id"]


async def test_only_listed_headers_go_up(upstream: Upstream, gateway: Served) -> None:
    stay = {
        "authorization": "Bearer callers",
        "api-key": "callers",
        "cookie": "c=1",
        "connection": "keep-alive, tracestate",
        "x-functions-key": "f",
        "x-ms-client-principal": "p",
        "x-forwarded-for": "1.2.3.4",
        "x-arr-log-id": "a",
        "openai-organization": "org-callers",
        "openai-project": "proj",
        "accept-encoding": "gzip, br",
        "user-agent": "callers",
        "tracestate": "named-by-connection",
        "x-stainless-lang": "python",
    }
    go = {
        "traceparent": "00-1",
        "idempotency-key": "i",
        "openai-beta": "b",
        "x-ms-client-request-id": "r",
    }

    await gateway.post(f"{PATH}?code=secret", json=CHAT, headers={**stay, **go})

    [asked] = upstream.journal
    assert asked.path == PATH
    assert go.items() <= asked.headers.items()
    assert set(asked.headers) - set(go) == {
        "host",
        "accept",
        "content-type",
        "content-length",
        "accept-encoding",
        "user-agent",
        "authorization",
    }
    assert asked.headers["authorization"] == "Bearer sk-i1"
    assert asked.headers["accept-encoding"] == "identity"


async def test_only_listed_headers_come_down(upstream: Upstream, gateway: Served) -> None:
    come = {
        "x-ratelimit-remaining-tokens": "7",
        "retry-after-ms": "5",
        "openai-processing-ms": "12",
        "apim-request-id": "apim",
        "x-ms-region": "West",
    }
    stay = {"set-cookie": "c=1", "openai-organization": "org", "server": "cf", "x-powered-by": "y"}
    upstream.replies("i1", 200, **{k.replace("-", "_"): v for k, v in {**come, **stay}.items()})

    reply = await gateway.post(PATH, json=CHAT)

    assert come.items() <= dict(reply.headers).items()
    assert not {*stay, "openai-organization"} & set(reply.headers) - {"server"}
    assert "cf" not in reply.headers.get("server", "")


async def test_health_and_reference_need_no_key(serve: Serve) -> None:
    gateway = await serve(identities=[{"id": "a", "auth_key": "k"}])

    for path in ("/health/live", "/health/ready", "/", "/v1/openapi.json"):
        reply = await gateway.get(path)
        assert reply.status_code == 200, path
        head = await gateway.client.head(path)
        assert head.headers["content-length"] == str(len(reply.content))


async def test_the_reference_is_off_by_a_setting(serve: Serve) -> None:
    gateway = await serve(APP_PAGE="false")

    assert (await gateway.get("/")).status_code == 404
    assert (await gateway.get("/v1/openapi.json")).status_code == 404


class Broken:
    async def authenticate(self, request: Request, identities: Identities) -> Identity | None:
        raise RuntimeError("details")


async def test_a_fault_of_ours_is_500_with_its_reason_in_the_log_only(
    caplog: pytest.LogCaptureFixture,
) -> None:
    recorder = Recorder([], copy_up_to=0)
    forward = Forwarder(Upstreams(1), Selector(random.Random()), Timeouts(), 1, Tokens({}))
    nothing = Configuration(Catalog([]), Identities(), "1")
    live = SimpleNamespace(look=lambda: None, current=nothing)
    gateway = Gateway(live, [Broken()], forward, recorder)  # type: ignore[arg-type]

    for method, path in (("POST", PATH), ("GET", "/v1/models")):
        response = await gateway.handle(Request(method, path, {}, NO_BODY))
        text = response.body
        await response.aclose(True)

        assert isinstance(text, bytes)
        assert (response.status, json.loads(text)["error"]["code"]) == (500, "internal_error")
        assert b"details" not in text
    assert caplog.text.count("RuntimeError: details") == 2


async def test_two_streams_at_once_never_cross(upstream: Upstream, gateway: Served) -> None:
    texts = [f"t{n}" for n in range(20)]
    for text in texts:
        upstream.streams("i1", [chunk(text), chunk(text), DONE])
    upstream.streams("i1", [DONE])

    replies = await asyncio.gather(
        *(gateway.post(PATH, json={**CHAT, "stream": True, "user": text}) for text in texts)
    )

    got = sorted(reply.content for reply in replies)
    assert got == sorted(chunk(text) * 2 + DONE for text in texts)


async def test_a_callers_words_cannot_forge_a_line_of_the_log(
    serve: Serve, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "llamaxing")
    gateway = await serve(DEBUG_LEVEL="1")

    await gateway.post(PATH, json={**CHAT, "model": "x\nERROR forged"})
    await gateway.recorded()

    assert all("\n" not in record.getMessage() for record in caplog.records)


async def test_a_very_long_name_of_a_model_takes_a_short_line_of_the_log(
    gateway: Served, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "llamaxing")

    await gateway.post(PATH, json={**CHAT, "model": "x" * 200_000})
    await gateway.recorded()

    [line] = [it.getMessage() for it in caplog.records if "xxx" in it.getMessage()]
    assert f"model='{'x' * 200}' " in line


async def test_the_log_has_a_line_a_call_and_no_prompt(
    gateway: Served, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "llamaxing")

    await gateway.post(PATH, json=CHAT, headers={"x-request-id": "r-1"})
    await gateway.recorded()

    [line] = [it.getMessage() for it in caplog.records if "r-1" in it.getMessage()]
    assert line.startswith("chat_completions 200 model='m' instance=i1 attempts=1 identity=anon")
    assert "Hello" not in caplog.text


async def test_a_higher_debug_level_shows_requests_and_replies(
    serve: Serve, caplog: pytest.LogCaptureFixture
) -> None:
    gateway = await serve(DEBUG_LEVEL="1")

    await gateway.post(PATH, json=CHAT)
    await gateway.recorded()

    assert "Hello" in caplog.text
    assert "sk-i1" not in caplog.text
