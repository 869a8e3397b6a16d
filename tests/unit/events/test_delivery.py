"""Publishing through a bus that is sometimes away: on a clock that stands still."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, Literal

import pytest

from livetape.adapters.memory.bus import MemoryBus
from livetape.errors import BusUnavailableError, ChannelError, ConfigError
from livetape.events.codec import split
from livetape.events.delivery import DeliveryPolicy
from livetape.events.event import Event
from livetape.events.result import Dropped, Published
from livetape.events.typed import EventBus
from livetape.testing.fakes import ManualClock


class Tick(Event):
    event_type: Literal["tick"] = "tick"
    number: int
    text: str = ""


class BusWithOutages(MemoryBus):
    """A bus that is away while `away`; what it took stands in `taken`."""

    def __init__(self) -> None:
        super().__init__()
        self.away = False
        self.tries = 0
        self.taken: list[int] = []

    async def publish(self, channel: str, data: bytes) -> int:
        self.tries += 1
        await asyncio.sleep(0)
        if self.away:
            raise BusUnavailableError("away")
        self.taken.append(int(split(data).payload.split(b'"number":')[1].split(b",")[0]))
        await super().publish(channel, data)
        return 1


class Counts:
    def __init__(self) -> None:
        self.counted: dict[tuple[str, str], float] = {}

    def count(self, name: str, amount: float = 1, **labels: str) -> None:
        key = (name, ",".join(labels.values()))
        self.counted[key] = self.counted.get(key, 0) + amount

    def gauge(self, name: str, value: float, **labels: str) -> None:
        pass

    def observe(self, name: str, seconds: float, **labels: str) -> None:
        pass


class Rig:
    """An EventBus on a bus with outages."""

    def __init__(self, policy: DeliveryPolicy | None = None, **options: Any) -> None:
        self.adapter = BusWithOutages()
        self.clock = ManualClock()
        self.metrics = Counts()
        self.dropped: list[Dropped] = []
        self.bus = EventBus(
            Tick,
            name="ticks",
            bus=self.adapter,
            policy=policy,
            metrics=self.metrics,
            clock=self.clock,
            sleep=self.clock.sleep,
            jitter=lambda: 1.0,
            on_drop=self.dropped.append,
            **options,
        )

    async def publish(self, number: int, text: str = "") -> Published:
        return await self.bus.publish(Tick(number=number, text=text), "k")

    def start(self, *numbers: int) -> list[asyncio.Task[Published]]:
        return [asyncio.ensure_future(self.publish(number)) for number in numbers]

    async def settle(self) -> None:
        for _ in range(50):
            await asyncio.sleep(0)

    async def pass_time(self, seconds: float, step: float = 0.05) -> None:
        for _ in range(round(seconds / step)):
            await self.settle()
            self.clock.advance(step)
        await self.settle()

    async def until(self, holds: Callable[[], bool]) -> None:
        for _ in range(2000):
            if holds():
                return
            await self.pass_time(0.05)
        raise AssertionError("never")

    async def outage(self) -> None:
        """The bus goes away, and the circuit opens."""
        self.adapter.away = True
        task = self.start(0)
        await self.until(lambda: self.bus.state == "open")
        assert (await task[0]).buffered


async def test_nothing_waits_while_the_bus_is_there() -> None:
    rig = Rig()
    assert (await rig.publish(1)).receivers == 1
    assert (rig.bus.state, rig.bus.stats.buffered, rig.adapter.tries) == ("closed", 0, 1)
    await rig.bus.close()


async def test_a_short_failure_is_tried_again_and_the_caller_gets_the_true_outcome() -> None:
    rig = Rig()
    rig.adapter.away = True
    tasks = rig.start(1, 2, 3)
    await rig.settle()
    assert not any(task.done() for task in tasks)
    rig.adapter.away = False
    await rig.pass_time(0.1)
    assert [(await task).receivers for task in tasks] == [1, 1, 1]
    assert rig.adapter.taken == [1, 2, 3]
    assert rig.bus.state == "closed"
    await rig.bus.close()


async def test_the_pauses_between_tries_grow() -> None:
    rig = Rig(DeliveryPolicy(attempts=5, first_delay_s=1, longest_delay_s=4))
    rig.adapter.away = True
    (task,) = rig.start(1)
    tries = []
    for _ in range(14):
        await rig.settle()
        tries.append(rig.adapter.tries)
        rig.clock.advance(1)
    # pauses of 1, 2, 4, 4 seconds after the first try
    assert tries[:12] == [1, 2, 2, 3, 3, 3, 3, 4, 4, 4, 4, 5]
    await rig.settle()
    assert (await task).buffered
    rig.adapter.away = False
    await rig.bus.close()


async def test_the_circuit_opens_and_then_nobody_waits() -> None:
    rig = Rig()
    await rig.outage()
    tries = rig.adapter.tries
    published = await rig.publish(1)  # without any time passing
    assert published.buffered
    assert not published
    assert isinstance(published.error, BusUnavailableError)
    assert rig.adapter.tries == tries
    assert rig.bus.stats.buffered == 2
    rig.adapter.away = False
    await rig.bus.close()


async def test_what_waited_leaves_in_order_before_what_comes_later() -> None:
    rig = Rig()
    await rig.outage()
    for number in range(1, 200):
        assert (await rig.publish(number)).buffered
    rig.adapter.away = False
    await rig.pass_time(1.0)
    await rig.until(lambda: rig.bus.state == "closed")
    late = rig.start(200)
    await rig.until(lambda: len(rig.adapter.taken) == 201)
    assert rig.adapter.taken == list(range(201))
    assert (await late[0]).receivers == 1
    assert rig.dropped == []
    await rig.bus.close()


async def test_order_is_kept_among_calls_of_one_moment() -> None:
    rig = Rig()
    rig.adapter.away = True
    tasks = rig.start(1, 2)
    await asyncio.sleep(0)  # both are on their way
    tasks += rig.start(3)
    await rig.settle()
    rig.adapter.away = False
    await rig.pass_time(0.2)
    assert rig.adapter.taken == [1, 2, 3]
    assert all([await task for task in tasks])
    await rig.bus.close()


async def test_while_half_open_only_one_event_tries_the_bus() -> None:
    rig = Rig(DeliveryPolicy(open_s=10, longest_open_s=40))
    await rig.outage()
    for number in range(1, 10):
        await rig.publish(number)
    tries = rig.adapter.tries
    await rig.pass_time(10.0, step=1)
    assert rig.adapter.tries == tries + 1
    assert rig.bus.state == "open"
    await rig.pass_time(19.0, step=1)
    assert rig.adapter.tries == tries + 1, "the next try comes after twice the time"
    await rig.pass_time(1.0, step=1)
    assert rig.adapter.tries == tries + 2
    rig.adapter.away = False
    await rig.bus.close()
    assert rig.adapter.taken == list(range(10))


@pytest.mark.parametrize(
    "policy", [DeliveryPolicy(buffer_events=3), DeliveryPolicy(buffer_bytes=3 * len(b'{"payload":{}}') + 400)]
)
async def test_what_finds_no_room_is_refused_and_told(policy: DeliveryPolicy) -> None:
    rig = Rig(policy)
    await rig.outage()
    outcomes = [await rig.publish(number) for number in range(1, 10)]
    kept = [n for n, outcome in enumerate(outcomes, 1) if outcome.buffered]
    lost = [outcome for outcome in outcomes if not outcome.buffered]
    assert kept == list(range(1, len(kept) + 1)), "what was taken stays"
    assert all(isinstance(outcome.error, BusUnavailableError) and not outcome for outcome in lost)
    assert [(drop.reason, drop.event_type, drop.channel) for drop in rig.dropped] == [
        ("overflow", "tick", "ticks/k")
    ] * len(lost)
    assert rig.metrics.counted["events_dropped_total", "overflow"] == len(lost) == rig.bus.stats.dropped
    rig.adapter.away = False
    await rig.bus.close()
    assert rig.adapter.taken == [0, *kept]


async def test_what_is_too_old_is_dropped() -> None:
    rig = Rig(DeliveryPolicy(max_age_s=60, open_s=1, longest_open_s=1))
    await rig.outage()
    await rig.pass_time(50, step=1)
    await rig.publish(1)
    await rig.pass_time(20, step=1)
    assert [drop.reason for drop in rig.dropped] == ["expired"]
    rig.adapter.away = False
    await rig.pass_time(2, step=1)
    assert rig.adapter.taken == [1]
    await rig.bus.close()


async def test_flush_tries_at_once_and_says_what_is_left() -> None:
    rig = Rig(DeliveryPolicy(open_s=1000, longest_open_s=1000))
    await rig.outage()
    await rig.publish(1)
    flushing = asyncio.ensure_future(rig.bus.flush(5))
    await rig.pass_time(6, step=1)
    assert await flushing == 2
    rig.adapter.away = False
    assert await rig.bus.flush(5) == 0
    assert rig.adapter.taken == [0, 1]
    assert await rig.bus.flush(5) == 0
    await rig.bus.close()


async def test_close_is_bounded_and_says_what_was_lost(caplog: pytest.LogCaptureFixture) -> None:
    rig = Rig(DeliveryPolicy(close_s=3))
    await rig.outage()
    await rig.publish(1)
    closing = asyncio.ensure_future(rig.bus.close())
    await rig.pass_time(4, step=0.5)
    assert closing.done()
    assert [drop.reason for drop in rig.dropped] == ["closed", "closed"]
    assert "closed with 2 events that could not be sent" in caplog.text
    assert (await rig.publish(2)).error is not None


async def test_without_a_buffer_an_outage_is_an_error() -> None:
    rig = Rig(DeliveryPolicy(buffer_events=0, open_s=10, longest_open_s=10))
    rig.adapter.away = True
    (task,) = rig.start(1)
    await rig.pass_time(1)
    published = await task
    assert (published.buffered, bool(published)) == (False, False)
    assert isinstance(published.error, BusUnavailableError)
    tries = rig.adapter.tries
    assert isinstance((await rig.publish(2)).error, BusUnavailableError)
    assert rig.adapter.tries == tries, "an open circuit is not tried"
    await rig.pass_time(11, step=1)
    assert rig.bus.state == "half_open"
    rig.adapter.away = False
    (task,) = rig.start(3)
    await rig.pass_time(1)
    assert (await task).receivers == 1
    assert rig.bus.state == "closed"
    assert (await rig.publish(4)).receivers == 1
    assert [drop.reason for drop in rig.dropped] == ["unavailable", "unavailable"]
    await rig.bus.close()


async def test_raising_raises_after_the_tries() -> None:
    rig = Rig(on_error="raise")
    rig.adapter.away = True
    (task,) = rig.start(1)
    await rig.pass_time(1)
    with pytest.raises(BusUnavailableError):
        await task
    with pytest.raises(ChannelError):
        await rig.bus.publish(Tick(number=1), "a/*")
    await rig.bus.close()


async def test_raising_with_a_buffer_takes_the_event() -> None:
    rig = Rig(DeliveryPolicy(), on_error="raise")
    await rig.outage()
    assert (await rig.publish(1)).buffered
    rig.adapter.away = False
    await rig.bus.close()
    assert rig.adapter.taken == [0, 1]


async def test_who_gives_up_waiting_takes_his_event_along() -> None:
    rig = Rig()
    rig.adapter.away = True
    one, other = rig.start(1, 2)
    await rig.settle()
    one.cancel()
    rig.adapter.away = False
    await rig.pass_time(0.2)
    assert one.cancelled()
    assert (await other).receivers == 1
    assert rig.adapter.taken == [2]
    await rig.bus.close()


async def test_an_error_that_no_retry_cures_is_told_at_once() -> None:
    class Refusing(MemoryBus):
        async def publish(self, channel: str, data: bytes) -> int:
            raise ChannelError("not you")

    bus = EventBus(Tick, name="t", bus=Refusing())
    published = await bus.publish(Tick(number=1), "k")
    assert isinstance(published.error, ChannelError)
    assert bus.state == "closed"
    assert bus.stats.failed == 1
    await bus.close()


async def test_an_adapter_that_breaks_its_promise_does_not_break_the_publisher() -> None:
    class Broken(MemoryBus):
        async def publish(self, channel: str, data: bytes) -> int:
            raise OSError("what is this")

    bus = EventBus(Tick, name="t", bus=Broken())
    published = await bus.publish(Tick(number=1), "k")
    assert published.error is not None
    assert published.error.code == "bus"
    await bus.close()


async def test_a_callback_that_fails_does_no_harm(caplog: pytest.LogCaptureFixture) -> None:
    rig = Rig(DeliveryPolicy(buffer_events=0))
    rig.bus._delivery._on_drop = lambda drop: 1 / 0
    rig.adapter.away = True
    (task,) = rig.start(1)
    await rig.pass_time(1)
    assert not await task
    assert "on_drop failed" in caplog.text
    await rig.bus.close()


# ---- without waiting ----


async def test_what_is_published_soon_leaves_together_in_order() -> None:
    rig = Rig()
    assert all(rig.bus.publish_soon(Tick(number=number), "k") for number in range(600))
    assert rig.adapter.taken == []
    await rig.bus.flush()
    assert rig.adapter.taken == list(range(600))
    await rig.bus.close()


async def test_a_batch_leaves_by_time_or_by_size() -> None:
    rig = Rig()
    async with rig.bus.batch(max_events=3, max_delay_s=0.01) as batch:
        batch.publish(Tick(number=1), "k")
        async with asyncio.timeout(5):
            while rig.adapter.taken != [1]:
                await asyncio.sleep(0.005)
    async with rig.bus.batch(max_events=3, max_delay_s=1000) as batch:
        for number in (2, 3):
            batch.publish(Tick(number=number), "k")
        await rig.settle()
        assert rig.adapter.taken == [1]
        batch.publish(Tick(number=4), "k")
        await rig.settle()
        assert rig.adapter.taken == [1, 2, 3, 4]
        batch.publish(Tick(number=5, text="x" * 300_000), "k")
        await rig.settle()
        assert rig.adapter.taken[-1] == 5
        batch.publish(Tick(number=6), "k")
    assert rig.adapter.taken[-1] == 6
    await rig.bus.close()


async def test_a_batch_survives_an_outage() -> None:
    rig = Rig()
    await rig.outage()
    for number in range(1, 50):
        rig.bus.publish_soon(Tick(number=number), "k")
    flushing = asyncio.ensure_future(rig.bus.flush(0.5))
    await rig.pass_time(1)
    assert await flushing == 50
    rig.adapter.away = False
    await rig.bus.close()
    assert rig.adapter.taken == list(range(50))


async def test_an_outage_that_begins_in_the_middle_of_a_batch() -> None:
    rig = Rig(DeliveryPolicy(first_delay_s=0.01))
    for number in range(20):
        rig.bus.publish_soon(Tick(number=number), "k")
    rig.adapter.away = True
    flushing = asyncio.ensure_future(rig.bus.flush())
    await rig.settle()
    rig.adapter.away = False
    await rig.pass_time(1)
    assert await flushing == 0
    assert rig.adapter.taken == list(range(20))
    await rig.bus.close()


async def test_a_batch_refuses_what_it_cannot_hold_or_send() -> None:
    rig = Rig()
    batch = rig.bus.batch(max_delay_s=1000, max_events=100_000)
    batch._max_waiting = 3
    assert [batch.publish(Tick(number=n), "k") for n in range(5)] == [True, True, True, False, False]
    assert not rig.bus.publish_soon(Tick(number=1), "a*")
    assert [drop.reason for drop in rig.dropped] == ["overflow", "overflow"]
    await batch.close()
    assert rig.adapter.taken == [0, 1, 2]
    await rig.bus.close()


async def test_who_waits_is_answered_within_the_bound() -> None:
    rig = Rig(DeliveryPolicy(first_delay_s=1000, longest_delay_s=1000, wait_s=0.05))
    rig.adapter.away = True
    tasks = rig.start(1, 2)  # real time passes, the manual clock stands still
    assert all([(await asyncio.wait_for(task, 5)).buffered for task in tasks])
    assert rig.bus.state == "open"
    rig.adapter.away = False
    await rig.bus.close()
    assert rig.adapter.taken == [1, 2]


async def test_many_who_find_no_room_are_answered_at_once() -> None:
    rig = Rig()
    rig.adapter.away = True
    tasks = rig.start(*range(5000))
    await rig.until(lambda: rig.bus.state == "open")
    outcomes = [await task for task in tasks]
    assert [outcome.buffered for outcome in outcomes] == [True] * 1000 + [False] * 4000
    rig.adapter.away = False
    await rig.bus.close()


async def test_a_live_bus_knows_no_repetitions() -> None:
    rig = Rig()
    assert isinstance((await rig.bus.publish(Tick(number=1), "k", idempotency_key="x")).error, ConfigError)
    await rig.bus.close()
    assert not rig.bus.publish_soon(Tick(number=1), "k")


class SilentBus(BusWithOutages):
    """One that does not answer before it is allowed to."""

    def __init__(self) -> None:
        super().__init__()
        self.allowed = asyncio.Event()
        self.allowed.set()

    async def publish(self, channel: str, data: bytes) -> int:
        await self.allowed.wait()
        return await super().publish(channel, data)


@pytest.mark.parametrize("known", [False, True])
async def test_a_bus_that_is_silent_does_not_keep_its_publisher(known: bool) -> None:
    adapter = SilentBus()
    policy = DeliveryPolicy(wait_s=0.1, open_s=0.05, longest_open_s=0.05)
    async with EventBus(Tick, name="ticks", bus=adapter, policy=policy) as bus:
        before = [0] if known else []  # of a class that was seen before, it goes the short way
        for number in before:
            await bus.publish(Tick(number=number), "k")
        adapter.allowed.clear()
        published = await asyncio.wait_for(bus.publish(Tick(number=1), "k"), 5)
        assert published.buffered
        assert (await asyncio.wait_for(bus.publish(Tick(number=2), "k"), 5)).buffered
        adapter.allowed.set()
        assert await bus.flush(5) == 0
        assert adapter.taken == [*before, 1, 2]
        assert bus.state == "closed"
        task = asyncio.current_task()
        assert task is not None
        assert task.cancelling() == 0
