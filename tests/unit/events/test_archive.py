"""Archive and retention: nothing is forgotten that should be kept, and what is archived reads as before."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Sequence
from contextlib import aclosing
from dataclasses import replace

import pytest

from livetape.adapters.memory.bus import MemoryBus
from livetape.errors import LogUnavailableError, PositionLostError
from livetape.events.archive import LOST, ArchivedLog, Archiver, archive_tape
from livetape.events.log import MAX_READ, Entry, NewEvent, Position, PutResult, Tape
from livetape.events.reader import JobReader
from livetape.events.recovery import Gap
from livetape.events.retention import DAY_S, Retention, RetentionPolicy, RetentionReport
from livetape.testing.fakes import FakeLog, ManualClock

TAPE = "job_events:j"


class Rig:
    def __init__(self) -> None:
        self.clock = ManualClock()
        names = (f"epoch{n}" for n in itertools.count(1))
        self.hot = FakeLog(self.clock, epochs=names.__next__)
        self.cold = FakeLog(self.clock)
        self.archiver = Archiver(self.hot, self.cold)
        self.both = ArchivedLog(self.hot, self.cold)

    async def append(self, count: int, *, final: bool = False, every_s: float = 0, tape: str = TAPE) -> None:
        for _ in range(count):
            await self.hot.append(tape, NewEvent("step", b'{"timestamp":"","data":1}', final=final))
            self.clock.advance(every_s)

    async def offsets(self, after: int = 0, **more: object) -> list[int]:
        return [entry.offset for entry in await self.both.read(TAPE, after, **more)]


async def test_a_tape_is_copied_with_its_numbers_epoch_times_and_owner() -> None:
    rig = Rig()
    await rig.hot.create(TAPE, owner="ann", channel="job_event/j")
    await rig.append(3, every_s=5)
    await rig.append(1, final=True)
    rig.clock.advance(1000)
    done = await rig.archiver.archive(TAPE)
    assert (done.upto, done.copied, done.lost) == (Position("epoch1", 4), 4, 0)
    copy = await rig.cold.describe("job_events:j#epoch1")
    assert (copy.owner, copy.channel, copy.epoch, copy.offset, copy.final) == ("ann", "job_event/j", "epoch1", 4, True)
    assert await rig.cold.read(copy.name) == await rig.hot.read(TAPE)


async def test_archiving_again_copies_only_what_is_new() -> None:
    rig = Rig()
    await rig.append(300)
    await rig.append(2, tape="graph_events:g")
    assert {name: done.copied for name, done in (await rig.archiver.run_once()).items()} == {
        TAPE: 300,
        "graph_events:g": 2,
    }
    await rig.append(250)
    assert (await rig.archiver.archive(TAPE)).copied == 250
    assert (await rig.archiver.archive(TAPE)).copied == 0
    assert (await rig.archiver.archive("job_events:none")).upto is None


class FailingLog(FakeLog):
    """Is away after so many copies, and takes some of them out of order."""

    left = 10**9

    async def put(self, tape: str, position: Position, event: NewEvent) -> PutResult:
        if self.left <= 0:
            raise LogUnavailableError
        self.left -= 1
        if position.offset % 7 == 0:
            await asyncio.sleep(0)
        return await super().put(tape, position, event)


async def test_a_run_that_was_cut_off_goes_on() -> None:
    rig = Rig()
    rig.cold = FailingLog(rig.clock)
    rig.archiver = Archiver(rig.hot, rig.cold)
    await rig.append(500)
    rig.cold.left = 230
    with pytest.raises(LogUnavailableError):
        await rig.archiver.archive(TAPE)
    assert await rig.archiver.run_once() == {}
    rig.cold.left = 10**9
    assert (await rig.archiver.archive(TAPE)).upto == Position("epoch1", 500)
    assert await rig.cold.read(f"{TAPE}#epoch1") == await rig.hot.read(TAPE)


async def test_trimmed_events_are_read_from_the_archive() -> None:
    rig = Rig()
    await rig.append(10)
    await rig.archiver.archive(TAPE)
    await rig.append(2)
    await rig.hot.trim(TAPE, keep_after=8)
    assert await rig.offsets() == list(range(1, 13))
    assert await rig.offsets(5) == list(range(6, 13))
    assert await rig.offsets(5, limit=2) == [6, 7]
    assert await rig.offsets(5, limit=4) == [6, 7, 8, 9]
    assert await rig.offsets(9, epoch="epoch1") == [10, 11, 12]
    assert await rig.offsets(12) == []
    assert await rig.offsets(limit=0) == []
    found = await rig.both.describe(TAPE)
    assert (found.name, found.first_offset, found.offset) == (TAPE, 1, 12)
    await rig.hot.trim(TAPE, keep_after=12)
    assert await rig.offsets() == list(range(1, 11)), "11 and 12 were never archived"


async def test_an_epoch_that_is_over_stays_readable() -> None:
    rig = Rig()
    await rig.append(4)
    await rig.archiver.archive(TAPE)
    rig.hot.lose(TAPE)
    found = await rig.both.describe(TAPE)
    assert (found.name, found.position) == (TAPE, Position("epoch1", 4))
    assert await rig.offsets() == [1, 2, 3, 4]
    rig.clock.advance(10)
    await rig.append(2)
    assert (await rig.both.describe(TAPE)).position == Position("epoch2", 2)
    assert await rig.offsets(1, epoch="epoch1") == [2, 3, 4]
    assert await rig.offsets(1, epoch="epoch2") == [2]
    with pytest.raises(PositionLostError):
        await rig.both.read(TAPE, epoch="unknown")
    assert [name async for name in rig.both.tapes("job_events:")] == [TAPE]
    await rig.archiver.archive(TAPE)
    rig.hot.lose(TAPE)
    assert (await rig.both.describe(TAPE)).epoch == "epoch2", "the newest"
    assert [name async for name in rig.both.tapes("job_events:")] == [TAPE]


async def test_following_goes_from_the_archive_of_the_old_epoch_into_the_new_one() -> None:
    rig = Rig()
    await rig.append(4)
    await rig.archiver.archive(TAPE)
    rig.hot.lose(TAPE)
    await rig.append(2)
    reader = JobReader(rig.hot, MemoryBus(), archive=rig.cold)
    async with aclosing(reader.follow("j", Position("epoch1", 2))) as items:
        seen = [await anext(items) for _ in range(5)]
    assert [item if isinstance(item, Gap) else (item.epoch, item.offset) for item in seen] == [
        ("epoch1", 3),
        ("epoch1", 4),
        Gap(5, None, "epoch2"),
        ("epoch2", 1),
        ("epoch2", 2),
    ]
    assert [r.offset async for r in reader.replay("j", 0, after=Position("epoch1", 1))] == [2, 3, 4]


async def test_what_was_gone_before_it_was_archived_stays_a_hole() -> None:
    rig = Rig()
    await rig.append(5)
    await rig.hot.trim(TAPE, keep_after=2)
    assert (await rig.archiver.archive(TAPE)).lost == 2
    assert (await rig.cold.describe(f"{TAPE}#epoch1")).first_offset == 3
    await rig.append(400)
    await rig.hot.trim(TAPE, keep_after=395)
    done = await rig.archiver.archive(TAPE)
    assert (done.copied, done.lost) == (10, 390)
    await rig.hot.trim(TAPE, keep_after=405)
    assert await rig.offsets() == [3, 4, 5, *range(396, 406)]
    assert await rig.offsets(5, limit=3) == [396, 397, 398]
    reader = JobReader(rig.hot, MemoryBus(), archive=rig.cold)
    items = [item async for item in reader.replay("j", 0, after=3)]
    assert [item if isinstance(item, Gap) else item.offset for item in items] == [
        4,
        5,
        Gap(6, 395, "epoch1"),
        *range(396, 406),
    ]
    assert not any(entry.event_type == LOST for entry in await rig.both.read(TAPE))


async def test_a_tape_that_is_empty_now_is_archived_as_lost() -> None:
    rig = Rig()
    await rig.append(3)
    await rig.hot.trim(TAPE, keep_after=3)
    done = await rig.archiver.archive(TAPE)
    assert (done.upto, done.lost) == (Position("epoch1", 3), 3)


async def test_writing_goes_to_the_first_log() -> None:
    rig = Rig()
    await rig.both.create("execution_events:e", owner="ann", channel="c", epoch="e")
    assert await rig.both.put("execution_events:e", Position("e", 1), NewEvent("t", b"{}")) == "stored"
    assert await rig.both.append(TAPE, NewEvent("t", b"{}"), idempotency_key="k") == Position("epoch1", 1)
    await rig.archiver.run_once()
    assert await rig.both.trim(TAPE, keep_after=1) == 1
    assert await rig.offsets() == [1]
    assert await rig.both.offset_at(TAPE, rig.clock.now()) == 1
    assert await rig.both.offset_at("job_events:none", rig.clock.now()) == 0
    await rig.both.close()
    assert await rig.hot.describe(TAPE) is not None


class MixedLog(FakeLog):
    async def describe(self, tape: str) -> Tape | None:
        found = await super().describe(tape)
        return None if found is None else replace(found, mixed=True, offset=found.offset * 100)

    async def read(
        self, tape: str, after: int = 0, *, limit: int = MAX_READ, epoch: str | None = None
    ) -> Sequence[Entry]:
        entries = await super().read(tape, after // 100, limit=limit, epoch=epoch)
        return [entry._replace(offset=entry.offset * 100) for entry in entries]

    async def trim(self, tape: str, *, keep_after: int) -> int:
        return await super().trim(tape, keep_after=keep_after // 100)


async def test_mixed_tapes_are_not_archived_and_then_not_trimmed() -> None:
    rig = Rig()
    mixed = MixedLog(rig.clock)
    for _ in range(5):
        await mixed.append(TAPE, NewEvent("t", b"{}"))
    archiver = Archiver(mixed, rig.cold)
    assert (await archiver.archive(TAPE)).skipped
    policy = RetentionPolicy(max_entries=2)
    assert (await Retention(mixed, policy, archiver=archiver, clock=rig.clock).run_once()).trimmed == 0
    assert (await Retention(mixed, policy, clock=rig.clock).run_once()).trimmed == 3
    assert [e.offset for e in await ArchivedLog(mixed, rig.cold).read(TAPE)] == [400, 500]


async def test_retention_by_age() -> None:
    rig = Rig()
    await rig.append(10, every_s=DAY_S)
    retention = Retention(rig.hot, RetentionPolicy(events_s=4 * DAY_S), clock=rig.clock)
    assert await retention.run_once() == RetentionReport(1, 7, 0, 0)
    assert (await rig.hot.describe(TAPE)).first_offset == 8
    assert (await retention.run_once()).trimmed == 0
    assert (await Retention(rig.hot, clock=rig.clock).run_once()).trimmed == 0


async def test_retention_by_count() -> None:
    rig = Rig()
    await rig.append(10)
    retention = Retention(rig.hot, RetentionPolicy(events_s=None, max_entries=4), clock=rig.clock)
    assert (await retention.run_once()).trimmed == 6
    assert (await retention.run_once()).trimmed == 0


async def test_finished_jobs_go_after_a_day_and_others_stay() -> None:
    rig = Rig()
    await rig.append(2)
    await rig.append(1, final=True)
    await rig.append(1, final=True, tape="execution_events:e")
    await rig.append(1, tape="job_events:running")
    retention = Retention(rig.hot, clock=rig.clock)
    rig.clock.advance(DAY_S - 1)
    assert (await retention.run_once()).trimmed == 0
    rig.clock.advance(1)
    assert await retention.run_once() == RetentionReport(3, 3, 0, 0)
    assert (await retention.run_once()).trimmed == 0
    assert (await Retention(rig.hot, prefix="execution", clock=rig.clock).run_once()).tapes == 1


async def test_retention_archives_first_and_trims_nothing_that_is_not_there() -> None:
    rig = Rig()
    rig.cold = FailingLog(rig.clock)
    rig.archiver = Archiver(rig.hot, rig.cold)
    await rig.append(10)
    retention = Retention(
        rig.hot, RetentionPolicy(max_entries=1), archiver=rig.archiver, clock=rig.clock, sleep=rig.clock.sleep
    )
    rig.cold.left = 0
    assert await retention.run_once() == RetentionReport(1, 0, 0, 1)
    rig.cold.left = 10**9
    running = asyncio.create_task(retention.run(60))
    await rig.clock.sleeper()
    assert (await rig.hot.describe(TAPE)).first_offset == 10
    assert [e.offset for e in await ArchivedLog(rig.hot, rig.cold).read(TAPE)] == list(range(1, 11))
    await rig.append(5)
    rig.clock.advance(60)
    await rig.clock.sleeper()
    assert (await rig.hot.describe(TAPE)).first_offset == 15
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)


async def test_who_follows_is_told_what_retention_took() -> None:
    rig = Rig()
    await rig.append(5)
    reader = JobReader(rig.hot, MemoryBus())
    async with aclosing(reader.follow("j", 1)) as items:
        await Retention(rig.hot, RetentionPolicy(max_entries=2), clock=rig.clock).run_once()
        assert await anext(items) == Gap(2, 3, "epoch1")
        assert (await anext(items)).offset == 4


def test_names() -> None:
    assert archive_tape("job_events:a", "e") == "job_events:a#e"
