"""The loop from the bus to the hub: one subscription for the whole process, to what somebody here watches."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping, Sequence
from time import perf_counter
from typing import Final

from pydantic_core import from_json, to_json

from livetape.errors import BusUnavailableError, ClosedError, CodecError
from livetape.events.backoff import Backoff
from livetape.events.bus import Bus, BusMessage, ExpressSink, Subscription
from livetape.events.channel import NOTIFICATION_BUS, matches
from livetape.events.codec import split
from livetape.events.recovery import REPLACEMENT
from livetape.gateway import messages
from livetape.gateway.hub import Hub
from livetape.gateway.messages import Push, WSMethod
from livetape.gateway.reader import Sleep, TapeReader
from livetape.gateway.subjects import Kind
from livetape.gateway.topic import Topic
from livetape.observability import Metrics, Span, Tracer, get_logger, is_sampled

logger = get_logger(__name__)

_NOTIFICATIONS: Final = f"{NOTIFICATION_BUS}/"

MAX_HEALS: Final = 16
"""So many topics are read from the log at once."""

SAMPLE_SECONDS: Final = 0.01
"""Of the batches that come in so long one is timed."""

POLL_SECONDS: Final = 1.0
"""So often is a mixed tape looked at: who else writes to it tells nobody."""


class _Intake(ExpressSink):
    def __init__(
        self, receive: Callable[[Sequence[BusMessage], int], None], lanes: Mapping[bytes, Callable[[bytes], bool]]
    ) -> None:
        self._receive = receive
        self.lanes = lanes

    def __call__(self, messages: Sequence[BusMessage], taken: int = 0, /) -> None:
        self._receive(messages, taken)


class Broadcaster:
    """Subscribes upstream with reference counts, hands every message to the hub, and repairs what the link lost.

    A link that breaks is made again for ever, with back-off. Whatever was published meanwhile is read from the log.
    """

    def __init__(
        self,
        bus: Bus,
        hub: Hub,
        reader: TapeReader,
        metrics: Metrics,
        *,
        tracer: Tracer | None = None,
        sleep: Sleep = asyncio.sleep,
    ) -> None:
        self._bus = bus
        self._hub = hub
        self._reader = reader
        self._metrics = metrics
        self._tracer = tracer
        self._spans: list[Span] = []
        """Of the sampled events that are being handed over."""
        self._sleep = sleep
        self._wanted: dict[str, int] = {}
        self._listening: set[str] = set()
        self._subscription: Subscription | None = None
        self._changing = asyncio.Lock()
        self._unwanted = asyncio.Event()
        # What the next call of `add` is for, and who waits for it.
        self._asked: dict[str, asyncio.Future[None]] = {}
        self._adding = False
        self._adds: set[asyncio.Task[None]] = set()  # the loop itself keeps no task alive
        self._late: set[str] = set()
        self._again = asyncio.Event()
        self._heals = asyncio.Semaphore(MAX_HEALS)
        self._tasks: asyncio.TaskGroup | None = None
        self._polling = False
        self._timed_at = 0.0
        self.ready = asyncio.Event()

    # ---- interest ------------------------------------------------------------------------------------------------

    async def acquire(self, pattern: str) -> None:
        """Listen to this channel or pattern; returns when the bus delivers it. However many call it at the same time,
        the bus is asked once.

        While the link is down it returns at once, and when the bus does not answer, once that is clear: later
        everything wanted is listened to, and what was missed is read from the log.
        """
        self._wanted[pattern] = self._wanted.get(pattern, 0) + 1
        if pattern in self._listening:
            return
        asked = self._asked.get(pattern)
        if asked is None:
            loop = asyncio.get_running_loop()
            asked = self._asked[pattern] = loop.create_future()
            if not self._adding:
                self._adding = True
                add = loop.create_task(self._add_asked(), name="listen")
                self._adds.add(add)
                add.add_done_callback(self._adds.discard)
        try:
            await asyncio.wait({asked})
            asked.result()
        except BaseException:
            self.release(pattern)
            raise

    def release(self, pattern: str) -> None:
        """The twin of `acquire`. Never waits: who does not listen any more is told to the bus later."""
        count = self._wanted.get(pattern, 0) - 1
        if count > 0:
            self._wanted[pattern] = count
        else:
            self._wanted.pop(pattern, None)
            self._unwanted.set()

    async def _add_asked(self) -> None:
        """For all that ask until the lock is free."""
        asked: dict[str, asyncio.Future[None]] = {}
        try:
            async with self._changing:
                self._adding = False
                asked, self._asked = self._asked, {}
                new = [pattern for pattern in asked if pattern not in self._listening]
                if self._subscription is not None and new:
                    await self._add(self._subscription, new, asked)
        finally:
            if not asked:  # cancelled before its turn
                self._adding = False
                asked, self._asked = self._asked, {}
            for answer in asked.values():
                if not answer.done():
                    answer.set_result(None)

    async def _add(self, subscription: Subscription, new: list[str], asked: dict[str, asyncio.Future[None]]) -> None:
        failures: Sequence[BaseException | None] = [None]
        try:
            await subscription.add(*new)
        except Exception as error:
            failures = [error]
            if len(new) > 1 and not isinstance(error, BusUnavailableError | ClosedError):
                # All or none: of one that is refused the others shall know nothing.
                failures = await asyncio.gather(*(subscription.add(one) for one in new), return_exceptions=True)
        if len(failures) < len(new):
            failures = [failures[0]] * len(new)
        for pattern, failure in zip(new, failures, strict=True):
            if failure is None:
                self._listening.add(pattern)
            elif isinstance(failure, BusUnavailableError | ClosedError):
                self._late.add(pattern)
                self._again.set()
            elif pattern in asked and not asked[pattern].done():
                asked[pattern].set_exception(failure)
                asked[pattern].exception()  # seen: nobody may be waiting for it any more

    async def _add_late(self, subscription: Subscription) -> None:
        """What the bus did not take in time is asked for until it does, as long as it is wanted."""
        backoff = Backoff()
        while True:
            await self._again.wait()
            self._again.clear()
            await self._sleep(backoff.next())
            async with self._changing:
                late, self._late = self._late, set()
                new = [pattern for pattern in late if pattern in self._wanted and pattern not in self._listening]
                if new:
                    await self._add(subscription, new, {})
                    found = [pattern for pattern in new if pattern in self._listening]
            if new and found:
                backoff.reset()
                self._unwanted.set()
                self.verify(topic for topic in self._hub.topics() if topic.listens_to in found)

    async def _forget_unwanted(self, subscription: Subscription) -> None:
        while True:
            await self._unwanted.wait()
            self._unwanted.clear()
            async with self._changing:
                patterns = self._listening.difference(self._wanted)
                self._listening -= patterns
                await subscription.remove(*patterns)

    # ---- the loop ------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Until cancelled, or until the bus is closed."""
        backoff = Backoff()
        async with asyncio.TaskGroup() as tasks:
            self._tasks = tasks
            try:
                while True:
                    try:
                        await self._link(backoff)
                    except* (BusUnavailableError, OSError) as failures:
                        self._metrics.count("gateway_bus_failures_total")
                        logger.warning(
                            "the link to the bus broke: %s", failures.exceptions[0], extra={"action": "bus_link_lost"}
                        )
                    await self._sleep(backoff.next())
            finally:
                self._tasks = None

    async def _link(self, backoff: Backoff) -> None:
        """One link to the bus, until it breaks."""
        patterns = tuple(self._wanted)
        subscription = await self._bus.subscribe(*patterns, sink=_Intake(self.receive, self._hub.lanes))
        try:
            async with self._changing:
                missing = [pattern for pattern in self._wanted if pattern not in patterns]
                await subscription.add(*missing)
                self._listening = {*patterns, *missing}
                self._subscription = subscription
            backoff.reset()
            self._unwanted.set()
            self.ready.set()
            self._reader.forget_all()  # what broke the link may have cost the log its end
            self.verify(self._hub.topics())
            async with asyncio.TaskGroup() as tasks:
                keepers = [
                    tasks.create_task(self._forget_unwanted(subscription)),
                    tasks.create_task(self._add_late(subscription)),
                ]
                async for _ in subscription:
                    pass  # with a sink it yields nothing, and ends when the link does
                for keeper in keepers:
                    keeper.cancel()
        finally:
            self._subscription = None
            self._listening = set()
            self._late.clear()
            await subscription.close()

    # ---- what comes ----------------------------------------------------------------------------------------------

    def receive(self, messages: Sequence[BusMessage], taken: int = 0) -> None:
        """The sink of the bus: what came together, in order, and is handed on together. Never waits, never raises.

        `taken` more have been handed to their topics already.
        """
        begun, tracer = perf_counter(), self._tracer
        if taken:
            self._hand_lanes()
        dispatch, express = self._hub.dispatch, self._hub.express
        for channel, data, gap in messages:
            try:
                if not gap and express(channel, data):
                    continue
                if gap:
                    self._metrics.count("gateway_bus_gaps_total")
                    self.verify(self._concerned(channel))
                    continue
                envelope = split(data)
                if channel.startswith(_NOTIFICATIONS):
                    self._notify(channel, envelope.payload)
                    continue
                if tracer is not None and envelope.traceparent is not None and is_sampled(envelope.traceparent):
                    self._trace(tracer, channel, envelope.traceparent)
                for topic in dispatch(channel, envelope):
                    self.heal(topic, is_replacement=envelope.event_type == REPLACEMENT and envelope.offset is None)
            except CodecError:
                self._metrics.count("gateway_broken_messages_total")
                logger.warning("no envelope on %s", channel, extra={"action": "no_envelope"})
            except Exception:
                self._broken()
        try:
            self._hub.flush()
        except Exception:
            self._broken()
        if self._spans:
            spans, self._spans = self._spans, []
            for span in spans:
                span.end()
        self._metrics.count("gateway_events_total", len(messages) + taken)
        self.count()
        if begun - self._timed_at >= SAMPLE_SECONDS:
            self._timed_at = begun
            self._metrics.observe("gateway_fan_out_seconds", perf_counter() - begun)

    def _hand_lanes(self) -> None:
        try:
            self._hub.hand_lanes()
        except Exception:
            self._broken()

    def _trace(self, tracer: Tracer, channel: str, traceparent: str) -> None:
        topics = self._hub.routed(channel)
        if topics:
            recipients = sum(len(group.members()) for topic in topics for group in topic.groups.values())
            kind = topics[0].subject.kind.value
            span = tracer.begin("gateway.fan_out", traceparent=traceparent, kind=kind, recipients=recipients)
            self._spans.append(span)

    def _broken(self) -> None:
        self._metrics.count("gateway_broken_messages_total")
        logger.exception("a message of the bus broke the fan-out", extra={"action": "fan_out_failed"})

    def _notify(self, channel: str, payload: bytes) -> None:
        """A notification's payload is an object in an object; there are few of them, so it is decoded."""
        body = from_json(payload)
        data = to_json(body.get("payload")) if isinstance(body, dict) else b"null"
        self._hub.notify(channel, Push(messages.message(WSMethod.NOTIFICATION, data=data)))

    def count(self) -> None:
        """Hand on what was counted: once for what left together, whatever the number of recipients."""
        tally = self._hub.tally
        if tally.delivered:
            self._metrics.count("gateway_deliveries_total", tally.delivered)
            self._metrics.count("gateway_delivered_bytes_total", tally.delivered_bytes)
        if tally.refused:
            self._metrics.count("gateway_refused_total", tally.refused)
        tally.delivered = tally.delivered_bytes = tally.refused = 0

    # ---- repair --------------------------------------------------------------------------------------------------

    def verify(self, topics: Iterable[Topic]) -> None:
        """Messages of these may have been lost: look into their logs."""
        for topic in topics:
            topic.stale = True
            if topic.begun and topic.readable:
                self.heal(topic)
            elif topic.begun and topic.proven:
                topic.lose_unknown()

    def heal(self, topic: Topic, *, is_replacement: bool = False) -> None:
        """Have the topic's log read soon. Does nothing when that is under way or the gateway does not run."""
        if self._tasks is not None and not topic.repairing and not topic.denied:
            topic.repairing = True
            topic.start_reading()
            self._tasks.create_task(self._heal(topic, is_replacement), name=f"heal {topic.subject.tape}")

    async def _heal(self, topic: Topic, is_replacement: bool) -> None:
        before = topic.position
        try:
            async with self._heals:
                self._metrics.count("gateway_heals_total", kind=topic.subject.kind.value)
                await self._reader.heal(topic)
        except Exception:
            logger.exception("a tape cannot be read", extra={"action": "heal_failed", "tape": topic.subject.tape})
        finally:
            topic.repairing = False
            topic.stop_reading()
            self._poll_soon(topic)
        if is_replacement and topic.position == before and topic.proven and topic.subject.kind is not Kind.GRAPH:
            topic.too_large()  # not on the tape either: say so

    def _poll_soon(self, topic: Topic) -> None:
        if topic.mixed and not topic.final and not self._polling and self._tasks is not None:
            self._polling = True
            self._tasks.create_task(self._poll(), name="mixed tapes")

    async def _poll(self) -> None:
        """Look at all mixed tapes from time to time, for as long as there are any."""
        try:
            while topics := [topic for topic in self._hub.topics() if topic.mixed and not topic.final]:
                await self._sleep(POLL_SECONDS)
                for topic in topics:
                    if topic.references:
                        self.heal(topic)
        finally:
            self._polling = False

    def _concerned(self, channel: str) -> Sequence[Topic]:
        if not channel:
            return self._hub.topics()
        return [topic for topic in self._hub.topics() if matches(topic.pattern, channel)]
