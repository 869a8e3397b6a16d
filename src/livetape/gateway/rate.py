"""A token bucket that slows down instead of refusing. Pure: the time is an argument."""

from __future__ import annotations


class TokenBucket:
    """`rate` tokens a second, at most `burst` of them.

    A caller that finds it empty has to wait; `limited_since` is the time since when it has always had to.
    """

    def __init__(self, rate: float, burst: int, now: float) -> None:
        self._rate = rate
        self._burst = burst
        self._tokens = float(burst)
        self._time = now
        self.limited_since: float | None = None

    def spare(self, now: float) -> bool:
        """Take one token if there is one."""
        tokens = min(self._burst, self._tokens + max(0.0, now - self._time) * self._rate)
        self._time, self._tokens = now, tokens - 1 if tokens >= 1 else tokens
        return tokens >= 1

    def take(self, now: float) -> float:
        """Take one token; returns how many seconds to wait before going on."""
        self._tokens = min(self._burst, self._tokens + max(0.0, now - self._time) * self._rate) - 1
        self._time = now
        if self._tokens >= 0:
            self.limited_since = None
            return 0.0
        if self.limited_since is None:
            self.limited_since = now
        return -self._tokens / self._rate
