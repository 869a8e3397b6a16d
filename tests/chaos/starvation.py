"""Whether processes got the processor when they wanted it: what the kernel counts for each of them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

EVERY_S: Final = 0.5
SHARE: Final = 0.5


@dataclass
class Span:
    """A process waited for a processor for more than half of this time. Seconds of the day."""

    pid: int
    begun: float
    ended: float


class Starvation:
    """Looks at the main threads of `pids()` until cancelled; spans that touch are one."""

    def __init__(self, pids: Callable[[], Iterable[int]]) -> None:
        self.spans: list[Span] = []
        self._pids = pids
        self._waited: dict[int, tuple[float, float]] = {}

    async def run(self) -> None:
        while True:
            for pid in self._pids():
                self._look(pid)
            await asyncio.sleep(EVERY_S)  # the kernel tells nobody

    def _look(self, pid: int) -> None:
        try:
            _, waited_ns, _ = Path(f"/proc/{pid}/schedstat").read_text().split()
        except (OSError, ValueError):
            self._waited.pop(pid, None)
            return
        now, waited = time.time(), int(waited_ns) / 1e9
        before = self._waited.get(pid)
        self._waited[pid] = now, waited
        if before is None or waited - before[1] < SHARE * (now - before[0]):
            return
        last = next((span for span in reversed(self.spans) if span.pid == pid), None)
        if last is not None and last.ended >= before[0]:
            last.ended = now
        else:
            self.spans.append(Span(pid, before[0], now))
