"""The leases of one worker: prolonged from a thread beside the event loop, given up before they end.

A busy loop loses no lease, a dead one keeps none. When renewals do not come through, the blocks are stopped before
the leases end, by this process's own monotonic clock: whatever the database or another worker believes, two workers
never run one execution.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from livetape.clock import Clock
from livetape.engine.executor import Executor
from livetape.errors import LivetapeError
from livetape.observability import Metrics, NoMetrics, get_logger
from livetape.store.executions import Renewal

logger = get_logger(__name__)


@dataclass(frozen=True, slots=True)
class LeaseTimes:
    """Seconds. `margin_s` before its end a lease that was not renewed is given up; the blocks stop in that time.

    `silence_s`: nothing is renewed when the event loop has not ticked for so long, so that a worker that hangs loses
    its leases instead of keeping them for ever.
    """

    lease_s: float
    renew_s: float
    silence_s: float

    @property
    def margin_s(self) -> float:
        return self.lease_s / 5

    @property
    def retry_s(self) -> float:
        """The pause after a renewal that failed."""
        return min(1.0, self.renew_s)


@dataclass(slots=True, eq=False)
class Held:
    """One lease. `until` is its end by the monotonic clock of this process, never later than the database's."""

    executor: Executor
    until: float
    fenced: bool = field(default=False)

    @property
    def lease_no(self) -> int:
        return self.executor.row.lease_no

    def fence(self) -> None:
        """Stop it: it is not ours any more, or soon will not be."""
        if not self.fenced:
            self.fenced = True
            self.executor.fence()


class Leases:
    """What one worker holds, by execution. All methods belong to the event loop, except `renew`."""

    def __init__(self, times: LeaseTimes, clock: Clock, prolong: Callable[[Mapping[str, int]], Renewal]) -> None:
        self._times = times
        self._clock = clock
        self._prolong = prolong
        self._held: dict[str, Held] = {}
        self._ticked = clock.monotonic()

    def __len__(self) -> int:
        return len(self._held)

    def get(self, execution_id: str) -> Executor | None:
        held = self._held.get(execution_id)
        return None if held is None else held.executor

    def executors(self) -> list[Executor]:
        return [held.executor for held in self._held.values()]

    def add(self, executor: Executor, claimed_at: float) -> Held:
        """A lease that was asked for at this monotonic time. An older lease on the same execution is void."""
        older = self._held.get(executor.row.id)
        if older is not None:
            older.fence()
        held = self._held[executor.row.id] = Held(executor, claimed_at + self._times.lease_s)
        return held

    def remove(self, held: Held) -> None:
        """It is over. A newer lease on the same execution stays."""
        execution_id = held.executor.row.id
        if self._held.get(execution_id) is held:
            del self._held[execution_id]

    def tick(self) -> None:
        """The event loop lives. Gives up what is about to end unrenewed."""
        now = self._ticked = self._clock.monotonic()
        for execution_id, held in self._held.items():
            if not held.fenced and now >= held.until - self._times.margin_s:
                logger.error("lease of %s cannot be renewed", execution_id, extra={"action": "lease_given_up"})
                held.fence()

    def renew(self, loop: asyncio.AbstractEventLoop) -> None:
        """Prolong everything that is held; from any thread, and blocks. Raises what the store raises."""
        asked_at = self._clock.monotonic()
        if asked_at - self._ticked > self._times.silence_s:
            logger.error("the event loop hangs: leases are not renewed", extra={"action": "loop_hangs"})
            return
        asked = {execution_id: held for execution_id, held in list(self._held.items()) if not held.fenced}
        if not asked:
            return
        renewal = self._prolong({execution_id: held.lease_no for execution_id, held in asked.items()})
        for execution_id, held in asked.items():
            if execution_id not in renewal.held:
                loop.call_soon_threadsafe(held.fence)
                continue
            held.until = asked_at + self._times.lease_s
            if execution_id in renewal.cancelled:
                loop.call_soon_threadsafe(held.executor.cancel)


class Renewer:
    """The thread that renews. `start` and `stop` from the event loop."""

    def __init__(
        self, leases: Leases, times: LeaseTimes, loop: asyncio.AbstractEventLoop, *, metrics: Metrics | None = None
    ) -> None:
        self._leases = leases
        self._times = times
        self._loop = loop
        self._metrics = metrics or NoMetrics()
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._work, name="livetape-lease-renewer", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stopped.set()

    def _work(self) -> None:
        pause_s = self._times.renew_s
        while not self._stopped.wait(pause_s):
            pause_s = self._times.renew_s
            try:
                self._leases.renew(self._loop)
            except LivetapeError as error:
                logger.warning("leases cannot be renewed: %s", error, extra={"action": "renew_retry"})
                pause_s = self._times.retry_s
            except Exception:  # the thread must live: without it every lease is lost
                if self._loop.is_closed():
                    return
                logger.exception("leases cannot be renewed", extra={"action": "renew_failed"})
                self._metrics.count("internal_errors_total", part="leases")
                pause_s = self._times.retry_s
