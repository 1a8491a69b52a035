"""Waiting up to a limit, as `asyncio.timeout` does, with one timer for many waits."""

import asyncio

import pytest

from llamaxing.patience import Patience, Waits


async def test_what_comes_in_time_is_given() -> None:
    patience = Patience()
    coming: asyncio.Future[str] = asyncio.get_running_loop().create_future()
    asyncio.get_running_loop().call_soon(coming.set_result, "there")

    assert await patience.within(30, coming) == "there"
    patience.end()


async def test_what_does_not_come_is_a_timeout_each_time() -> None:
    patience = Patience()

    for _ in range(3):
        with pytest.raises(TimeoutError):
            await patience.within(0.001, asyncio.Event().wait())

    task = asyncio.current_task()
    assert task is not None
    assert task.cancelling() == 0


async def test_a_limit_holds_behind_one_that_was_longer_and_one_that_was_not_reached() -> None:
    patience = Patience()
    await patience.within(30, asyncio.sleep(0))
    await patience.within(0.001, asyncio.sleep(0))

    with pytest.raises(TimeoutError):
        await patience.within(0.001, asyncio.Event().wait())


async def test_whoever_is_not_waiting_is_left_alone() -> None:
    patience = Patience()
    await patience.within(0.001, asyncio.sleep(0))

    await asyncio.sleep(0.01)

    assert await patience.within(30, asyncio.sleep(0, "there")) == "there"
    patience.end()


async def test_a_cancel_from_outside_is_no_timeout() -> None:
    async def wait() -> None:
        patience = Patience()
        try:
            await patience.within(30, asyncio.Event().wait())
        finally:
            patience.end()

    task = asyncio.create_task(wait())
    await asyncio.sleep(0)
    task.cancel()

    with pytest.raises(asyncio.CancelledError):
        await task


async def test_for_ever_needs_no_timer() -> None:
    patience = Patience()

    assert await patience.within(float("inf"), asyncio.sleep(0, "there")) == "there"


@pytest.mark.parametrize("first", [30, 0.001])
async def test_a_limit_is_moved_by_what_is_awaited(first: float) -> None:
    """Nearer, and farther: what comes after the first limit, and before the other, is in time."""
    waits = Waits()
    patience = waits.one()
    ends = asyncio.Event()

    async def moving() -> None:
        patience.move(0.001 if first == 30 else 30)
        asyncio.get_running_loop().call_later(0.01, ends.set)
        await ends.wait()

    if first == 30:
        with pytest.raises(TimeoutError):
            await patience.within(first, moving())
    else:
        await patience.within(first, moving())

    assert ends.is_set() == (first != 30)
    assert waits.one() is patience


async def test_who_waits_at_the_same_time_has_a_timer_of_their_own() -> None:
    waits = Waits()
    await waits.one().within(30, asyncio.sleep(0))
    coming: asyncio.Future[str] = asyncio.get_running_loop().create_future()
    first, second = waits.one(), waits.one()
    waiting = asyncio.create_task(first.within(30, coming))
    await asyncio.sleep(0)

    with pytest.raises(TimeoutError):
        await second.within(0.001, asyncio.Event().wait())
    waiting.cancel()

    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert first is not second
