"""The door to upstreams: TLS, connections that are used again, and httpx's errors."""

import ssl
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest
import trustme

from llamaxing.upstream import Asked, Content, Upstreams
from tests.conftest import Serve, Served, model, openai
from tests.fakes import CHAT, DONE, Upstream, chunk

PATH = "/v1/chat/completions"


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture
async def secure(authority: trustme.CA) -> AsyncIterator[Upstream]:
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(tls)
    async with Upstream(tls) as upstream:
        yield upstream


async def test_an_upstream_is_reached_over_tls_on_a_connection_that_is_kept(
    authority: trustme.CA,
    secure: Upstream,
    serve: Serve,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ca.pem"))
    gateway = await serve([model(openai(secure, "i1"))])

    for _ in range(10):
        assert (await gateway.post(PATH, json=CHAT)).status_code == 200
    secure.streams("i1", [chunk("Hi"), DONE])
    streamed = await gateway.post(PATH, json={**CHAT, "stream": True})

    assert streamed.content == chunk("Hi") + DONE
    assert secure.connections == 1


async def test_a_certificate_of_an_unknown_authority_is_not_accepted(
    secure: Upstream, serve: Serve
) -> None:
    gateway = await serve([model(openai(secure, "i1"))])

    reply = await gateway.post(PATH, json=CHAT)

    assert (reply.status_code, reply.json()["error"]["code"]) == (502, "upstream_unreachable")
    assert secure.asked == []


async def test_a_connection_is_kept_after_errors_and_streams_too(
    upstream: Upstream, serve: Serve
) -> None:
    gateway = await serve([model(openai(upstream, "i1"))])
    upstream.replies("i1", 500).replies("i1", 429).replies("i1", 400)
    upstream.streams("i1", [chunk("Hi"), DONE])

    for _ in range(6):
        await gateway.post(PATH, json=CHAT)

    assert upstream.connections == 1


async def test_a_reply_with_a_long_header_is_an_answer(gateway: Served, upstream: Upstream) -> None:
    upstream.replies("i1", 200, set_cookie="c" * 40_000)

    reply = await gateway.post(PATH, json=CHAT)

    assert (reply.status_code, upstream.asked) == (200, ["i1"])


async def test_a_reply_that_is_no_http_is_502(gateway: Served, upstream: Upstream) -> None:
    upstream.fails("i1", "garbage").fails("i2", "garbage")

    reply = await gateway.post(PATH, json=CHAT)

    assert (reply.status_code, reply.json()["error"]["code"]) == (502, "upstream_bad_response")


async def test_a_reply_that_ends_within_its_headers_is_not_asked_for_again_on_a_fresh_connection(
    gateway: Served, upstream: Upstream
) -> None:
    upstream.replies("i1").fails("i1", "in-headers")

    statuses = [(await gateway.post(PATH, json=CHAT)).status_code for _ in range(2)]

    assert statuses == [200, 200]
    assert upstream.asked == ["i1", "i1", "i2"]


async def test_a_body_of_many_parts_is_sent_as_one_and_again(upstream: Upstream) -> None:
    content = Content([b"a" * 200_000, memoryview(b"b" * 300_000), b"c"])
    transport = Upstreams(10)
    for _ in range(2):
        head = {"content-length": str(content.length)}
        answered = await transport.send(Asked("POST", upstream.url("i1"), head, content))
        await answered.stream.aclose()
    await transport.aclose()

    expected = b"a" * 200_000 + b"b" * 300_000 + b"c"
    assert [asked.body for asked in upstream.journal] == [expected, expected]


@pytest.mark.parametrize(
    ("url", "error"),
    [("http://127.0.0.1:9/", httpx.ConnectError), ("ftp://127.0.0.1/", httpx.UnsupportedProtocol)],
)
async def test_errors_are_httpxs(url: str, error: type[Exception]) -> None:
    transport = Upstreams(10)

    with pytest.raises(error):
        await transport.send(Asked("POST", url, {}, Content([])))
    await transport.aclose()


async def test_the_transport_is_for_httpxs_own_client_too(upstream: Upstream) -> None:
    async with httpx.AsyncClient(transport=Upstreams(10)) as client:
        reply = await client.post(upstream.url("i1"), json=CHAT)

    assert reply.status_code == 200
    assert upstream.journal[0].json == CHAT
