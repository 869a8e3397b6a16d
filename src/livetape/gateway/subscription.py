"""One client's view of one topic: live while it keeps up, reading the log while it does not."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any, TypeAlias

from livetape.errors import LivetapeError, PositionLostError
from livetape.events.backoff import Backoff
from livetape.events.log import Position
from livetape.events.pace import Pace
from livetape.events.recovery import Gap, Item, merge, rising
from livetape.gateway.forms import Form
from livetape.gateway.messages import Push
from livetape.gateway.options import GatewayOptions
from livetape.gateway.outbox import Outbox
from livetape.gateway.reader import HEAL_TRIES, Sleep, TapeReader, is_trimmed
from livetape.gateway.topic import NODE_OUTPUT, Topic
from livetape.observability import Metrics, get_logger

logger = get_logger(__name__)

Spawn: TypeAlias = Callable[[Coroutine[Any, Any, None]], "asyncio.Task[None] | None"]
"""Starts a task that its owner ends at the latest when the client is gone; None when it is about to go."""


def spawn_in(tasks: asyncio.TaskGroup) -> Spawn:
    """Tasks of this group. One that is shutting down takes no more, which is no failure of whoever asks."""

    def spawn(work: Coroutine[Any, Any, None]) -> asyncio.Task[None] | None:
        try:
            return tasks.create_task(work)
        except RuntimeError:
            work.close()
            return None

    return spawn


@dataclass(frozen=True, slots=True)
class Client:
    """What a subscription needs of the client that it is for."""

    outbox: Outbox
    spawn: Spawn
    too_slow: Callable[[], None]
    """It has been behind for too long: close it."""

    broken: Callable[[], None]
    """Something failed on our side: close it."""


class Subscription:
    """A `Member` of a topic. `start` once, `close` once."""

    def __init__(
        self,
        topic: Topic,
        form: Form,
        client: Client,
        *,
        each: bool,
        reader: TapeReader,
        heal: Callable[[Topic], None],
        release: Callable[[Topic], None],
        options: GatewayOptions,
        metrics: Metrics,
        sleep: Sleep,
        on_finished: Callable[[], None],
    ) -> None:
        self.topic = topic
        self.put = client.outbox.put
        self.each = each
        self._form = form
        self._client = client
        self._reader = reader
        self._heal = heal
        self._release = release
        self._options = options
        self._metrics = metrics
        self._sleep = sleep
        self._on_finished = on_finished
        self._replaying: asyncio.Task[None] | None = None
        self._closed = False

    def start(self, position: Position | None, *, announce: bool) -> None:
        """Begin after this position, or (None) where the topic stands. `announce`: say when it has become live."""
        start = self.topic.position if position is None else position
        if not self._go_live(start, announce=announce):
            self._replay_from(start, announce=announce)

    def close(self) -> None:
        """The client wants no more of it, or is gone."""
        if self._closed:
            return
        self._closed = True
        if self._replaying is not None:
            self._replaying.cancel()
        self.topic.leave(self, self._form)
        self._release(self.topic)

    # ---- what the topic calls --------------------------------------------------------------------------------------

    def fell_behind(self, position: Position) -> None:
        """The outbox is full. Nothing is lost: what follows is read from the log when there is room again."""
        self._metrics.count("gateway_resyncs_total", reason="slow")
        self._replay_from(position, announce=False)

    def finished(self) -> None:
        """The last event has been handed over."""
        self._on_finished()

    # ---- replay ----------------------------------------------------------------------------------------------------

    def _replay_from(self, position: Position, *, announce: bool) -> None:
        if not self._closed:
            self._replaying = self._client.spawn(self._replay(position, announce))

    async def _replay(self, position: Position, announce: bool) -> None:
        self.topic.start_reading()
        try:
            await self._catch_up(position, announce)
        except TimeoutError:
            self._client.too_slow()
        except Exception:
            logger.exception("a replay failed", extra={"action": "replay_failed", "tape": self.topic.subject.tape})
            self._client.broken()
        finally:
            self.topic.stop_reading()

    async def _catch_up(self, position: Position, announce: bool) -> None:
        pace = Pace(self._options.replay_chunk_events, self._options.replay_chunk_bytes)
        topic, backoff = self.topic, Backoff(first=0.01)
        while True:
            async with asyncio.timeout(self._options.slow_seconds):
                await self._client.outbox.room()
            if position.epoch != topic.position.epoch or not topic.readable:
                position = self._skip(position)
            if self._go_live(position, announce=announce):
                return
            mixed = topic.mixed
            try:
                if mixed:
                    position = await self._after_trimmed(position)
                events, more = await self._reader.read(topic.subject, position, pace, mixed=mixed)
            except PositionLostError:  # born again: the topic finds out, and then there is its new epoch to go on in
                events, more = [], False
            except LivetapeError as error:
                if not error.retryable:
                    raise
                await self._sleep(backoff.next())
                continue
            merged = rising(position, events) if mixed else merge(position, events, topic.tail)
            before = position
            for item in merged.items:
                self._forward(item, before)
                before = _reached(item, before)
            if merged.position != position:
                position = merged.position
                backoff.reset()
            elif not more and position != topic.position:
                # The topic is ahead and the log does not say more yet, or it is behind and has to be told.
                if backoff.tries > HEAL_TRIES and not topic.repairing:
                    position = self._skip_to(topic.position, position)
                self._heal(topic)
                await self._sleep(backoff.next())

    async def _after_trimmed(self, position: Position) -> Position:
        """On a mixed tape: where reading goes on, after having said that events may be gone, if they may be."""
        tape = await self._reader.describe(self.topic.subject)
        if tape is None or tape.epoch != position.epoch or not is_trimmed(tape, position):
            return position
        self._force(self._form.gap(None, None, position.epoch))
        return Position(position.epoch, tape.first_offset - 1)

    def _skip(self, position: Position) -> Position:
        """There is nothing to read: the tape was born again, or it is not there. Say so and go on."""
        topic = self.topic
        if topic.readable and position.epoch == "":  # it was not there yet when this one began to watch
            return Position(topic.position.epoch, position.offset)
        if topic.readable:
            first = None if topic.mixed else position.offset + 1
            self._force(self._form.gap(first, None, topic.position.epoch))
            return Position(topic.position.epoch, 0)
        return self._skip_to(topic.position, position)

    def _skip_to(self, there: Position, position: Position) -> Position:
        """What lies between cannot be had; when nothing does, something was lost that nobody knows."""
        known = position.offset < there.offset and not self.topic.mixed
        first, last = (position.offset + 1, there.offset) if known else (None, None)
        self._force(self._form.gap(first, last, there.epoch or None))
        return there

    def _forward(self, item: Item, before: Position) -> None:
        """Send what follows the position `before`."""
        if isinstance(item, Gap):
            self._force(self._form.gap(item.first, item.last, item.epoch))
            return
        topic = self.topic
        if before == topic.position:
            topic.advance(item)  # the bus is later than the log: the others need not wait for it
        if self.each or item.event_type != NODE_OUTPUT:
            push = topic.push_of(item, self._form)
            if push is not None:
                self._client.outbox.force(push)

    def _go_live(self, position: Position, *, announce: bool) -> bool:
        if position != self.topic.position:
            return False
        if announce:
            self._force(self._form.replay_complete(position, mixed=self.topic.mixed))
        return self.topic.join(self, self._form, position)

    def _force(self, data: bytes | None) -> None:
        if data is not None:
            self._client.outbox.force(Push(data))


def _reached(item: Item, before: Position) -> Position:
    """Where a reader stands who stood at `before` and was given this."""
    offset = item.last if isinstance(item, Gap) else item.offset
    return before if offset is None else Position(before.epoch, offset)
