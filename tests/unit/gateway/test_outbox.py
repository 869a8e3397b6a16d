"""Bounded, nothing taken is dropped, everything leaves in one go."""

from __future__ import annotations

import asyncio

import pytest

from livetape.gateway.messages import Push
from livetape.gateway.outbox import Outbox


def push(size: int = 1) -> Push:
    return Push(b"x" * size)


async def is_waiting(waiter: asyncio.Future[None]) -> bool:
    for _ in range(3):
        await asyncio.sleep(0)
    return not waiter.done()


async def test_everything_that_waits_leaves_in_one_go_in_order() -> None:
    outbox = Outbox(100, 10)
    given = [push(), push(), push()]
    for one in given:
        assert outbox.put(one)
    await outbox.wait()
    assert outbox.take() == given
    assert outbox.take() == []


@pytest.mark.parametrize(("sizes", "refused"), [([40, 40], 30), ([1, 1, 1, 1], 1)])
async def test_it_is_bounded_by_bytes_and_by_count(sizes: list[int], refused: int) -> None:
    outbox = Outbox(100, 4)
    assert all(outbox.put(push(size)) for size in sizes)
    assert not outbox.put(push(refused))
    assert len(outbox.take()) == len(sizes), "nothing that was taken is dropped"


async def test_what_is_leaving_still_counts() -> None:
    outbox = Outbox(100, 10)
    outbox.put(push(90))
    outbox.take()
    assert not outbox.put(push(20))
    assert outbox.size == 90
    outbox.sent()
    assert outbox.size == 0
    assert outbox.put(push(20))


async def test_one_message_always_fits_when_it_is_empty() -> None:
    outbox = Outbox(10, 10)
    assert outbox.put(push(1000))
    assert not outbox.put(push(1))


async def test_force_takes_what_must_follow() -> None:
    outbox = Outbox(10, 1)
    for _ in range(3):
        outbox.force(push(10))
    assert len(outbox.take()) == 3


async def test_room_is_when_it_is_half_empty() -> None:
    outbox = Outbox(100, 10)
    await outbox.room()
    outbox.put(push(60))
    waiter = asyncio.ensure_future(outbox.room())
    assert await is_waiting(waiter)
    outbox.take()
    assert await is_waiting(waiter)
    outbox.sent()
    await waiter


async def test_after_a_refusal_there_is_room_only_when_something_has_left() -> None:
    outbox = Outbox(100, 10)
    outbox.put(push(10))
    assert not outbox.put(push(95))
    waiter = asyncio.ensure_future(outbox.room())
    assert await is_waiting(waiter)
    outbox.take()
    outbox.sent()
    await waiter


async def test_waiting_for_something_to_leave() -> None:
    outbox = Outbox(100, 10)
    waiter = asyncio.ensure_future(outbox.wait())
    assert await is_waiting(waiter)
    outbox.put(push())
    await waiter


async def test_after_close_what_waits_may_still_leave_and_nothing_more_is_taken() -> None:
    outbox = Outbox(100, 10)
    outbox.put(push())
    outbox.close()
    assert outbox.put(push()), "nobody has to come back"
    outbox.force(push())
    await outbox.wait()
    assert len(outbox.take()) == 1
    await outbox.wait()
    assert outbox.take() == []
    await outbox.room()


async def test_close_can_drop_what_waits() -> None:
    outbox = Outbox(100, 10)
    outbox.put(push())
    outbox.close(drop=True)
    assert outbox.take() == []
