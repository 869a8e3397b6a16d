"""The relay with copies: tapes of another log have the same events under the same numbers, whatever that log loses."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from livetape.adapters.memory.bus import MemoryBus
from livetape.clock import SystemClock
from livetape.engine import outlets, relay
from livetape.engine.announce import Announcer
from livetape.engine.divided_log import DividedLog
from livetape.engine.outlets import CopyOutlet
from livetape.engine.relay import Relay
from livetape.errors import LogUnavailableError
from livetape.events.bus import Subscription
from livetape.events.codec import Envelope, split
from livetape.events.copier import LogCopier
from livetape.events.log import NewEvent, Position, PutResult, Tape
from livetape.observability import NoMetrics
from livetape.store.executions import Committed, TapeRelayStore
from livetape.testing.fakes import FakeLog, ManualClock

EPOCH = "epoch1"


def event(number: int, last: int) -> NewEvent:
    kind = "graph_execution_update" if number % 5 == 0 else "node_execution_update"
    return NewEvent(kind, b'{"event_type":"%s","n":%d}' % (kind.encode(), number), final=number == last)


class Copies(FakeLog):
    """A log that may be away."""

    away = False

    async def put(self, tape: str, position: Position, event: NewEvent) -> PutResult:
        self._reach()
        return await super().put(tape, position, event)

    async def append(self, tape: str, event: NewEvent, *, idempotency_key: str | None = None) -> Position:
        self._reach()
        return await super().append(tape, event, idempotency_key=idempotency_key)

    async def create(
        self, tape: str, *, owner: str | None, channel: str, graph_id: str | None = None, epoch: str | None = None
    ) -> Tape:
        self._reach()
        return await super().create(tape, owner=owner, channel=channel, graph_id=graph_id, epoch=epoch)

    async def describe(self, tape: str) -> Tape | None:
        self._reach()
        return await super().describe(tape)

    def _reach(self) -> None:
        if self.away:
            raise LogUnavailableError("away")


class Marks(TapeRelayStore):
    def __init__(self) -> None:
        self.found: list[Committed] = []
        self.marked: dict[str, int] = {}

    async def unpublished(self, *, limit: int = 1000) -> Sequence[Committed]:
        return [c for c in self.found if self.marked.get(c.tape, 0) < c.first][:limit]

    async def published(self, tape: str) -> int:
        return self.marked.get(tape, 0)

    async def mark_published(self, upto: dict[str, int]) -> None:
        for tape, number in upto.items():
            assert number >= self.marked.get(tape, 0), "only forward"
        self.marked |= upto


class Stage:
    def __init__(self) -> None:
        self.bus = MemoryBus()
        self.source = FakeLog()
        self.copies = Copies()
        self.marks = Marks()
        self.clock = SystemClock()
        self.outlet = CopyOutlet(LogCopier(self.copies, self.bus), self.copies, self.source, self.bus, clock=self.clock)
        self.relay = Relay(self.outlet, log=self.source, store=self.marks, metrics=NoMetrics())

    def committed(self, name: str, first: int = 1, events: Sequence[NewEvent] = ()) -> Committed:
        return Committed(f"execution_events:{name}", f"execution_event/u/g/{name}", EPOCH, "g", name, first, events)

    async def write(self, name: str, first: int, count: int, last: int) -> Committed:
        """A commit: events of the source's tape; not offered yet."""
        tape = f"execution_events:{name}"
        await self.source.create(tape, owner="u", channel=f"execution_event/u/g/{name}", graph_id="g", epoch=EPOCH)
        events = [event(number, last) for number in range(first, first + count)]
        for one in events:
            await self.source.append(tape, one)
        return self.committed(name, first, events)

    async def commit(self, name: str, first: int, count: int, last: int) -> None:
        self.relay.offer(await self.write(name, first, count, last))

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Subscription]:
        async with await self.bus.subscribe("execution_event/*") as heard:
            task = asyncio.create_task(self.relay.run())
            await self.relay.ready.wait()
            try:
                yield heard
            finally:
                task.cancel()
                await asyncio.wait({task})
                assert task.cancelled(), task.exception()

    async def copied(self, name: str, last: int) -> None:
        """Wait until the copy is whole; then it is the same."""
        tape = f"execution_events:{name}"
        async with asyncio.timeout(5):
            while True:
                found = self.copies.reels.get(tape)
                if found is not None and found.tape.offset >= last:
                    break
                await asyncio.sleep(0.005)
        ours = [(e.offset, e.event_type, e.payload, e.final) for e in await self.source.read(tape)]
        assert [(e.offset, e.event_type, e.payload, e.final) for e in found.entries] == ours
        assert (found.tape.epoch, found.tape.owner, found.tape.graph_id) == (EPOCH, "u", "g")
        assert found.tape.channel == f"execution_event/u/g/{name}"


async def take(heard: Subscription, count: int) -> list[Envelope]:
    got: list[Envelope] = []
    async with asyncio.timeout(5):
        async for message in heard:
            got.append(split(message.data))
            if len(got) == count:
                break
    return got


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(relay, "RETRY_S", 0.01)
    monkeypatch.setattr(relay, "LOOK_S", 0.02)
    monkeypatch.setattr(outlets, "LOOK_S", 0.02)


async def test_events_are_on_the_copy_before_anybody_hears_of_them() -> None:
    stage = Stage()
    async with stage.running() as heard:
        await stage.commit("e", 1, 7, 12)
        await stage.commit("e", 8, 5, 12)
        seen = 0
        async with asyncio.timeout(5):
            async for message in heard:
                envelope = split(message.data)
                seen += 1
                assert (envelope.offset, envelope.epoch) == (seen, EPOCH)
                assert stage.copies.reels["execution_events:e"].tape.offset >= seen
                if envelope.final:
                    break
        assert seen == 12
        await stage.copied("e", 12)
    graph = stage.copies.reels["graph_events:g"]
    assert [entry.payload for entry in graph.entries] == [event(5, 12).payload, event(10, 12).payload]
    assert (graph.tape.owner, graph.tape.graph_id, graph.tape.channel) == ("u", "g", "execution_event/u/g/*")
    assert "graph_events:g" not in stage.source.reels


@pytest.mark.slow
@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    losses=st.lists(st.sampled_from(["", "", "tape", "cut", "all", "away"]), min_size=1, max_size=8),
    size=st.integers(1, 80),
)
def test_whatever_the_copy_loses_is_filled_again_with_the_same_numbers(losses: list[str], size: int) -> None:
    async def case() -> None:
        stage = Stage()
        last = len(losses) * size
        tape = "execution_events:e"
        async with stage.running() as heard:
            for turn, loss in enumerate(losses):
                if loss == "tape":
                    stage.copies.lose(tape)
                elif loss == "all":
                    for name in list(stage.copies.reels):
                        stage.copies.lose(name)
                elif loss == "cut" and tape in stage.copies.reels:
                    stage.copies.cut(tape, stage.copies.reels[tape].tape.offset // 2)
                stage.copies.away = loss == "away"
                await stage.commit("e", turn * size + 1, size, last)
                if stage.copies.away:
                    await asyncio.sleep(0.02)
                    stage.copies.away = False
                await stage.copied("e", (turn + 1) * size)
            offsets = [envelope.offset for envelope in await take(heard, last)]
            assert offsets == list(range(1, last + 1)), "in order, each once"

    asyncio.run(case())


async def test_while_the_log_is_away_the_engine_goes_on_and_then_all_comes() -> None:
    stage = Stage()
    stage.copies.away = True
    stage.marks.found = [await stage.write("old", 1, 3, 3)]
    async with stage.running() as heard:
        await stage.commit("e", 1, 10, 20)
        async with asyncio.timeout(5):
            while stage.relay.waiting != 2:
                await asyncio.sleep(0.01)
        assert (stage.marks.marked, stage.copies.reels) == ({}, {})
        assert await stage.relay.relayed({"execution_events:e": 10}) == {"execution_events:e": 0}
        stage.copies.away = False
        await stage.commit("e", 11, 10, 20)
        await stage.copied("e", 20)
        await stage.copied("old", 3)
        assert len(await take(heard, 23)) == 23
        async with asyncio.timeout(5):
            while stage.relay.waiting:
                await asyncio.sleep(0.01)
        assert await stage.relay.relayed({"execution_events:e": 20}) == {"execution_events:e": 20}


async def test_what_waits_beyond_the_bound_is_read_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(relay, "HELD_BYTES", 500)
    monkeypatch.setattr(relay, "READ_AT_ONCE", 10)
    stage = Stage()
    stage.copies.away = True
    async with stage.running():
        for turn in range(20):
            await stage.commit("e", turn * 10 + 1, 10, 200)
        assert stage.relay._held_bytes < 1500
        stage.copies.away = False
        await stage.copied("e", 200)
        async with asyncio.timeout(5):
            while stage.relay._tracks:
                await asyncio.sleep(0.01)
        assert stage.relay._held_bytes == 0


@pytest.mark.slow
async def test_many_executions_at_once() -> None:
    stage = Stage()
    async with stage.running():
        for first in (1, 11, 21):
            for number in range(150):
                await stage.commit(f"e{number}", first, 10, 30)
        for number in range(150):
            await stage.copied(f"e{number}", 30)


async def test_a_tape_that_is_over_is_filled_again_too() -> None:
    stage = Stage()
    async with stage.running() as heard:
        for name in ("a", "b"):
            await stage.commit(name, 1, 100, 100)
            await stage.copied(name, 100)
        await take(heard, 200)
        for name in list(stage.copies.reels):
            stage.copies.lose(name)
        for name in ("a", "b"):
            await stage.copied(name, 100)
        await stage.commit("c", 1, 1, 1)
        (next_one,) = await take(heard, 1)
        assert next_one.final
        assert b'"n":1}' in next_one.payload, "what is filled again is not published again"


@pytest.mark.parametrize("loss", ["all", "ends"])
async def test_a_loss_is_found_whatever_goes_on_meanwhile(loss: str) -> None:
    stage = Stage()
    async with stage.running():
        for name in ("a", "b", "c"):
            await stage.commit(name, 1, 10, 10)
            await stage.copied(name, 10)
        await stage.commit("d", 1, 10, 30)
        await stage.copied("d", 10)
        for name in list(stage.copies.reels):
            if loss == "all":
                stage.copies.lose(name)
            elif name.startswith("exec"):
                stage.copies.cut(name, 4)
        await stage.commit("d", 11, 10, 30)  # it fills itself again, and is the newest
        await stage.commit("new", 1, 10, 10)
        for name, last in (("a", 10), ("b", 10), ("c", 10), ("d", 20), ("new", 10)):
            await stage.copied(name, last)


async def test_a_tape_that_can_never_be_a_copy_is_still_heard_live() -> None:
    stage = Stage()
    await stage.copies.create("execution_events:e", owner="u", channel="", epoch="another")
    async with stage.running() as heard:
        await stage.commit("e", 1, 4, 4)
        assert [envelope.offset for envelope in await take(heard, 4)] == [1, 2, 3, 4]
        await stage.commit("f", 1, 4, 4)
        await stage.copied("f", 4)


async def test_leftovers_beyond_what_is_named_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(relay, "LEFTOVERS", 5)
    monkeypatch.setattr(relay, "MARK_EVERY_S", 0.02)
    stage = Stage()
    stage.marks.found = [await stage.write(f"e{number}", 1, 3, 3) for number in range(23)]
    async with stage.running():
        for number in range(23):
            await stage.copied(f"e{number}", 3)


async def test_the_creator_is_not_held_up_by_a_log_that_is_away() -> None:
    class Silent(Copies):
        tries = 0

        def _reach(self) -> None:
            self.tries += 1
            super()._reach()

    copies, clock = Silent(), ManualClock()
    copies.away = True
    announcer = Announcer(copies, clock=clock)
    committed = Stage().committed("e")
    await announcer.execution(committed)
    await announcer.graph("u", "g")
    assert copies.tries == 1, "after a failure it rests"
    clock.advance(5)
    copies.away = False
    await announcer.execution(committed)
    await announcer.graph("u", "g")
    tape, graph = copies.reels["execution_events:e"].tape, copies.reels["graph_events:g"].tape
    assert (tape.owner, tape.epoch, tape.graph_id, tape.offset) == ("u", EPOCH, "g", 0)
    assert (graph.owner, graph.graph_id, graph.channel) == ("u", "g", "execution_event/u/g/*")


async def test_a_process_with_the_database_reads_executions_there_and_all_else_where_it_is_shared() -> None:
    stage = Stage()
    await stage.write("e", 1, 10, 10)
    log = DividedLog(stage.source, stage.copies)
    found = await log.describe("execution_events:e")
    assert found is not None
    assert (found.offset, found.final, found.epoch) == (10, True, EPOCH)
    assert [entry.offset for entry in await log.read("execution_events:e", 8)] == [9, 10]
    assert await log.describe("execution_events:none") is None
    await log.append("job_events:j", event(1, 1))
    assert "job_events:j" in stage.copies.reels
    assert [entry.offset for entry in await log.read("job_events:j")] == [1]
    assert sorted([name async for name in log.tapes()]) == ["execution_events:e", "job_events:j"]


async def test_what_other_processes_write_is_out_as_far_as_they_have_noted() -> None:
    stage = Stage()
    stage.relay = Relay(stage.outlet, log=stage.source, store=stage.marks, metrics=NoMetrics(), shared=True)
    theirs, ours, nobodys = (f"execution_events:{name}" for name in ("theirs", "ours", "nobodys"))
    stage.marks.marked = {theirs: 3}
    assert await stage.relay.relayed({theirs: 10, nobodys: 5}) == {theirs: 3, nobodys: 0}
    assert await stage.relay.relayed({theirs: 2}) == {theirs: 2}
    async with stage.running() as heard:
        await stage.commit("ours", 1, 4, 20)
        await take(heard, 4)
        await stage.copied("ours", 4)
        async with asyncio.timeout(5):
            while await stage.relay.relayed({ours: 4}) != {ours: 4}:
                await asyncio.sleep(0)
        assert await stage.relay.relayed({ours: 9}) == {ours: 4}, "the rest is another's"
        stage.marks.marked[ours] = 8
        assert await stage.relay.relayed({ours: 9}) == {ours: 8}
