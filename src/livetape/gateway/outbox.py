"""What waits for one client: bounded by bytes and count, and leaving in one go."""

from __future__ import annotations

import asyncio

from livetape.gateway.messages import Push


class Outbox:
    """Filled without waiting by the hub, emptied by one writer.

    `put` refuses when there is no room; the giver then has to come back when `room` returns. So memory is bounded, and
    nothing that was taken is dropped. `force` is for what must follow at once and is bounded by other means: replies
    (a client is not read while it does not read) and chunks of a replay.
    """

    def __init__(self, max_bytes: int, max_messages: int) -> None:
        self._max_bytes = max_bytes
        self._max_messages = max_messages
        self._waiting: list[Push] = []
        self._bytes = 0  # waiting and leaving
        self._count = 0
        self._leaving = (0, 0)
        self._ready = asyncio.Event()
        self._room = asyncio.Event()
        self._room.set()
        self.closed = False

    @property
    def size(self) -> int:
        """Bytes that have not left yet."""
        return self._bytes

    def put(self, push: Push) -> bool:
        """Take it, or return False when there is no room. One message always fits in an empty outbox."""
        if self.closed:
            return True
        size = len(push.data)
        if self._count and (self._bytes + size > self._max_bytes or self._count >= self._max_messages):
            self._room.clear()
            return False
        self._add(push, size)
        return True

    def force(self, push: Push) -> None:
        """Take it in any case."""
        if not self.closed:
            self._add(push, len(push.data))

    def close(self, *, drop: bool = False) -> None:
        """Take nothing more. `drop` forgets what waits."""
        self.closed = True
        if drop:
            self._waiting.clear()
        self._ready.set()
        self._room.set()

    async def room(self) -> None:
        """Wait until it is at most half full."""
        await self._room.wait()

    async def wait(self) -> None:
        """Wait until something is there to `take`, or it was closed."""
        await self._ready.wait()

    def take(self) -> list[Push]:
        """Everything that waits. It counts until `sent`. Empty after `close` when nothing is left."""
        batch, self._waiting = self._waiting, []
        self._leaving = (sum(len(push.data) for push in batch), len(batch))
        if not self.closed:
            self._ready.clear()
        return batch

    def sent(self) -> None:
        """The last batch has left."""
        self._bytes -= self._leaving[0]
        self._count -= self._leaving[1]
        self._leaving = (0, 0)
        if self._is_half_empty():
            self._room.set()

    def _add(self, push: Push, size: int) -> None:
        self._waiting.append(push)
        self._bytes += size
        self._count += 1
        self._ready.set()
        if not self._is_half_empty():
            self._room.clear()

    def _is_half_empty(self) -> bool:
        return self._bytes * 2 <= self._max_bytes and self._count * 2 <= self._max_messages
