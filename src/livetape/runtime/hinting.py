"""Tells whoever runs an execution that something may have happened to it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from livetape.engine.cancel_hints import CancelHints


class Hinting:
    """The worker of this process is told at once, those of others by the hints. Best effort, never waits."""

    def __init__(self, hints: CancelHints | None) -> None:
        self._hints = hints
        self._here: Callable[[str], None] | None = None
        self._sending: set[asyncio.Task[None]] = set()

    def tell_also(self, here: Callable[[str], None]) -> None:
        """The worker of this process."""
        self._here = here

    def __call__(self, execution_id: str) -> None:
        if self._here is not None:
            self._here(execution_id)
        if self._hints is not None:
            task = asyncio.get_running_loop().create_task(self._hints.send(execution_id), name="hint others")
            self._sending.add(task)
            task.add_done_callback(self._sending.discard)

    async def close(self) -> None:
        """What is being sent is sent, or given up."""
        for task in tuple(self._sending):
            task.cancel()
        if self._sending:
            await asyncio.wait(self._sending)
