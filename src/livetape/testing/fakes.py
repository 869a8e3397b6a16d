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
class _Record:
    tape: Tape
    entries: list[Entry] = field(default_factory=list)
    keys: dict[str, int] = field(default_factory=dict)

    def add(self, event: NewEvent, time: datetime) -> int:
        offset = self.tape.offset + 1
        at_us = int(time.timestamp() * 1_000_000)
        self.entries.append(Entry(offset, event.event_type, event.payload, event.final, at_us))
        self.tape = replace(self.tape, offset=offset, final=self.tape.final or event.final)
        return offset


class FakeLog(EventLog):
    """An EventLog that keeps everything in memory and forgets it with the process. Not durable: for tests only."""

    def __init__(self, clock: Clock | None = None, *, epochs: Callable[[], str] = new_epoch) -> None:
        self._clock = clock or SystemClock()
        self._epochs = epochs
        self._records: dict[str, _Record] = {}
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
        record = self._records.get(tape)
        if record is None:
            made = Tape(tape, owner, graph_id, channel, epoch or self._epochs(), 0, 1, final=False)
            record = self._records[tape] = _Record(made)
        elif record.tape.owner is None and owner is not None:
            record.tape = replace(record.tape, owner=owner, channel=channel, graph_id=graph_id)
        return record.tape

    async def append(self, tape: str, event: NewEvent, *, idempotency_key: str | None = None) -> Position:
        self._check_open()
        await self.create(tape, owner=None, channel="")
        record = self._records[tape]
        if idempotency_key is not None and idempotency_key in record.keys:
            return Position(record.tape.epoch, record.keys[idempotency_key])
        offset = record.add(event, self._clock.now())
        if idempotency_key is not None:
            record.keys[idempotency_key] = offset
        return Position(record.tape.epoch, offset)

    async def put(self, tape: str, position: Position, event: NewEvent) -> PutResult:
        self._check_open()
        record = self._records.get(tape)
        if record is None:
            raise NotFoundError(tape=tape)
        if position.epoch != record.tape.epoch:
            raise PositionLostError(tape=tape)
        if position.offset <= record.tape.offset:
            return "duplicate"
        if position.offset > record.tape.offset + 1:
            raise TapeHoleError(tape=tape, missing_from=record.tape.offset + 1)
        record.add(event, self._clock.now())
        return "stored"

    async def read(
        self, tape: str, after: int = 0, *, limit: int = MAX_READ, epoch: str | None = None
    ) -> Sequence[Entry]:
        self._check_open()
        self.reads += 1
        record = self._records.get(tape)
        if epoch is not None and (record is None or record.tape.epoch != epoch):
            raise PositionLostError(tape=tape)
        if record is None:
            return []
        begin = max(0, after - record.tape.first_offset + 1)
        return record.entries[begin : begin + max(0, min(limit, MAX_READ))]

    async def describe(self, tape: str) -> Tape | None:
        self._check_open()
        record = self._records.get(tape)
        return None if record is None else record.tape

    async def tapes(self, prefix: str = "") -> AsyncIterator[str]:
        for name in [name for name in self._records if name.startswith(prefix)]:
            yield name

    async def trim(self, tape: str, *, keep_after: int) -> int:
        self._check_open()
        record = self._records.get(tape)
        if record is None:
            return 0
        kept = [entry for entry in record.entries if entry.offset > keep_after]
        removed = len(record.entries) - len(kept)
        record.entries = kept
        record.tape = replace(record.tape, first_offset=record.tape.first_offset + removed)
        return removed

    def lose(self, tape: str) -> None:
        """The tape is gone, as after the loss of a server without persistence."""
        self._records.pop(tape, None)

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

    async def sleeper(self) -> None:
        """Wait until somebody sleeps."""
        while not any(not woken.done() for _, _, woken in self._sleepers):
            self._changed.clear()
            await self._changed.wait()
