"""Connections to upstreams as nginx and Node see them: used again, given up, and never missed."""

import asyncio
import json
import logging
import select
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from llamaxing.upstream import Asked as Call
from llamaxing.upstream import Content, Upstreams
from tests.conftest import Serve, Served, model
from tests.fakes import COMPLETION, DONE, SSE, Asked, Reply, Upstream, chunk
from tests.fronts import Front, Nginx, Node
from tests.journals import seeded

PATH = "/v1/chat/completions"
ID = "x-ms-client-request-id"
FRONTS = pytest.mark.parametrize("kind", [Nginx, Node], ids=["nginx", "Node"])
CALLS, CALLERS, REQUESTS = 300, 16, 6
LONG, SHORT = 60_000, 50
# Of a reply with a length, one in chunks, and a stream of events; one behind which the connection
# ends; and one that comes while the body is still being sent.
KINDS = [*["sized", "chunked", "events"] * 3, "closing", "refused"]
LARGE = "x" * 5_000_000


class Echo(Upstream):
    """Each reply has the id of its call, and is of another length."""

    def reply_to(self, asked: Asked) -> Reply:
        id = asked.headers[ID]
        long = "y" * (int(id) % 7 * 40_000)
        if asked.instance == "events":
            return Reply(
                200, SSE, [chunk(id), *[chunk("")] * (int(id) % 9), chunk(long), DONE], True
            )
        body = json.dumps({**COMPLETION, "id": id, "long": long}).encode()
        headers = {"content-type": "application/json"}
        if asked.instance == "chunked":
            return Reply(200, headers, [body[:9], body[9:99], body[99:]], True)
        return Reply(200, headers, [body])


def models(front: Front) -> list[dict[str, Any]]:
    """One of each kind, by either scheme."""
    return [
        model(
            {
                "id": f"{scheme}-{kind}",
                "provider": "openai",
                "openai_base_url": f"{url}/{kind}/v1",
                "openai_api_key": "sk-any",
            },
            id=f"{scheme}-{kind}",
        )
        for scheme, url in (("http", front.http), ("https", front.https))
        for kind in set(KINDS)
    ]


async def call(gateway: Served, name: str, id: str) -> None:
    """Sees that the answer is whole, and this call's."""
    kind = name.partition("-")[2]
    said = LARGE if kind == "refused" else "Hello"
    body = {"model": name, "messages": [{"role": "user", "content": said}]}
    streamed = kind == "events"
    reply = await gateway.post(PATH, json={**body, "stream": streamed}, headers={ID: id})
    if kind == "refused":
        assert (reply.status_code, reply.json()["error"]["message"]) == (413, "too large")
    elif streamed:
        assert reply.content.startswith(chunk(id))
        assert reply.content.endswith(DONE)
        assert reply.content.count(b"data: ") == int(id) % 9 + 3
    else:
        assert (reply.status_code, reply.json()["id"]) == (200, id)


@FRONTS
@pytest.mark.parametrize("idle", [LONG, SHORT], ids=["kept for long", "kept for a moment"])
async def test_every_call_is_answered_whole_and_asked_once_over_connections_that_are_used_again(
    kind: type[Front], idle: int, serve: Serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chance = seeded()
    names = [f"{chance.choice(['http', 'https'])}-{chance.choice(KINDS)}" for _ in range(CALLS)]
    waiting = iter(enumerate(names))
    async with Echo() as behind:
        there = f"http://127.0.0.1:{behind.port}"
        with kind(tmp_path, there, requests=REQUESTS, idle=idle) as front:
            monkeypatch.setenv("SSL_CERT_FILE", str(front.ca))
            gateway = await serve(models(front))

            async def caller() -> None:
                for id, name in waiting:
                    await call(gateway, name, str(id))
                    if idle == SHORT:
                        # About when an idle connection ends, so that some meet their end.
                        await asyncio.sleep(chance.uniform(0.8, 1.2) * idle / 1000)

            await asyncio.gather(*(caller() for _ in range(CALLERS)))
            connections = await logged(front, CALLS)

    kinds = [name.partition("-")[2] for name in names]
    answered = [path.split("/")[1] for paths in connections for path in paths]
    assert Counter(answered) == Counter(kinds)
    asked = [str(id) for id, it in enumerate(kinds) if it != "refused"]
    assert Counter(it.headers[ID] for it in behind.journal) == Counter(asked)
    if idle == LONG:
        # One ends where the front says so, or where some of a body is left: else it is used again.
        whole = [it for it in connections if len(it) == REQUESTS]
        ended = [it for it in connections if it[-1].split("/")[1] in ("closing", "refused")]
        assert whole
        assert len(connections) <= len(whole) + len(ended) + 2 * CALLERS


async def logged(front: Front, requests: int) -> list[list[str]]:
    """What was answered on each connection, once that many requests are in the log."""
    while sum(map(len, found := list(front.connections().values()))) < requests:  # noqa: ASYNC110
        await asyncio.sleep(0.02)
    return found


@FRONTS
@pytest.mark.parametrize("scheme", ["http", "https"])
@pytest.mark.parametrize("size", [100, 900_000], ids=["small", "large"])
async def test_a_call_on_a_connection_that_has_just_ended_is_asked_on_another_unseen(
    kind: type[Front],
    scheme: str,
    size: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with Echo() as behind, Upstreams(100) as upstreams:
        there = f"http://127.0.0.1:{behind.port}"
        with kind(tmp_path, there, requests=1000, idle=SHORT) as front:
            monkeypatch.setenv("SSL_CERT_FILE", str(front.ca))
            url = f"{getattr(front, scheme)}/sized/v1"

            async def ask(id: int) -> None:
                content = Content([b"x" * (size // 10)] * 10)
                headers = {ID: str(id), "content-length": str(content.length)}
                reply = await upstreams.send(Call("POST", url, headers, content))
                assert json.loads(b"".join([it async for it in reply.stream]))["id"] == str(id)

            await asyncio.gather(*(ask(id) for id in range(CALLERS)))
            until_all_have_ended(upstreams)
            await asyncio.gather(*(ask(id) for id in range(CALLERS, 2 * CALLERS)))
            connections = await logged(front, 2 * CALLERS)

    assert [len(paths) for paths in connections] == [1] * (2 * CALLERS)
    assert Counter(it.headers[ID] for it in behind.journal) == Counter(map(str, range(2 * CALLERS)))
    # Nothing was written to where nobody is any more, which asyncio would say in the log.
    assert [it for it in caplog.records if it.levelno >= logging.WARNING] == []


def until_all_have_ended(upstreams: Upstreams) -> None:
    """Holds the loop up until the other side has ended each, which nobody here has seen then."""
    for connection in upstreams._pool._all:
        assert not connection.closed
        socket = connection._transport.get_extra_info("socket")
        assert select.select([socket], [], [], 30)[0]
