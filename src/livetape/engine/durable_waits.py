"""The long waits of one node execution, answered from what was kept of them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Final

from pydantic_core import from_json, to_json

from livetape.clock import Clock
from livetape.engine.block_ports import (
    ChildCall,
    ChildResult,
    ReviewAnswer,
    ReviewRequest,
    Suspended,
    Wait,
    WaitKind,
)
from livetape.errors import BlockExecutionError

SHORT_S: Final = 5.0
"""A timer that is due so soon is waited for in place: ending the block and running it again costs more."""

MAX_WAITS: Final = 20_000
"""Waits of one node execution. All of them are kept and read again each time the block goes on."""

AUTO_APPROVED: Final = "Auto-approved (safe mode disabled)"


class DurableWaits:
    """The timers, children and reviews of one run of a block (`Timers`, `Children` and `Reviews` in one).

    `waits`: all that were kept for this node execution, in any order. `auto_approve`: people are not asked.
    """

    def __init__(
        self,
        waits: Iterable[Wait],
        *,
        clock: Clock,
        sleep: Callable[[float], Awaitable[None]],
        short_s: float = SHORT_S,
        auto_approve: bool = False,
    ) -> None:
        self._kept = {wait.number: wait for wait in waits}
        self._clock = clock
        self._sleep = sleep
        self._short_s = short_s
        self._auto_approve = auto_approve
        self._next = 0

    async def sleep_until(self, due: datetime) -> None:
        """As `Timers` says. The first `due` of this wait counts, whatever the block says when it is run again.

        Raises:
            ValueError: `due` has no time zone.
            Suspended
        """
        if due.tzinfo is None:
            raise ValueError("a time to wait for needs its time zone")
        number = self._take()
        kept = self._find(number, "timer")
        if kept is not None and (kept.answer is not None or kept.due is None):
            return
        wait = kept or Wait(number, "timer", due=due.astimezone(UTC))
        assert wait.due is not None
        left = (wait.due - self._clock.now()).total_seconds()
        if left > self._short_s:
            raise self._suspended([wait])
        if left > 0:
            await self._sleep(left)

    async def run(self, call: ChildCall) -> ChildResult:
        """As `Children` says.

        Raises:
            Suspended
        """
        async for _, result in self.run_many([call], concurrency=1):
            return result
        raise AssertionError("one call has one result")

    async def run_many(self, calls: Sequence[ChildCall], *, concurrency: int) -> AsyncIterator[tuple[int, ChildResult]]:
        """As `Children` says.

        Raises:
            Suspended
        """
        places = {self._take(): place for place in range(len(calls))}
        kept = [wait for number in places if (wait := self._find(number, "child")) is not None]
        answered = sorted((wait for wait in kept if wait.answer is not None), key=lambda wait: wait.answered_no)
        for wait in answered:
            assert wait.answer is not None
            yield places[wait.number], ChildResult(**wait.answer)
        if len(answered) == len(calls):
            return
        started = {wait.number for wait in kept}
        free = max(1, concurrency) - (len(kept) - len(answered))
        waiting = [number for number in places if number not in started][: max(0, free)]
        fresh = [Wait(number, "child", asdict(calls[places[number]])) for number in waiting]
        raise self._suspended(fresh)

    async def ask(self, request: ReviewRequest) -> ReviewAnswer:
        """As `Reviews` says.

        Raises:
            Suspended
        """
        if self._auto_approve:
            return ReviewAnswer(True, request.data, AUTO_APPROVED)
        number = self._take()
        kept = self._find(number, "review")
        if kept is not None and kept.answer is not None:
            return ReviewAnswer(**kept.answer)
        raise self._suspended([kept or Wait(number, "review", asdict(request))])

    def _take(self) -> int:
        if self._next >= MAX_WAITS:
            raise BlockExecutionError(f"more than {MAX_WAITS} waits of one node execution")
        self._next += 1
        return self._next - 1

    def _find(self, number: int, kind: WaitKind) -> Wait | None:
        kept = self._kept.get(number)
        if kept is not None and kept.kind != kind:
            raise BlockExecutionError(f"asked for a {kind} where it had asked for a {kept.kind} before")
        return kept

    def _suspended(self, more: Sequence[Wait]) -> Suspended:
        pending = {wait.number: wait for wait in self._kept.values() if wait.answer is None}
        pending.update((wait.number, wait) for wait in more)
        return Suspended([pending[number] for number in sorted(pending)])


def waits_to_json(waits: Iterable[Wait]) -> bytes:
    """As they are kept."""
    return to_json([asdict(wait) for wait in waits])


def waits_from_json(kept: bytes | str) -> tuple[Wait, ...]:
    """What `waits_to_json` made."""
    return tuple(Wait(**{**wait, "due": _moment(wait.get("due"))}) for wait in from_json(kept))


def _moment(text: str | None) -> datetime | None:
    return None if text is None else datetime.fromisoformat(text)
