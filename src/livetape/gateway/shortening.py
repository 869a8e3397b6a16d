"""What is too large for a client is cut before it gets to the topics: in a thread, because it takes its time."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Sequence
from typing import Final

from livetape.events.shorten import shorten_payload
from livetape.events.tape_event import TapeEvent, shortened
from livetape.observability import Metrics, NoMetrics

KEPT: Final = 2
"""So many payloads are kept: after an interruption many read the same."""


class Shortening:
    """Cuts payloads to `max_bytes`, one at a time: each takes some times its bytes while that lasts."""

    def __init__(self, max_bytes: int, metrics: Metrics | None = None) -> None:
        self._max_bytes = max_bytes
        self._metrics = metrics or NoMetrics()
        self._turn = asyncio.Lock()
        self._kept: OrderedDict[tuple[int, int], bytes | None] = OrderedDict()

    async def fit(self, events: Sequence[TapeEvent]) -> Sequence[TapeEvent]:
        """The same events. One that cannot be cut stays as it is, which is for its reader to see."""
        limit = self._max_bytes
        if max([len(event.payload) for event in events], default=0) <= limit:
            return events
        return [event if len(event.payload) <= limit else await self._cut(event) for event in events]

    async def _cut(self, event: TapeEvent) -> TapeEvent:
        key = (len(event.payload), hash(event.payload))
        async with self._turn:
            if key not in self._kept:
                cut = await asyncio.to_thread(shorten_payload, event.payload, self._max_bytes)
                self._kept[key] = cut
                outcome = "impossible" if cut is None else "shortened"
                self._metrics.count("gateway_shortened_total", outcome=outcome)
                if len(self._kept) > KEPT:
                    self._kept.popitem(last=False)
            payload = self._kept[key]
        return event if payload is None else shortened(event, payload)
