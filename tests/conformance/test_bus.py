"""The memory bus keeps the Bus contract, and the suite notices every bus that does not."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest

from livetape.adapters.memory.bus import MemoryBus
from livetape.events.bus import Bus
from livetape.testing.broken_bus import BROKEN_BUSES, ListensLate, NeverEnds, SoftBus
from livetape.testing.conformance.bus import BusSuite
from livetape.testing.conformance.runner import cases, run_suite


@asynccontextmanager
async def opened(make: Callable[[], Bus]) -> AsyncIterator[Bus]:
    bus = make()
    try:
        yield bus
    finally:
        await bus.close()


class TestMemoryBus(BusSuite):
    @pytest.fixture
    async def bus(self) -> AsyncIterator[Bus]:
        async with opened(MemoryBus) as bus:
            yield bus


@pytest.mark.parametrize(("make", "case"), BROKEN_BUSES.items(), ids=lambda value: getattr(value, "__name__", "in"))
async def test_a_broken_bus_fails(make: Callable[[], Bus], case: str) -> None:
    failures = await run_suite(BusSuite, lambda: opened(make), only=[case], timeout_s=1, patience_s=0.05, flood=12_000)
    assert case in {failure.case for failure in failures}


async def test_the_broken_buses_are_broken_in_nothing_else() -> None:
    """Their base keeps every promise but the bound, so that each of them fails for its own fault."""
    failures = await run_suite(BusSuite, lambda: opened(SoftBus), timeout_s=0.5, patience_s=0.05, flood=12_000)
    assert [failure.case for failure in failures] == [
        "test_a_reader_that_falls_behind_loses_the_oldest_and_gets_a_marker"
    ]


async def test_every_case_is_failed_by_some_broken_bus() -> None:
    """A case that no broken bus fails may be checking nothing."""
    unproven = set(cases(BusSuite)) - set(BROKEN_BUSES.values())
    for make in (ListensLate, NeverEnds):
        found = await run_suite(
            BusSuite, lambda make=make: opened(make), only=sorted(unproven), timeout_s=0.5, patience_s=0.05
        )
        unproven -= {failure.case for failure in found}
    assert unproven == set()


async def test_a_gap_names_the_channel_when_only_one_lost_messages() -> None:
    async with opened(lambda: MemoryBus(max_messages=2)) as bus, await bus.subscribe("b/*") as subscription:
        for channel in ("b/x", "b/x", "b/x", "b/y"):
            await bus.publish(channel, b"1")
        messages = aiter(subscription)
        marker = await anext(messages)
        assert (marker.gap, marker.channel) == (True, "b/x")
        for channel in ("b/x", "b/y", "b/y"):
            await bus.publish(channel, b"2")
        assert (await anext(messages)).channel == ""


async def test_a_buffer_is_bounded_by_bytes_too() -> None:
    async with opened(lambda: MemoryBus(max_bytes=100)) as bus, await bus.subscribe("b/x") as subscription:
        await bus.publish("b/x", b"1" * 60)
        await bus.publish("b/x", b"2" * 60)
        messages = aiter(subscription)
        assert (await anext(messages)).gap
        assert (await anext(messages)).data == b"2" * 60
        await bus.publish("b/x", b"3" * 101)
        assert (await anext(messages)).gap, "a message that never fits is lost, and told"


async def test_matching_follows_a_changing_set_of_patterns() -> None:
    async with opened(MemoryBus) as bus, await bus.subscribe("b/a*") as subscription:
        assert await bus.publish("b/abc", b"") == 1
        await subscription.add("b/*c")
        assert await bus.publish("b/abc", b"") == 1
        await subscription.remove("b/a*")
        assert await bus.publish("b/abc", b"") == 1
        assert await bus.publish("b/abd", b"") == 0
        await subscription.remove("b/*c")
        assert await bus.publish("b/abc", b"") == 0
