"""Reading jobs: pages, filters, live, search, groups of workers, replay."""

from __future__ import annotations

import asyncio
import itertools
import math
from contextlib import aclosing

import pytest

from livetape.adapters.memory.bus import MemoryBus
from livetape.errors import ChannelError, ConfigError, PositionLostError
from livetape.events.job_record import JobRecord
from livetape.events.log import Entry, NewEvent, Position
from livetape.events.open import Backend
from livetape.events.reader import MAX_SCANNED, JobReader
from livetape.events.recorder import LogRecorder
from livetape.events.recovery import Gap
from livetape.events.streams import RedisStreamPublisher
from livetape.testing.fakes import FakeLog, ManualClock


class Rig:
    def __init__(self) -> None:
        self.clock = ManualClock()
        self.log, self.bus = FakeLog(self.clock, epochs=(f"epoch{n}" for n in itertools.count(1)).__next__), MemoryBus()
        self.backend = Backend(self.bus, self.log, LogRecorder(self.log, self.bus))
        self.publisher = RedisStreamPublisher(backend=self.backend, clock=self.clock, user_id="ann")
        self.reader = JobReader(self.log, self.bus, clock=self.clock, sleep=self.clock.sleep)

    async def publish(self, count: int, job_id: str = "j", *, every_s: float = 0, **data: object) -> None:
        for number in range(1, count + 1):
            event = {"event_type": "odd" if number % 2 else "even", "timestamp": f"t{number}", "n": number, **data}
            await self.publisher.publish_event(job_id, event)
            self.clock.advance(every_s)


def numbers(items: object) -> list[object]:
    return [item.data["n"] if isinstance(item, JobRecord) else item for item in items]


async def test_info_and_length() -> None:
    rig = Rig()
    assert await rig.reader.info("j") is None
    assert await rig.reader.length("j") == 0
    await rig.publish(5)
    await rig.log.trim("job_events:j", keep_after=2)
    info = await rig.reader.info("j")
    assert (info.job_id, info.owner, info.length, info.first_offset, info.offset) == ("j", "ann", 3, 3, 5)
    assert (info.position, info.final, info.mixed) == (Position("epoch1", 5), False, False)
    assert await rig.reader.length("j") == 3


async def test_a_record() -> None:
    rig = Rig()
    await rig.publish(1)
    (record,) = await rig.reader.read("j")
    assert record.position == Position("epoch1", 1)
    assert record.id == "1-0"
    assert (record.event_type, record.timestamp, record.final) == ("odd", "t1", False)
    assert record.data == {"event_type": "odd", "timestamp": "t1", "n": 1}
    assert record.time == rig.clock.now()


@pytest.mark.parametrize("after", [3, "3-0", "epoch1-3", Position("epoch1", 3)])
async def test_after_is_said_in_several_ways(after: object) -> None:
    rig = Rig()
    await rig.publish(5)
    page = await rig.reader.read("j", after)
    assert numbers(page) == [4, 5]
    assert page.next == Position("epoch1", 5)
    assert not page.more
    assert numbers([r async for r in rig.reader.replay("j", 0, after=after)]) == [4, 5]
    async with aclosing(rig.reader.follow("j", after)) as items:
        assert numbers([await anext(items), await anext(items)]) == [4, 5]


@pytest.mark.parametrize("after", ["latst", "zz", "", "x-y", 3.5, -1, True, f"{10**30}", Position("epoch1", -1)])
async def test_what_is_no_position_is_the_callers_mistake(after: object) -> None:
    rig = Rig()
    for _ in range(2):  # before the tape is there, and after
        with pytest.raises(ChannelError, match="after"):
            await rig.reader.read("j", after)
        with pytest.raises(ChannelError, match="after"):
            await anext(rig.reader.follow("j", after))
        with pytest.raises(ChannelError, match="after"):
            await anext(rig.reader.replay("j", 0, after=after))
        await rig.publish(1)


async def test_latest_is_the_newest_there_is_now() -> None:
    rig = Rig()
    assert (await rig.reader.read("j", "latest")).next.offset == 0
    await rig.publish(3)
    page = await rig.reader.read("j", "latest")
    assert (numbers(page), page.next, page.more, page.gap) == ([], Position("epoch1", 3), False, None)
    await rig.publish(1)
    assert [record.offset for record in await rig.reader.read("j", page.next)] == [4]
    assert [r async for r in rig.reader.replay("j", 0, after="latest")] == []


@pytest.mark.parametrize("after", [Position("older", 1), "older-1"])
async def test_a_position_of_another_tape(after: object) -> None:
    rig = Rig()
    await rig.publish(1)
    with pytest.raises(PositionLostError):
        await rig.reader.read("j", after)


async def test_an_absent_job_is_empty() -> None:
    rig = Rig()
    page = await rig.reader.read("none")
    assert len(page) == 0
    assert not page.more
    assert [r async for r in rig.reader.replay("none")] == []


async def test_pages_join_on() -> None:
    rig = Rig()
    await rig.publish(7)
    seen, after = [], None
    while True:
        page = await rig.reader.read("j", after, limit=3)
        seen += numbers(page)
        after = page.next
        if not page.more:
            break
    assert seen == [1, 2, 3, 4, 5, 6, 7]


async def test_filters() -> None:
    rig = Rig()
    await rig.publish(6, nested={"list": [{"title": "报告"}]})
    assert numbers(await rig.reader.read("j", types=["even"])) == [2, 4, 6]
    assert numbers(await rig.reader.read("j", types="even", limit=2)) == [2, 4]
    assert numbers(await rig.reader.read("j", where={"n": 3, "nested.list.0.title": "报告"})) == [3]
    assert numbers(await rig.reader.read("j", where={"n": 3, "nested.list.1.title": "报告"})) == []
    assert numbers(await rig.reader.read("j", where={"n.x": 3})) == []
    assert numbers(await rig.reader.read("j", where=lambda record: record.data["n"] > 4)) == [5, 6]
    page = await rig.reader.read("j", types=["even"], limit=1)
    assert page.next == Position("epoch1", 2)
    assert page.more
    assert numbers(await rig.reader.read("j", page.next, types=["even"], limit=1)) == [4]


async def test_the_scan_for_rare_events_is_bounded_and_goes_on() -> None:
    rig = Rig()
    for _ in range(MAX_SCANNED + 500):
        await rig.log.append("job_events:j", NewEvent("common", b"{}"))
    await rig.publish(1)
    page = await rig.reader.read("j", types=["odd"])
    assert len(page) == 0
    assert page.more
    assert page.next.offset == MAX_SCANNED
    assert numbers(await rig.reader.read("j", page.next, types=["odd"])) == [1]


async def test_what_was_trimmed_is_told() -> None:
    rig = Rig()
    await rig.publish(5)
    await rig.log.trim("job_events:j", keep_after=3)
    assert (await rig.reader.read("j")).gap is None, "from the beginning of what there is"
    page = await rig.reader.read("j", 1)
    assert page.gap == Gap(2, 3, "epoch1")
    assert numbers(page) == [4, 5]
    assert numbers([r async for r in rig.reader.replay("j", 0, after=1)]) == [Gap(2, 3, "epoch1"), 4, 5]
    await rig.log.trim("job_events:j", keep_after=5)
    assert (await rig.reader.read("j", 4)).gap == Gap(5, 5, "epoch1")
    assert [r async for r in rig.reader.replay("j", 0, after=4)] == [Gap(5, 5, "epoch1")]


@pytest.mark.parametrize("after", [6, "6-0", "epoch1-999", Position("epoch1", 6)])
async def test_a_position_beyond_the_end_is_told(after: object) -> None:
    """The log was restored to an earlier state."""
    rig = Rig()
    await rig.publish(3)
    page = await rig.reader.read("j", after)
    assert (list(page), page.gap, page.next) == ([], Gap(None, None, "epoch1"), Position("epoch1", 3))
    assert [r async for r in rig.reader.replay("j", 0, after=after)] == [Gap(None, None, "epoch1")]
    await rig.publish(1)
    page = await rig.reader.read("j", page.next)
    assert (numbers(page), page.gap) == ([1], None)
    assert (await rig.reader.read("j", page.next)).gap is None, "the end itself is no loss"


async def test_events_of_another_form_are_given_as_they_are() -> None:
    rig = Rig()
    deep = b"[" * 250 + b"]" * 250
    for payload in (b"no json", b'{"x":1}', b'["x"]', b'{"event_type":"a","data":7}', deep):
        await rig.log.append("job_events:j", NewEvent("t", payload))
    page = await rig.reader.read("j")
    assert [record.data for record in page][:4] == ["no json", {"x": 1}, ["x"], 7]
    assert len(page) == 5


async def test_following_ends_with_the_job_and_filters() -> None:
    rig = Rig()
    await rig.publish(3)
    got = asyncio.create_task(_all(rig.reader.follow("j", types=["odd", "task_completed"], until_final=True)))
    await asyncio.sleep(0.01)
    await rig.publish(1)
    await rig.publisher.publish_task_completed("j", "t", {}, n="end")
    assert numbers(await got) == [1, 3, 1, "end"]


async def test_following_from_now_on() -> None:
    rig = Rig()
    await rig.publish(3)
    got = asyncio.create_task(_all(rig.reader.follow("j", "latest", until_final=True)))
    await asyncio.sleep(0.01)
    await rig.publisher.publish_task_failed("j", "t", "x", n="end")
    (record,) = await got
    assert record.data["n"] == "end"
    assert record.time == rig.clock.now()


async def _all(items: object) -> list[object]:
    return [item async for item in items]


async def test_search() -> None:
    rig = Rig()
    await rig.publish(2, "a", text="The Quick 狐狸")
    await rig.publish(2, "b", text="slow", deep=[{"x": "quick enough"}])
    await rig.log.append("graph_events:g", NewEvent("t", b'{"data":"quick"}'))
    found = await _all(rig.reader.search("QUICK"))
    assert sorted((hit.job_id, hit.record.data["n"]) for hit in found) == [("a", 1), ("a", 2), ("b", 1), ("b", 2)]
    assert [hit.job_id for hit in await _all(rig.reader.search("狐狸", limit=1))] == ["a"]
    assert len(await _all(rig.reader.search(types=["odd"], where={"text": "slow"}))) == 1
    assert await _all(rig.reader.search("quick", job_id="none")) == []
    assert len(await _all(rig.reader.search("quick", job_id="b", types="odd"))) == 1
    assert await _all(rig.reader.search("quick", owner="bob")) == []
    assert len(await _all(rig.reader.search("quick", owner="ann"))) == 4


class Timed:
    """How much of the clock's time passes between items."""

    def __init__(self, rig: Rig) -> None:
        self.rig = rig
        self.times: list[float] = []
        self.items: list[object] = []

    async def run(self, items: object) -> None:
        start = self.rig.clock.monotonic()
        async for item in items:
            self.items.append(item)
            self.times.append(round(self.rig.clock.monotonic() - start, 3))

    async def played(self, items: object) -> list[float]:
        task = asyncio.create_task(self.run(items))
        while not task.done():
            for _ in range(20):
                await asyncio.sleep(0)
            if not task.done():
                self.rig.clock.advance(0.5)
        await task
        return self.times


async def test_replay_keeps_the_pauses() -> None:
    rig = Rig()
    await rig.publish(4, every_s=2)
    assert await Timed(rig).played(rig.reader.replay("j")) == [0, 2, 4, 6]
    assert await Timed(rig).played(rig.reader.replay("j", 2)) == [0, 1, 2, 3]
    assert await Timed(rig).played(rig.reader.replay("j", 0.5, max_pause_s=1.5)) == [0, 1.5, 3, 4.5]
    for speed in (0, math.inf):
        assert await Timed(rig).played(rig.reader.replay("j", speed)) == [0, 0, 0, 0]
    assert await Timed(rig).played(rig.reader.replay("j", types=["even"])) == [0, 4]


@pytest.mark.parametrize("speed", [-1, math.nan, -math.inf])
async def test_no_speed(speed: float) -> None:
    with pytest.raises(ConfigError):
        await _all(Rig().reader.replay("j", speed))


async def test_replay_of_many_pages_loses_none_and_leaves_nothing_behind() -> None:
    rig = Rig()
    for number in range(3500):
        await rig.log.append("job_events:j", NewEvent("t", b'{"timestamp":"","data":{"n":%d}}' % number))
    assert numbers([r async for r in rig.reader.replay("j", 0)]) == list(range(3500))
    before = asyncio.all_tasks()
    async with aclosing(rig.reader.replay("j", 0)) as items:
        async for _ in items:
            break
    assert asyncio.all_tasks() == before


async def test_groups_need_a_backend_with_groups() -> None:
    with pytest.raises(ConfigError):
        Rig().reader.group("j", "workers")
    with pytest.raises(ConfigError):
        JobReader.of(Backend(MemoryBus()))


def test_records_are_small_tuples() -> None:
    record = JobRecord(1, "e", "t", "", None, False, 0)
    assert record == (1, "e", "t", "", None, False, 0)
    assert Entry(1, "t", b"", False, 0).offset == record.offset
