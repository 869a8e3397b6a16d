"""Bounded, the oldest lost first, and a marker exactly where something is missing."""

from __future__ import annotations

import asyncio

from hypothesis import given
from hypothesis import strategies as st

from livetape.events.bus import BusMessage
from livetape.events.channel import matches
from livetape.events.inbox import Inbox
from livetape.events.routing import RoutingIndex


async def take(inbox: Inbox, count: int) -> list[BusMessage]:
    async with asyncio.timeout(5):
        return [await anext(inbox) for _ in range(count)]


async def test_the_oldest_go_and_a_marker_takes_their_place() -> None:
    dropped: list[int] = []
    inbox = Inbox(3, 1000, on_drop=dropped.append)
    for number in range(5):
        inbox.offer(BusMessage("c", b"%d" % number))
    assert await take(inbox, 4) == [
        BusMessage("c", b"", gap=True),
        *(BusMessage("c", b"%d" % number) for number in (2, 3, 4)),
    ]
    assert sum(dropped) == 2


async def test_bytes_are_bounded_too_and_several_channels_have_no_name() -> None:
    inbox = Inbox(100, 10)
    for channel in "abcd":
        inbox.offer(BusMessage(channel, b"12345"))
    assert await take(inbox, 3) == [
        BusMessage("", b"", gap=True),
        BusMessage("c", b"12345"),
        BusMessage("d", b"12345"),
    ]


async def test_a_marker_stands_behind_what_came_before_the_loss() -> None:
    inbox = Inbox()
    inbox.offer(BusMessage("c", b"before"))
    inbox.mark_gap()
    inbox.mark_gap()
    inbox.offer(BusMessage("c", b"after"))
    assert [(m.data, m.gap) for m in await take(inbox, 3)] == [(b"before", False), (b"", True), (b"after", False)]


async def test_a_marker_that_is_lost_is_still_a_marker() -> None:
    inbox = Inbox(2)
    inbox.mark_gap()
    for number in range(2):
        inbox.offer(BusMessage("c", b"%d" % number))
    assert [m.gap for m in await take(inbox, 3)] == [True, False, False]


async def test_closing_ends_who_waits() -> None:
    inbox = Inbox()
    waiting = asyncio.ensure_future(take_all(inbox))
    await asyncio.sleep(0)
    inbox.close()
    assert await waiting == []


async def take_all(inbox: Inbox) -> list[BusMessage]:
    return [message async for message in inbox]


NAME = st.sampled_from(["b/x", "b/y", "b/x/y", "b/*", "b/x*", "b/*/y", "b/x/*"])


@given(st.lists(st.tuples(st.booleans(), NAME, st.integers(0, 2)), max_size=30))
def test_the_index_finds_who_listens_each_once(steps: list[tuple[bool, str, int]]) -> None:
    index: RoutingIndex[int] = RoutingIndex()
    listening: set[tuple[str, int]] = set()
    for add, name, member in steps:
        others = any(pattern == name for pattern, _ in listening)
        known = (name, member) in listening
        if add:
            assert index.attach(name, member) is (not others)
            listening.add((name, member))
        else:
            listening.discard((name, member))
            left = any(pattern == name for pattern, _ in listening)
            assert index.detach(name, member) is (known and not left)
        assert bool(index) is bool(listening)
        for channel in ("b/x", "b/y", "b/x/y", "c/x"):
            found = index.members(channel)
            assert sorted(found) == sorted({m for pattern, m in listening if matches(pattern, channel)})
