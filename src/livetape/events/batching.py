"""Publishing without waiting: events gather for a moment and leave together."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from types import TracebackType
from typing import Final, Generic, Self, TypeVar

from livetape.errors import ClosedError
from livetape.events.delivery import Outgoing
from livetape.events.result import Published

M = TypeVar("M")

MOST_AT_ONCE: Final = 1024


class Batch(Generic[M]):
    """Collects events and sends them in order when `max_events` or `max_bytes` wait, or after `max_delay_s`.

    While one lot is under way the next one gathers; events are never sent out of order. More than `max_waiting` events
    are refused. For the tasks of one event loop; `async with` flushes and ends it.
    """

    def __init__(
        self,
        pack: Callable[[M, str | tuple[str, ...]], Outgoing | Published],
        deliver: Callable[[Sequence[Outgoing]], Awaitable[Sequence[Published]]],
        refuse: Callable[[Outgoing], None],
        *,
        max_events: int = 256,
        max_bytes: int = 256 * 1024,
        max_delay_s: float = 0.005,
        max_waiting: int = 20_000,
    ) -> None:
        self._pack = pack
        self._deliver = deliver
        self._refuse = refuse
        self._max_events = max_events
        self._max_bytes = max_bytes
        self._max_delay_s = max_delay_s
        self._max_waiting = max_waiting
        self._waiting: deque[Outgoing] = deque()
        self._bytes = 0
        self._timer: asyncio.TimerHandle | None = None
        self._task: asyncio.Task[None] | None = None
        self._closed = False
        self.sent = 0
        """How many events were handed to the bus or to the local buffer so far."""

    def __len__(self) -> int:
        return len(self._waiting)

    def publish(self, event: M, key: str | tuple[str, ...]) -> bool:
        """Take the event; it is encoded now and sent soon. False when it cannot be sent or there is no room.

        Raises:
            ClosedError: after the end.
        """
        if self._closed:
            raise ClosedError("the batch is closed")
        item = self._pack(event, key)
        if not isinstance(item, Outgoing):
            return False
        if len(self._waiting) >= self._max_waiting:
            self._refuse(item)
            return False
        self._waiting.append(item)
        self._bytes += item.size
        if self._task is None:
            if len(self._waiting) >= self._max_events or self._bytes >= self._max_bytes:
                self._go()
            elif self._timer is None:
                self._timer = asyncio.get_running_loop().call_later(self._max_delay_s, self._go)
        return True

    async def flush(self) -> None:
        """Returns once everything that was taken so far has been sent, or waits in the bus's local buffer."""
        while self._waiting or self._task is not None:
            if self._task is None:
                self._go()
            if self._task is not None:
                await asyncio.shield(self._task)

    async def close(self) -> None:
        """Flush, and take no more. Idempotent."""
        self._closed = True
        await self.flush()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    def _go(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._task is None and self._waiting:
            self._task = asyncio.create_task(self._run())

    async def _run(self) -> None:
        try:
            while self._waiting:
                lot = [self._waiting.popleft() for _ in range(min(len(self._waiting), MOST_AT_ONCE))]
                self._bytes -= sum(item.size for item in lot)
                await self._deliver(lot)
                self.sent += len(lot)
        finally:
            self._task = None
