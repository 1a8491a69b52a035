"""A request's body: bounded, spooled, replayable."""

import mmap
from collections.abc import Awaitable, Callable

import pytest

from llamaxing.errors import RequestTooLarge
from llamaxing.http import Body, BodyLimits


def arriving(*pieces: bytes) -> Callable[[], Awaitable[bytes]]:
    left = iter(pieces)

    async def receive() -> bytes:
        return next(left, b"")

    return receive


async def test_a_small_body_stays_in_memory() -> None:
    body = Body(arriving(b"ab", b"c"), BodyLimits(most=10))

    assert await body.read() == b"abc"
    assert await body.read() == b"abc"


async def test_no_body_is_an_empty_one() -> None:
    assert await Body(arriving(), BodyLimits(most=10)).read() == b""


async def test_a_large_body_waits_on_disk_and_can_be_opened_again_and_again() -> None:
    pieces = [bytes([n]) * 100_000 for n in range(20)]
    body = Body(arriving(*pieces), BodyLimits(most=10**7, spool_above=150_000))

    assert isinstance(await body.read(), mmap.mmap)
    for _ in range(2):
        assert b"".join([piece async for piece in body.open()]) == b"".join(pieces)


async def test_a_body_over_the_limit_is_refused_while_it_arrives() -> None:
    taken = []

    async def endless() -> bytes:
        taken.append(1)
        return b"x" * 1000

    with pytest.raises(RequestTooLarge, match="10000 bytes that app_request_body_limit allows"):
        await Body(endless, BodyLimits(most=10_000)).read()
    with pytest.raises(RequestTooLarge):
        await Body(endless, BodyLimits(most=10_000, spool_above=2_000)).read()

    assert len(taken) == 22


async def test_a_body_that_is_announced_as_too_large_is_not_read() -> None:
    async def untouched() -> bytes:
        pytest.fail("it was read")

    with pytest.raises(RequestTooLarge):
        await Body(untouched, BodyLimits(most=10), announced=11).read()
