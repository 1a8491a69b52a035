"""The pool of connections: kept, shared, bounded, and nobody else's."""

import asyncio
import ssl

import httpx
import pytest

from llamaxing.http1 import Connection, Reply
from llamaxing.pool import Place, Pool
from llamaxing.upstream import Content
from tests import raw as servers
from tests.raw import OK, Serve, Server, writes

wire = servers.wire
tls = servers.tls
event_loop_policy = servers.every_loop
pytestmark = servers.ON_EVERY_LOOP


async def taken(pool: Pool, server: Server, count: int) -> list[Connection]:
    return [await pool.take(server.place, 5) for _ in range(count)]


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
    server = await wire(writes(OK))
    pool = Pool(1)
    [only] = await taken(pool, server, 1)
    impatient = asyncio.create_task(pool.take(server.place, 5))
    patient = asyncio.create_task(pool.take(server.place, 5))
    await asyncio.sleep(0)

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
    server = await wire(writes(OK))
    pool = Pool(1)
    [only] = await taken(pool, server, 1)
    first = asyncio.create_task(pool.take(server.place, 5))
    second = asyncio.create_task(pool.take(server.place, 5))
    await asyncio.sleep(0)
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
