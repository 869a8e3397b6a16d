"""Gets events out through a bus or log that is sometimes away: retries, a circuit breaker, a bounded local buffer."""

from __future__ import annotations

import asyncio
import random
from bisect import insort
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from operator import attrgetter
from typing import Final, TypeAlias

from livetape.clock import Clock, SystemClock
from livetape.errors import BusUnavailableError, ClosedError, LivetapeError
from livetape.events.backoff import Backoff
from livetape.events.codec import split
from livetape.events.log import NewEvent
from livetape.events.recorder import Live
from livetape.events.result import Dropped, Published
from livetape.observability import Metrics, NoMetrics, get_logger

logger = get_logger(__name__)

Sleep: TypeAlias = Callable[[float], Awaitable[None]]
OnDrop: TypeAlias = Callable[[Dropped], None]
CHUNK: Final = 64
"""So many waiting events are sent at once when the bus is back."""


class CircuitState(StrEnum):
    """`closed`: events go out. `open`: the bus is away, nobody waits for it. `half_open`: one event tries it."""

    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half_open"


@dataclass(frozen=True, slots=True)
class DeliveryPolicy:
    """What happens while the bus is away. Times are seconds.

    After `attempts` failed tries in a row the circuit opens. Until then publishers wait, but not longer than `wait_s`:
    when that is over it opens too. The pauses between the tries double from `first_delay_s` to `longest_delay_s`, with
    jitter. While it is open, publishers are answered at once and one event tries the bus after `open_s`, twice as long
    after each failure, up to `longest_open_s`.

    Meanwhile up to `buffer_events` events of `buffer_bytes` together wait in this process, in order; what finds no room
    is refused. What has waited `max_age_s` is dropped. `close_s` bounds the last flush.
    """

    attempts: int = 3
    first_delay_s: float = 0.05
    longest_delay_s: float = 1.0
    open_s: float = 1.0
    longest_open_s: float = 1.0
    wait_s: float = 2.0
    buffer_events: int = 1000
    buffer_bytes: int = 16 * 1024 * 1024
    max_age_s: float = 300.0
    close_s: float = 5.0


@dataclass(slots=True, eq=False)
class Outgoing:
    """An event that is ready to go: `data` for the bus alone, or `record` for the tape and the bus.

    `number` gives the order in which `publish` was called. `event_type` may be empty: then the data has it.
    """

    number: int
    channel: str
    event_type: str
    size: int
    data: bytes = b""
    record: Record | None = None
    replaced: bool = False
    since: float = 0.0
    waiter: asyncio.Future[Published] | None = None


@dataclass(frozen=True, slots=True)
class Record:
    """The arguments of `Recorder.record`. The key makes a repetition harmless."""

    tape: str
    event: NewEvent
    live: Live
    idempotency_key: str


Carry: TypeAlias = Callable[[Sequence[Outgoing]], Awaitable[Sequence[Published | BaseException]]]
"""Sends these in order, all at once; one outcome for each. Raises nothing."""


class Delivery:
    """What the happy path goes around: `clear` says that nothing waits and nothing failed.

    Whoever publishes sends directly while `clear`, and brings what failed to `rescue`; otherwise it brings everything
    there. One task of its own sends what waits, in the order of the numbers, and ends when nothing waits.

    An event whose first try broke off in the middle may be delivered twice if it is live-only (the bus cannot tell);
    never if it is recorded, because the tape knows its key.
    """

    def __init__(
        self,
        carry: Carry,
        policy: DeliveryPolicy,
        *,
        name: str = "",
        clock: Clock | None = None,
        sleep: Sleep = asyncio.sleep,
        jitter: Callable[[], float] = random.random,
        metrics: Metrics | None = None,
        on_drop: OnDrop | None = None,
    ) -> None:
        self.clear = True
        self.state = CircuitState.CLOSED
        self.dropped = 0
        """How many events were given up since the beginning."""
        self._carry = carry
        self._policy = policy
        self._name = name
        self._clock = clock or SystemClock()
        self._sleep = sleep
        self._metrics = metrics or NoMetrics()
        self._on_drop = on_drop
        self._waiting: list[Outgoing] = []
        self._bytes = 0
        self._failures = 0
        self._error: LivetapeError = BusUnavailableError()
        self._closing = Backoff(policy.first_delay_s, policy.longest_delay_s, jitter=jitter)
        self._opening = Backoff(policy.open_s, policy.longest_open_s, jitter=jitter)
        self._task: asyncio.Task[None] | None = None
        self._hurry = asyncio.Event()
        self._emptied = asyncio.Event()

    @property
    def buffered(self) -> int:
        """How many events wait."""
        return len(self._waiting)

    async def rescue(self, item: Outgoing, error: LivetapeError | None) -> Published:
        """Deliver it when the bus is back. `error` is that of a direct try, if there was one.

        While the circuit is open it returns at once; otherwise once the event is out or the circuit opens.
        """
        self._note(error)
        if self.state is CircuitState.OPEN:
            return self._keep(item)
        waiter: asyncio.Future[Published] = asyncio.get_running_loop().create_future()
        item.waiter = waiter
        self._enqueue(item)
        try:
            done, _ = await asyncio.wait({waiter}, timeout=self._policy.wait_s)
        except asyncio.CancelledError:
            self._withdraw(item)
            raise
        if not done:
            self._open(self._error)  # which answers everybody who waits
            self._answer(item, Published(error=self._error))  # unless it had been taken out
        return waiter.result()

    def store(self, item: Outgoing, error: LivetapeError | None) -> Published:
        """`rescue` for one who does not wait."""
        self._note(error)
        return self._keep(item)

    def give_up(self, item: Outgoing, error: LivetapeError) -> Published:
        """`rescue` for one whose direct try took so long that nobody else shall wait: the circuit opens."""
        self._note(error)
        if self.state is CircuitState.CLOSED:
            self._failures = max(self._failures, self._policy.attempts)
            self._open(error)
            self._start()
        return self._keep(item)

    async def flush(self, timeout: float | None = None) -> int:
        """Try now, and wait until nothing waits any more or `timeout` seconds have passed; returns how many wait."""
        if not self._waiting:
            return 0
        self._emptied.clear()
        self._hurry.set()
        self._start()
        if timeout is None:
            await self._emptied.wait()
        else:
            await self._either(timeout, self._emptied)
        return len(self._waiting)

    async def close(self) -> int:
        """Flush within the policy's bound and give up the rest; returns how many were lost. Idempotent."""
        await self.flush(self._policy.close_s)
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            self._task = None
        lost, self._waiting, self._bytes = self._waiting, [], 0
        for item in lost:
            self.drop(item, "closed", ClosedError("the bus was closed before it could be reached"))
        if lost:
            logger.error(
                "%s: closed with %d events that could not be sent",
                self._name,
                len(lost),
                extra={"action": "events_lost", "bus": self._name, "count": len(lost)},
            )
        return len(lost)

    def rebind(self) -> None:
        """Go on in another event loop: the one before has ended, and with it whoever waited there."""
        self._task = None
        self._hurry, self._emptied = asyncio.Event(), asyncio.Event()
        for item in self._waiting:
            item.waiter = None
        if self._waiting:
            self._start()

    def drop(self, item: Outgoing, reason: str, error: LivetapeError) -> None:
        """Give the event up: count it, and tell everyone who wants to know."""
        self.dropped += 1
        self._metrics.count("events_dropped_total", reason=reason)
        self._answer(item, Published(error=error))
        if self._on_drop is not None:
            try:
                event_type = item.event_type or (split(item.data).event_type if item.data else "")
                self._on_drop(Dropped(item.channel, event_type, item.size, reason))
            except Exception:
                logger.exception("on_drop failed", extra={"action": "callback_failed"})

    # ---- what waits ------------------------------------------------------------------------------------------------

    def _note(self, error: LivetapeError | None) -> None:
        self.clear = False
        if error is not None:
            self._failures = max(self._failures, 1)
            self._error = error

    def _keep(self, item: Outgoing) -> Published:
        """Into the buffer if there is room."""
        policy = self._policy
        # While the circuit is not open one may wait even without a buffer: somebody has to try the bus.
        room = max(policy.buffer_events, self.state is not CircuitState.OPEN)
        if len(self._waiting) >= room or self._bytes + item.size > policy.buffer_bytes:
            self.drop(item, "overflow" if policy.buffer_events else "unavailable", self._error)
            self._start()  # there may be nothing that waits: somebody has to see when the bus is back
            return Published(error=self._error)
        self._enqueue(item)
        return Published(buffered=True, error=self._error)

    def _enqueue(self, item: Outgoing) -> None:
        item.since = self._clock.monotonic()
        insort(self._waiting, item, key=attrgetter("number"))
        self._bytes += item.size
        self._start()

    def _withdraw(self, item: Outgoing) -> None:
        if item in self._waiting:
            self._waiting.remove(item)
            self._bytes -= item.size

    def _start(self) -> None:
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._run())

    # ---- the task --------------------------------------------------------------------------------------------------

    async def _run(self) -> None:
        while True:
            await self._pause()
            if self.state is CircuitState.OPEN:
                self._become(CircuitState.HALF_OPEN)
            self._expire()
            if not self._waiting:
                break
            await self._try(self._waiting[: 1 if self._failures else CHUNK])
        self._failures = 0 if self.state is CircuitState.CLOSED else self._policy.attempts - 1
        self.clear = self.state is CircuitState.CLOSED
        self._task = None
        self._emptied.set()

    async def _pause(self) -> None:
        if self.state is CircuitState.OPEN:
            await self._either(self._opening.next(), self._hurry)
        elif self.state is CircuitState.HALF_OPEN:
            pass  # the first that comes tries it
        elif self._failures:
            await self._either(self._closing.next(), self._hurry)
        self._hurry.clear()

    async def _try(self, items: Sequence[Outgoing]) -> None:
        failure: LivetapeError | None = None
        for item, outcome in zip(items, await self._carry(items), strict=True):
            if isinstance(outcome, LivetapeError) and outcome.retryable:
                failure = failure or outcome
                continue
            self._withdraw(item)
            self._succeeded()
            if isinstance(outcome, Published):
                self._answer(item, outcome)
            else:
                error = outcome if isinstance(outcome, LivetapeError) else BusUnavailableError(str(outcome))
                self.drop(item, error.code, error)
        if failure is not None:
            self._failed(failure)

    def _succeeded(self) -> None:
        self._failures = 0
        self._closing.reset()
        self._opening.reset()
        if self.state is not CircuitState.CLOSED:
            self._become(CircuitState.CLOSED)

    def _failed(self, error: LivetapeError) -> None:
        self._error = error
        self._failures += 1
        if self._failures < self._policy.attempts and self.state is CircuitState.CLOSED:
            return
        self._open(error)

    def _open(self, error: LivetapeError) -> None:
        """Everybody who waits is answered: what has room stays, the rest is given up."""
        self._become(CircuitState.OPEN)
        kept: list[Outgoing] = []
        size = 0
        lost: list[Outgoing] = []
        for item in self._waiting:
            if len(kept) < self._policy.buffer_events and size + item.size <= self._policy.buffer_bytes:
                kept.append(item)
                size += item.size
            else:
                lost.append(item)
        self._waiting, self._bytes = kept, size
        for item in kept:
            self._answer(item, Published(buffered=True, error=error))
        for item in lost:
            self.drop(item, "overflow" if self._policy.buffer_events else "unavailable", error)

    def _expire(self) -> None:
        oldest = self._clock.monotonic() - self._policy.max_age_s
        expired = [item for item in self._waiting if item.since < oldest]
        if not expired:
            return
        self._waiting = [item for item in self._waiting if item.since >= oldest]
        for item in expired:
            self._bytes -= item.size
            self.drop(item, "expired", self._error)

    def _become(self, state: CircuitState) -> None:
        if state is not self.state and CircuitState.HALF_OPEN not in (state, self.state):
            logger.warning("%s: circuit %s", self._name, state, extra={"action": "circuit", "bus": self._name})
        elif state is CircuitState.CLOSED:
            logger.info("%s: the bus is back", self._name, extra={"action": "circuit", "bus": self._name})
        self.state = state
        self._metrics.gauge("event_circuit_open", float(state is not CircuitState.CLOSED), bus=self._name)

    # ---- telling it ------------------------------------------------------------------------------------------------

    def _answer(self, item: Outgoing, outcome: Published) -> None:
        if item.waiter is not None and not item.waiter.done():
            item.waiter.set_result(outcome)
        item.waiter = None

    async def _either(self, seconds: float, event: asyncio.Event) -> None:
        """Until the time has passed or the event is set."""
        if event.is_set():
            return
        tasks = [asyncio.ensure_future(self._sleep(seconds)), asyncio.ensure_future(event.wait())]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
