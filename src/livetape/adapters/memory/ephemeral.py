"""Ephemeral values inside one process."""

from __future__ import annotations

import heapq
from typing import Final

from livetape.clock import Clock, SystemClock
from livetape.errors import ClosedError
from livetape.store.ephemeral import Ephemeral, check

MAX_ENTRIES: Final = 100_000


class MemoryEphemeral(Ephemeral):
    """Bounded by count: when it is full, what would end soonest goes first."""

    def __init__(self, *, clock: Clock | None = None, max_entries: int = MAX_ENTRIES) -> None:
        self._clock = clock or SystemClock()
        self._max_entries = max_entries
        self._values: dict[str, tuple[float, bytes | int]] = {}
        self._ends: list[tuple[float, str]] = []
        self._closed = False

    async def put(self, key: str, value: bytes, *, ttl_s: float) -> None:
        check(key, value, ttl_s)
        self._sweep()
        self._set(key, value, self._clock.monotonic() + ttl_s)

    async def put_once(self, key: str, value: bytes, *, ttl_s: float) -> bool:
        check(key, value, ttl_s)
        self._sweep()
        if key in self._values:
            return False
        self._set(key, value, self._clock.monotonic() + ttl_s)
        return True

    async def get(self, key: str) -> bytes | None:
        check(key)
        self._sweep()
        return self._bytes(self._values.get(key))

    async def take(self, key: str) -> bytes | None:
        check(key)
        self._sweep()
        return self._bytes(self._values.pop(key, None))

    async def incr(self, key: str, *, ttl_s: float, by: int = 1) -> int:
        check(key, ttl_s=ttl_s)
        self._sweep()
        end, value = self._values.get(key, (self._clock.monotonic() + ttl_s, 0))
        total = int(value) + by
        self._set(key, total, end)
        return total

    async def close(self) -> None:
        self._closed = True
        self._values.clear()
        self._ends.clear()

    def _set(self, key: str, value: bytes | int, end: float) -> None:
        before = self._values.get(key)
        self._values[key] = (end, value)
        if before is None or before[0] != end:
            heapq.heappush(self._ends, (end, key))
        while len(self._values) > self._max_entries or len(self._ends) > 2 * self._max_entries:
            self._drop_first()

    def _sweep(self) -> None:
        """Forget what has ended. Every method begins with it."""
        if self._closed:
            raise ClosedError("the ephemeral store is closed")
        now = self._clock.monotonic()
        while self._ends and self._ends[0][0] <= now:
            self._drop_first()

    def _drop_first(self) -> None:
        end, key = heapq.heappop(self._ends)
        # A key that was set anew has a later end, and stands in the heap a second time.
        if self._values.get(key, (None,))[0] == end:
            del self._values[key]

    @staticmethod
    def _bytes(found: tuple[float, bytes | int] | None) -> bytes | None:
        if found is None:
            return None
        value = found[1]
        return b"%d" % value if isinstance(value, int) else value
