"""Spans by OpenTelemetry's interface. What becomes of them is up to the provider that the application has set."""

from __future__ import annotations

import re
from contextlib import suppress
from importlib.metadata import version
from typing import Final

from opentelemetry import trace

from livetape.observability import Attribute, NoSpan, Span, Tracer, get_logger

logger = get_logger(__name__)

_TRACEPARENT: Final = re.compile(r"[0-9a-f]{2}-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})").fullmatch


class OpenTelemetrySpan(Span):
    """One span; attributes get `livetape.` before their names."""

    __slots__ = ("_span",)

    def __init__(self, span: trace.Span) -> None:
        self._span = span

    def end(self, **attributes: Attribute) -> None:
        with suppress(Exception):  # a processor of the application's
            if self._span.is_recording():  # not any more once it has ended
                self._span.set_attributes(_named(attributes))
                self._span.end()


class OpenTelemetryTracer(Tracer):
    """Spans of this provider, or of the one that is set for the process."""

    def __init__(self, provider: trace.TracerProvider | None = None) -> None:
        self._tracer = trace.get_tracer("livetape", version("livetape"), provider)

    def begin(self, name: str, *, traceparent: str | None = None, **attributes: Attribute) -> Span:
        context = None
        found = None if traceparent is None else _TRACEPARENT(traceparent)
        if found is not None:
            trace_id, span_id, flags = (int(part, 16) for part in found.groups())
            parent = trace.SpanContext(trace_id, span_id, is_remote=True, trace_flags=trace.TraceFlags(flags))
            context = trace.set_span_in_context(trace.NonRecordingSpan(parent))
        kind = trace.SpanKind.SERVER if found is None else trace.SpanKind.CONSUMER
        try:
            return OpenTelemetrySpan(self._tracer.start_span(name, context, kind, _named(attributes)))
        except Exception:  # a sampler or a processor of the application's
            logger.debug("no span", exc_info=True, extra={"action": "span_failed"})
            return NoSpan()


def tracer_of_process() -> Tracer | None:
    """For the provider that was set for this process; None when there is none, so that nobody keeps anything."""
    provider = trace.get_tracer_provider()
    is_none = isinstance(provider, trace.ProxyTracerProvider | trace.NoOpTracerProvider)
    return None if is_none else OpenTelemetryTracer(provider)


def _named(attributes: dict[str, Attribute]) -> dict[str, Attribute]:
    return {f"livetape.{name}": value for name, value in attributes.items()}
