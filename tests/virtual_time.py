"""An event loop whose waiting costs nothing, for tests of clients and servers that live in one loop."""

from __future__ import annotations

import asyncio
import selectors


class _Jumping(selectors.DefaultSelector):
    """When no bytes are on their way, the time that would be waited has passed."""

    GRACE_S = 0.005
    """So long bytes may take from one socket of this process to the other."""

    passed = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if timeout is None or timeout <= self.GRACE_S:
            return super().select(timeout)
        found = super().select(self.GRACE_S)
        if not found:
            self.passed += timeout - self.GRACE_S
        return found


class VirtualTimeLoop(asyncio.SelectorEventLoop):
    """Its time jumps to the next timer when there is nothing else to do.

    Only for what happens within the loop: threads and other processes would be given no time.
    """

    def __init__(self) -> None:
        self._jumping = _Jumping()
        super().__init__(self._jumping)

    def time(self) -> float:
        return super().time() + self._jumping.passed
