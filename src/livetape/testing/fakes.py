"""Stand-ins for tests: a log in memory, and a clock that only moves when it is told to."""

from __future__ import annotations

import asyncio
import heapq
import itertools
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta

from livetape.clock import Clock, SystemClock, new_epoch
from livetape.errors import ClosedError, NotFoundError, PositionLostError, TapeHoleError
from livetape.events.log import MAX_READ, Entry, EventLog, NewEvent, Position, PutResult, Tape


@dataclass(slots=True)
class Reel:
    """One tape of a `FakeLog`."""

    tape: Tape
    entries: list[Entry] = field(default_factory=list)
    keys: dict[str, int] = field(default_factory=dict)


class FakeLog(EventLog):
    """A sound EventLog that keeps everything in memory and forgets it with the process. Not durable: for tests only.

    `reels` and `store` are seams, where logs that break a promise differ (`livetape.testing.broken_log`).
    """

    def __init__(self, clock: Clock | None = None, *, epochs: Callable[[], str] = new_epoch) -> None:
        self._clock = clock or SystemClock()
        self._epochs = epochs
        self.reels: dict[str, Reel] = {}
        self._closed = False
        self.reads = 0
        """How often `read` was called."""

    async def create(
        self,
        tape: str,
        *,
        owner: str | None,
        channel: str,
        graph_id: str | None = None,
        epoch: str | None = None,
    ) -> Tape:
        self._check_open()
        reel = self.reels.get(tape)
        if reel is None:
            made = Tape(tape, owner, graph_id, channel, epoch or self._epochs(), 0, 1, final=False)
            reel = self.reels[tape] = Reel(made)
        elif reel.tape.owner is None and owner is not None:
            reel.tape = replace(reel.tape, owner=owner, channel=channel, graph_id=graph_id)
        return reel.tape

    async def append(self, tape: str, event: NewEvent, *, idempotency_key: str | None = None) -> Position:
        self._check_open()
        await self.create(tape, owner=None, channel="")
        reel = self.reels[tape]
        if idempotency_key is not None and idempotency_key in reel.keys:
            return Position(reel.tape.epoch, reel.keys[idempotency_key])
        offset = reel.tape.offset + 1
        if idempotency_key is not None:
            reel.keys[idempotency_key] = offset
        self.store(reel, offset, event)
        return Position(reel.tape.epoch, offset)

    def store(self, reel: Reel, offset: int, event: NewEvent) -> None:
        """Put the event at the end, under this offset."""
        at_us = int(self._clock.now().timestamp() * 1_000_000) if event.at_us is None else event.at_us
        reel.entries.append(Entry(offset, event.event_type, event.payload, event.final, at_us))
        reel.tape = replace(reel.tape, offset=offset, final=reel.tape.final or event.final)

    async def put(self, tape: str, position: Position, event: NewEvent) -> PutResult:
        self._check_open()
        reel = self.reels.get(tape)
        if reel is None:
            raise NotFoundError(tape=tape)
        if position.epoch != reel.tape.epoch:
            raise PositionLostError(tape=tape)
        if position.offset <= reel.tape.offset:
            return "duplicate"
        if position.offset > reel.tape.offset + 1:
            raise TapeHoleError(tape=tape, missing_from=reel.tape.offset + 1)
        self.store(reel, position.offset, event)
        return "stored"

    async def read(
        self, tape: str, after: int = 0, *, limit: int = MAX_READ, epoch: str | None = None
    ) -> Sequence[Entry]:
        self._check_open()
        self.reads += 1
        reel = self.reels.get(tape)
        if epoch is not None and (reel is None or reel.tape.epoch != epoch):
            raise PositionLostError(tape=tape)
        if reel is None:
            return []
        return [entry for entry in reel.entries if entry.offset > after][: max(0, min(limit, MAX_READ))]

    async def describe(self, tape: str) -> Tape | None:
        self._check_open()
        reel = self.reels.get(tape)
        return None if reel is None else reel.tape

    async def tapes(self, prefix: str = "") -> AsyncIterator[str]:
        for name in [name for name in self.reels if name.startswith(prefix)]:
            yield name

    async def offset_at(self, tape: str, time: datetime) -> int:
        self._check_open()
        reel = self.reels.get(tape)
        return max((e.offset for e in reel.entries if e.time <= time), default=0) if reel is not None else 0

    async def trim(self, tape: str, *, keep_after: int) -> int:
        self._check_open()
        reel = self.reels.get(tape)
        if reel is None:
            return 0
        before = len(reel.entries)
        reel.entries = [entry for entry in reel.entries if entry.offset > keep_after]
        upto = min(keep_after, reel.tape.offset)
        reel.tape = replace(reel.tape, first_offset=max(reel.tape.first_offset, upto + 1))
        return before - len(reel.entries)

    def lose(self, tape: str) -> None:
        """The tape is gone, as after the loss of a server without persistence."""
        self.reels.pop(tape, None)

    def cut(self, tape: str, keep: int) -> None:
        """What follows this offset was never written, as after a restore from an older copy. The epoch stays."""
        reel = self.reels[tape]
        reel.entries = [entry for entry in reel.entries if entry.offset <= keep]
        reel.keys = {key: offset for key, offset in reel.keys.items() if offset <= keep}
        reel.tape = replace(reel.tape, offset=keep, final=any(entry.final for entry in reel.entries))

    async def close(self) -> None:
        self._closed = True

    def _check_open(self) -> None:
        if self._closed:
            raise ClosedError("the log is closed")


class ManualClock:
    """A `Clock` that stands still. `sleep` returns when `advance` has brought the time there."""

    def __init__(self, now: datetime = datetime(2030, 1, 1, tzinfo=UTC)) -> None:
        self._now = now
        self._monotonic = 1000.0
        self._sleepers: list[tuple[float, int, asyncio.Future[None]]] = []
        self._numbers = itertools.count()
        self._changed = asyncio.Event()

    def now(self) -> datetime:
        return self._now

    def monotonic(self) -> float:
        return self._monotonic

    async def sleep(self, seconds: float) -> None:
        """Wait for so much of this clock's time."""
        woken: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        heapq.heappush(self._sleepers, (self._monotonic + seconds, next(self._numbers), woken))
        self._changed.set()
        await woken

    def advance(self, seconds: float) -> None:
        """Let time pass, and wake who waited for it."""
        self._now += timedelta(seconds=seconds)
        self._monotonic += seconds
        while self._sleepers and self._sleepers[0][0] <= self._monotonic:
            _, _, woken = heapq.heappop(self._sleepers)
            if not woken.done():
                woken.set_result(None)

    @property
    def sleeping(self) -> int:
        """How many sleep."""
        return sum(not woken.done() for _, _, woken in self._sleepers)

    async def sleeper(self, beside: int = 0) -> None:
        """Wait until somebody sleeps, beside so many who always do."""
        while self.sleeping <= beside:
            self._changed.clear()
            await self._changed.wait()
