"""Where a bus puts the messages of one subscription."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import AsyncIterator, Callable
from typing import Final

from livetape.events.bus import BusMessage

ANY_GAP: Final = BusMessage("", b"", gap=True)
"""Messages of any channel may be missing at this place."""


class Outlet(AsyncIterator[BusMessage]):
    """Filled without waiting. Its iteration ends when it is closed, which cannot be undone."""

    closed = False

    @property
    @abstractmethod
    def taker(self) -> Callable[[BusMessage], object]:
        """What takes a message, always the same: for those who would rather look it up once than for each."""

    @abstractmethod
    def mark_gap(self) -> None:
        """Messages of any channel may be missing at this place."""

    @abstractmethod
    def close(self) -> None:
        """End the iteration; what waits is thrown away. Idempotent."""
