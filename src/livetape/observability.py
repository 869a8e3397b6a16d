"""Loggers, errors that nobody foresaw, and the ports to metrics and traces.

By default nobody counts and nobody traces; the runtime brings Prometheus and OpenTelemetry.
"""

from __future__ import annotations

import logging
import re
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from contextvars import ContextVar
from random import randbytes
from typing import Any, Final, Protocol, TypeAlias

TRACEPARENT: Final[ContextVar[str]] = ContextVar("livetape_traceparent", default="")
"""The W3C `traceparent` that belongs to what this task does now. An application sets it; empty: nobody did."""


def get_logger(name: str) -> logging.Logger:
    """A logger below `livetape`. Log records carry `action`, a stable machine name, in `extra` where it helps."""
    return logging.getLogger(name if name.startswith("livetape") else f"livetape.{name}")


_BEGIN: Final = r"(?:\b|(?<=\\[abfnrtv])|(?<=\\x[0-9a-f]{2})|(?<=\\u[0-9a-f]{4}))"
"""Of a word. What an escaped character ends with (`\\n`) is no letter before it."""

_SECRETS: Final = re.compile(
    # `token=…` of a query, `"token":"…"` of JSON (perhaps inside a JSON string), `Bearer …` and `bearer.…`
    r"((?:[?&]|" + _BEGIN + r")(?:access_token|token|ticket)(?:=|\\*[\"']\s*:\s*\\*[\"']))[^&\s\"'\\]+"
    r"|(bearer[. ]+)[\w.~+/=-]+"
    r"|" + _BEGIN + r"eyJ[\w-]*(?:\.[\w-]*)*",  # a JWT, wherever it stands
    re.IGNORECASE,
)


def redact(text: str) -> str:
    """The text with tokens replaced by `***`."""
    return _SECRETS.sub(lambda found: f"{found.group(1) or found.group(2) or ''}***", text)


OnError: TypeAlias = Callable[[BaseException, Mapping[str, Any]], object]
"""Gets an exception that nobody foresaw, and where it happened."""

ERRORS_A_MINUTE: Final = 60


class ErrorHook(logging.Handler):
    """Tells `on_error` of every error that nobody foresaw: records that carry an exception, from ERROR upwards.

    Put it on the logger `livetape` (the runtime does, when `error_hook` is set). The context has `logger`, `message`
    and what the record was given in `extra` (`action`, a stable name, and perhaps `tape`, `correlation_id`,
    `request_id`): plain values, texts without tokens. The exception is handed over as it is, and its frames may hold
    anything. `on_error` is called in the thread that logs, on the event loop as a rule, so it must not wait; what it
    raises is logged and goes no further. Beyond `per_minute` calls a minute they are left out and counted:
    the next call has their number as `left_out`. What `on_error` logs itself it is not told of.
    """

    def __init__(
        self, on_error: OnError, *, per_minute: int = ERRORS_A_MINUTE, now: Callable[[], float] = time.monotonic
    ) -> None:
        super().__init__(logging.ERROR)
        self._on_error = on_error
        self._per_minute = per_minute
        self._now = now
        self._room = float(per_minute)
        self._looked_at = now()
        self._left_out = 0
        self._telling = False

    def emit(self, record: logging.LogRecord) -> None:
        """One record; see the class."""
        error = record.exc_info[1] if record.exc_info else None
        if error is None or self._telling or not self._has_room():
            return
        self._telling = True  # one thread at a time is here
        try:
            context = _context_of(record)
            if self._left_out:
                context["left_out"], self._left_out = self._left_out, 0
            self._on_error(error, context)
        except Exception:
            get_logger(__name__).exception("the error hook failed", extra={"action": "error_hook_failed"})
        finally:
            self._telling = False

    def _has_room(self) -> bool:
        now = self._now()
        self._room = min(self._per_minute, self._room + (now - self._looked_at) * self._per_minute / 60)
        self._looked_at = now
        if self._room < 1:
            self._left_out += 1
            return False
        self._room -= 1
        return True


_OF_EVERY_RECORD: Final = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


def _context_of(record: logging.LogRecord) -> dict[str, Any]:
    told: dict[str, Any] = {"logger": record.name, "message": redact(record.getMessage())}
    for name, value in vars(record).items():
        if name not in _OF_EVERY_RECORD and name not in told:
            told[name] = value if isinstance(value, bool | int | float | None) else redact(str(value))
    return told


class ErrorReporter(Protocol):
    """Told of errors that nobody foresaw, and in whose work they happen: the one port for engine and gateway."""

    def report(self, error: BaseException, context: Mapping[str, Any]) -> object:
        """An error and where it happened, as `ErrorHook` says. Called in the thread that logs it, so it must not
        wait; what it raises goes no further."""

    def scope(self, tags: Mapping[str, str]) -> AbstractContextManager[object]:
        """Entered around a piece of work, in its task: what is reported within has these tags, and afterwards those
        that were there before."""


class NoReporter:
    """Tells nobody."""

    def report(self, error: BaseException, context: Mapping[str, Any]) -> None:
        pass

    def scope(self, tags: Mapping[str, str]) -> AbstractContextManager[None]:
        return nullcontext()


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


Attribute: TypeAlias = str | int


class Span(Protocol):
    """Something that takes time, from when it was got until `end`."""

    def end(self, **attributes: Attribute) -> None:
        """It is over, and this is how it went. Only the first call counts."""


class Tracer(Protocol):
    """Begins spans. Never raises; called on the event loop."""

    def begin(self, name: str, *, traceparent: str | None = None, **attributes: Attribute) -> Span:
        """A span in the trace of this `traceparent`; else in one of its own."""


class NoSpan:
    """Nothing is kept."""

    def end(self, **attributes: Attribute) -> None:
        pass


class NoTracing:
    """Nothing is kept."""

    def begin(self, name: str, *, traceparent: str | None = None, **attributes: Attribute) -> Span:
        return _NO_SPAN


_NO_SPAN: Final = NoSpan()


def is_sampled(traceparent: str) -> bool:
    """Whether who wrote it keeps its trace."""
    return traceparent[-1:] in "13579bdf" and traceparent[-3:-2] == "-"


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
