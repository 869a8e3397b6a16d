"""Reads tapes: for a topic with a hole, and in chunks for whoever is not live."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from datetime import datetime
from typing import Final, TypeAlias

from livetape.clock import Clock, SystemClock
from livetape.errors import LivetapeError, PositionLostError
from livetape.events.backoff import Backoff
from livetape.events.log import EventLog, Position, Tape
from livetape.events.pace import Pace
from livetape.events.recovery import from_log, merge, rising, skip_hole
from livetape.events.tape_event import TapeEvent
from livetape.gateway.access import Access, AccessCheck, OwnerAccess
from livetape.gateway.asked import Doubt
from livetape.gateway.chunks import Chunk, ChunkCache
from livetape.gateway.flights import Flights
from livetape.gateway.marks import MARKS
from livetape.gateway.options import GatewayOptions
from livetape.gateway.shortening import Shortening
from livetape.gateway.subjects import Kind, Subject
from livetape.gateway.topic import Topic
from livetape.observability import Metrics, get_logger

logger = get_logger(__name__)

Sleep: TypeAlias = Callable[[float], Awaitable[None]]

HEAL_TRIES: Final = 6
"""So often is the log asked for what must be there (it is written first) before its absence is told as a gap."""

LATE_OWNER_TRIES: Final = 5

READS_AT_ONCE: Final = 64
"""So many questions are put to the log at once: a log that is asked for everything at once answers nothing in time."""

CHUNK_SECONDS: Final = 5.0
"""So long is a piece of a tape kept for those who come next: many do after an interruption."""


class TapeReader:
    """The gateway's only way to the log. What many ask at the same time is asked once."""

    def __init__(
        self,
        log: EventLog,
        options: GatewayOptions,
        *,
        check: AccessCheck | None = None,
        metrics: Metrics | None = None,
        clock: Clock | None = None,
        sleep: Sleep = asyncio.sleep,
    ) -> None:
        self._log = log
        self._options = options
        self._check = check or OwnerAccess(options.jobs_unowned)
        self._sleep = sleep
        self._turns = asyncio.Semaphore(READS_AT_ONCE)
        self._shortening = Shortening(options.max_event_bytes, metrics)
        self._descriptions = Flights[Tape | None]()
        self._reads = Flights[Chunk]()
        self._chunks = ChunkCache(options.replay_cache_bytes, CHUNK_SECONDS, (clock or SystemClock()).monotonic)

    async def describe(self, subject: Subject) -> Tape | None:
        """The tape of a subject, as it is now or later: never as it was before this call."""
        return await self._descriptions.after(subject.tape, lambda: self._describe(subject.tape))

    async def _describe(self, tape: str) -> Tape | None:
        async with self._turns:
            return await self._log.describe(tape)

    async def look(self, topic: Topic) -> Tape | None:
        """The tape of a topic, which has learnt it where it may be read for its members, or could be until now."""
        while True:
            asked, turn = topic.ask(), topic.turn
            tape = await self.describe(topic.subject)
            if tape is None or not (topic.bound or may_read(topic, tape, self._check)):
                return tape
            is_sure = topic.learn(tape, asked)
            if topic.turn != turn:
                self._chunks.forget(tape.name)
            if is_sure:
                return tape

    async def verify(self, topic: Topic, doubt: Doubt | None = None) -> None:
        """Compare what a topic has handed over last, and where there is doubt, with what the log has there."""
        after, turn, epoch = topic.marked_after, topic.turn, topic.position.epoch
        if after is None:
            return
        try:
            if doubt is not None and doubt.mark is not None and doubt.offset <= after:
                place = Position(epoch, doubt.offset - 1)
                there = await self._read(topic.subject, place, 1, mixed=False, keep=False)
                if topic.turn == turn and topic.denies(there.events, doubt):
                    topic.rewind(doubt.offset - 1)
            chunk = await self._read(topic.subject, Position(epoch, after), MARKS, mixed=False, keep=False)
        except PositionLostError:
            return  # born again: the next look finds out
        if topic.turn == turn:
            topic.compare(chunk.events)
        if topic.turn != turn:
            self._chunks.forget(topic.subject.tape)

    async def read(
        self, subject: Subject, position: Position, pace: Pace, *, mixed: bool = False, fresh: bool = False
    ) -> tuple[Chunk, bool]:
        """The next chunk after a position, and whether there may be more. Perhaps it was read for somebody else a
        moment ago; when it says that there is no more and is `fresh`, there is none that was written before this call.

        Raises:
            PositionLostError: the tape has another epoch, or is gone.
        """
        if not position.epoch:
            raise PositionLostError("a position without epoch is nowhere", tape=subject.tape)
        limit = pace.limit
        key = (subject, position, limit, mixed)
        chunk, more = self._chunks.get(key), True
        if chunk is None:
            share = self._reads.after if fresh else self._reads.join
            chunk = await share(key, lambda: self._read(subject, position, limit, mixed=mixed))
            more = len(chunk.events) >= limit
        if chunk.events:
            pace.weigh(chunk.average)
        return chunk, more

    def recall(self, subject: Subject, position: Position, pace: Pace) -> Chunk | None:
        """The next chunk after a position of a tape that is not mixed, if it was read a moment ago: as `read`, but
        nobody is asked."""
        chunk = self._chunks.get((subject, position, pace.limit, False))
        if chunk is not None:
            pace.weigh(chunk.average)
        return chunk

    async def _read(self, subject: Subject, position: Position, limit: int, *, mixed: bool, keep: bool = True) -> Chunk:
        era = self._chunks.era
        async with self._turns:
            entries = await self._log.read(subject.tape, position.offset, limit=limit, epoch=position.epoch)
        is_endless = subject.kind is Kind.GRAPH
        events: Sequence[TapeEvent] = [
            from_log(entry, position.epoch, is_endless=is_endless, mixed=mixed) for entry in entries
        ]
        if keep:  # else it is for nobody
            events = await self._shortening.fit(events)
        chunk = Chunk(events)
        if keep and not mixed:
            self._chunks.put((subject, position, limit, mixed), subject.tape, chunk, era)
        return chunk

    def forget(self, subject: Subject) -> None:
        """What was read of this tape a moment ago may not be what the log has."""
        self._chunks.forget(subject.tape)

    def forget_all(self) -> None:
        """As `forget`, of every tape."""
        self._chunks.clear()

    def tidy(self) -> None:
        """Give back memory that is not needed any more. To be called now and then."""
        self._chunks.tidy()

    async def offset_at(self, subject: Subject, tape: Tape, time: datetime) -> int:
        """The offset after which the events since this time begin.

        Raises:
            PositionLostError: the tape has been born again meanwhile, or is gone.
        """
        low, high = max(0, tape.first_offset - 1), tape.offset
        while low < high:
            middle = (low + high) // 2
            async with self._turns:
                entries = await self._log.read(subject.tape, middle, limit=1, epoch=tape.epoch)
            if entries and entries[0].time < time:
                low = entries[0].offset
            else:
                high = middle
        return low

    async def heal(self, topic: Topic) -> None:
        """Bring a topic to the end of its tape, so that its members miss nothing.

        The caller sees to it that only one does so, between `start_reading` and `stop_reading`.
        """
        pace = Pace(self._options.replay_chunk_events, self._options.replay_chunk_bytes)
        unavailable, missing = Backoff(), Backoff(first=0.02)
        while topic.references and not topic.denied:
            topic.stale = False
            heard = topic.heard
            try:
                tape = await self.look(topic)
                if not may_read(topic, tape, self._check):
                    if self._without_tape(topic, tape, heard) or missing.tries >= LATE_OWNER_TRIES:
                        return
                    await self._sleep(missing.next())
                    continue
                assert tape is not None
                topic.settle(heard)
                doubt = topic.take_doubt()
                if doubt is not None:
                    await self.verify(topic, doubt)
                before, turn = topic.position, topic.turn
                chunk, more = await self.read(topic.subject, before, pace, mixed=topic.mixed, fresh=True)
            except PositionLostError:  # born again between the two questions: the next round finds out
                await self._sleep(missing.next())
                continue
            except LivetapeError as error:
                if not error.retryable:
                    raise
                await self._sleep(unavailable.next())
                continue
            unavailable.reset()
            if topic.turn != turn:
                continue  # that may have been read from what the tape was before
            if chunk.events:
                topic.saw(chunk.events[-1].offset or 0)
            there = topic.position  # it may have gone on by itself meanwhile
            merged = rising(there, chunk.events) if topic.mixed else merge(there, chunk.events, topic.tail)
            topic.apply(merged.items)
            if not merged.behind and not more and not topic.stale:
                return
            if topic.position == before and merged.behind:
                if missing.tries >= HEAL_TRIES:
                    self._give_up(topic, tape)
                    return
                await self._sleep(missing.next())

    def _without_tape(self, topic: Topic, tape: Tape | None, heard: int) -> bool:
        """There is no tape that may be read. True when that is all; False when it may still come."""
        if topic.denied:
            return True
        if topic.proven:
            if topic.strays():
                topic.lose_unknown()
            topic.settle(heard)
            self._give_up(topic, None)
            return True
        reader = topic.key.reader
        assert reader is not None
        if self._check(reader, topic.subject, tape) is Access.DENIED:
            topic.denied = True
            return True
        return False

    def _give_up(self, topic: Topic, tape: Tape | None) -> None:
        """The log does not give what came live. Of two epochs it has the right one; what it ends before may follow."""
        tail = list(topic.tail)
        if tape is not None:
            tail = [event for event in tail if event.epoch == tape.epoch]
        skipped = skip_hole(topic.position, tail)
        if any(not isinstance(item, TapeEvent) for item in skipped.items):
            logger.warning("events are gone", extra={"action": "gap", "tape": topic.subject.tape})
        if tape is not None and skipped.items and skipped.position.offset > tape.offset:
            topic.run_ahead(tape.offset)
        topic.apply(skipped.items)


def may_read(topic: Topic, tape: Tape | None, check: AccessCheck) -> bool:
    """Whether the tape may be read for the members of this topic."""
    if tape is None or topic.denied:
        return False
    reader = topic.key.reader
    return reader is None or check(reader, topic.subject, tape) is Access.GRANTED
