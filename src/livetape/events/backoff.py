"""How long to wait before the next try."""

from __future__ import annotations

import random
from collections.abc import Callable


class Backoff:
    """Doubles from `first` up to `longest` seconds, with jitter so that many do not come back at once."""

    def __init__(
        self, first: float = 0.05, longest: float = 5.0, *, jitter: Callable[[], float] = random.random
    ) -> None:
        self._first = first
        self._longest = longest
        self._jitter = jitter
        self.tries = 0

    def next(self) -> float:
        """Seconds to wait now: between half and the whole of the present step."""
        step = min(self._longest, self._first * 2.0 ** min(self.tries, 30))
        self.tries += 1
        return step * (0.5 + self._jitter() / 2)

    def reset(self) -> None:
        """It worked."""
        self.tries = 0
