"""How far a follower is behind its tape, as a metric."""

from __future__ import annotations

from livetape.observability import Metrics, NoMetrics


class Lag:
    """Sets the gauge `event_log_lag`: events on the tape that a follower had not had when it last looked at the log.

    The label `kind` is that of the tape (`job_events`, `bus_events`); of several followers of a kind the last one that
    looked is seen. Followers whose bus works look every 25 s, and whenever something may have been missed.
    """

    __slots__ = ("_behind", "_kind", "_metrics")

    def __init__(self, metrics: Metrics | None, tape: str) -> None:
        self._metrics = metrics or NoMetrics()
        self._kind = tape.partition(":")[0]
        self._behind = 0

    def look(self, behind: int) -> None:
        """So many are on the tape, and not read yet."""
        self._behind = max(0, behind)
        self._metrics.gauge("event_log_lag", self._behind, kind=self._kind)

    def level(self) -> None:
        """What was seen has been handed over."""
        if self._behind:
            self.look(0)
