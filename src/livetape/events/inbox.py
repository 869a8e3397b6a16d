"""What waits for one subscriber: bounded, the oldest lost first, and a marker where something is missing."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Final

from livetape.events.bus import BusMessage
from livetape.events.outlet import ANY_GAP, Outlet

DEFAULT_MAX_MESSAGES: Final = 10_000
DEFAULT_MAX_BYTES: Final = 64 * 1024 * 1024


class Inbox(Outlet):
    """Filled by a bus without waiting, emptied by the one task that iterates over it.

    `max_messages` and `max_bytes` bound what waits. When it is full the oldest go, and a gap marker takes their
    place: with the channel that lost, or with an empty one when there were several. `on_drop` is told how many.
    """

    def __init__(
        self,
        max_messages: int = DEFAULT_MAX_MESSAGES,
        max_bytes: int = DEFAULT_MAX_BYTES,
        *,
        on_drop: Callable[[int], None] | None = None,
    ) -> None:
        self._max_messages = max_messages
        self._max_bytes = max_bytes
        self._on_drop = on_drop
        self._waiting: deque[BusMessage] = deque()
        self._waiting_bytes = 0
        self._lost: str | None = None  # the channel that lost messages, "" for several; None when none was lost
        self._arrived = asyncio.Event()

    @property
    def taker(self) -> Callable[[BusMessage], object]:
        return self.offer

    def offer(self, message: BusMessage) -> None:
        """Take a message, without waiting."""
        waiting = self._waiting
        waiting.append(message)
        self._waiting_bytes += len(message.data)
        if len(waiting) > self._max_messages or self._waiting_bytes > self._max_bytes:
            self._drop()
        if not self._arrived.is_set():
            self._arrived.set()

    def mark_gap(self) -> None:
        if not self._waiting or self._waiting[-1] is not ANY_GAP:
            self.offer(ANY_GAP)

    def close(self) -> None:
        self.closed = True
        self._waiting.clear()
        self._waiting_bytes = 0
        self._arrived.set()

    def __aiter__(self) -> Inbox:
        return self

    async def __anext__(self) -> BusMessage:
        while not self.closed:
            if self._lost is not None:
                marker, self._lost = BusMessage(self._lost, b"", gap=True), None
                return marker
            if self._waiting:
                message = self._waiting.popleft()
                self._waiting_bytes -= len(message.data)
                return message
            self._arrived.clear()
            await self._arrived.wait()
        raise StopAsyncIteration

    def _drop(self) -> None:
        dropped = 0
        while len(self._waiting) > self._max_messages or self._waiting_bytes > self._max_bytes:
            oldest = self._waiting.popleft()
            self._waiting_bytes -= len(oldest.data)
            self._lost = oldest.channel if self._lost in (None, oldest.channel) else ""
            dropped += not oldest.gap
        if dropped and self._on_drop is not None:
            self._on_drop(dropped)
