"""A bus whose events are written to tapes first: embedded, with a log that is sometimes away."""

from __future__ import annotations

import asyncio
from typing import Any, Literal

import pytest

from livetape.adapters.memory.bus import MemoryBus
from livetape.errors import LogUnavailableError
from livetape.events.channel import bus_tape, split_tape
from livetape.events.delivery import DeliveryPolicy
from livetape.events.event import Event
from livetape.events.log import NewEvent
from livetape.events.open import Backend
from livetape.events.recorder import AS_RECORDED, Live, LogRecorder, Recorded
from livetape.events.typed import EventBus
from livetape.testing.fakes import FakeLog


class Note(Event):
    event_type: Literal["note"] = "note"
    number: int


class WithOutages(LogRecorder):
    """A recorder that is away while `away`, and whose answer is lost while `mute`."""

    away = False
    mute = False

    async def record(
        self,
        tape: str,
        channel: str,
        event: NewEvent,
        *,
        live: Live = AS_RECORDED,
        owner: str | None = None,
        any_owner: bool = False,
        idempotency_key: str | None = None,
    ) -> Recorded:
        if self.away:
            raise LogUnavailableError
        recorded = await super().record(
            tape, channel, event, live=live, owner=owner, any_owner=any_owner, idempotency_key=idempotency_key
        )
        if self.mute:
            raise LogUnavailableError
        return recorded


class Rig:
    def __init__(self, **options: Any) -> None:
        self.adapter = MemoryBus()
        self.log = FakeLog()
        self.recorder = WithOutages(self.log, self.adapter)
        self.bus = EventBus(
            Note,
            name="notes",
            backend=Backend(self.adapter, self.log, self.recorder),
            durable=True,
            policy=DeliveryPolicy(first_delay_s=0.01, open_s=0.02, longest_open_s=0.02),
            **options,
        )


async def soon(listener: Any) -> Any:
    async with asyncio.timeout(5):
        return await anext(listener)


def test_the_tape_of_a_channel_is_named_after_it() -> None:
    assert bus_tape("notes/a/b%20c") == "bus_events:notes%2Fa%2Fb%2520c"
    assert split_tape(bus_tape("notes/a/b%20c")) == ("bus_events", "notes/a/b%20c")


async def test_history_then_live_without_a_hole() -> None:
    rig = Rig()
    async with rig.bus as bus:
        for number in range(1, 51):
            assert (await bus.publish(Note(number=number), "a")).position is not None
        async with bus.listen("a", after="earliest") as listener:
            assert [(await soon(listener)).number for _ in range(20)] == list(range(1, 21))
            for number in range(51, 61):
                await bus.publish(Note(number=number), "a")
            assert [(await soon(listener)).number for _ in range(40)] == list(range(21, 61))
            assert listener.position is not None
            assert (listener.position.offset, listener.gaps) == (60, 0)
        async with bus.listen("a", after=listener.position) as listener:
            await bus.publish(Note(number=61), "a")
            assert (await soon(listener)).number == 61


async def test_from_now_on_means_from_when_it_was_ready() -> None:
    async with Rig().bus as bus:
        await bus.publish(Note(number=1), "a")
        listener = await bus.listen("a").ready()
        await bus.publish(Note(number=2), "a")
        assert (await soon(listener)).number == 2
        async with bus.listen("new") as fresh:
            await bus.publish(Note(number=3), "new")
            assert (await soon(fresh)).number == 3


async def test_what_was_written_although_nobody_heard_the_answer_is_there_once() -> None:
    rig = Rig()
    async with rig.bus as bus, bus.listen("a", after="earliest") as listener:
        rig.recorder.mute = True
        publishing = asyncio.ensure_future(bus.publish(Note(number=1), "a"))
        await asyncio.sleep(0.005)
        rig.recorder.mute = False
        published = await publishing
        assert published.position is not None
        assert published.position.offset == 1
        await bus.publish(Note(number=2), "a")
        assert [(await soon(listener)).number for _ in range(2)] == [1, 2]


async def test_an_outage_of_the_log_is_bridged() -> None:
    rig = Rig()
    async with rig.bus as bus, bus.listen("a") as listener:
        rig.recorder.away = True
        assert (await bus.publish(Note(number=1), "a")).buffered
        assert isinstance((await bus.publish(Note(number=2), "a")).error, LogUnavailableError)
        assert bus.state != "closed"
        rig.recorder.away = False
        assert await bus.flush(5) == 0
        assert [(await soon(listener)).number for _ in range(2)] == [1, 2]


async def test_trimmed_events_are_a_gap() -> None:
    gaps: list[str] = []
    rig = Rig(on_gap=gaps.append)
    async with rig.bus as bus:
        for number in range(1, 6):
            published = await bus.publish(Note(number=number), "a")
        assert published.position is not None
        await rig.log.trim(bus_tape("notes/a"), keep_after=3)
        async with bus.listen("a", after=type(published.position)(published.position.epoch, 0)) as listener:
            assert [(await soon(listener)).number for _ in range(2)] == [4, 5]
            assert (listener.gaps, gaps) == (1, ["notes/a"])


async def test_a_waiting_listener_can_be_closed_and_a_wait_given_up() -> None:
    async with Rig().bus as bus:
        listener = await bus.listen("a").ready()
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(anext(listener), 0.01)
        waiting = asyncio.ensure_future(anext(listener))
        await asyncio.sleep(0.01)
        await listener.close()
        with pytest.raises(StopAsyncIteration):
            await waiting
        assert await bus.wait_for("a", 0.01) is None


async def test_what_is_published_soon_is_written_too() -> None:
    async with Rig().bus as bus:
        for number in range(100):
            bus.publish_soon(Note(number=number), "a")
        await bus.flush()
        async with bus.listen("a", after="earliest") as listener:
            assert [(await soon(listener)).number for _ in range(100)] == list(range(100))
