"""Keeps a subscription to one channel alive for ever, and its newest durable events in a bounded tail."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeAlias

from livetape.errors import BusError, CodecError
from livetape.events.backoff import Backoff
from livetape.events.bus import Bus, BusMessage
from livetape.events.codec import split
from livetape.events.recovery import Tail
from livetape.events.tape_event import TapeEvent
from livetape.observability import get_logger

logger = get_logger(__name__)

Sleep: TypeAlias = Callable[[float], Awaitable[None]]


class Listener:
    """What arrives on a channel, for one who reads the channel's tape.

    `stale` is set whenever something may have been missed: the subscription has just been made (again), the bus put a
    gap marker, an event came without a position. Whoever reads the log clears it first.
    """

    def __init__(self, bus: Bus, channel: str, tail: Tail, *, of_graph: bool, sleep: Sleep) -> None:
        self._bus = bus
        self._channel = channel
        self._of_graph = of_graph
        self._sleep = sleep
        self.tail = tail
        self.stale = False
        self.listening = False
        """Whether there is a subscription now. Without one only asking the log tells what is new."""
        self.changed = asyncio.Event()
        """Something is in the tail, or stale."""

    def wake(self) -> None:
        """Have the log read."""
        self.stale = True
        self.changed.set()

    async def run(self) -> None:
        """Until cancelled.

        Raises:
            BusError, ClosedError: the bus can never be listened to like this.
        """
        backoff = Backoff()
        while True:
            try:
                subscription = await self._bus.subscribe(self._channel)
            except BusError as error:
                if not error.retryable:
                    raise
                await self._sleep(backoff.next())
                continue
            try:
                self.listening = True
                self.wake()
                async for message in subscription:
                    backoff.reset()
                    self._take(message)
            except BusError as error:
                if not error.retryable:
                    raise
                logger.info("the link to the bus broke", extra={"action": "listen_again", "channel": self._channel})
            finally:
                self.listening = False
                await subscription.close()
            await self._sleep(backoff.next())

    def _take(self, message: BusMessage) -> None:
        event = None if message.gap else self._event(message.data)
        if event is None:
            self.wake()
        elif event.offset is not None:
            self.tail.add(event)
            self.changed.set()

    def _event(self, data: bytes) -> TapeEvent | None:
        """None when only the log can tell what this was."""
        try:
            envelope = split(data)
        except CodecError:
            return None
        if self._of_graph:
            # Other events of these executions pass here too; they stand on tapes of their own.
            return TapeEvent(envelope.event_type, envelope.payload, envelope.graph_offset, envelope.graph_epoch)
        if envelope.offset is None:
            return None
        return TapeEvent(envelope.event_type, envelope.payload, envelope.offset, envelope.epoch, envelope.final)
