"""Reads tapes: for a topic with a hole, and in chunks for whoever is not live."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace
from datetime import datetime
from typing import Final, TypeAlias

from livetape.errors import LivetapeError, PositionLostError
from livetape.events.backoff import Backoff
from livetape.events.log import EventLog, Position, Tape
from livetape.events.pace import Pace
from livetape.events.recovery import from_log, merge, rising, skip_hole
from livetape.events.tape_event import TapeEvent
from livetape.gateway.options import GatewayOptions
from livetape.gateway.subjects import Access, Kind, Subject
from livetape.gateway.topic import Topic
from livetape.observability import get_logger

logger = get_logger(__name__)

Sleep: TypeAlias = Callable[[float], Awaitable[None]]

HEAL_TRIES: Final = 6
"""So often is the log asked for what must be there (it is written first) before its absence is told as a gap."""

LATE_OWNER_TRIES: Final = 5


class TapeReader:
    """The gateway's only way to the log."""

    def __init__(self, log: EventLog, options: GatewayOptions, *, sleep: Sleep = asyncio.sleep) -> None:
        self._log = log
        self._options = options
        self._sleep = sleep

    async def describe(self, subject: Subject) -> Tape | None:
        """The tape of a subject."""
        return await self._log.describe(subject.tape)

    async def read(
        self, subject: Subject, position: Position, pace: Pace, *, mixed: bool = False
    ) -> tuple[list[TapeEvent], bool]:
        """The next chunk after a position, and whether there may be more.

        Raises:
            PositionLostError: the tape has another epoch, or is gone.
        """
        limit = pace.limit
        entries = await self._log.read(subject.tape, position.offset, limit=limit, epoch=position.epoch or None)
        is_endless = subject.kind is Kind.GRAPH
        events = [from_log(entry, position.epoch, is_endless=is_endless, mixed=mixed) for entry in entries]
        pace.saw(events)
        return events, len(entries) >= limit

    async def offset_at(self, subject: Subject, tape: Tape, time: datetime) -> int:
        """The offset after which the events since this time begin.

        Raises:
            PositionLostError: the tape has been born again meanwhile, or is gone.
        """
        low, high = max(0, tape.first_offset - 1), tape.offset
        while low < high:
            middle = (low + high) // 2
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
                tape = await self.describe(topic.subject)
                if not may_read(topic, tape, self._options):
                    if self._without_tape(topic, tape, heard) or missing.tries >= LATE_OWNER_TRIES:
                        return
                    await self._sleep(missing.next())
                    continue
                assert tape is not None
                _bind(topic, tape)
                topic.settle(heard)
                before = topic.position
                events, more = await self.read(topic.subject, before, pace, mixed=topic.mixed)
            except PositionLostError:  # born again between the two questions: the next round finds out
                await self._sleep(missing.next())
                continue
            except LivetapeError as error:
                if not error.retryable:
                    raise
                await self._sleep(unavailable.next())
                continue
            unavailable.reset()
            there = topic.position  # it may have gone on by itself meanwhile
            merged = rising(there, events) if topic.mixed else merge(there, events, topic.tail)
            topic.apply(merged.items)
            if not merged.behind and not more and not topic.stale:
                return
            if topic.position == before and merged.behind:
                if missing.tries >= HEAL_TRIES:
                    self._give_up(topic)
                    return
                await self._sleep(missing.next())

    def _without_tape(self, topic: Topic, tape: Tape | None, heard: int) -> bool:
        """There is no tape that may be read. True when that is all; False when it may still come."""
        if topic.proven:
            topic.settle(heard)
            self._give_up(topic)
            return True
        reader = topic.key.reader
        assert reader is not None
        if topic.subject.access(tape, reader, self._options.jobs_unowned) is Access.DENIED:
            topic.denied = True
            return True
        return False

    def _give_up(self, topic: Topic) -> None:
        skipped = skip_hole(topic.position, topic.tail)
        if any(not isinstance(item, TapeEvent) for item in skipped.items):
            logger.warning("events are gone", extra={"action": "gap", "tape": topic.subject.tape})
        topic.apply(skipped.items)


def may_read(topic: Topic, tape: Tape | None, options: GatewayOptions) -> bool:
    """Whether the tape may be read for the members of this topic."""
    if tape is None:
        return False
    reader = topic.key.reader
    return reader is None or topic.subject.access(tape, reader, options.jobs_unowned) is Access.GRANTED


def _bind(topic: Topic, tape: Tape) -> None:
    """The tape is there and may be read: a topic that waited for it, or knew an earlier one of the name, follows it."""
    topic.proven = topic.readable = True
    if topic.position.epoch == "":
        topic.position = replace(topic.position, epoch=tape.epoch)
    elif topic.position.epoch != tape.epoch:
        topic.move(Position(tape.epoch, max(0, tape.first_offset - 1)))
    topic.mixed = tape.mixed
    if tape.mixed:
        topic.tail.clear()
        if is_trimmed(tape, topic.position):
            topic.lose_unknown()
            topic.position = replace(topic.position, offset=tape.first_offset - 1)


def is_trimmed(tape: Tape, position: Position) -> bool:
    """Whether events after this position of a mixed tape may be gone: a hole in its numbers does not tell."""
    return 0 < position.offset < tape.first_offset - 1
