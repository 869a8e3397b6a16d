"""One client's view of one topic: live while it keeps up, reading the log while it does not."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

from livetape.errors import LivetapeError, PositionLostError
from livetape.events.backoff import Backoff
from livetape.events.log import Position, Tape
from livetape.events.pace import Pace
from livetape.events.recovery import Gap, Item, merge, rising
from livetape.events.tape_event import TapeEvent
from livetape.gateway.asked import is_trimmed
from livetape.gateway.chunks import Chunk
from livetape.gateway.forms import Form
from livetape.gateway.lane import NODE_OUTPUT
from livetape.gateway.member import Writer
from livetape.gateway.messages import Push
from livetape.gateway.options import GatewayOptions
from livetape.gateway.outbox import Outbox
from livetape.gateway.reader import HEAL_TRIES, Sleep, TapeReader
from livetape.gateway.topic import Topic
from livetape.observability import Metrics, get_logger

logger = get_logger(__name__)

NOTHING: Final = Chunk(())

FIRST_EVENTS: Final = 64
"""So many events are read before it is known how large they are: mostly all that a client has missed."""

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

    writer: Callable[[], Writer | None] = lambda: None
    """The straight way to it, while there is one: what leaves on it passes by the outbox."""


class Subscription:
    """A `Member` of a topic. `start` once, `close` once.

    `may_stay` says whether the client may still watch a tape whose owner has changed; `on_withdrawn` is called when it
    may not, and then the subscription is closed.
    """

    __slots__ = (
        "_allowed",
        "_client",
        "_closed",
        "_cut",
        "_form",
        "_heal",
        "_mark",
        "_metrics",
        "_on_finished",
        "_on_withdrawn",
        "_options",
        "_place",
        "_reader",
        "_release",
        "_replaying",
        "_safe",
        "_sleep",
        "each",
        "put",
        "topic",
    )

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
        on_withdrawn: Callable[[], None] = lambda: None,
        may_stay: Callable[[Tape], bool] = lambda tape: False,
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
        self._on_withdrawn = on_withdrawn
        self._allowed = may_stay
        self._replaying: asyncio.Task[None] | None = None
        self._place: Position | None = None
        """Where the replay stands; None: live."""
        self._mark: int | None = None
        """What the last event was that the replay has sent; compare `Topic.mark`."""
        self._safe = topic.position
        """See `resume_position`."""
        self._cut: int | None = None
        """Where the tape has lost its end since the replay looked at it."""
        self._closed = False

    def start(self, position: Position | None, *, announce: bool) -> None:
        """Begin after this position, or (None) where the topic stands. `announce`: say when it has become live."""
        start = self.topic.position if position is None else position
        self._safe = start
        if not self._go_live(start, announce=announce):
            self._metrics.count("gateway_replays_total", kind=self.topic.subject.kind.value)
            self._replay_from(start, announce=announce, at_once=True)

    def close(self) -> None:
        """The client wants no more of it, or is gone."""
        if self._closed:
            return
        self._closed = True
        if self._replaying is not None:
            self._replaying.cancel()
        self.topic.leave(self, self._form)
        self.topic.stop_reading(self)
        self._release(self.topic)

    @property
    def resume_position(self) -> Position | None:
        """Everything up to here has been handed over to the transport, and what follows can be continued from here.

        None when there is nothing to continue. While something waits in the outbox it is the last one that was asked
        for while nothing did. Of a mixed tape it says only that it was watched.
        """
        topic = self.topic
        if topic.denied:
            return None
        if not self._closed and self._client.outbox.size == 0:
            self._safe = topic.handed(self._form) if self._place is None else self._place
        return self._safe

    def shift(self) -> None:
        """The straight way to the client has come or gone."""
        if not self._closed:
            self.topic.shift(self, self._form)

    @property
    def writer(self) -> Writer | None:
        """See `Member`."""
        return self._client.writer()

    # ---- what the topic calls --------------------------------------------------------------------------------------

    def fell_behind(self, position: Position) -> None:
        """The outbox is full. Nothing is lost: what follows is read from the log when there is room again."""
        self._metrics.count("gateway_resyncs_total", reason="slow")
        self._replay_from(position, announce=False)

    def finished(self) -> None:
        """The last event has been handed over."""
        self._on_finished()

    def rewound(self, end: int) -> None:
        """The tape ends here now: whatever is being read may be of before."""
        self._cut = end if self._cut is None else min(self._cut, end)

    def may_stay(self, tape: Tape) -> bool:
        """Whether its client may watch the tape under its new owner."""
        return self._allowed(tape)

    def withdrawn(self) -> None:
        """Its client may not watch it any more."""
        if not self._closed:
            self._on_withdrawn()
            self.close()

    # ---- replay ----------------------------------------------------------------------------------------------------

    def _replay_from(self, position: Position, *, announce: bool, at_once: bool = False) -> None:
        """`at_once`: send what was read for others a moment ago before this returns; often that is all."""
        if not self._closed:
            self._place, self._cut, self._mark = position, None, None
            self.topic.start_reading(self)  # at once: from here on it is told when the tape is not what it was
            options = self._options
            pace = Pace(options.replay_chunk_events, options.replay_chunk_bytes, first=FIRST_EVENTS)
            if not (at_once and self._sent_from_memory(announce, pace)):
                self._replaying = self._client.spawn(self._replay(announce, pace))

    def _sent_from_memory(self, announce: bool, pace: Pace) -> bool:
        """Go as far as what is in memory reaches. Whether that is all; else `_place` says how far it went."""
        try:
            is_all = self._catch_up_at_once(announce, pace)
        except Exception:
            self._failed()
            is_all = True
        if is_all:
            self.topic.stop_reading(self)
        return is_all

    def _catch_up_at_once(self, announce: bool, pace: Pace) -> bool:
        topic = self.topic
        while self._place is not None and self._client.outbox.has_room:
            position = self._place
            if self._cut is not None or position.epoch != topic.position.epoch or topic.mixed or not topic.readable:
                return False
            if self._go_live(position, announce=announce):
                return True
            chunk = None if self._is_contradicted(position) else self._reader.recall(topic.subject, position, pace)
            if chunk is None:
                return False
            self._place = self._forward_all(chunk, position, mixed=False)
            if self._place == position:
                return False
        return False

    def _failed(self) -> None:
        logger.exception("a replay failed", extra={"action": "replay_failed", "tape": self.topic.subject.tape})
        self._client.broken()

    async def _replay(self, announce: bool, pace: Pace) -> None:
        try:
            await self._catch_up(announce, pace)
        except TimeoutError:
            self._client.too_slow()
        except Exception:
            self._failed()
        finally:
            self.topic.stop_reading(self)

    async def _catch_up(self, announce: bool, pace: Pace) -> None:
        topic, backoff = self.topic, Backoff(first=0.01)
        assert self._place is not None
        position = self._place
        while True:
            if not self._client.outbox.has_room:
                async with asyncio.timeout(self._options.slow_seconds):
                    await self._client.outbox.room()
            position = self._place = self._on_the_tape(position)
            if self._go_live(position, announce=announce):
                return
            mixed = topic.mixed
            try:
                if self._is_contradicted(position):
                    await self._agree(position)
                    continue
                if mixed:
                    position = await self._after_trimmed(position)
                chunk, more = await self._reader.read(topic.subject, position, pace, mixed=mixed)
            except PositionLostError:  # born again: the topic finds out, and then there is its new epoch to go on in
                chunk, more = NOTHING, False
            except LivetapeError as error:
                if not error.retryable:
                    raise
                await self._sleep(backoff.next())
                continue
            if self._cut is not None:
                continue  # that may have been read from what the tape was before
            reached = self._forward_all(chunk, position, mixed=mixed)
            if reached != position:
                position = self._place = reached
                backoff.reset()
            elif not more and position != topic.position:
                # The topic is ahead and the log does not say more yet, or it is behind and has to be told.
                if backoff.tries > HEAL_TRIES and not topic.repairing:
                    position = self._place = self._skip_to(topic.position, position)
                    self._mark = None
                self._heal(topic)
                await self._sleep(backoff.next())

    def _is_contradicted(self, position: Position) -> bool:
        """Whether the topic has handed over something else here: one of both is from before the log lost its end."""
        topic = self.topic
        if self._mark is None or topic.ahead is not None or position.epoch != topic.position.epoch:
            return False
        there = topic.mark(position.offset)
        return there is not None and there != self._mark

    async def _agree(self, position: Position) -> None:
        """The log decides."""
        await self._reader.verify(self.topic)
        if self._is_contradicted(position) and self._cut is None:
            self._reader.forget(self.topic.subject)
            self._cut = position.offset - 1

    def _on_the_tape(self, position: Position) -> Position:
        """Where to go on when the tape is not any more what it was when this position was reached. Says so."""
        topic = self.topic
        cut, self._cut = self._cut, None
        if position.epoch != topic.position.epoch or not topic.readable:
            self._mark = None
            return self._skip(position)
        if cut is not None:
            self._mark = None
            self._force(self._form.gap(None, None, position.epoch))
            return Position(position.epoch, min(position.offset, cut))
        return position

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

    def _forward_all(self, chunk: Chunk, position: Position, *, mixed: bool) -> Position:
        """Send what was read after this position, and what is live and joins on. Returns where that ends."""
        topic, events = self.topic, chunk.events
        is_of_now = bool(events) and position.epoch == topic.position.epoch
        if is_of_now and events[-1].offset is not None:
            topic.saw(events[-1].offset)
        if is_of_now and not mixed and chunk.follows(position.offset):
            end = Position(position.epoch, position.offset + len(events))
            while topic.ahead is None and position.offset <= topic.position.offset < end.offset:
                topic.advance(events[topic.position.offset - position.offset])  # see `_pass_on`
            position = end
            push = chunk.push(self._form, each=self.each, encode=topic.push_of, left_out=NODE_OUTPUT)
            if push is not None:
                self._client.outbox.force(push)
            self._mark = hash(events[-1].payload)
            events = ()
        merged = rising(position, events) if mixed else merge(position, events, topic.tail)
        for item in merged.items:
            self._forward(item, position)
            position = _reached(item, position)
        return merged.position

    def _forward(self, item: Item, before: Position) -> None:
        """Send what follows the position `before`."""
        if isinstance(item, Gap):
            self._force(self._form.gap(item.first, item.last, item.epoch))
            self._mark = None
            return
        self._mark = hash(item.payload)
        self._pass_on(item, before)
        if self.each or item.event_type != NODE_OUTPUT:
            push = self.topic.push_of(item, self._form)
            if push is not None:
                self._client.outbox.force(push)

    def _pass_on(self, event: TapeEvent, before: Position) -> None:
        """The bus may be later than the log: the others need not wait for it."""
        if before == self.topic.position and self.topic.ahead is None:
            self.topic.advance(event)

    def _go_live(self, position: Position, *, announce: bool) -> bool:
        if position != self.topic.position or self._is_contradicted(position):
            return False
        if announce:
            self._force(self._form.replay_complete(position, mixed=self.topic.mixed))
        if not self.topic.join(self, self._form, position):
            return False
        self._place = self._mark = None
        return True

    def _force(self, data: bytes | None) -> None:
        if data is not None:
            self._client.outbox.force(Push(data))


def _reached(item: Item, before: Position) -> Position:
    """Where a reader stands who stood at `before` and was given this."""
    offset = item.last if isinstance(item, Gap) else item.offset
    return before if offset is None else Position(before.epoch, offset)
