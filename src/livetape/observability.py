"""Loggers and the metrics port. The default metrics do nothing; the gateway and the runtime bring Prometheus."""

from __future__ import annotations

import logging
from typing import Protocol


def get_logger(name: str) -> logging.Logger:
    """A logger below `livetape`. Log records carry `action`, a stable machine name, in `extra` where it helps."""
    return logging.getLogger(name if name.startswith("livetape") else f"livetape.{name}")


class Metrics(Protocol):
    """Counts, gauges and durations. Names are the wire names of the wire contract, section 7 without the namespace."""

    def count(self, name: str, amount: float = 1, **labels: str) -> None: ...

    def gauge(self, name: str, value: float, **labels: str) -> None: ...

    def observe(self, name: str, seconds: float, **labels: str) -> None: ...


class NoMetrics:
    """Takes everything and keeps nothing."""

    def count(self, name: str, amount: float = 1, **labels: str) -> None:
        pass

    def gauge(self, name: str, value: float, **labels: str) -> None:
        pass

    def observe(self, name: str, seconds: float, **labels: str) -> None:
        pass
