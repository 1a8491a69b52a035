"""Waiting up to a limit, as `asyncio.timeout` does, with one timer for many waits."""

import asyncio

import pytest

from llamaxing.patience import Patience


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
