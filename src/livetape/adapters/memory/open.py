"""`memory://`: a bus of its own, nothing durable."""

from __future__ import annotations

from livetape.adapters.memory.bus import MemoryBus
from livetape.events.open import Backend
from livetape.observability import Metrics


def from_url(url: str, *, metrics: Metrics) -> Backend:
    """Opener of `livetape.events.open`."""
    bus = MemoryBus(metrics=metrics)
    return Backend(bus, on_close=[bus.close])
