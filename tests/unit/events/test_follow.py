"""Following one tape: what is promised, on a bus that keeps nothing of its promises."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import replace

import pytest

from livetape.errors import ClosedError, LogUnavailableError
from livetape.events.codec import Envelope
from livetape.events.follow import FollowOptions, follow
from livetape.events.log import MAX_READ, Entry, NewEvent, Position, Tape
from livetape.events.recorder import Live, LogRecorder
from livetape.events.recovery import REPLACEMENT, Gap, Item
from livetape.events.tape_event import TapeEvent
from livetape.testing.fakes import FakeLog, ManualClock
from unit.events.lossy_bus import LossyBus

TAPE, CHANNEL = "job_events:j", "job_event/j"
PATIENCE_S = 5


def brief(item: Item) -> object:
    """An item as tests compare it: the offset, or a gap's bounds."""
    return item.offset if isinstance(item, TapeEvent) else (item.first, item.last)


class Rig:
    """One tape, its log and its bus, and time that stands still."""

    def __init__(self, bus: LossyBus | None = None) -> None:
        self.clock = ManualClock()
        self.numbers = iter(range(1, 1000))
        self.log = FakeLog(self.clock, epochs=lambda: f"epoch{next(self.numbers)}")
        self.bus = bus or LossyBus(faults=0)
        self.recorder = LogRecorder(self.log, self.bus)

    async def record(self, count: int = 1, *, live: Live | None = None, final: bool = False, size: int = 0) -> None:
        for _ in range(count):
            event = NewEvent("step", b'{"event_type":"step","data":"%b"}' % (b"x" * size), final=final)
            await self.recorder.record(TAPE, CHANNEL, event, live=live or Live())

    async def append(self, count: int = 1) -> None:
        """Onto the tape alone: the messages were lost."""
        for _ in range(count):
            await self.log.append(TAPE, NewEvent("step", b"{}"))

    def lose_log(self) -> None:
        self.log.lose(TAPE)
        self.recorder = LogRecorder(self.log, self.bus)

    def follow(self, after: object = "earliest", **more: object) -> AsyncGenerator[Item, None]:
        more.setdefault("sleep", self.clock.sleep)
        return follow(self.log, self.bus, TAPE, CHANNEL, after=after, **more)

    async def advance(self, seconds: float) -> None:
        for _ in range(int(seconds * 4)):
            self.clock.advance(0.25)
            await settle()


async def settle() -> None:
    for _ in range(30):
        await asyncio.sleep(0)


class Reader:
    """Follows in a task and keeps what it saw."""

    def __init__(self, follower: AsyncGenerator[Item, None]) -> None:
        self.seen: list[Item] = []
        self.task = asyncio.create_task(self._run(follower))

    async def _run(self, follower: AsyncGenerator[Item, None]) -> None:
        async with aclosing(follower):
            async for item in follower:
                self.seen.append(item)

    @property
    def brief(self) -> list[object]:
        return [brief(item) for item in self.seen]


@asynccontextmanager
async def reading(follower: AsyncGenerator[Item, None]) -> AsyncIterator[Reader]:
    reader = Reader(follower)
    await settle()
    try:
        yield reader
    finally:
        reader.task.cancel()
        await asyncio.gather(reader.task, return_exceptions=True)


async def test_history_then_live() -> None:
    rig = Rig()
    await rig.record(3)
    async with reading(rig.follow()) as reader:
        await rig.record(2)
        await settle()
        assert reader.brief == [1, 2, 3, 4, 5]
        assert {item.epoch for item in reader.seen} == {"epoch1"}


async def test_after_a_position_and_from_now_on() -> None:
    rig = Rig()
    await rig.record(3)
    async with reading(rig.follow(Position("epoch1", 2))) as later, reading(rig.follow(None)) as now:
        await rig.record()
        await settle()
        assert later.brief == [3, 4]
        assert now.brief == [4]


@pytest.mark.parametrize("after", ["earliest", None, Position("", 0)])
async def test_a_tape_that_does_not_exist_yet(after: object) -> None:
    rig = Rig()
    async with reading(rig.follow(after)) as reader:
        await rig.record(2)
        await rig.advance(1)
        assert reader.brief == [1, 2]


@pytest.mark.parametrize("after", ["earliest", None])
async def test_a_tape_that_nobody_told_of(after: object) -> None:
    """The first events were lost on the bus, or written by somebody who publishes nothing."""
    rig = Rig()
    async with reading(rig.follow(after)) as reader:
        await rig.append(2)
        await rig.advance(1)
        assert reader.brief == [1, 2]


async def test_a_lost_message_is_read_from_the_log() -> None:
    rig = Rig()
    async with reading(rig.follow()) as reader:
        await rig.record()
        await settle()
        await rig.append(3)
        await settle()
        await rig.record()
        await settle()
        assert reader.brief == [1, 2, 3, 4, 5]


async def test_a_lost_last_message_is_found_by_the_sweep() -> None:
    rig = Rig()
    async with reading(rig.follow()) as reader:
        await rig.record(2)
        await settle()
        await rig.append()
        await rig.advance(20)
        assert reader.brief == [1, 2]
        await rig.advance(6)
        assert reader.brief == [1, 2, 3]


async def test_doubled_and_late_messages_change_nothing() -> None:
    rig = Rig()
    async with reading(rig.follow()) as reader:
        await rig.record(3)
        for offset in (2, 1, 3, 3):
            await rig.bus.publish(CHANNEL, Envelope(b"{}", "step", offset, "epoch1").encode())
        await settle()
        assert reader.brief == [1, 2, 3]


async def test_what_was_too_large_for_the_bus_comes_from_the_log() -> None:
    rig = Rig()
    async with reading(rig.follow()) as reader:
        await rig.record(live=Live(b'{"event_type":"error_comms_update"}', REPLACEMENT), size=100)
        await rig.record()
        await settle()
        assert reader.brief == [1, 2]
        assert reader.seen[0].event_type == "step"
        assert len(reader.seen[0].payload) > 100


@pytest.mark.parametrize("breaks", [False, True])
async def test_a_broken_link_is_made_again_and_the_log_read(breaks: bool) -> None:
    rig = Rig()
    rig.bus.breaks = breaks
    async with reading(rig.follow()) as reader:
        await rig.record()
        await settle()
        rig.bus.down = True
        await rig.bus.cut()
        await rig.record(2)  # the recorder says that it was not pushed
        await rig.advance(30)
        assert reader.brief == [1, 2, 3], "without a link the log is polled"
        rig.bus.down = False
        await rig.advance(6)
        assert rig.bus.subscribed == 2
        await rig.record()
        await settle()
        assert reader.brief == [1, 2, 3, 4]


async def test_a_gap_marker_has_the_log_read() -> None:
    rig = Rig()
    async with reading(rig.follow()) as reader:
        await rig.append(2)
        await rig.bus.publish(CHANNEL, b"no envelope at all")
        await settle()
        assert reader.brief == [1, 2]


class DownLog(FakeLog):
    down = False

    async def describe(self, tape: str) -> Tape | None:
        if self.down:
            raise LogUnavailableError
        return await super().describe(tape)

    async def read(
        self, tape: str, after: int = 0, *, limit: int = MAX_READ, epoch: str | None = None
    ) -> Sequence[Entry]:
        if self.down:
            raise LogUnavailableError
        return await super().read(tape, after, limit=limit, epoch=epoch)


async def test_a_log_that_is_away_is_waited_for_and_live_events_go_on() -> None:
    rig = Rig()
    rig.log = DownLog(rig.clock)
    rig.recorder = LogRecorder(rig.log, rig.bus)
    await rig.record(2)
    rig.log.down = True
    async with reading(rig.follow(None)) as late:
        rig.log.down = False
        async with reading(rig.follow()) as reader:
            assert reader.brief == [1, 2]
            rig.log.down = True
            await rig.bus.publish(CHANNEL, b"?")
            await settle()
            await rig.record()
            await rig.advance(1)
            assert reader.brief == [1, 2, 3]
            rig.log.down = False
            await rig.append()
            await rig.advance(10)
            assert reader.brief == [1, 2, 3, 4]
        assert late.brief[-2:] == [3, 4]


async def test_trimmed_events_are_told_before_what_follows() -> None:
    rig = Rig()
    await rig.record(5)
    await rig.log.trim(TAPE, keep_after=3)
    async with reading(rig.follow(Position("epoch1", 1))) as reader, reading(rig.follow()) as earliest:
        assert reader.brief == [(2, 3), 4, 5]
        assert earliest.brief == [4, 5]


async def test_a_tape_that_was_trimmed_to_nothing() -> None:
    rig = Rig()
    await rig.record(5)
    await rig.log.trim(TAPE, keep_after=5)
    async with reading(rig.follow(Position("epoch1", 1))) as reader:
        assert reader.brief == [(2, 5)]
        await rig.record()
        await settle()
        assert reader.brief == [(2, 5), 6]


async def test_a_tape_that_is_born_again_is_told_and_read_from_its_beginning() -> None:
    rig = Rig()
    await rig.record(5)
    async with reading(rig.follow(Position("epoch1", 3))) as reader:
        rig.lose_log()
        await rig.record(2)
        await settle()
        await rig.bus.publish(CHANNEL, Envelope(b"{}", "step", 6, "epoch1").encode())  # from before, late
        await rig.record()
        await rig.advance(3)
        assert reader.brief == [4, 5, (6, None), 1, 2, 3]
        assert reader.seen[2] == Gap(6, None, "epoch2")
        assert [item.epoch for item in reader.seen[3:]] == ["epoch2"] * 3


async def test_a_tape_that_is_lost_and_stays_away_is_waited_for() -> None:
    rig = Rig()
    await rig.record(2)
    async with reading(rig.follow()) as reader:
        rig.lose_log()
        await rig.advance(60)
        assert reader.brief == [1, 2]
        await rig.append()
        await rig.advance(1)
        assert reader.brief == [1, 2, (3, None), 1]


@pytest.mark.parametrize("offset", [5, 999])
@pytest.mark.parametrize("event_type", ["step", REPLACEMENT])
async def test_what_the_log_never_shows_is_dropped(
    offset: int, event_type: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Forged, or from a publisher on a log that was lost: it must not make anybody deaf."""
    rig = Rig()
    await rig.record(3)
    async with reading(rig.follow()) as reader:
        await rig.bus.publish(CHANNEL, Envelope(b"{}", event_type, offset, "epoch1").encode())
        await rig.advance(5)
        assert reader.brief == [1, 2, 3]
        assert "does not have" in caplog.text
        await rig.record(6)
        await settle()
        assert reader.brief == list(range(1, 10))


async def test_forged_offsets_do_not_hold_up_what_is_real() -> None:
    rig = Rig()
    await rig.record()
    async with reading(rig.follow()) as reader:
        for number in range(2, 30):
            await rig.bus.publish(CHANNEL, Envelope(b"{}", "step", 500 + number, "epoch1").encode())
            await rig.record()
            await rig.advance(1)
            assert reader.brief == list(range(1, number + 1))


@pytest.mark.parametrize("after", [6, 999])
async def test_a_position_beyond_the_end_is_told_and_followed_from_the_end(after: int) -> None:
    rig = Rig()
    await rig.record(3)
    async with reading(rig.follow(Position("epoch1", after))) as reader:
        assert reader.seen == [Gap(None, None, "epoch1")]
        await rig.record(4)
        await settle()
        assert reader.brief[1:] == [4, 5, 6, 7]


@pytest.mark.parametrize("linked", [True, False])
async def test_a_log_that_loses_its_end_is_told(linked: bool) -> None:
    """Its epoch is the same, its numbers come again."""
    rig = Rig()
    await rig.record(6)
    async with reading(rig.follow()) as reader:
        rig.log.cut(TAPE, 3)
        if not linked:
            await rig.bus.cut()
            await rig.advance(6)
        await rig.record()
        await settle()
        assert reader.seen[6] == Gap(None, None, "epoch1")
        await rig.record(5)
        await settle()
        assert reader.brief[7:] == [*([] if linked else [4]), 5, 6, 7, 8, 9]


async def test_a_position_without_a_tape_is_of_no_use_to_a_tape_that_is_born_later() -> None:
    rig = Rig()
    async with reading(rig.follow(Position("", 6))) as reader:
        await rig.record(2)
        await rig.advance(1)
        assert reader.brief == [(None, None), 1, 2]


async def test_what_was_too_large_and_is_lost_from_the_log_is_a_gap() -> None:
    rig = Rig()
    async with reading(rig.follow()) as reader:
        await rig.bus.publish(
            CHANNEL, Envelope(b'{"event_type":"error_comms_update"}', REPLACEMENT, 1, "gone").encode()
        )
        await rig.bus.publish(CHANNEL, Envelope(b"{}", "step", 2, "gone").encode())
        await rig.advance(5)
        assert reader.brief == [(1, 1), 2]


async def test_an_event_whose_tape_was_lost_at_once() -> None:
    rig = Rig()
    async with reading(rig.follow()) as reader:
        await rig.bus.publish(CHANNEL, Envelope(b"{}", "step", 1, "gone").encode())
        await rig.advance(5)
        assert reader.brief == [1]


async def test_it_ends_after_the_final_event() -> None:
    rig = Rig()
    await rig.record(2)
    async with reading(rig.follow(until_final=True)) as reader:
        assert not reader.task.done()
        await rig.record(final=True)
        await settle()
        assert reader.task.done()
        assert reader.brief == [1, 2, 3]
        assert not rig.bus.open
    async with reading(rig.follow(until_final=True)) as again:
        assert again.task.done()
        assert again.brief == [1, 2, 3]
    for after in (Position("epoch1", 3), None):
        async with reading(rig.follow(after, until_final=True)) as beyond:
            assert beyond.task.done()
            assert beyond.brief == []
    async with reading(rig.follow()) as endless:
        await rig.record()
        await settle()
        assert endless.brief == [1, 2, 3, 4]


async def test_a_graphs_tape_counts_by_its_own_numbers() -> None:
    rig = Rig()
    channel = "execution_event/u/g/*"
    async with reading(
        follow(rig.log, rig.bus, "graph_events:g", channel, after=None, sleep=rig.clock.sleep)
    ) as reader:
        position = await rig.log.append("graph_events:g", NewEvent("graph_execution_update", b"{}", final=True))
        await rig.advance(1)
        await rig.bus.publish(
            "execution_event/u/g/e",
            Envelope(b"{}", "graph_execution_update", 17, "other", 2, position.epoch, final=True).encode(),
        )
        await rig.bus.publish("execution_event/u/g/e", Envelope(b"{}", "node_execution_update", 18, "other").encode())
        await settle()
        assert reader.brief == [1, 2]
        assert not any(item.final for item in reader.seen)


class MixedLog(FakeLog):
    """Offsets like those of a stream that others write to: rising, with holes."""

    step = 1000

    async def describe(self, tape: str) -> Tape | None:
        found = await super().describe(tape)
        if found is None:
            return None
        return replace(found, mixed=True, offset=found.offset * self.step, first_offset=found.first_offset * self.step)

    async def read(
        self, tape: str, after: int = 0, *, limit: int = MAX_READ, epoch: str | None = None
    ) -> Sequence[Entry]:
        entries = await super().read(tape, after // self.step, limit=limit, epoch=epoch)
        return [entry._replace(offset=entry.offset * self.step) for entry in entries]


async def test_a_mixed_tape_is_read_again_and_again() -> None:
    rig = Rig()
    rig.log = MixedLog(rig.clock)
    await rig.append(2)
    async with reading(rig.follow()) as reader, reading(rig.follow(None)) as now:
        assert reader.brief == [1000, 2000]
        await rig.append()
        await rig.bus.publish(CHANNEL, Envelope(b"{}", "step").encode())  # ours, without a position
        await settle()
        assert reader.brief == [1000, 2000, 3000]
        await rig.append()  # a stranger's
        await rig.advance(1)
        assert reader.brief == [1000, 2000, 3000, 4000]
        assert now.brief == [3000, 4000]


async def test_a_mixed_tape_that_was_trimmed_says_that_something_may_be_missing() -> None:
    rig = Rig()
    rig.log = MixedLog(rig.clock)
    await rig.append(5)
    epoch = (await rig.log.describe(TAPE)).epoch
    await rig.log.trim(TAPE, keep_after=3)
    async with reading(rig.follow(Position(epoch, 2000))) as reader:
        assert reader.seen[0] == Gap(None, None, epoch)
        assert reader.brief[1:] == [4000, 5000]


async def test_nothing_is_left_after_closing_or_cancelling() -> None:
    rig = Rig()
    await rig.record(3)
    before = asyncio.all_tasks()
    follower = rig.follow()
    async for _ in follower:
        break
    assert len(asyncio.all_tasks()) > len(before)
    await follower.aclose()
    assert asyncio.all_tasks() == before
    assert not rig.bus.open
    async with reading(rig.follow()):
        pass
    assert asyncio.all_tasks() == before
    assert not rig.bus.open


async def test_a_closed_bus_or_log_ends_it() -> None:
    rig = Rig()
    async with reading(rig.follow()) as reader:
        await rig.bus.close()
        await rig.advance(1)
        with pytest.raises(ClosedError):
            await asyncio.wait_for(reader.task, PATIENCE_S)
    rig = Rig()
    await rig.log.close()
    async with reading(rig.follow()) as reader:
        with pytest.raises(ClosedError):
            await asyncio.wait_for(reader.task, PATIENCE_S)


async def test_memory_is_bounded_while_the_consumer_rests() -> None:
    """Nothing waits for it but a tail of the size asked for; the log has the rest."""
    rig = Rig()
    options = FollowOptions(chunk_events=10, tail_events=5)
    follower = rig.follow(options=options)
    await rig.record(1)
    seen = [brief(await anext(follower))]
    for _ in range(200):
        await rig.record()
        await asyncio.sleep(0)
    held = list(follower.ag_frame.f_locals["tail"])
    assert len(held) <= 5
    while len(seen) < 201:
        seen.append(brief(await anext(follower)))
    assert seen == list(range(1, 202))
    await follower.aclose()


@pytest.mark.parametrize("seed", range(5))
async def test_on_a_bus_that_lies(seed: int) -> None:
    rig = Rig(LossyBus(seed, faults=0.5))
    async with reading(rig.follow()) as reader:
        for _ in range(100):
            await rig.record()
            if rig.bus.random.random() < 0.05:
                await rig.bus.cut()
            if rig.bus.random.random() < 0.3:
                await rig.advance(0.25)
        await rig.advance(30)
        assert reader.brief == list(range(1, 101))
