"""Everything that may happen to a tape and its readers, in any order, found by Hypothesis."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Coroutine, Sequence
from contextlib import aclosing
from typing import Any, TypeVar

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from livetape.errors import LogUnavailableError
from livetape.events.codec import Envelope
from livetape.events.follow import FollowOptions, follow
from livetape.events.log import MAX_READ, Entry, NewEvent, Position, Tape
from livetape.events.recorder import Live, LogRecorder
from livetape.events.recovery import REPLACEMENT, Gap, Item
from livetape.testing.fakes import FakeLog, ManualClock
from unit.events.lossy_bus import LossyBus
from unit.events.transcripts import Truth, check

T = TypeVar("T")

TAPE, CHANNEL = "job_events:j", "job_event/j"
QUIET_S = 40
"""Longer than the sweep and the longest back-off together."""


class KillableLog(FakeLog):
    is_down = False

    def answers(self) -> None:
        if self.is_down:
            raise LogUnavailableError

    async def create(self, tape: str, **more: Any) -> Tape:
        self.answers()
        return await super().create(tape, **more)

    async def describe(self, tape: str) -> Tape | None:
        self.answers()
        return await super().describe(tape)

    async def read(
        self, tape: str, after: int = 0, *, limit: int = MAX_READ, epoch: str | None = None
    ) -> Sequence[Entry]:
        self.answers()
        await asyncio.sleep(0)
        return await super().read(tape, after, limit=limit, epoch=epoch)


class Reader:
    """One who reads, with a memory of what came; it may go and come back."""

    def __init__(self, machine: FollowMachine, after: Any) -> None:
        self.machine = machine
        self.after = after
        self.start = after if isinstance(after, Position) else None
        self.seen: list[Item] = []
        self.task: asyncio.Task[None] | None = None

    def come(self) -> None:
        self.task = asyncio.ensure_future(self._run())

    async def go(self) -> None:
        assert self.task is not None
        self.task.cancel()
        await asyncio.gather(self.task, return_exceptions=True)
        self.task = None

    async def _run(self) -> None:
        machine = self.machine
        options = FollowOptions(chunk_events=3, tail_events=4)
        items = follow(
            machine.log, machine.bus, TAPE, CHANNEL, after=self.after, options=options, sleep=machine.clock.sleep
        )
        async with aclosing(items):
            async for item in items:
                self.seen.append(item)

    def check(self, truth: Truth) -> Position:
        start = self.start
        if start is None:  # it began where it began; from there on everything
            if not self.seen:
                return Position("", 0)
            first = self.seen[0]
            offset = (first.first if isinstance(first, Gap) else first.offset) or 1
            is_reborn = isinstance(first, Gap) and first.last is None and first.first is not None
            start = Position("unknown" if is_reborn else first.epoch or "", offset - 1)
        return check(self.seen, start, truth)


class FollowMachine(RuleBasedStateMachine):
    """Appends, trims, readers that come and go, a bus that lies, a server that dies with and without its data."""

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.clock = ManualClock()
        names = (f"epoch{number}" for number in itertools.count(1))
        self.log = KillableLog(self.clock, epochs=names.__next__)
        self.truth = Truth()
        self.readers: list[Reader] = []
        self.numbers = itertools.count(1)

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        return self.loop.run_until_complete(work)

    async def rest(self, rounds: int = 20) -> None:
        for _ in range(rounds):
            await asyncio.sleep(0)

    async def wait(self, seconds: float) -> None:
        for _ in range(int(seconds * 2)):
            self.clock.advance(0.5)
            await self.rest()

    @initialize(seed=st.integers(0, 2**16), faults=st.sampled_from([0.0, 0.2, 0.6]))
    def start(self, seed: int, faults: float) -> None:
        self.bus = LossyBus(seed, faults=faults)
        self.recorder = LogRecorder(self.log, self.bus)

    @rule(count=st.integers(1, 8), form=st.sampled_from(["live", "unpushed", "too large", "at once"]))
    def append(self, count: int, form: str) -> None:
        async def work() -> None:
            for _ in range(count):
                payload = b'{"event_type":"step","n":%d}' % next(self.numbers)
                event = NewEvent("step", payload)
                live = Live(b'{"event_type":"error_comms_update"}', REPLACEMENT) if form == "too large" else Live()
                if form == "unpushed":
                    position = await self.log.append(TAPE, event)
                else:
                    position = (await self.recorder.record(TAPE, CHANNEL, event, live=live)).position
                self.truth.append(position, payload)
                if form == "live":
                    await self.rest()

        if not self.log.is_down:
            self.run(work())

    @rule(share=st.floats(0, 1))
    def trim(self, share: float) -> None:
        if not self.log.is_down:
            keep_after = int(self.truth.offset * share)
            self.run(self.log.trim(TAPE, keep_after=keep_after))
            self.truth.trim(keep_after)

    @precondition(lambda self: len(self.readers) < 4)
    @rule(how=st.sampled_from(["earliest", "now", "position"]), share=st.floats(0, 1))
    def subscribe(self, how: str, share: float) -> None:
        after: Any = "earliest" if how == "earliest" else None
        if how == "position" and self.truth.epoch:
            after = Position(self.truth.epoch, int(self.truth.offset * share))
        reader = Reader(self, after)
        self.readers.append(reader)
        self.run(self._come(reader))

    async def _come(self, reader: Reader) -> None:
        reader.come()
        await self.rest()

    @rule(number=st.integers(0, 3))
    def leave_or_come_back(self, number: int) -> None:
        if number >= len(self.readers):
            return
        reader = self.readers[number]
        if reader.task is not None:
            self.run(reader.go())
            return
        reached = reader.check(self.truth)
        if reached != Position("", 0):
            reader.after = reached
        self.run(self._come(reader))

    @rule()
    def cut_links(self) -> None:
        self.bus.breaks = not self.bus.breaks
        self.run(self.bus.cut())
        self.run(self.rest())

    @rule()
    def late_messages(self) -> None:
        self.run(self.bus.release())
        self.run(self.rest())

    @rule(keeps=st.booleans())
    def kill_or_start(self, keeps: bool) -> None:
        if self.log.is_down:
            self.log.is_down = self.bus.down = False
            return
        self.log.is_down = self.bus.down = True
        self.run(self.bus.cut())
        if not keeps:
            self.log.lose(TAPE)
            self.recorder = LogRecorder(self.log, self.bus)
            self.truth.epoch = ""

    @rule(share=st.floats(0, 1))
    def restore(self, share: float) -> None:
        """The server comes back as it was once, with the same epoch. What was on its way is gone with its links."""
        if self.truth.epoch:
            keep = max(int(self.truth.offset * share), self.truth.trimmed.get(self.truth.epoch, 0))
            self.log.cut(TAPE, keep)
            self.truth.cut(keep)
            self.bus.forget()
            self.run(self.bus.cut())
            self.run(self.rest())

    @rule(ahead=st.sampled_from([10**3, 10**9]), form=st.sampled_from(["step", REPLACEMENT]))
    def forge(self, ahead: int, form: str) -> None:
        """Somebody publishes what no log has; or a publisher whose log is lost."""
        if self.truth.epoch and not self.log.is_down:
            message = Envelope(b'{"forged":1}', form, self.truth.offset + ahead, self.truth.epoch).encode()
            self.run(self.bus.publish_as_it_is(CHANNEL, message))
            self.run(self.wait(8))  # until the log has been asked for it often enough

    @rule(seconds=st.sampled_from([0.5, 3, 30]))
    def time_passes(self, seconds: float) -> None:
        self.run(self.wait(seconds))
        for reader in self.readers:
            reader.check(self.truth)

    def teardown(self) -> None:
        try:
            if self.readers:
                self.log.is_down = self.bus.down = False
                self.run(self.wait(QUIET_S))
                if self.truth.epoch and self.truth.undone.get(self.truth.epoch):
                    self.append(2, "unpushed")  # who was told of a lost end: from where the tape ends now, all comes
                    self.run(self.wait(QUIET_S))
                for reader in self.readers:
                    reached = reader.check(self.truth)
                    assert reader.task is None or not reader.task.done()
                    # Who asked for what comes "from now on" may rightly have seen nothing.
                    if reader.task is not None and self.truth.epoch and (reader.seen or reader.start):
                        assert reached == Position(self.truth.epoch, self.truth.offset), "silence"
                    if reader.task is not None and reader.after == "earliest" and not reader.seen:
                        assert self.truth.offset == self.truth.trimmed.get(self.truth.epoch, 0), "silence"
        finally:
            self.run(self._end())
            self.loop.close()

    async def _end(self) -> None:
        for reader in self.readers:
            if reader.task is not None:
                await reader.go()
        assert asyncio.all_tasks() == {asyncio.current_task()}
        if self.readers:
            assert not self.bus.open


@pytest.mark.slow
class TestFollow(FollowMachine.TestCase):
    settings = settings(max_examples=150, stateful_step_count=30)
