"""Bounds how long many short calls may take, at nearly no cost for one that is quick."""

from __future__ import annotations

import asyncio
from typing import Any


class Patience:
    """Interrupts those who have waited for `seconds` (to within a quarter): one timer for all of them.

    For tasks of one event loop at a time. Numbers are of the caller's choice, rising.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._step = seconds / 4
        self._waiting: dict[int, tuple[asyncio.Task[Any] | None, int]] = {}
        self._over: set[int] = set()
        self._marks: list[int] = []
        self._timer: asyncio.TimerHandle | None = None

    def begin(self, number: int) -> None:
        """The present task begins to wait. Then `end`, always."""
        task = asyncio.current_task()
        self._waiting[number] = (task, 0 if task is None else task.cancelling())
        if self._timer is None:
            self._start()

    def end(self, number: int) -> None:
        """It waits no more."""
        self._waiting.pop(number, None)
        self._over.discard(number)

    def is_over(self, number: int) -> bool:
        """Whether the cancellation that reached the task came from here, and from nobody else. Takes it back."""
        task, before = self._waiting[number]
        return number in self._over and task is not None and task.uncancel() <= before

    def rebind(self) -> None:
        """Go on in another event loop."""
        self._waiting, self._over, self._marks, self._timer = {}, set(), [], None

    def _start(self) -> None:
        self._marks = []
        self._timer = asyncio.get_running_loop().call_later(self._step, self._look)

    def _look(self) -> None:
        self._timer = None
        if not self._waiting:
            return
        self._timer = asyncio.get_running_loop().call_later(self._step, self._look)
        self._marks.append(next(reversed(self._waiting)))
        if len(self._marks) < 5:
            return
        oldest = self._marks.pop(0)
        for number, (task, _) in self._waiting.items():
            if number > oldest:
                break
            if task is not None and number not in self._over:
                self._over.add(number)
                task.cancel()
