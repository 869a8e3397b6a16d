"""Follows one tape: what it holds, then what comes, without a hole between them."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass, field
from typing import Final, Literal, TypeAlias

from livetape.errors import LogUnavailableError, PositionLostError
from livetape.events.backoff import Backoff
from livetape.events.bus import Bus
from livetape.events.channel import is_pattern
from livetape.events.lag import Lag
from livetape.events.listener import Listener, Sleep
from livetape.events.log import EventLog, Position, Tape
from livetape.events.pace import Pace
from livetape.events.recovery import REPLACEMENT, Gap, Item, Tail, from_log, merge, skip_hole
from livetape.events.tape_event import TapeEvent
from livetape.observability import Metrics, get_logger

logger = get_logger(__name__)

Start: TypeAlias = Position | Literal["earliest"] | None


@dataclass(frozen=True, slots=True)
class FollowOptions:
    """Bounds and intervals of a follower.

    Times are seconds. `sweep_s`: so often is the log asked for its newest position, in case the last message was lost.
    `poll_s`: instead of that, while only the log tells what is new (the bus is away, there is no tape yet, or the tape
    is mixed: who else writes to it publishes nothing). `heal_tries`: so often is the log asked for what must be there
    (it is written first) before its absence is told as a gap.
    """

    chunk_events: int = 1000
    chunk_bytes: int = 1024 * 1024
    tail_events: int = 1000
    tail_bytes: int = 4 * 1024 * 1024
    sweep_s: float = 25.0
    poll_s: float = 1.0
    heal_tries: int = 6


DEFAULT_OPTIONS: Final = FollowOptions()


async def follow(
    log: EventLog,
    bus: Bus,
    tape: str,
    channel: str,
    *,
    after: Start,
    until_final: bool = False,
    options: FollowOptions = DEFAULT_OPTIONS,
    sleep: Sleep = asyncio.sleep,
    metrics: Metrics | None = None,
) -> AsyncGenerator[Item, None]:
    """The events of a tape after a position, then live, for ever; with `until_final` the last event ends it.

    `after`: a position; "earliest": from the first event that can still be read; None: from now on. The tape need not
    exist yet. `channel` is where its events are published (a pattern for the tape of a graph).

    After a position every event comes once, in order; where that cannot be, a `Gap` says so first: its numbers when
    the events were trimmed, `last=None` when the tape was lost and born again, after which the new epoch follows from
    its beginning. On a mixed tape a hole cannot be seen: `Gap(None, None, …)` says that events may have been trimmed.
    The same stands where the log has lost its end (restored from a copy, say) and now ends before the position; then
    come the events after its present end. The log is believed, not the bus: a live event that does not join on and is
    not in the log is dropped.

    It waits for a log or bus that is away, as long as it takes. Memory is bounded by `options`. When the generator is
    closed or cancelled its subscription and its tasks have ended.

    Raises:
        ClosedError: the log or the bus was closed.
    """
    tail = Tail(options.tail_events, options.tail_bytes)
    listener = Listener(bus, channel, tail, of_graph=is_pattern(channel), sleep=sleep)
    cursor = _Cursor(log, tape, listener, after, options, sleep, Lag(metrics, tape), is_endless=is_pattern(channel))
    tasks = [asyncio.create_task(listener.run()), asyncio.create_task(cursor.sweep())]
    for task in tasks:
        task.add_done_callback(lambda _: listener.changed.set())
    try:
        while True:
            for task in tasks:
                if task.done():
                    task.result()  # they run until cancelled: it failed
            for item in await cursor.step():
                yield item
                if until_final and isinstance(item, TapeEvent) and item.final:
                    return
            if cursor.reading or listener.stale:
                continue
            cursor.lag.level()
            if until_final and cursor.final:
                return
            await listener.changed.wait()
            listener.changed.clear()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


@dataclass(slots=True)
class _Cursor:
    """Where a follower stands, and how it goes on."""

    log: EventLog
    tape: str
    listener: Listener
    start: Start
    options: FollowOptions
    sleep: Sleep
    lag: Lag
    is_endless: bool
    position: Position = field(default=Position("", 0))
    """What has been yielded. An empty epoch: there was no tape yet."""
    reading: bool = True
    """The log has to be read on."""
    begun: bool = False
    final: bool = False
    """The end of a tape whose last event has been written is reached."""
    mixed: bool = False
    there: bool = False
    dropped: int = 0
    """Live events that were not in the log."""
    pace: Pace = field(init=False)
    unavailable: Backoff = field(default_factory=Backoff)
    missing: Backoff = field(default_factory=lambda: Backoff(first=0.02))
    _left: deque[str] = field(default_factory=lambda: deque(maxlen=16))
    """Epochs that are over: their messages may still come, late."""

    def __post_init__(self) -> None:
        self.pace = Pace(self.options.chunk_events, self.options.chunk_bytes)
        if isinstance(self.start, Position):
            self.position, self.begun = self.start, True

    async def sweep(self) -> None:
        """Have the log asked from time to time. Until cancelled."""
        waited = 0.0
        while True:
            await self.sleep(self.options.poll_s)
            waited += self.options.poll_s
            is_told = self.listener.listening and self.there and not self.mixed
            if not is_told or waited >= self.options.sweep_s:
                waited = 0.0
                self.listener.wake()

    async def step(self) -> Sequence[Item]:
        """What comes next, as far as it is known without waiting for news; perhaps nothing."""
        if not self.reading and not self.listener.stale and not self._is_doubtful():
            return self._join(())
        self.reading = True
        self.listener.stale = False
        try:
            items = await self._read()
        except LogUnavailableError:
            items = self._join(()) if self.begun else []
            if not items:
                await self.sleep(self.unavailable.next())
            self.reading = True
            return items
        except PositionLostError:
            return []  # born again between two questions; the next step finds out
        self.unavailable.reset()
        return items

    async def _read(self) -> Sequence[Item]:
        """One chunk of the log, joined with what is live."""
        tape = await self.log.describe(self.tape)
        self.there = tape is not None
        self._begin(tape)
        if tape is None:
            return await self._settle(self._join(()), is_level=True)
        was_unknown = self.position.epoch == ""
        if was_unknown:
            self.position = Position(tape.epoch, self.position.offset)
        if self.position.epoch != tape.epoch:
            return await self._old_epoch(tape)
        self.mixed = tape.mixed
        if not self.mixed:  # there offsets count nothing
            self.lag.look(tape.offset - self.position.offset)
        if self.position.offset > tape.offset:
            # Of a tape that was not there yet when the position was given, nothing has been seen.
            return [self._go_back(tape.first_offset - 1 if was_unknown else tape.offset)]
        if self.mixed and self.position.offset and tape.first_offset > self.position.offset + 1:
            return [self._lose_until(tape.first_offset - 1)]
        read: list[TapeEvent] = []
        if tape.offset > self.position.offset:
            read = await self._entries(tape.epoch)
        items = self._join(read)
        if not items and tape.first_offset > self.position.offset + 1:
            items.append(self._lose_until(tape.first_offset - 1))
        is_level = self.position.offset >= tape.offset
        if is_level and not self.listener.stale:
            self.final = tape.final
        return await self._settle(items, is_level=is_level, newest=tape.offset)

    def _is_doubtful(self) -> bool:
        """Whether an event came that had been here: twice, or because the log counts again from where it was before."""
        reached = self.position
        return any(e.epoch == reached.epoch and (e.offset or 0) <= reached.offset for e in self.listener.tail)

    def _go_back(self, offset: int) -> Gap:
        """The log ends before what has been seen of it: it has lost its end. What is live beyond that is lost too."""
        logger.warning("a tape has lost its end", extra={"action": "lost_end", "tape": self.tape, "offset": offset})
        self.position = Position(self.position.epoch, offset)
        self.listener.tail.clear()
        self.final = False
        return Gap(None, None, self.position.epoch)

    def _begin(self, tape: Tape | None) -> None:
        if not self.begun:
            self.begun = True
            if tape is None:
                return
            offset = tape.first_offset - 1
            if self.start is None:
                offset = tape.offset
                live = self.listener.tail.first  # what came while the log was away came after the beginning, too
                if live is not None and live.epoch == tape.epoch and live.offset is not None:
                    offset = min(offset, live.offset - 1)
            self.position = Position(tape.epoch, offset)

    async def _entries(self, epoch: str) -> list[TapeEvent]:
        entries = await self.log.read(self.tape, self.position.offset, limit=self.pace.limit, epoch=epoch)
        events = [from_log(entry, epoch, is_endless=self.is_endless, mixed=self.mixed) for entry in entries]
        self.pace.saw(events)
        return events

    async def _old_epoch(self, tape: Tape) -> Sequence[Item]:
        """The tape was lost and born again. What an archive still has of the old one comes first."""
        try:
            events = await self._entries(self.position.epoch)
        except PositionLostError:
            events = []
        if events:
            items = self._join(events)
            self.reading = True
            return items
        logger.warning("a tape was born again", extra={"action": "new_epoch", "tape": self.tape})
        gap = Gap(self.position.offset + 1, None, tape.epoch)
        self._leave(tape.epoch)
        self.position = Position(tape.epoch, max(0, tape.first_offset - 1))
        self.final = False
        return [gap]

    def _join(self, read: Sequence[TapeEvent]) -> list[Item]:
        """What was read and then what is live, as far as it follows. The rest stays in the tail."""
        if self.mixed:
            items: list[Item] = [e for e in read if e.offset is not None and e.offset > self.position.offset]
            if read:
                self.position = Position(self.position.epoch, max(self.position.offset, read[-1].offset or 0))
            self.listener.tail.clear()
            self.reading = False
            return items
        tail = [event for event in self.listener.tail if event.epoch not in self._left]
        merged = merge(self.position, read, tail)
        self.position = merged.position
        self._keep(tail)
        self.reading = merged.behind
        return merged.items

    def _keep(self, tail: list[TapeEvent]) -> None:
        self.listener.tail.clear()
        for event in tail:
            if event.epoch != self.position.epoch or (event.offset or 0) > self.position.offset:
                self.listener.tail.add(event)

    async def _settle(self, items: Sequence[Item], *, is_level: bool, newest: int = 0) -> Sequence[Item]:
        """Whether to read on; and when what must be in the log does not come, to do without it."""
        if items:
            self.missing.reset()
        self.reading = self.reading or not is_level
        if items or not self.reading:
            return items
        if self.missing.tries < self.options.heal_tries:
            await self.sleep(self.missing.next())
            return items
        self.missing.reset()
        return self._give_up(newest)

    def _give_up(self, newest: int) -> Sequence[Item]:
        """The log cannot give what was announced: tell it. Without a log, go on with what came live."""
        tail = list(self.listener.tail)
        if self.there:
            # It is written first: what it has not, nobody wrote. Of two epochs the log's is the right one.
            tail = [e for e in tail if e.epoch == self.position.epoch and (e.offset or 0) <= newest]
            self._doubt(len(self.listener.tail) - len(tail))
        self.listener.tail.clear()
        self.reading = False
        if self.position.epoch == "" and tail and tail[0].offset == 1:
            self.position = Position(tail[0].epoch or "", 0)
        skipped = skip_hole(self.position, tail)
        if skipped.position.epoch != self.position.epoch:
            self._leave(skipped.position.epoch)
        self.position = skipped.position
        items = [_without_stand_in(item) for item in skipped.items]
        if newest > self.position.offset:
            items = [*items, self._lose_until(newest)]
        if items:
            logger.warning("events are gone", extra={"action": "gap", "tape": self.tape})
        return items

    def _doubt(self, count: int) -> None:
        if count:
            self.dropped += count
            logger.warning(
                "live events were dropped that the log does not have",
                extra={"action": "not_in_log", "tape": self.tape, "count": count, "dropped": self.dropped},
            )
            self.listener.stale = True  # the tail may have refused others because of them

    def _lose_until(self, last: int) -> Gap:
        first = self.position.offset + 1
        self.position = Position(self.position.epoch, last)
        return Gap(None, None, self.position.epoch) if self.mixed else Gap(first, last, self.position.epoch)

    def _leave(self, epoch: str) -> None:
        self._left.append(self.position.epoch)
        while epoch in self._left:
            self._left.remove(epoch)


def _without_stand_in(item: Item) -> Item:
    """The stand-in of an event that was too large for the bus, and is lost from the log: a gap."""
    if isinstance(item, TapeEvent) and item.event_type == REPLACEMENT:
        return Gap(item.offset, item.offset, item.epoch)
    return item
