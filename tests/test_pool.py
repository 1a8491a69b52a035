"""The pool of connections: kept, shared, bounded, and nobody else's."""

import asyncio
import itertools
import socket
import ssl

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llamaxing.http1 import Connection, Reply
from llamaxing.pool import Place, Pool
from llamaxing.upstream import Content, Upstreams
from tests import raw as servers
from tests.raw import OK, Serve, Server, Talk, ask, writes

wire = servers.wire
tls = servers.tls
event_loop_policy = servers.every_loop
pytestmark = servers.ON_EVERY_LOOP


async def taken(pool: Pool, server: Server, count: int) -> list[Connection]:
    return [await pool.take(server.place, 5) for _ in range(count)]


Waiting = asyncio.Task[Connection]


async def taken_with_two_waiting(pool: Pool, server: Server) -> tuple[Connection, Waiting, Waiting]:
    """Of a pool that has one place."""
    [only] = await taken(pool, server, 1)
    first, second = (asyncio.create_task(pool.take(server.place, 5)) for _ in range(2))
    await asyncio.sleep(0)
    return only, first, second


async def used(connection: Connection) -> Reply:
    return await connection.ask("GET", b"GET / HTTP/1.1\r\n\r\n", Content([]), 5, None)


async def test_whoever_comes_above_the_limit_waits_for_one_that_is_free(wire: Serve) -> None:
    server = await wire(writes(OK))
    pool = Pool(2)
    first, _ = await taken(pool, server, 2)
    waiting = asyncio.create_task(pool.take(server.place, 5))
    await asyncio.sleep(0)
    assert not waiting.done()

    await used(first)

    assert await waiting is first
    pool.close()


async def test_above_the_limit_one_that_is_free_elsewhere_makes_room(wire: Serve) -> None:
    here, there = await wire(writes(OK)), await wire(writes(OK))
    pool = Pool(1)
    await used((await taken(pool, here, 1))[0])

    await taken(pool, there, 1)

    await here.gone.wait()
    pool.close()


async def test_one_who_stops_waiting_leaves_the_place_to_the_next(wire: Serve) -> None:
    pool, server = Pool(1), await wire(writes(OK))
    only, impatient, patient = await taken_with_two_waiting(pool, server)

    await used(only)
    impatient.cancel()

    assert await patient is only
    pool.close()


async def test_a_place_that_refuses_leaves_room_for_the_next(wire: Serve) -> None:
    server = await wire(writes(OK))
    pool = Pool(1)
    for _ in range(3):
        with pytest.raises(httpx.ConnectError):
            await pool.take(Place("127.0.0.1", 9, tls=False), 5)

    assert await taken(pool, server, 1)
    pool.close()


async def test_a_name_that_nobody_has_is_no_connection_and_is_asked_for_again() -> None:
    pool = Pool(1)

    for _ in range(2):
        with pytest.raises(httpx.ConnectError):
            await pool.take(Place("nowhere.invalid", 80, tls=False), 5)


async def test_a_connection_that_nobody_wants_is_closed_in_time(wire: Serve) -> None:
    server = await wire(writes(OK))
    pool = Pool(10, kept=0.01)
    await used((await taken(pool, server, 1))[0])

    await server.gone.wait()
    pool.close()


async def test_of_those_that_are_free_the_last_one_is_used_and_closed_ones_are_not(
    wire: Serve,
) -> None:
    server = await wire(writes(OK))
    pool = Pool(10)
    first, second = await taken(pool, server, 2)
    await used(first)
    await used(second)
    second.abort()

    assert await pool.take(server.place, 5) is first
    pool.close()


async def test_a_free_connection_that_is_dead_does_not_hide_one_that_makes_room(
    wire: Serve,
) -> None:
    here, there = await wire(writes(OK)), await wire(writes(OK))
    pool = Pool(2)
    dead, live = await taken(pool, here, 2)
    await used(dead)
    await used(live)
    dead.abort()
    await here.gone.wait()
    await taken(pool, there, 1)

    async with asyncio.timeout(10):
        assert await taken(pool, there, 1)
    pool.close()


async def test_one_to_whom_somebody_else_came_before_is_the_next(wire: Serve) -> None:
    pool, server = Pool(1), await wire(writes(OK))
    only, first, second = await taken_with_two_waiting(pool, server)
    await used(only)
    # Those who wait have been told, and have not looked yet.
    assert await taken(pool, server, 1) == [only]

    await used(only)

    await asyncio.wait({first, second}, return_when=asyncio.FIRST_COMPLETED)
    assert (first.done(), second.done()) == (True, False)
    second.cancel()
    pool.close()


@pytest.mark.parametrize("steps", range(24))
async def test_one_who_stops_waiting_for_tls_ends_no_connection_but_that(
    steps: int, wire: Serve, tls: ssl.SSLContext
) -> None:
    """Whatever was the last that had happened: the socket's number is soon another's."""
    secure = await wire(writes(OK), tls)
    pool = Pool(3)
    impatient = asyncio.create_task(pool.take(secure.place, 5))
    for _ in range(steps):
        await asyncio.sleep(0)
    impatient.cancel()
    await asyncio.wait({impatient})

    connections = await taken(pool, secure, 2)
    for connection in connections * 3:
        assert b"".join([it async for it in await used(connection)]) == b"ok"
    pool.close()


async def test_a_handshake_that_does_not_end_is_a_connection_that_is_not_had_in_time(
    wire: Serve, tls: ssl.SSLContext
) -> None:
    silent = await wire(says(b""))
    pool = Pool(1)

    with pytest.raises(httpx.ConnectTimeout):
        await pool.take(silent.place._replace(tls=True), 0.05)

    await silent.gone.wait()
    assert await taken(pool, await wire(writes(OK), tls), 1)
    pool.close()


async def test_a_server_without_tls_or_of_another_name_is_no_connection(
    wire: Serve, tls: ssl.SSLContext
) -> None:
    plain, secure = await wire(says(b"HTTP/1.1 400 No\r\n\r\n")), await wire(writes(OK), tls)
    pool = Pool(1)

    for place in (plain.place._replace(tls=True), secure.place._replace(host="localhost")):
        with pytest.raises(httpx.ConnectError):
            await pool.take(place, 5)

    assert await taken(pool, secure, 1)
    pool.close()


async def test_a_whole_name_has_the_certificate_of_the_name(
    wire: Serve, tls: ssl.SSLContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`api.example.com.` is not looked for in the domains of this machine."""
    secure = await wire(writes(OK), tls)
    there = socket.getaddrinfo("127.0.0.1", secure.place.port, type=socket.SOCK_STREAM)
    names: list[str] = []

    async def look_up(_: object, host: str, *__: object, **___: object) -> object:
        names.append(host)
        return there

    monkeypatch.setattr(type(asyncio.get_running_loop()), "getaddrinfo", look_up)
    pool = Pool(1)

    assert await pool.take(secure.place._replace(host="upstream.example."), 5)
    assert "upstream.example." in names
    pool.close()


def says(said: bytes) -> Talk:
    async def talk(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(said)

    return talk


async def echoes(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """What was asked for; in pieces, where it is odd, and with the connection's end at 7."""
    while True:
        line = await reader.readuntil(b"\r\n\r\n")
        asked = line.split(b" ")[1]
        if asked.endswith(b"7"):
            writer.write(b"HTTP/1.1 200 OK\r\nconnection: close\r\n\r\n" + asked)
            writer.close()
            return
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % len(asked))
        if asked[-1] % 2:
            await asyncio.sleep(0)
        writer.write(asked)


@given(st.lists(st.tuples(st.integers(0, 20), st.integers(0, 60)), max_size=20))
@settings(max_examples=40, deadline=None)
def test_whoever_gives_up_at_whatever_moment_nobody_gets_anothers_reply_and_no_place_is_lost(
    impatient: list[tuple[int, int]],
) -> None:
    """Each begins after so many turns of the loop, and gives up after so many more."""

    async def turns(count: int) -> None:
        for _ in range(count):
            await asyncio.sleep(0)

    async def gives_up(door: Upstreams, url: str, begins: int, ends: int) -> None:
        await turns(begins)
        asking = asyncio.create_task(ask(door, url))
        await turns(ends)
        asking.cancel()
        await asyncio.wait({asking})

    async def stays(door: Upstreams, url: str, begins: int) -> None:
        await turns(begins)
        assert await ask(door, url) == (200, httpx.URL(url).raw_path)

    async def all_of_them() -> None:
        async with Server(echoes) as server, Upstreams(2) as door:
            urls = (f"{server.url}/{at}" for at in itertools.count())
            calls = [gives_up(door, next(urls), *when) for when in impatient]
            calls += [stays(door, next(urls), begins) for begins, _ in [*impatient, (0, 0)]]
            await asyncio.wait_for(asyncio.gather(*calls), 20)

    asyncio.run(all_of_them())
