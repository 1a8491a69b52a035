"""What upstreams keep: asked for where it is, by whoever has made it, and by nobody else."""

import json
from typing import Any

import pytest

from llamaxing.build import Build
from llamaxing.errors import ConfigurationError
from tests.conftest import Serve, Served, azure, configure, model, openai, running
from tests.fakes import CHAT, COMPLETION, Upstream

RESPONSE = {
    "id": "resp_1",
    "object": "response",
    "created_at": 1700000000,
    "status": "completed",
    "previous_response_id": None,
    "output": [
        {"type": "reasoning", "id": "rs_1", "summary": []},
        {"type": "message", "id": "msg_1", "role": "assistant", "content": []},
    ],
    "metadata": {"id": "resp_of_the_callers"},
}
ASKING = {"model": "m", "input": "Hello"}
PEOPLE = [{"id": "ann", "auth_key": "key-ann"}, {"id": "bob", "auth_key": "key-bob"}]
ANN, BOB = {"api-key": "key-ann"}, {"api-key": "key-bob"}
SECRET = "a long text for the tests"


def serving(upstream: Upstream) -> list[dict[str, Any]]:
    """Asked first is i1, unless something is kept at i2."""
    capabilities = ["responses", "chat_completions"]
    places = [openai(upstream, "i1"), openai(upstream, "i2", priority=1)]
    return [model(*places, capabilities=capabilities)]


@pytest.fixture
async def gateway(serve: Serve, upstream: Upstream) -> Served:
    return await serve(serving(upstream), PEOPLE)


async def made(gateway: Served, upstream: Upstream, at: str = "i2") -> dict[str, Any]:
    """A response of Ann's that is kept at i2, or at `at`."""
    if at == "i2":
        upstream.replies("i1", 503)
    upstream.replies(at, 200, RESPONSE)
    reply = await gateway.post("/v1/responses", json=ASKING, headers=ANN)
    assert reply.status_code == 200
    assert upstream.asked[-1] == at
    upstream.forget("i1")
    return reply.json()


async def test_an_id_keeps_its_beginning_and_everything_else_is_as_it_came(
    gateway: Served, upstream: Upstream
) -> None:
    response = await made(gateway, upstream)

    assert response["id"].startswith("resp_1.")
    assert [item["id"].partition(".")[0] for item in response["output"]] == ["rs_1", "msg_1"]
    assert all(item["id"].partition(".")[2] for item in response["output"])
    own = {**response, "id": "resp_1", "output": RESPONSE["output"]}
    assert own == RESPONSE
    assert upstream.journal[-1].json == ASKING


async def test_a_caller_who_leaves_within_a_large_response_is_recorded_so(
    gateway: Served, upstream: Upstream
) -> None:
    said = [{"type": "output_text", "text": "x" * 20_000_000}]
    item = {"type": "message", "id": "msg_1", "role": "assistant", "content": said}
    upstream.replies("i1", 200, {**RESPONSE, "output": [item]})

    async with gateway.stream("POST", "/v1/responses", json=ASKING, headers=ANN) as reply:
        assert reply.status_code == 200

    [record] = await gateway.recorded()
    assert (record["complete"], record["error"]) == (False, "caller_hung_up")


ABOUT_ONE = [
    ("GET", "/v1/responses/{}", "/v1/responses/resp_1"),
    ("GET", "/openai/responses/{}?api-version=x", "/v1/responses/resp_1"),
    ("GET", "/responses/{}?include=a&code=key", "/v1/responses/resp_1?include=a"),
    ("DELETE", "/v1/responses/{}", "/v1/responses/resp_1"),
    ("POST", "/openai/v1/responses/{}/cancel", "/v1/responses/resp_1/cancel"),
    ("GET", "/v1/responses/{}/input_items?limit=2", "/v1/responses/resp_1/input_items?limit=2"),
]


@pytest.mark.parametrize(("method", "path", "asked"), ABOUT_ONE)
async def test_a_response_is_asked_for_where_it_is_kept(
    gateway: Served, upstream: Upstream, method: str, path: str, asked: str
) -> None:
    id = (await made(gateway, upstream))["id"]

    reply = await gateway.client.request(method, path.format(id), headers=ANN)

    assert reply.status_code == 200
    assert upstream.asked[-1] == "i2"
    assert (upstream.journal[-1].method, upstream.journal[-1].path) == (method, asked)
    assert upstream.journal[-1].body == b""
    assert reply.json()["id"] == id


async def test_a_conversation_goes_on_where_it_is_kept(gateway: Served, upstream: Upstream) -> None:
    id = (await made(gateway, upstream))["id"]
    upstream.forget("i2")
    upstream.replies("i2", 200, {**RESPONSE, "id": "resp_2", "previous_response_id": "resp_1"})

    body = b'{"model": "m", "previous_response_id": "%b", "input": "1e2", "top_p": 1e0}'
    reply = await gateway.post("/v1/responses", content=body % id.encode(), headers=JSON | ANN)

    assert upstream.asked[-1] == "i2"
    assert upstream.journal[-1].body == body % b"resp_1"
    assert reply.json()["previous_response_id"] == id


async def test_a_conversation_goes_on_without_a_model_of_its_own(
    gateway: Served, upstream: Upstream
) -> None:
    id = (await made(gateway, upstream))["id"]

    reply = await gateway.post(
        "/v1/responses", json={"previous_response_id": id, "input": "more"}, headers=ANN
    )

    assert reply.status_code == 200
    assert upstream.journal[-1].json["model"] == "m"


JSON = {"content-type": "application/json"}


@pytest.mark.parametrize(
    ("item", "asked"),
    [
        ({"type": "item_reference"}, "i2"),
        ({"type": "reasoning", "encrypted_content": "x"}, "i2"),
        ({"type": "message", "role": "assistant", "content": "Hi"}, "i1"),
    ],
    ids=["a reference", "reasoning", "a whole message"],
)
async def test_items_that_one_instance_understands_go_there_under_its_own_ids(
    gateway: Served, upstream: Upstream, item: dict[str, Any], asked: str
) -> None:
    [_, message] = (await made(gateway, upstream))["output"]

    given = [{"role": "user", "content": "Hello"}, {**item, "id": message["id"]}]
    reply = await gateway.post("/v1/responses", json={**ASKING, "input": given}, headers=ANN)

    assert reply.status_code == 200
    assert upstream.asked[-1] == asked
    assert upstream.journal[-1].json["input"] == [given[0], {**item, "id": "msg_1"}]


async def test_an_item_never_passes_for_a_response(gateway: Served, upstream: Upstream) -> None:
    upstream.replies("i1", 200, {**RESPONSE, "output": [{"type": "message", "id": "resp_9"}]})
    reply = await gateway.post("/v1/responses", json=ASKING, headers=ANN)
    asked = list(upstream.asked)

    [item] = reply.json()["output"]
    found = await gateway.get(f"/v1/responses/{item['id']}", headers=ANN)

    assert found.status_code == 404
    assert upstream.asked == asked


def forged(id: str) -> dict[str, str]:
    own, _, token = id.rpartition(".")
    return {
        "upstream's own": own,
        "cut": id[:-1],
        "another token": f"{own}.{token[::-1]}",
        "another id": f"resp_2.{token}",
        "longer": f"{id}A",
        "a word": "latest",
    }


@pytest.mark.parametrize("how", list(forged("resp_1.token")))
async def test_a_forged_id_is_not_found_and_reaches_no_upstream(
    gateway: Served, upstream: Upstream, how: str
) -> None:
    id = forged((await made(gateway, upstream))["id"])[how]
    asked = list(upstream.asked)

    replies = [
        await gateway.get(f"/v1/responses/{id}", headers=ANN),
        await gateway.client.delete(f"/v1/responses/{id}", headers=ANN),
        await gateway.post(
            "/v1/responses", json={**ASKING, "previous_response_id": id}, headers=ANN
        ),
    ]

    assert [reply.status_code for reply in replies] == [404] * 3
    assert {reply.json()["error"]["type"] for reply in replies} == {"invalid_request_error"}
    assert upstream.asked == asked


async def test_somebody_elses_response_is_not_found(gateway: Served, upstream: Upstream) -> None:
    response = await made(gateway, upstream)
    asked = list(upstream.asked)
    item = {"type": "item_reference", "id": response["output"][0]["id"]}

    replies = [
        await gateway.get(f"/v1/responses/{response['id']}", headers=BOB),
        await gateway.post(
            "/v1/responses", json={**ASKING, "previous_response_id": response["id"]}, headers=BOB
        ),
        await gateway.post("/v1/responses", json={**ASKING, "input": [item]}, headers=BOB),
    ]

    assert [reply.status_code for reply in replies] == [404] * 3
    assert upstream.asked == asked


def event(type: str, **more: Any) -> bytes:
    return f"event: {type}\n".encode() + b"data: " + json.dumps({"type": type, **more}).encode()


EVENTS = [
    event("response.created", response={**RESPONSE, "output": []}),
    event("response.output_item.added", item={"type": "message", "id": "msg_1"}),
    event("response.output_text.delta", item_id="msg_1", delta='"id": "resp_x" \u00e9'),
    event("response.completed", response={**RESPONSE, "previous_response_id": "resp_0"}),
]


@pytest.mark.parametrize("size", [7, 4096], ids=["in small pieces", "whole"])
async def test_every_event_of_a_stream_names_its_ids_as_the_caller_may_use_them(
    gateway: Served, upstream: Upstream, size: int
) -> None:
    sent = b"\n\n".join(EVENTS) + b"\n\n"
    upstream.replies("i1", 503)
    upstream.streams("i2", [sent[at : at + size] for at in range(0, len(sent), size)])

    reply = await gateway.post("/v1/responses", json={**ASKING, "stream": True}, headers=ANN)

    created, added, delta, completed = [
        json.loads(it.partition("data: ")[2]) for it in reply.text.strip().split("\n\n")
    ]
    id = completed["response"]["id"]
    assert created["response"]["id"] == id != "resp_1"
    assert added["item"]["id"] == delta["item_id"] == completed["response"]["output"][1]["id"]
    assert completed["response"]["previous_response_id"].startswith("resp_0.")
    without = reply.text
    for signed in (id, *(it["id"] for it in completed["response"]["output"])):
        without = without.replace(signed, signed.partition(".")[0])
    previous = completed["response"]["previous_response_id"]
    assert without.replace(previous, "resp_0").encode() == sent
    [record] = await gateway.recorded()
    assert (record["complete"], record["error"]) == (True, None)
    found = await gateway.get(f"/v1/responses/{id}", headers=ANN)
    assert (found.status_code, upstream.asked[-1]) == (200, "i2")


async def test_a_stream_is_had_once_more_from_where_it_stopped(
    gateway: Served, upstream: Upstream
) -> None:
    id = (await made(gateway, upstream))["id"]
    upstream.forget("i2")
    upstream.streams("i2", [EVENTS[3] + b"\n\n"])

    reply = await gateway.get(f"/v1/responses/{id}?stream=true&starting_after=2", headers=ANN)

    assert upstream.journal[-1].path == "/v1/responses/resp_1?stream=true&starting_after=2"
    assert id in reply.text
    assert (await gateway.recorded(2))[-1]["streamed"]


@pytest.mark.parametrize("cut", [b"event: response.outp", b"event: x\ndata: {", b""])
async def test_a_stream_that_breaks_ends_with_an_event_of_the_endpoints_own_shape(
    gateway: Served, upstream: Upstream, cut: bytes
) -> None:
    upstream.streams("i1", [EVENTS[0] + b"\n\n" + cut], ends="cut")

    reply = await gateway.post("/v1/responses", json={**ASKING, "stream": True}, headers=ANN)

    assert reply.text.endswith("\n\n")
    first, last = reply.text.strip().split("\n\n")
    assert first.startswith(EVENTS[0].decode().split("\n")[0])
    name, data = last.split("\n")
    told = json.loads(data.removeprefix("data: "))
    assert name == "event: error"
    assert (told["type"], told["code"]) == ("error", "upstream_stream_broken")
    assert told["error"]["code"] == "upstream_stream_broken"


async def test_upstreams_own_404_of_a_response_is_the_answer_and_speaks_against_no_instance(
    gateway: Served, upstream: Upstream
) -> None:
    id = (await made(gateway, upstream))["id"]
    gone = {"error": {"message": "Item 'rs_1' not found.", "type": "t", "code": None}}
    upstream.forget("i2")
    upstream.replies("i2", 404, gone).replies("i1", 404, gone)

    replies = [await gateway.get(f"/v1/responses/{id}", headers=ANN) for _ in range(20)]
    refused = await gateway.post("/v1/responses", json=ASKING, headers=ANN)

    assert {reply.status_code for reply in replies} == {404}
    assert replies[0].json() == gone == refused.json()
    assert upstream.asked[-1] == "i1"
    upstream.forget("i2")
    assert (await gateway.get(f"/v1/responses/{id}", headers=ANN)).status_code == 200


MANY = {
    "items": b"{}," * 100_000 + b"{}",
    "members": (b"{%b}," % b",".join([b'"a":1'] * 500)) * 200 + b"{}",
}


@pytest.mark.parametrize("items", MANY.values(), ids=MANY)
async def test_a_conversation_of_countless_items_is_refused_before_it_costs_seconds(
    gateway: Served, upstream: Upstream, items: bytes
) -> None:
    body = b'{"model": "m", "input": [%b]}' % items

    reply = await gateway.post("/v1/responses", content=body, headers=ANN)

    assert (reply.status_code, reply.json()["error"]["code"]) == (400, "invalid_json")
    assert upstream.journal == []


async def test_a_long_conversation_is_none_of_these(gateway: Served, upstream: Upstream) -> None:
    text = "one, two, " * 20
    items = [{"role": "user", "content": [{"type": "input_text", "text": text}]}] * 10_000

    reply = await gateway.post("/v1/responses", json={"model": "m", "input": items}, headers=ANN)

    assert reply.status_code == 200
    assert len(upstream.journal[0].json["input"]) == 10_000


@pytest.mark.parametrize("secret", ["", SECRET], ids=["no secret", "a secret"])
async def test_nothing_is_rewritten_for_everybody_with_one_instance(
    serve: Serve, upstream: Upstream, secret: str
) -> None:
    models = [model(openai(upstream, "i1"), capabilities=["responses"])]
    gateway = await serve(models, ID_SECRET=secret)
    raw = b'{"id" :"resp_1", "output": [ {"id": "msg_1"} ],"x":1e2}'
    upstream.replies("i1", 200, raw)

    made = await gateway.post("/v1/responses", json=ASKING)
    found = await gateway.get("/v1/responses/resp_1")
    items = [{"type": "item_reference", "id": "msg_1"}]
    again = {**ASKING, "previous_response_id": "resp_1", "input": items}
    await gateway.post("/v1/responses", json=again)

    assert made.content == found.content == raw
    assert upstream.journal[1].path == "/v1/responses/resp_1"
    assert upstream.journal[2].json == again


@pytest.mark.parametrize("path", ["%2e%2e", "%2e", "%2E%2E/input_items"])
async def test_no_id_leads_to_another_path_upstream(
    serve: Serve, upstream: Upstream, path: str
) -> None:
    gateway = await serve([model(openai(upstream, "i1"), capabilities=["responses"])])

    reply = await gateway.get(f"/v1/responses/{path}")

    assert (reply.status_code, reply.json()["error"]["code"]) == (404, "unknown_url")
    assert upstream.journal == []


@pytest.mark.parametrize("what", ["/{}", "/r?include={}"])
async def test_a_url_that_is_too_long_once_it_is_quoted_is_refused(
    serve: Serve, upstream: Upstream, what: str
) -> None:
    gateway = await serve([model(openai(upstream, "i1"), capabilities=["responses"])])

    reply = await gateway.get("/v1/responses" + what.format("'" * 40_000))

    assert (reply.status_code, reply.json()["error"]["type"]) == (400, "invalid_request_error")
    assert upstream.journal == []


async def test_an_id_signed_by_the_secret_before_is_good_while_that_is_set(
    upstream: Upstream, tmp_path: Any
) -> None:
    environ = configure(tmp_path, serving(upstream), PEOPLE)
    async with running(environ, tmp_path) as before:
        id = (await made(before, upstream))["id"]
    new = {"ID_SECRET": "another long text for tests"}
    async with running({**environ, **new, "ID_SECRET_PREVIOUS": SECRET}, tmp_path) as during:
        then = await during.get(f"/v1/responses/{id}", headers=ANN)
    async with running({**environ, **new}, tmp_path) as after:
        gone = await after.get(f"/v1/responses/{id}", headers=ANN)
        kept = await after.get(f"/v1/responses/{then.json()['id']}", headers=ANN)

    assert (then.status_code, gone.status_code, kept.status_code) == (200, 404, 200)


async def test_another_model_goes_on_with_a_response_of_the_same_account(
    serve: Serve, upstream: Upstream
) -> None:
    there = azure(upstream, "i2", azure_endpoint=upstream.url("both"))
    models = [
        model(azure(upstream, "i1", azure_endpoint=upstream.url("both")), id="a"),
        model(azure(upstream, "elsewhere"), there, id="b"),
        model(azure(upstream, "far"), id="c"),
    ]
    for it in models:
        it["capabilities"] = ["responses"]
    gateway = await serve(models, PEOPLE)
    upstream.replies("both", 200, RESPONSE)
    first = await gateway.post("/v1/responses", json={**ASKING, "model": "a"}, headers=ANN)
    goes_on = {**ASKING, "previous_response_id": first.json()["id"]}

    there_too = await gateway.post("/v1/responses", json={**goes_on, "model": "b"}, headers=ANN)
    nowhere = await gateway.post("/v1/responses", json={**goes_on, "model": "c"}, headers=ANN)

    assert there_too.status_code == 200
    assert upstream.journal[-1].instance == "both"
    assert upstream.journal[-1].json["model"] == "at-i2"
    assert nowhere.status_code == 404


@pytest.mark.parametrize(
    ("people", "places", "why"),
    [(PEOPLE, 1, "callers are known"), ([], 2, "it has several instances")],
    ids=["known callers", "several instances"],
)
async def test_responses_without_a_secret_are_refused_at_start(
    upstream: Upstream, tmp_path: Any, people: Any, places: int, why: str
) -> None:
    instances = [openai(upstream, f"i{number}") for number in range(places)]
    models = [model(*instances, capabilities=["responses"])]
    environ = {**configure(tmp_path, models, people), "ID_SECRET": ""}

    with pytest.raises(ConfigurationError) as caught:
        await Build(environ).all()

    what = f"is needed, since the model 'm' serves responses and {why}"
    mend = "set it to a long random text, the same in every process"
    assert caught.value.faults == [f"id_secret: {what}; {mend}"]
    assert caught.value.settings == ["id_secret"]


# Stored completions


STORED = {**CHAT, "store": True}


async def stored(gateway: Served, upstream: Upstream) -> str:
    upstream.replies("i1", 503)
    upstream.replies("i2", 200)
    reply = await gateway.post("/v1/chat/completions", json=STORED, headers=ANN)
    assert upstream.asked[-1] == "i2"
    upstream.forget("i1")
    id: str = reply.json()["id"]
    return id


async def test_a_stored_completion_is_found_changed_and_deleted_where_it_is(
    gateway: Served, upstream: Upstream
) -> None:
    id = await stored(gateway, upstream)
    path = f"/v1/chat/completions/{id}"

    found = await gateway.get(path, headers=ANN)
    labelled = await gateway.post(path, json={"metadata": {"topic": "x"}}, headers=ANN)
    change = upstream.journal[-1]
    messages = await gateway.get(f"{path}/messages?limit=1", headers=ANN)
    deleted = await gateway.client.delete(path, headers=ANN)
    somebody = await gateway.get(path, headers=BOB)

    assert [it.status_code for it in (found, labelled, messages, deleted)] == [200] * 4
    assert upstream.asked[-4:] == ["i2"] * 4
    assert [it.path.partition("?")[0] for it in upstream.journal[-4:]] == [
        "/v1/chat/completions/chatcmpl-1",
        "/v1/chat/completions/chatcmpl-1",
        "/v1/chat/completions/chatcmpl-1/messages",
        "/v1/chat/completions/chatcmpl-1",
    ]
    assert change.json["metadata"]["topic"] == "x"
    assert "model" not in change.json
    assert found.json()["id"] == id
    assert somebody.status_code == 404


async def test_a_stream_that_is_stored_has_signed_ids_and_its_count_is_kept_from_the_caller(
    gateway: Served, upstream: Upstream
) -> None:
    usage = {"choices": [], "usage": {"prompt_tokens": 1, "completion_tokens": 1}}
    chunks = [{**COMPLETION, "object": "chat.completion.chunk"}, usage]
    events = [b"data: " + json.dumps(it).encode() + b"\n\n" for it in chunks]
    upstream.streams("i1", [*events, b"data: [DONE]\n\n"])

    body = {**STORED, "stream": True}
    reply = await gateway.post("/v1/chat/completions", json=body, headers=ANN)

    first, done = reply.text.strip().split("\n\n")
    assert json.loads(first[6:])["id"].startswith("chatcmpl-1.")
    assert done == "data: [DONE]"
    [record] = await gateway.recorded()
    assert record["usage"]["output"] == 1


async def test_a_completion_that_is_not_stored_is_left_alone(
    gateway: Served, upstream: Upstream
) -> None:
    reply = await gateway.post("/v1/chat/completions", json=CHAT, headers=ANN)

    assert reply.json() == COMPLETION
    assert upstream.journal[-1].json == CHAT


async def test_a_caller_lists_their_own_stored_completions(
    serve: Serve, upstream: Upstream
) -> None:
    gateway = await serve([model(openai(upstream, "i1"))], PEOPLE)
    await gateway.post("/v1/chat/completions", json=STORED, headers=ANN)
    owner = upstream.journal[-1].json["metadata"]["llamaxing_owner"]
    page = {"object": "list", "data": [COMPLETION], "first_id": "chatcmpl-1", "has_more": True}
    upstream.replies("i1", 200, {**page, "last_id": "chatcmpl-1"})

    listed = await gateway.get("/v1/chat/completions?limit=1", headers=ANN)
    after = listed.json()["last_id"]
    await gateway.get(f"/v1/chat/completions?after={after}", headers=ANN)
    stolen = await gateway.get(f"/v1/chat/completions?after={after}", headers=BOB)
    await gateway.get("/v1/chat/completions", headers=BOB)

    assert listed.json()["data"][0]["id"] == after
    asked = [it.path for it in upstream.journal[-3:]]
    assert asked[0] == f"/v1/chat/completions?limit=1&metadata%5Bllamaxing_owner%5D={owner}"
    assert asked[1].startswith("/v1/chat/completions?after=chatcmpl-1&metadata")
    assert stolen.status_code == 404
    assert owner not in asked[2]


async def test_what_is_stored_in_several_places_is_not_listed(
    gateway: Served, upstream: Upstream
) -> None:
    reply = await gateway.get("/v1/chat/completions", headers=ANN)

    assert reply.status_code == 400
    assert "name a model of one instance" in reply.json()["error"]["message"]
    assert upstream.asked == []
