"""From the log to live without a hole: merges what was read with what arrived meanwhile. Pure.

Every reader does the same: live events are kept in a `Tail` from before its first read; it reads the log after its
position and merges; it goes live once it stands where the live events stand. Whatever arrives in whatever order,
`merge` gives each event after a position once, in order, and says what is lost.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final, TypeAlias

from livetape.events.executions import ExecutionEventType
from livetape.events.log import Entry, Position
from livetape.events.tape_event import MixedTapeEvent, TapeEvent

REPLACEMENT: Final = ExecutionEventType.ERROR_COMMS_UPDATE.value
"""The type of what the bus carries in place of an event that is too large for it. The log has the event itself."""


@dataclass(frozen=True, slots=True)
class Gap:
    """Events that cannot be had any more. None: it is not known which.

    Both None: a mixed tape was trimmed, or the log has lost its end; the events go on from where it ends now, perhaps
    with numbers that have been seen.
    """

    first: int | None
    last: int | None
    epoch: str | None


Item: TypeAlias = TapeEvent | Gap


@dataclass(frozen=True, slots=True)
class Merged:
    """What follows a position, in order. `behind`: newer events are known that do not join on; read again."""

    items: list[Item]
    position: Position
    behind: bool


class Tail:
    """The newest live events of one epoch, by rising offset. Bounded by count and bytes: the oldest go first.

    Whatever it drops or refuses is in the log, so it need not hold everything to be right.
    """

    __slots__ = ("_bytes", "_events", "_max_bytes", "_max_events")

    def __init__(self, max_events: int, max_bytes: int) -> None:
        self._max_events = max_events
        self._max_bytes = max_bytes
        self._events: deque[TapeEvent] | None = None  # mostly empty, and there are as many of these as readers
        self._bytes = 0

    def __len__(self) -> int:
        return len(self._events or ())

    def __iter__(self) -> Iterator[TapeEvent]:
        return iter(self._events or ())

    @property
    def first(self) -> TapeEvent | None:
        """The oldest that is kept."""
        return self._events[0] if self._events else None

    def add(self, event: TapeEvent) -> None:
        """Keep a durable event. One that came out of order is left to the log."""
        if event.offset is None:
            return
        if self._events:
            newest = self._events[-1]
            if newest.epoch != event.epoch:
                self.clear()
            elif newest.offset is not None and event.offset <= newest.offset:
                return
        if self._events is None:
            self._events = deque()
        events = self._events
        events.append(event)
        self._bytes += len(event.payload)
        while len(events) > self._max_events or (self._bytes > self._max_bytes and len(events) > 1):
            self._bytes -= len(events.popleft().payload)

    def clear(self) -> None:
        """Forget everything."""
        self._events = None
        self._bytes = 0


def from_log(entry: Entry, epoch: str, *, is_endless: bool = False, mixed: bool = False) -> TapeEvent:
    """An entry as an event. On an endless tape (a graph's) no event is the last. `mixed`: see `Tape.mixed`."""
    made = MixedTapeEvent if mixed else TapeEvent
    return made(entry.event_type, entry.payload, entry.offset, epoch, entry.final and not is_endless, entry.at_us)


def merge(position: Position, read: Sequence[TapeEvent], tail: Iterable[TapeEvent]) -> Merged:
    """What follows `position`: first what was read from the log after it, then the live events that join on.

    The log has no holes: an offset that is missing before something that was read has been trimmed.
    """
    items: list[Item] = []
    offset, epoch = position.offset, position.epoch
    for event in read:
        if event.offset is None or event.offset <= offset:
            continue
        if event.offset > offset + 1:
            items.append(Gap(offset + 1, event.offset - 1, epoch))
        items.append(event)
        offset = event.offset
    behind = False
    for event in tail:
        if event.epoch != epoch:
            behind = True
            break
        if event.offset is None or event.offset <= offset:
            continue
        if event.offset > offset + 1 or event.event_type == REPLACEMENT:
            behind = True
            break
        items.append(event)
        offset = event.offset
    return Merged(items, Position(epoch, offset), behind)


def rising(position: Position, read: Sequence[TapeEvent]) -> Merged:
    """What follows `position` on a mixed tape: what was read, where numbers that are missing say nothing."""
    items: list[Item] = []
    offset = position.offset
    for event in read:
        if event.offset is not None and event.offset > offset:
            items.append(event)
            offset = event.offset
    return Merged(items, Position(position.epoch, offset), behind=False)


def skip_hole(position: Position, tail: Iterable[TapeEvent]) -> Merged:
    """What is left when the log cannot give the events between: a gap, then the live events as they came."""
    items: list[Item] = []
    for event in tail:
        if event.offset is None or (event.epoch == position.epoch and event.offset <= position.offset):
            continue
        epoch = event.epoch or ""
        if epoch != position.epoch:
            items.append(Gap(position.offset + 1 if position.epoch else 1, None, epoch))
        elif event.offset > position.offset + 1:
            items.append(Gap(position.offset + 1, event.offset - 1, epoch))
        items.append(event)
        position = Position(epoch, event.offset)
    return Merged(items, position, behind=False)
