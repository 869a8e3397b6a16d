"""Whether this process is traced."""

from __future__ import annotations

import sys

from livetape.observability import Tracer


def tracer() -> Tracer | None:
    """By OpenTelemetry when somebody has loaded it and set a provider; it is never imported for that. Else None."""
    if "opentelemetry.trace" in sys.modules:
        from livetape.adapters.opentelemetry.tracing import tracer_of_process

        return tracer_of_process()
    return None
