"""The net sees what it is there for, wherever that turns up."""

import asyncio
import uuid

import httpx
import pymongo

from tests.canaries import NET
from tests.fakes import Upstream
from tests.tap import tapped


async def test_a_secret_in_a_reply_is_seen_in_whatever_pieces_it_comes() -> None:
    secret = NET.keep("key", uuid.uuid4().hex)
    async with Upstream() as server:
        sending = server.streams("i", [secret[:10].encode(), secret[10:].encode()], lock_step=True)
        async with (
            tapped(server.url("")) as url,
            httpx.AsyncClient(base_url=url) as client,
            client.stream("GET", "/i/") as reply,
        ):
            arriving = reply.aiter_raw()
            sending.release()
            await anext(arriving)
            before = NET.drawn()
            NET.keep("key", secret)
            sending.release()
            await anext(arriving)

    assert before == []
    assert NET.drawn() == ["key in a reply"]


async def test_a_gateway_that_outlives_a_test_is_looked_at_for_its_own_secrets() -> None:
    secret = NET.keep("key", uuid.uuid4().hex)
    async with Upstream() as server:
        server.replies("i", 200, {"secret": secret})
        async with tapped(server.url("")) as url, httpx.AsyncClient(base_url=url) as client:
            assert NET.drawn() == []  # as at the end of a test
            await client.get("/i/")

    assert NET.drawn() == ["key in a reply"]


async def test_a_secret_in_a_document_of_mongodb_is_seen(mongodb: str) -> None:
    secret = NET.keep("key", uuid.uuid4().hex)
    name = f"canaries-{uuid.uuid4().hex}"

    def written_and_read() -> None:
        with pymongo.MongoClient[dict[str, str]](mongodb) as client:
            client[name]["calls"].insert_one({"text": f"Bearer {secret}"})
            written = NET.drawn()
            NET.keep("key", secret)
            client[name]["calls"].find_one()
            client.drop_database(name)
            assert written == ["key in a document"]

    await asyncio.to_thread(written_and_read)

    assert NET.drawn() == ["key in a document"]
