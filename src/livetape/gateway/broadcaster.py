"""The loop from the bus to the hub: one subscription for the whole process, to what somebody here watches."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Final

from pydantic_core import from_json, to_json

from livetape.errors import BusUnavailableError, ClosedError, CodecError
from livetape.events.backoff import Backoff
from livetape.events.bus import Bus, BusMessage, Subscription
from livetape.events.channel import NOTIFICATION_BUS, matches
from livetape.events.codec import split
from livetape.events.recovery import REPLACEMENT
from livetape.gateway import messages
from livetape.gateway.hub import Hub
from livetape.gateway.messages import Push, WSMethod
from livetape.gateway.reader import Sleep, TapeReader
from livetape.gateway.subjects import Kind
from livetape.gateway.topic import Topic
from livetape.observability import Metrics, get_logger

logger = get_logger(__name__)

YIELD_EVERY: Final = 64
"""So many messages are handled before others on the event loop get their turn."""

MAX_HEALS: Final = 16
"""So many topics are read from the log at once."""

POLL_SECONDS: Final = 1.0
"""So often is a mixed tape looked at: who else writes to it tells nobody."""


class Broadcaster:
    """Subscribes upstream with reference counts, hands every message to the hub, and repairs what the link lost.

    A link that breaks is made again for ever, with back-off. Whatever was published meanwhile is read from the log.
    """

    def __init__(
        self, bus: Bus, hub: Hub, reader: TapeReader, metrics: Metrics, *, sleep: Sleep = asyncio.sleep
    ) -> None:
        self._bus = bus
        self._hub = hub
        self._reader = reader
        self._metrics = metrics
        self._sleep = sleep
        self._wanted: dict[str, int] = {}
        self._listening: set[str] = set()
        self._subscription: Subscription | None = None
        self._changing = asyncio.Lock()
        self._unwanted = asyncio.Event()
        self._heals = asyncio.Semaphore(MAX_HEALS)
        self._tasks: asyncio.TaskGroup | None = None
        self._polling = False
        self.ready = asyncio.Event()

    # ---- interest ------------------------------------------------------------------------------------------------

    async def acquire(self, pattern: str) -> None:
        """Listen to this channel or pattern; returns when the bus delivers it.

        While the link is down it returns at once: when the link is back everything wanted is listened to, and what
        was missed is read from the log.
        """
        self._wanted[pattern] = self._wanted.get(pattern, 0) + 1
        if pattern in self._listening:
            return
        try:
            async with self._changing:
                if self._subscription is not None and pattern not in self._listening:
                    await self._subscription.add(pattern)
                    self._listening.add(pattern)
        except (BusUnavailableError, ClosedError):
            pass  # the link is down or changing: `run` listens to all that is wanted
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
        subscription = await self._bus.subscribe(*patterns)
        try:
            async with self._changing:
                missing = [pattern for pattern in self._wanted if pattern not in patterns]
                await subscription.add(*missing)
                self._listening = {*patterns, *missing}
                self._subscription = subscription
            backoff.reset()
            self._unwanted.set()
            self.ready.set()
            self.verify(self._hub.topics())
            async with asyncio.TaskGroup() as tasks:
                sweeper = tasks.create_task(self._forget_unwanted(subscription))
                await self._pump(subscription)
                sweeper.cancel()
        finally:
            self._subscription = None
            self._listening = set()
            await subscription.close()

    async def _pump(self, subscription: Subscription) -> None:
        count = 0
        async for message in subscription:
            try:
                self._handle(message)
            except Exception:
                self._metrics.count("gateway_broken_messages_total")
                logger.exception("a message of the bus broke the fan-out", extra={"action": "fan_out_failed"})
            self._count()
            count += 1
            if count % YIELD_EVERY == 0:
                await asyncio.sleep(0)

    # ---- one message ---------------------------------------------------------------------------------------------

    def _handle(self, message: BusMessage) -> None:
        if message.gap:
            self._metrics.count("gateway_bus_gaps_total")
            self.verify(self._concerned(message.channel))
            return
        try:
            envelope = split(message.data)
        except CodecError:
            self._metrics.count("gateway_broken_messages_total")
            logger.warning("no envelope on %s", message.channel, extra={"action": "no_envelope"})
            return
        if message.channel.startswith(f"{NOTIFICATION_BUS}/"):
            self._notify(message.channel, envelope.payload)
            return
        for topic in self._hub.dispatch(message.channel, envelope):
            self.heal(topic, is_replacement=envelope.event_type == REPLACEMENT and envelope.offset is None)

    def _notify(self, channel: str, payload: bytes) -> None:
        """A notification's payload is an object in an object; there are few of them, so it is decoded."""
        body = from_json(payload)
        data = to_json(body.get("payload")) if isinstance(body, dict) else b"null"
        self._hub.notify(channel, Push(messages.message(WSMethod.NOTIFICATION, data=data)))

    def _count(self) -> None:
        """Once per message, whatever the number of recipients."""
        tally = self._hub.tally
        self._metrics.count("gateway_events_total")
        if tally.delivered:
            self._metrics.count("gateway_deliveries_total", tally.delivered)
        if tally.refused:
            self._metrics.count("gateway_refused_total", tally.refused)
        tally.delivered = tally.refused = 0

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

    def _concerned(self, channel: str) -> list[Topic]:
        if not channel:
            return self._hub.topics()
        return [topic for topic in self._hub.topics() if matches(topic.pattern, channel)]
