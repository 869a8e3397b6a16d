"""Loggers, the metrics port and the present trace. The default metrics do nothing; the runtime brings Prometheus."""

from __future__ import annotations

import logging
import sys
from contextvars import ContextVar
from random import randbytes
from typing import Final, Protocol

TRACEPARENT: Final[ContextVar[str]] = ContextVar("livetape_traceparent", default="")
"""The W3C `traceparent` that belongs to what this task does now. An application sets it; empty: nobody did."""


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


def current_traceparent() -> str:
    """The W3C `traceparent` of what happens now (`00-<trace>-<span>-<flags>`).

    It is what `TRACEPARENT` holds; else OpenTelemetry's current span, if the application has loaded OpenTelemetry;
    else a fresh one that is not sampled, so that what follows from one event can be put together all the same.
    """
    given = TRACEPARENT.get()
    if given:
        return given
    if "opentelemetry.trace" in sys.modules:
        span = _open_telemetry_span()
        if span:
            return span
    return "00-" + randbytes(24).hex("-", -16) + "-00"  # noqa: S311 - a name, no secret


def _open_telemetry_span() -> str:
    try:
        context = sys.modules["opentelemetry.trace"].get_current_span().get_span_context()
        if not context.is_valid:
            return ""
        return f"00-{context.trace_id:032x}-{context.span_id:016x}-{int(context.trace_flags):02x}"
    except (AttributeError, KeyError, TypeError, ValueError):  # another version than we know
        return ""
