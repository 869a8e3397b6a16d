"""What a gateway tells of itself, without looking at each recipient."""

from __future__ import annotations

import asyncio

from livetape.adapters.memory.bus import MemoryBus
from unit.gateway.rig import Rig, rigged


class LinkedBus(MemoryBus):
    """Has a link, as one in Redis does."""

    age = 0.5

    def link_age(self) -> float:
        return self.age


async def figures(rig: Rig) -> dict[str, float]:
    """After the next look."""
    for _ in range(6):
        rig.clock.advance(1)
        for _ in range(5):
            await asyncio.sleep(0)
    return rig.counts.values


async def test_what_there_is_of_topics_subscriptions_and_what_waits() -> None:
    async with rigged() as rig:
        await rig.publisher.create()
        slow, quick = rig.connect(), rig.connect()
        for client in (slow, quick):
            await client.subscribe()
        await quick.ask({"method": "subscribe_graph_executions", "data": {"graph_id": "G"}})
        slow.reading.clear()
        for _ in range(2):  # what came first is with the transport
            await rig.publisher.nodes(5)
            await quick.take(5)
        told = await figures(rig)
        assert (told["gateway_topics"], told["gateway_subscriptions"], told["gateway_event_streams"]) == (2, 3, 0)
        assert told["gateway_outbox_bytes"] == told["gateway_outbox_largest_bytes"] > 300
        assert told["gateway_events_total"] == 10
        assert "bus_link_age_seconds" not in told
        slow.reading.set()
        await slow.take(10)
        for client in (slow, quick):
            await client.hang_up()
        told = await figures(rig)
        names = ("gateway_topics", "gateway_subscriptions", "gateway_outbox_bytes", "gateway_outbox_largest_bytes")
        assert [told[name] for name in names] == [0, 0, 0, 0]


async def test_who_begins_with_what_the_log_has_is_counted_once() -> None:
    async with rigged() as rig:
        await rig.publisher.create()
        await rig.publisher.nodes(3)
        client = rig.connect()
        await client.subscribe(since="earliest")
        await client.take(4)
        await client.subscribe(since="latest")
        assert rig.counts.values["gateway_replays_total,execution"] == 1


async def test_the_age_of_the_link_rises_while_it_is_away() -> None:
    bus = LinkedBus()
    async with rigged(bus=bus) as rig:
        assert (await figures(rig))["bus_link_age_seconds"] == 0.5
        bus.age = 7.5
        assert (await figures(rig))["bus_link_age_seconds"] == 7.5


async def test_of_the_batches_of_a_moment_one_is_timed() -> None:
    async with rigged() as rig:
        await rig.publisher.create()
        client = rig.connect()
        await client.subscribe()
        before = len(rig.counts.durations)
        await rig.publisher.nodes(200)
        await client.take(200)
        assert {name for name, _ in rig.counts.durations} == {"gateway_fan_out_seconds"}
        assert 1 <= len(rig.counts.durations) - before < 150
        assert all(0 < seconds < 5 for _, seconds in rig.counts.durations)
