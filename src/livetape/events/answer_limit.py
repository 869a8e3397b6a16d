"""A time-out that is about whoever is asked, and not about how busy this process is."""

from __future__ import annotations

import asyncio
from types import TracebackType
from typing import Final

TICKS: Final = 8
"""The time is counted in so many parts. One of them passes at most while the loop is busy, however long that takes."""

POLLS: Final = 4
"""So many turns has the loop at the end: to read what has arrived, and to wake who waits for it."""


class AnswerLimit:
    """`async with AnswerLimit(seconds)`: as `asyncio.timeout`, but only time in which the loop listened counts.

    A loop that was busy for longer than that finds the time to be over before it has read the answer, which has long
    been there; to `asyncio.timeout` that is no answer. One that has its turns as usual sees no difference.

    Raises:
        TimeoutError: nothing came in the time.
    """

    def __init__(self, seconds: float) -> None:
        self._tick_s = max(0.0, seconds) / TICKS
        self._left = TICKS + POLLS
        self._limit = asyncio.timeout(None)
        self._next: asyncio.Handle | None = None

    async def __aenter__(self) -> AnswerLimit:
        await self._limit.__aenter__()
        self._wait()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._next is not None:
            self._next.cancel()
        await self._limit.__aexit__(kind, error, trace)

    def _wait(self) -> None:
        loop = asyncio.get_running_loop()
        if self._left > POLLS:
            self._next = loop.call_later(self._tick_s, self._pass)
        elif self._left > 0:
            self._next = loop.call_soon(self._pass)
        else:
            self._next = None
            self._limit.reschedule(loop.time())

    def _pass(self) -> None:
        self._left -= 1
        self._wait()
