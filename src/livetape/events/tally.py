"""Counts of what is published, handed on to the metrics in lots: counting each one there costs too much."""

from __future__ import annotations

import asyncio
from time import perf_counter
from typing import Final, Self

from typing_extensions import TypeIs

from livetape.observability import Metrics, NoMetrics

HAND_ON_S: Final = 1.0
HAND_ON_EVENTS: Final = 256
SAMPLE: Final = 63
"""Every 64th publication is timed."""


class Tally:
    """Counts `{names[0]}` (events), `{names[1]}` (their bytes), `{names[2]}` (receivers), and observes `{seconds}`.

    What was counted is handed on within a second, every 256 events, and by `hand_on`. For one event loop at a time.
    """

    __slots__ = ("_bytes", "_events", "_metrics", "_names", "_received", "_seconds", "_timer", "_total")

    def __init__(self, metrics: Metrics, names: tuple[str, str, str], seconds: str) -> None:
        self._metrics = metrics
        self._names = names
        self._seconds = seconds
        self._total = 0
        self._events = 0
        self._bytes = 0
        self._received = 0
        self._timer: asyncio.TimerHandle | None = None

    @classmethod
    def of_bus(cls, metrics: Metrics | None) -> Self | None:
        """For the messages of a bus; None when nobody counts."""
        names = ("bus_published_total", "bus_published_bytes_total", "bus_delivered_total")
        return None if _is_nobody(metrics) else cls(metrics, names, "bus_publish_seconds")

    @classmethod
    def of_recorder(cls, metrics: Metrics | None) -> Self | None:
        """For the events that a recorder puts on tapes; None when nobody counts."""
        names = ("log_recorded_total", "log_recorded_bytes_total", "log_delivered_total")
        return None if _is_nobody(metrics) else cls(metrics, names, "log_record_seconds")

    def begin(self) -> float:
        """What `add` gets as `begun`: when it began, of every 64th; else 0."""
        return 0.0 if self._total & SAMPLE else perf_counter()

    def add(self, size: int, receivers: int, begun: float = 0.0) -> None:
        """One was published."""
        self._total += 1
        self._events += 1
        self._bytes += size
        self._received += receivers
        if begun:
            self._metrics.observe(self._seconds, perf_counter() - begun)
        if self._events >= HAND_ON_EVENTS:
            self.hand_on()
        elif self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(HAND_ON_S, self.hand_on)

    def failed(self, reason: str) -> None:
        """One was not recorded, or it is not known."""
        self._metrics.count("log_failed_total", reason=reason)

    def hand_on(self) -> None:
        """Now."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        counted = (self._events, self._bytes, self._received)
        self._events = self._bytes = self._received = 0
        for name, amount in zip(self._names, counted, strict=True):
            if amount:
                self._metrics.count(name, amount)


def _is_nobody(metrics: Metrics | None) -> TypeIs[NoMetrics | None]:
    return metrics is None or isinstance(metrics, NoMetrics)
