"""Wakes those who wait for the next event of a tape, as far as it is written in this process."""

from __future__ import annotations

import asyncio
from typing import Final

LOOK_EVERY_S: Final = 0.1
"""What another process writes rings nobody here: so often one looks."""


class Arrivals:
    """Tasks of one event loop wait for a tape; whoever appends to it rings, in the same loop."""

    def __init__(self) -> None:
        self._waiting: dict[str, list[asyncio.Future[None]]] = {}

    def ring(self, tape: str) -> None:
        """Something was appended."""
        for waiter in self._waiting.pop(tape, ()):
            if not waiter.done():
                waiter.set_result(None)

    def expect(self, tape: str) -> asyncio.Future[None]:
        """Done at the next ring. Ask for it before looking, so that nothing comes in between; then `forget` it."""
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(tape, []).append(waiter)
        return waiter

    def forget(self, tape: str, waiter: asyncio.Future[None]) -> None:
        """Nobody waits for it any more."""
        waiters = self._waiting.get(tape)
        if waiters is not None and waiter in waiters:
            waiters.remove(waiter)
            if not waiters:
                del self._waiting[tape]
