"""Bounded, nothing taken is dropped, everything leaves in one go."""

from __future__ import annotations

import asyncio

import pytest

from livetape.gateway.messages import Push
from livetape.gateway.outbox import CHUNK_BYTES, Outbox


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


# ---- with a way through ----


def straight(max_bytes: int = 100, max_messages: int = 10) -> tuple[Outbox, list[Push]]:
    sent: list[Push] = []
    return Outbox(max_bytes, max_messages, sent.append), sent


def test_what_comes_goes_straight_through() -> None:
    outbox, sent = straight()
    given = [push(), push(1000)]
    assert outbox.put(given[0])
    outbox.force(given[1])
    assert sent == given
    assert outbox.size == 0


def test_while_it_is_shut_it_keeps_back_within_its_bounds_and_then_leaves_in_one_go() -> None:
    outbox, sent = straight()
    outbox.shut = True
    assert outbox.put(push(40))
    assert outbox.put(push(40))
    assert not outbox.put(push(40))
    outbox.force(push(40))
    assert (sent, outbox.size) == ([], 120)
    outbox.open()
    assert [one.count for one in sent] == [3]
    assert [len(part.data) for part in sent[0].parts] == [40, 40, 40]
    assert outbox.put(push())


def test_it_stops_when_it_is_shut_again_while_it_empties() -> None:
    sent: list[Push] = []

    def send(one: Push) -> None:
        sent.append(one)
        outbox.shut = True

    outbox = Outbox(10 * CHUNK_BYTES, 100, send)
    outbox.shut = True
    for _ in range(5):
        outbox.put(push(CHUNK_BYTES // 2))
    outbox.open()
    assert [one.count for one in sent] == [2], "about as much as a chunk"
    outbox.open()
    outbox.open()
    assert [one.count for one in sent] == [2, 2, 1]
    assert outbox.size == 0


def test_order_holds_across_a_time_when_it_was_shut() -> None:
    outbox, sent = straight(10_000, 1000)
    given = [push(size) for size in range(1, 30)]
    for number, one in enumerate(given):
        if number % 7 == 3:
            outbox.shut = True
        if number % 7 == 6:
            outbox.open()
        outbox.put(one)
    outbox.open()
    assert [part for one in sent for part in one.parts] == given


def test_close_lets_what_waits_leave_or_drops_it() -> None:
    for drop in (False, True):
        outbox, sent = straight()
        outbox.shut = True
        outbox.put(push())
        outbox.close(drop=drop)
        assert len(sent) == (0 if drop else 1)
        assert outbox.put(push()), "nobody has to come back"
        assert len(sent) == (0 if drop else 1)


async def test_who_waits_for_room_is_woken_when_it_opens_or_is_closed() -> None:
    for end in ("open", "close"):
        outbox, _ = straight()
        outbox.shut = True
        outbox.put(push(90))
        waiter = asyncio.ensure_future(outbox.room())
        assert await is_waiting(waiter)
        getattr(outbox, end)()
        await waiter
