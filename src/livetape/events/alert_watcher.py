"""Listens to the events of all jobs, asks rules about them, and delivers their alerts."""

from __future__ import annotations

import asyncio
from collections import OrderedDict, deque
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Sequence
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Any, Final, Protocol, Self

from livetape.clock import Clock, SystemClock
from livetape.errors import (
    BusError,
    ChannelError,
    CodecError,
    DecryptionError,
    LogError,
    LogUnavailableError,
    NotFoundError,
    PositionLostError,
)
from livetape.events.alerts import DEFAULT_MAX_JOBS, Alert, JobSeen, Rule
from livetape.events.backoff import Backoff
from livetape.events.bus import Bus, BusMessage
from livetape.events.channel import JOB_BUS, job_tape, split_channel
from livetape.events.codec import Envelope, split
from livetape.events.listener import Sleep
from livetape.events.log import Entry, EventLog
from livetape.events.notifications import NotificationEvent, NotificationPayload
from livetape.events.recovery import REPLACEMENT
from livetape.observability import get_logger

logger = get_logger(__name__)

Deliver = Callable[[Alert], Awaitable[object]]
"""Takes an alert to where somebody sees it."""

_ALL_JOBS: Final = f"{JOB_BUS}/*"


class NotificationPublisher(Protocol):
    """What a notification bus has."""

    async def publish(self, event: NotificationEvent) -> object: ...


def to_owner(
    bus: NotificationPublisher, *, otherwise: str | None = None
) -> Callable[[Alert], Coroutine[Any, Any, None]]:
    """Delivers alerts as notifications to the owner of the job, or to the user `otherwise` when it has none.

    The payload is `type="alert"`, `event=<name of the rule>`, `job_id`, `message`, `event_type`, `suppressed`.

    What it returns raises NotFoundError for a job that has no owner when there is no `otherwise`; a watcher counts that
    as a failed delivery.
    """

    async def deliver(alert: Alert) -> None:
        user_id = otherwise if alert.owner is None else alert.owner
        if user_id is None:
            raise NotFoundError(f"job {alert.job_id} has no owner to be told", job_id=alert.job_id)
        payload = NotificationPayload.model_validate(
            {
                "type": "alert",
                "event": alert.rule,
                "job_id": alert.job_id,
                "message": alert.message,
                "event_type": alert.event_type,
                "suppressed": alert.suppressed,
            }
        )
        await bus.publish(NotificationEvent(user_id=user_id, payload=payload))

    return deliver


@dataclass(slots=True)
class AlertStats:
    """Counts since the beginning.

    `raised` = `delivered` + `failed` (the callback raised, or took too long) + `dropped` (too many waited) + those that
    wait. `unreadable`: messages and entries that are no events or cannot be decrypted. `lost`: events that came neither
    live nor from the log. `broken_rules`: exceptions of rules.
    """

    raised: int = 0
    delivered: int = 0
    failed: int = 0
    dropped: int = 0
    unreadable: int = 0
    lost: int = 0
    broken_rules: int = 0


@dataclass(slots=True)
class _Tracked:
    """Up to where a job's events have been fed, and of what time. `is_behind`: there may be newer ones in the log."""

    epoch: str
    offset: int
    time: float = float("-inf")
    is_behind: bool = False


class AlertWatcher:
    """`async with AlertWatcher(bus, [Failed(), Silent(300)], deliver, log=log): …` watches until the block ends.

    With a `log`, events that were not heard (the bus was away, too many came) are read from the tapes of the jobs that
    it knows; and alerts know the owner. Without one they are lost. It knows the jobs of which it has heard an event, at
    most `max_jobs`, those heard of last.

    Alerts wait, at most `max_waiting`, and are delivered one after the other; one that fails or takes longer than
    `deliver_timeout_s` is counted in `stats` and left. Time is looked at every `tick_s` seconds. Two watchers deliver
    everything twice: run one.
    """

    def __init__(
        self,
        bus: Bus,
        rules: Sequence[Rule],
        deliver: Deliver,
        *,
        log: EventLog | None = None,
        tick_s: float = 1.0,
        deliver_timeout_s: float = 30.0,
        max_jobs: int = DEFAULT_MAX_JOBS,
        max_waiting: int = 1000,
        clock: Clock | None = None,
        sleep: Sleep = asyncio.sleep,
    ) -> None:
        self.stats = AlertStats()
        self.listening = asyncio.Event()
        """Set while there is a subscription."""
        self._bus = bus
        self._rules = list(rules)
        self._deliver = deliver
        self._log = log
        self._tick_s = tick_s
        self._deliver_timeout_s = deliver_timeout_s
        self._max_jobs = max_jobs
        self._max_waiting = max_waiting
        self._clock = clock or SystemClock()
        self._sleep = sleep
        self._jobs: OrderedDict[str, _Tracked] = OrderedDict()
        self._feeding = asyncio.Lock()
        self._waiting: deque[Alert] = deque()
        self._arrived = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    async def run(self) -> None:
        """Watch until cancelled.

        Raises:
            ClosedError: the bus was closed.
        """
        tasks = [asyncio.create_task(part) for part in (self._listen(), self._tick(), self._deliver_all())]
        try:
            ended, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in ended:
                task.result()  # they run until cancelled: it failed
        finally:
            for task in tasks:
                await _end(task)

    async def __aenter__(self) -> Self:
        """Begin, and return when it listens."""
        self._task = asyncio.create_task(self.run())
        listening = asyncio.create_task(self.listening.wait())
        try:
            await asyncio.wait((self._task, listening), return_when=asyncio.FIRST_COMPLETED)
        except BaseException:
            await _end(self._task)
            raise
        finally:
            await _end(listening)
        if self._task.done():
            await self._task
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._task is None:
            return
        if self._task.done() and not self._task.cancelled():
            logger.error("the watcher had ended before: %r", self._task.exception(), extra={"action": "watcher_ended"})
        await _end(self._task)

    # ---- listening -------------------------------------------------------------------------------------------------

    async def _listen(self) -> None:
        backoff = Backoff()
        while True:
            try:
                subscription = await self._bus.subscribe(_ALL_JOBS)
            except BusError as error:
                if not error.retryable:
                    raise
                await self._sleep(backoff.next())
                continue
            self.listening.set()
            try:
                await self._catch_up(list(self._jobs))
                await self._hear(aiter(subscription), backoff)
            except BusError as error:
                if not error.retryable:
                    raise
                logger.info("the link to the bus broke", extra={"action": "watch_again"})
            finally:
                self.listening.clear()
                await subscription.close()
            await self._sleep(backoff.next())

    async def _hear(self, messages: AsyncIterator[BusMessage], backoff: Backoff) -> None:
        while True:
            try:
                message = await anext(messages)
            except StopAsyncIteration:
                return
            except DecryptionError:
                self.stats.unreadable += 1
                continue
            backoff.reset()
            if message.gap and not message.channel:
                await self._catch_up(list(self._jobs))
                continue
            try:
                job_id = _job_of(message.channel)
                if message.gap:
                    await self._catch_up([job_id])
                    continue
                envelope = split(message.data)
            except (CodecError, ChannelError):
                self.stats.unreadable += 1
                continue
            async with self._feeding:
                await self._take(job_id, envelope)

    async def _take(self, job_id: str, envelope: Envelope) -> None:
        event = JobSeen(job_id, envelope.event_type, envelope.final)
        if envelope.offset is None or envelope.epoch is None:
            self._feed(event, self._clock.monotonic())
            return
        known = self._jobs.get(job_id)
        if known is None or known.epoch != envelope.epoch:
            # Of a tape that was born again, nothing was heard yet.
            before = 0 if known is not None and self._log is not None else envelope.offset - 1
            known = self._jobs[job_id] = _Tracked(envelope.epoch, before)
            while len(self._jobs) > self._max_jobs:
                self._jobs.popitem(last=False)
        self._jobs.move_to_end(job_id)
        if self._log is not None and (envelope.offset > known.offset + 1 or envelope.event_type == REPLACEMENT):
            await self._read(job_id, known)
        if known.epoch != envelope.epoch or envelope.offset <= known.offset:
            return
        if known.is_behind:
            return  # the log has this event too, and is asked again
        self.stats.lost += envelope.offset - known.offset - 1
        known.offset, known.time = envelope.offset, self._clock.monotonic()
        self._feed(event, known.time)

    # ---- reading what was missed -----------------------------------------------------------------------------------

    async def _catch_up(self, job_ids: Sequence[str]) -> None:
        """Messages about these jobs may have been missed."""
        if self._log is None:
            return
        for job_id in job_ids:
            async with self._feeding:
                known = self._jobs.get(job_id)
                if known is not None:
                    await self._read(job_id, known)

    async def _read(self, job_id: str, known: _Tracked) -> None:
        """Feed what the log has after the position."""
        assert self._log is not None
        known.is_behind = True
        tape = job_tape(job_id)
        try:
            while True:
                try:
                    entries = await self._log.read(tape, known.offset, epoch=known.epoch)
                except DecryptionError as error:
                    self.stats.unreadable += 1
                    await self._skip(job_id, known, error)
                    continue
                if not entries:
                    break
                self._feed_entries(job_id, known, entries)
        except PositionLostError:
            described = await self._log.describe(tape)
            if described is not None and described.epoch != known.epoch:
                known.epoch, known.offset = described.epoch, 0
                await self._read(job_id, known)
        except LogUnavailableError:
            return
        except LogError as error:
            logger.warning("a tape cannot be read: %s", error, extra={"action": "alerts_unreadable", "tape": tape})
        known.is_behind = False

    async def _skip(self, job_id: str, known: _Tracked, error: DecryptionError) -> None:
        """Pass over an entry that cannot be decrypted, without losing those before it."""
        assert self._log is not None
        offset = error.context.get("offset")
        bad = offset if isinstance(offset, int) else known.offset + 1
        if bad > known.offset + 1:
            limit = bad - known.offset - 1
            entries = await self._log.read(job_tape(job_id), known.offset, limit=limit, epoch=known.epoch)
            self._feed_entries(job_id, known, entries)
        known.offset = max(bad, known.offset + 1)

    def _feed_entries(self, job_id: str, known: _Tracked, entries: Sequence[Entry]) -> None:
        for entry in entries:
            self.stats.lost += max(0, entry.offset - known.offset - 1)
            # The log's clock may be another one: for the rules, time of a job never goes back.
            known.offset, known.time = entry.offset, max(known.time, self._when(entry))
            self._feed(JobSeen(job_id, entry.event_type, entry.final), known.time)

    def _when(self, entry: Entry) -> float:
        """When it was appended, by the clock that never goes backwards."""
        if not entry.at_us:
            return self._clock.monotonic()
        age_s = self._clock.now().timestamp() - entry.at_us / 1_000_000
        return self._clock.monotonic() - max(0.0, age_s)

    # ---- rules and delivery ----------------------------------------------------------------------------------------

    def _feed(self, event: JobSeen, now: float) -> None:
        for rule in self._rules:
            try:
                self._raise(rule.feed(event, now))
            except Exception:
                self._broken(rule)

    async def _tick(self) -> None:
        while True:
            await self._sleep(self._tick_s)
            await self._catch_up([job_id for job_id, known in self._jobs.items() if known.is_behind])
            for rule in self._rules:
                try:
                    self._raise(rule.tick(self._clock.monotonic()))
                except Exception:
                    self._broken(rule)

    def _broken(self, rule: Rule) -> None:
        self.stats.broken_rules += 1
        logger.exception("an alert rule failed", extra={"action": "alert_rule_failed", "rule": rule.name})

    def _raise(self, alerts: Sequence[Alert]) -> None:
        for alert in alerts:
            self.stats.raised += 1
            self._waiting.append(alert)
            if len(self._waiting) > self._max_waiting:
                self._waiting.popleft()
                self.stats.dropped += 1
            self._arrived.set()

    async def _deliver_all(self) -> None:
        while True:
            await self._arrived.wait()
            if not self._waiting:
                self._arrived.clear()
                continue
            alert = self._waiting.popleft()
            try:
                async with asyncio.timeout(self._deliver_timeout_s):
                    await self._deliver(replace(alert, owner=await self._owner(alert)))
            except Exception as error:
                self.stats.failed += 1
                logger.warning(
                    "an alert could not be delivered: %s",
                    str(error) or type(error).__name__,
                    extra={"action": "alert_undelivered", "rule": alert.rule, "job_id": alert.job_id},
                )
            else:
                self.stats.delivered += 1

    async def _owner(self, alert: Alert) -> str | None:
        if self._log is None:
            return alert.owner
        described = await self._log.describe(job_tape(alert.job_id))
        return alert.owner if described is None else described.owner


def _job_of(channel: str) -> str:
    _, levels = split_channel(channel)
    if len(levels) != 1:
        raise ChannelError("the channel of a job has one level", channel=channel)
    return levels[0]


async def _end(task: asyncio.Task[object] | asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
