"""Pieces of tapes as they were read a moment ago, for all who read the same: the events, and what leaves for them."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Final

from livetape.events.tape_event import TapeEvent
from livetape.gateway.forms import Form
from livetape.gateway.messages import Push

EVENT_BYTES: Final = 512
"""What an event weighs at least."""

MAX_FORMS: Final = 4
PUSH_WEIGHT: Final = 4
"""A joined push holds its bytes so often: whole, in parts, and both as frames."""

MAX_LIVES: Final = 4
"""A chunk that is used all the time is kept for so many times as long as one that is not."""

Encode = Callable[[TapeEvent, Form], Push | None]


class Scale:
    """What all chunks of a cache weigh: counted as they come, grow and go, since there may be thousands."""

    __slots__ = ("total",)

    def __init__(self) -> None:
        self.total = 0


class Chunk:
    """What one read of the log gave, in order. Immutable but for the pushes that are made of it when asked for."""

    def __init__(self, events: Sequence[TapeEvent]) -> None:
        self.events = events
        size = sum([len(event.payload) for event in events])
        self.average = size // max(1, len(events))
        """Bytes of a payload."""
        self.weight = size + EVENT_BYTES * len(events)
        """About its bytes in memory."""
        self.scale: Scale | None = None
        """On which it lies, while a cache keeps it."""
        self._pushes: dict[tuple[Form, bool], Push | None] = {}
        first = events[0].offset if events else None
        has_hole = first is None or any(event.offset != first + n for n, event in enumerate(events))
        self._first = None if has_hole else first

    def follows(self, offset: int) -> bool:
        """Whether it is what comes after this offset, without a hole."""
        return self._first == offset + 1

    def push(self, form: Form, *, each: bool, encode: Encode, left_out: str) -> Push | None:
        """All of it as one push; `left_out`: the type of events that only who wants `each` is sent."""
        key = (form, each)
        if key in self._pushes:
            return self._pushes[key]
        wanted = [encode(event, form) for event in self.events if each or event.event_type != left_out]
        pushes = [push for push in wanted if push is not None]
        joined = Push.joined(pushes) if pushes else None
        if len(self._pushes) < MAX_FORMS:
            self._pushes[key] = joined
            if joined is not None:
                self.weight += joined.size * PUSH_WEIGHT
                if self.scale is not None:
                    self.scale.total += joined.size * PUSH_WEIGHT
        return joined


@dataclass(slots=True)
class _Kept:
    put_at: float
    until: float
    tape: str
    chunk: Chunk


class ChunkCache:
    """The newest chunks, bounded by bytes and kept for a few seconds after the last use. `now` counts seconds.

    What stands on a tape does not change, unless the log loses its end: then `forget` it. A chunk that was read from
    before that is told apart by the `era`.
    """

    def __init__(self, max_bytes: int, max_seconds: float, now: Callable[[], float]) -> None:
        self._max_bytes = max_bytes
        self._max_seconds = max_seconds
        self._now = now
        self._chunks: OrderedDict[Hashable, _Kept] = OrderedDict()
        self._scale = Scale()
        self.era = 0

    def __len__(self) -> int:
        return len(self._chunks)

    def get(self, key: Hashable) -> Chunk | None:
        """What was put there, if it still holds."""
        self.tidy()
        found = self._chunks.get(key)
        if found is None or found.until <= self._now():
            return None
        found.until = min(self._now() + self._max_seconds, found.put_at + self._max_seconds * MAX_LIVES)
        self._chunks.move_to_end(key)
        return found.chunk

    def put(self, key: Hashable, tape: str, chunk: Chunk, era: int) -> None:
        """Keep it; not one without events (it may have some the next time), and not one of an earlier era."""
        if not chunk.events or era != self.era or chunk.weight * 2 > self._max_bytes:
            return
        now = self._now()
        self._drop(key)
        self._chunks[key] = _Kept(now, now + self._max_seconds, tape, chunk)
        chunk.scale = self._scale
        self._scale.total += chunk.weight
        while self._scale.total > self._max_bytes:
            self._drop(next(iter(self._chunks)))

    def forget(self, tape: str) -> None:
        """This tape is not what it was."""
        self.era += 1
        for key in [key for key, kept in self._chunks.items() if kept.tape == tape]:
            self._drop(key)

    def clear(self) -> None:
        """No tape may be what it was."""
        self.era += 1
        for key in tuple(self._chunks):
            self._drop(key)

    def tidy(self) -> None:
        """Drop what is too old. To be called now and then."""
        now = self._now()
        while self._chunks:
            key, kept = next(iter(self._chunks.items()))
            if kept.until > now:
                return
            self._drop(key)

    def _drop(self, key: Hashable) -> None:
        kept = self._chunks.pop(key, None)
        if kept is not None:
            kept.chunk.scale = None
            self._scale.total -= kept.chunk.weight
