"""Spans as OpenTelemetry's interface is told of them, by a provider that writes down what it is asked for."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

from opentelemetry import trace

from livetape.adapters.opentelemetry.tracing import OpenTelemetryTracer, tracer_of_process
from livetape.runtime.tracing import tracer

TRACE, SPAN = "0af7651916cd43dd8448eb211c80319c", "00f067aa0ba902b7"


class RecordedSpan(trace.NonRecordingSpan):
    """Records until it has ended."""

    def __init__(self, name: str, parent: trace.SpanContext, attributes: dict[str, Any], *, broken: bool) -> None:
        super().__init__(trace.INVALID_SPAN_CONTEXT)
        self.name, self.parent, self.attributes, self.broken = name, parent, dict(attributes), broken
        self.ends = 0

    def is_recording(self) -> bool:
        return not self.ends

    def set_attributes(self, attributes: Any) -> None:
        self.attributes |= attributes

    def end(self, end_time: int | None = None) -> None:
        self.ends += 1
        if self.broken:
            raise OSError("the exporter is away")


class Recorder(trace.NoOpTracer):
    def __init__(self) -> None:
        self.spans: list[RecordedSpan] = []
        self.broken = False

    def start_span(self, name: str, context: Any = None, kind: Any = None, attributes: Any = None, **_: Any) -> Any:
        if name == "refused":
            raise ValueError("the sampler is broken")
        parent = trace.get_current_span(context).get_span_context()
        made = RecordedSpan(name, parent, attributes, broken=self.broken)
        self.spans.append(made)
        return made


class Provider(trace.TracerProvider):
    def __init__(self) -> None:
        self.recorder = Recorder()

    def get_tracer(self, *_: Any, **__: Any) -> trace.Tracer:
        return self.recorder


def test_a_span_with_what_it_was_begun_and_ended_with() -> None:
    provider = Provider()
    span = OpenTelemetryTracer(provider).begin("gateway.subscribe", kind="job")
    span.end(outcome="subscribed")
    span.end(outcome="cancelled")
    (told,) = provider.recorder.spans
    assert (told.name, told.ends) == ("gateway.subscribe", 1)
    assert told.attributes == {"livetape.kind": "job", "livetape.outcome": "subscribed"}
    assert not told.parent.is_valid


def test_a_span_in_the_trace_of_an_event() -> None:
    provider = Provider()
    traced = OpenTelemetryTracer(provider)
    traced.begin("gateway.fan_out", traceparent=f"00-{TRACE}-{SPAN}-01", recipients=3).end()
    traced.begin("gateway.fan_out", traceparent="rubbish").end()
    first, second = provider.recorder.spans
    assert (f"{first.parent.trace_id:032x}", f"{first.parent.span_id:016x}") == (TRACE, SPAN)
    assert first.parent.is_remote
    assert first.parent.trace_flags.sampled
    assert not second.parent.is_valid


def test_tracing_that_fails_harms_nobody() -> None:
    provider = Provider()
    traced = OpenTelemetryTracer(provider)
    traced.begin("refused").end(outcome="x")
    provider.recorder.broken = True
    traced.begin("gateway.handshake").end()


def test_without_a_provider_nobody_traces() -> None:
    assert tracer_of_process() is None
    assert tracer() is None


def test_it_is_never_imported_for_this() -> None:
    code = (
        "import sys; import livetape.gateway.app; from livetape.runtime.tracing import tracer\n"
        "for name in [name for name in sys.modules if name.startswith('opentelemetry')]: del sys.modules[name]\n"
        "tracer(); sys.exit(any(name.startswith('opentelemetry') for name in sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
