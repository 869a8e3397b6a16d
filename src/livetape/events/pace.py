"""How much of a tape to read at once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from livetape.events.log import MAX_READ


class _HasPayload(Protocol):
    @property
    def payload(self) -> bytes: ...


class Pace:
    """How many entries to read at once, so that a chunk has about the wanted size whatever its events weigh."""

    def __init__(self, most_events: int, target_bytes: int, *, first: int = 32) -> None:
        self._most = min(most_events, MAX_READ)
        self._target = target_bytes
        self.limit = min(first, self._most)

    def saw(self, events: Sequence[_HasPayload]) -> None:
        """Learn from a chunk."""
        if events:
            self.weigh(sum(len(event.payload) for event in events) // len(events))

    def weigh(self, average: int) -> None:
        """Learn from the average bytes of a payload."""
        self.limit = max(1, min(self._most, self._target // max(1, average), self.limit * 4))
