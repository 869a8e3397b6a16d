"""Events without a position, kept until it is known whether they stand on the tape. Bounded: the oldest go first."""

from __future__ import annotations

from collections import deque
from typing import Final

from livetape.events.tape_event import TapeEvent

MAX_BYTES: Final = 4 * 1024 * 1024
EVENT_BYTES: Final = 512
"""What an event counts at least."""


class Held:
    """By the order in which they came."""

    __slots__ = ("_bytes", "_events", "spilled")

    def __init__(self) -> None:
        self._events: deque[tuple[int, TapeEvent]] | None = None  # there is one of these for each topic, mostly empty
        self._bytes = 0
        self.spilled = False
        """There was no room for some."""

    def __bool__(self) -> bool:
        return bool(self._events) or self.spilled

    def add(self, number: int, event: TapeEvent) -> None:
        """The one that came as this number."""
        if self._events is None:
            self._events = deque()
        self._events.append((number, event))
        self._bytes += len(event.payload) + EVENT_BYTES
        while self._bytes > MAX_BYTES and len(self._events) > 1:
            self._pop(self._events)
            self.spilled = True

    def take(self, upto: int) -> list[TapeEvent]:
        """Those up to this number, and forget them."""
        taken: list[TapeEvent] = []
        while self._events and self._events[0][0] <= upto:
            taken.append(self._pop(self._events))
        return taken

    def clear(self) -> None:
        """Forget everything."""
        self._events = None
        self._bytes = 0
        self.spilled = False

    def _pop(self, events: deque[tuple[int, TapeEvent]]) -> TapeEvent:
        _, event = events.popleft()
        self._bytes -= len(event.payload) + EVENT_BYTES
        return event
