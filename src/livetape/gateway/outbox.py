"""What waits for one client: bounded by bytes and count, and leaving in one go."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

from livetape.gateway.messages import Push

CHUNK_BYTES: Final = 256 * 1024
"""So much is handed over at once when there is room again."""


class Outbox:
    """Filled without waiting by the hub. With `send` what comes goes straight through, except while `shut`.

    `put` refuses when there is no room; the giver then has to come back when `room` returns. So memory is bounded, and
    nothing that was taken is dropped. `force` is for what must follow at once and is bounded by other means: replies
    (a client is not read while it does not read) and chunks of a replay.

    Without `send` one writer empties it: `wait`, `take`, `sent`.
    """

    __slots__ = (
        "_bytes",
        "_count",
        "_leaving",
        "_max_bytes",
        "_max_messages",
        "_ready",
        "_room",
        "_send",
        "_waiting",
        "closed",
        "shut",
    )

    def __init__(self, max_bytes: int, max_messages: int, send: Callable[[Push], None] | None = None) -> None:
        self._max_bytes = max_bytes
        self._max_messages = max_messages
        self._send = send
        self._waiting: list[Push] | None = None
        self._bytes = 0  # waiting and leaving
        self._count = 0
        self._leaving = (0, 0)
        self._ready: asyncio.Event | None = None if send is not None else asyncio.Event()
        self._room: asyncio.Event | None = None  # made when somebody waits for it
        self.shut = send is None
        """What comes is kept back."""
        self.closed = False

    @property
    def size(self) -> int:
        """Bytes that have not left yet."""
        return self._bytes

    @property
    def has_room(self) -> bool:
        """Whether it is at most half full."""
        return self._bytes * 2 <= self._max_bytes and self._count * 2 <= self._max_messages

    def put(self, push: Push) -> bool:
        """Take it, or return False when there is no room. One push always fits in an empty outbox."""
        if self.closed:
            return True
        if not self.shut and self._send is not None:
            self._send(push)
            return True
        if self._count and (self._bytes + push.size > self._max_bytes or self._count + push.count > self._max_messages):
            return False
        self._add(push)
        return True

    def force(self, push: Push) -> None:
        """Take it in any case."""
        if self.closed:
            return
        if not self.shut and self._send is not None:
            self._send(push)
        else:
            self._add(push)

    def close(self, *, drop: bool = False) -> None:
        """Take nothing more. `drop` forgets what waits; else, with `send`, it leaves now, room or not."""
        if not self.closed:
            self.closed = True
            if drop:
                self._waiting, self._bytes, self._count = None, *self._leaving
            elif self._send is not None and self._waiting:
                self._send(Push.joined(self._taken()))
        if self._ready is not None:
            self._ready.set()
        if self._room is not None:
            self._room.set()

    async def room(self) -> None:
        """Wait until it is at most half full, or was closed."""
        while not self.has_room and not self.closed:
            if self._room is None:
                self._room = asyncio.Event()
            self._room.clear()
            await self._room.wait()

    # ---- with `send` -----------------------------------------------------------------------------------------------

    def open(self) -> None:
        """There is room at the other end: what waits leaves, in one go, until `shut` is set again."""
        self.shut = False
        while self._waiting and not self.shut and self._send is not None:
            self._send(Push.joined(self._taken(CHUNK_BYTES)))
        if self._room is not None and self.has_room:
            self._room.set()

    # ---- without ---------------------------------------------------------------------------------------------------

    async def wait(self) -> None:
        """Wait until something is there to `take`, or it was closed."""
        assert self._ready is not None
        await self._ready.wait()

    def take(self) -> list[Push]:
        """Everything that waits. It counts until `sent`. Empty after `close` when nothing is left."""
        assert self._ready is not None
        size, count = self._bytes, self._count
        batch = self._taken()
        self._bytes, self._count, self._leaving = size, count, (size, count)
        if not self.closed:
            self._ready.clear()
        return batch

    def sent(self) -> None:
        """The last batch has left."""
        self._bytes -= self._leaving[0]
        self._count -= self._leaving[1]
        self._leaving = (0, 0)
        if self._room is not None and self.has_room:
            self._room.set()

    # ---- inside ----------------------------------------------------------------------------------------------------

    def _add(self, push: Push) -> None:
        if self._waiting is None:
            self._waiting = []
        self._waiting.append(push)
        self._bytes += push.size
        self._count += push.count
        if self._ready is not None:
            self._ready.set()

    def _taken(self, most: int | None = None) -> list[Push]:
        waiting = self._waiting or []
        number, size = len(waiting), self._bytes
        if most is not None and size > most:
            number = size = 0
            while number < len(waiting) and (not number or size + waiting[number].size <= most):
                size += waiting[number].size
                number += 1
        taken, rest = waiting[:number], waiting[number:]
        self._waiting = rest or None
        self._bytes -= size
        self._count -= sum([push.count for push in taken])
        return taken
