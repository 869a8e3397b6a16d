"""Questions that many ask at the same time, and that are asked once."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Hashable
from typing import Generic, TypeVar

T = TypeVar("T")


class _Flight(Generic[T]):
    """A question on its way. `landed` is set when there is an answer or an error; or neither, when it was cancelled."""

    __slots__ = ("answers", "error", "landed")

    def __init__(self) -> None:
        self.landed = asyncio.Event()
        self.answers: list[T] = []
        self.error: Exception | None = None


class Flights(Generic[T]):
    """Who asks what is being asked already is given the same answer, or the same error.

    Whoever comes first asks for all; when it is cancelled, another one does. It has no tasks of its own.
    """

    def __init__(self) -> None:
        self._flights: dict[Hashable, _Flight[T]] = {}

    async def join(self, key: Hashable, ask: Callable[[], Awaitable[T]]) -> T:
        """The answer to a question that is on its way, or else is asked now: it may be from a moment ago."""
        return await self._fly(key, ask, None)

    async def after(self, key: Hashable, ask: Callable[[], Awaitable[T]]) -> T:
        """The answer to a question that is asked now or later, never from before this call."""
        return await self._fly(key, ask, self._flights.get(key))

    async def _fly(self, key: Hashable, ask: Callable[[], Awaitable[T]], too_early: _Flight[T] | None) -> T:
        while (flight := self._flights.get(key)) is not None:
            await flight.landed.wait()
            if flight is too_early:
                continue
            if flight.error is not None:
                raise flight.error
            if flight.answers:
                return flight.answers[0]
        return await self._lead(key, ask)

    async def _lead(self, key: Hashable, ask: Callable[[], Awaitable[T]]) -> T:
        flight = self._flights[key] = _Flight()
        try:
            answer = await ask()
            flight.answers.append(answer)
            return answer
        except Exception as error:
            flight.error = error
            raise
        finally:
            del self._flights[key]
            flight.landed.set()
