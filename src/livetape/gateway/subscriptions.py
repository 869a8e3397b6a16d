"""Opens subscriptions: whose the tape is, where to listen, from which position on."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Final

from livetape.auth import Principal
from livetape.clock import Clock
from livetape.errors import LivetapeError, NotFoundError, PositionLostError
from livetape.events.backoff import Backoff
from livetape.events.log import Position, Tape
from livetape.gateway.access import Access, AccessCheck, OwnerAccess
from livetape.gateway.broadcaster import Broadcaster
from livetape.gateway.forms import Form
from livetape.gateway.hub import Hub
from livetape.gateway.messages import Push, Since, SinceLast, SincePosition, SinceSeconds
from livetape.gateway.options import GatewayOptions
from livetape.gateway.reader import Sleep, TapeReader
from livetape.gateway.recent import RecentTapes
from livetape.gateway.session import Subscribed
from livetape.gateway.subjects import Subject
from livetape.gateway.subscription import Client, Subscription
from livetape.gateway.topic import Topic, TopicKey
from livetape.observability import Metrics

NOTHING: Final = Subscribed(epoch=None, offset=0, recovered=False, count=0)

ALLOW_TRIES: Final = 5


def _by_nobody_else(tape: Tape) -> bool:
    return False


@dataclass(frozen=True, slots=True)
class Opening:
    """A subscription that can begin. `topic` is held: `Subscriptions.begin` or `give_back` comes next, at once.

    `topic` is None for what belongs to somebody else: it is answered like an id that nobody knows, and is silent.
    `start` None means where the topic stands. `lost`: the position asked for cannot be continued.
    """

    topic: Topic | None
    start: Position | None
    result: Subscribed
    lost: bool = False
    may_stay: Callable[[Tape], bool] = _by_nobody_else
    """Whether it may be watched on when its owner has changed."""


class Subscriptions:
    """The one way to watch a tape, for sockets and HTTP streams."""

    def __init__(
        self,
        hub: Hub,
        broadcaster: Broadcaster,
        reader: TapeReader,
        options: GatewayOptions,
        metrics: Metrics,
        clock: Clock,
        *,
        check: AccessCheck | None = None,
        sleep: Sleep = asyncio.sleep,
    ) -> None:
        self._hub = hub
        self._broadcaster = broadcaster
        self._reader = reader
        self._options = options
        self._check = check or OwnerAccess(options.jobs_unowned)
        self._metrics = metrics
        self._clock = clock
        self._sleep = sleep
        self._recent = RecentTapes(clock.monotonic)

    async def open(
        self, subject: Subject, principal: Principal, since: Since | None, *, strict: bool = False
    ) -> Opening:
        """For this principal.

        Raises:
            NotFoundError: `strict`, and there is no such tape that it may see.
            LogUnavailableError: the owner cannot be looked up.
        """
        tape = self._recall(subject, since)
        while True:
            if tape is None:
                tape = await self._find(subject)
            access = self._check(principal, subject, tape)
            if access is not Access.GRANTED and strict:
                raise NotFoundError
            if access is Access.DENIED:
                return Opening(None, None, NOTHING)
            if access is Access.UNKNOWN:
                opening = await self._open_unknown(subject, principal)
            else:
                assert tape is not None
                opening = await self._open(subject, tape, since)
            if opening is not None:
                return replace(opening, may_stay=lambda tape: self._check(principal, subject, tape) is Access.GRANTED)
            tape = None

    async def open_tape(self, subject: Subject, tape: Tape, since: Since | None) -> Opening:
        """For whoever may see this tape.

        Raises:
            NotFoundError: it is gone, or somebody else's now.
            LogUnavailableError: it cannot be looked up.
        """
        owner = tape.owner
        while (opening := await self._open(subject, tape, since)) is None:
            again = await self._find(subject)
            if again is None or again.owner != owner:
                raise NotFoundError
            tape = again
        return opening

    async def reopen(self, subject: Subject, principal: Principal, position: Position) -> Opening:
        """For a client that does not know how to continue: after this position, or else from the beginning.

        Raises:
            LogUnavailableError: the owner cannot be looked up.
        """
        since = SincePosition.model_construct(epoch=position.epoch, offset=position.offset)
        opening = await self.open(subject, principal, since if position.epoch else "earliest")
        if opening.lost:
            self.give_back(opening)
            opening = await self.open(subject, principal, "earliest")
        return opening

    async def allows(self, subject: Subject, principal: Principal, subscription: Subscription | None = None) -> bool:
        """Whether this principal may still watch it (in this subscription, if it is given).

        Raises:
            LogUnavailableError: the owner cannot be looked up, again and again.
        """
        backoff = Backoff()
        while True:
            try:
                tape = await self._find(subject)
                break
            except LivetapeError as error:
                if not error.retryable or backoff.tries >= ALLOW_TRIES:
                    raise
                await self._sleep(backoff.next())
        access = self._check(principal, subject, tape)
        if access is Access.UNKNOWN and subscription is not None:
            reader = subscription.topic.key.reader
            return tape is None if reader is None else reader == principal.without_token()
        return access is not Access.DENIED

    async def _find(self, subject: Subject) -> Tape | None:
        """The tape now. Who watches it already learns of it, too."""
        topic = self._hub.topic(TopicKey(subject))
        if topic is None or not topic.begun:
            return await self._reader.describe(subject)
        before = topic.turn, topic.mixed
        self._recent.forget(subject)
        asked_at = self._clock.monotonic()
        tape = await self._reader.look(topic)
        if (topic.turn, topic.mixed) != before:
            self._broadcaster.heal(topic)
        elif tape is not None:
            self._recent.put(subject, tape, asked_at)
        return tape

    def _recall(self, subject: Subject, since: Since | None) -> Tape | None:
        """The tape as it was a moment ago, where that says as much as asking again: it is watched already, and whoever
        comes goes on from a position that those who watch it have passed."""
        topic = self._hub.topic(TopicKey(subject))
        if topic is None or not isinstance(since, SincePosition):
            return None
        if not (topic.begun and topic.readable) or topic.mixed or topic.denied or topic.ahead is not None:
            return None
        if topic.stale or topic.repairing:  # what is known of it is in doubt
            return None
        tape, there = self._recent.get(subject), topic.position
        if tape is None or tape.owner != topic.owner or not (since.epoch == tape.epoch == there.epoch):
            return None
        return tape if tape.first_offset - 1 <= since.offset <= there.offset else None

    async def _open(self, subject: Subject, tape: Tape, since: Since | None) -> Opening | None:
        """Of a tape that may be seen. None when it is not any more what it was: look at it again."""
        owner = tape.owner
        topic = await self._hold(TopicKey(subject), subject.bus_pattern(tape, owner or ""))
        try:
            if not topic.begun:
                # Only now does the bus deliver: what was written before is in this answer, the rest will come.
                tape = await self._reader.describe(subject) or tape
                if tape.owner == owner:
                    self._begin_topic(topic, tape)
            opening = None
            if tape.owner == owner == topic.owner and topic.position.epoch == tape.epoch and not topic.denied:
                opening = await self._resolve(topic, tape, since)
            if opening is None:
                self._release(topic)
            return opening
        except BaseException:
            self._release(topic)
            raise

    async def _open_unknown(self, subject: Subject, principal: Principal) -> Opening | None:
        """No owner is known. None when there is one after all."""
        reader = principal.without_token()  # whichever of its tokens it came with
        topic = await self._hold(TopicKey(subject, reader), subject.bus_pattern(None, principal.user_id))
        try:
            if not topic.begun:
                tape = await self._reader.describe(subject)
                if self._check(principal, subject, tape) is Access.GRANTED:
                    self._release(topic)
                    return None
                self._begin_unknown(topic, tape.position if tape is not None else Position("", 0))
            return Opening(topic, None, NOTHING)
        except BaseException:
            self._release(topic)
            raise

    def begin(
        self,
        opening: Opening,
        form: Form,
        client: Client,
        *,
        each: bool,
        announce: bool,
        on_finished: Callable[[], None] = lambda: None,
        on_withdrawn: Callable[[], None] = lambda: None,
    ) -> Subscription | None:
        """Start the events of an opening. None when there will be none.

        `on_finished` is called with the last event; `on_withdrawn` when the client may not watch it any more, because
        the tape is somebody else's now: then nothing more comes, and the subscription is closed.
        """
        if opening.topic is None:
            if announce:
                _say_complete(form, client)
            return None
        subscription = Subscription(
            opening.topic,
            form,
            client,
            each=each,
            reader=self._reader,
            heal=self._broadcaster.heal,
            release=self._release,
            options=self._options,
            metrics=self._metrics,
            sleep=self._sleep,
            on_finished=on_finished,
            on_withdrawn=on_withdrawn,
            may_stay=opening.may_stay,
        )
        subscription.start(opening.start, announce=announce)
        return subscription

    def give_back(self, opening: Opening) -> None:
        """Instead of `begin`: nobody wants it any more."""
        if opening.topic is not None:
            self._release(opening.topic)

    # ---- topics ----------------------------------------------------------------------------------------------------

    async def _hold(self, key: TopicKey, pattern: str) -> Topic:
        topic = self._hub.hold(key, pattern)
        try:
            await self._broadcaster.acquire(topic.listens_to)
        except BaseException:
            self._hub.release(topic)
            raise
        return topic

    def _release(self, topic: Topic) -> None:
        self._hub.release(topic)
        self._broadcaster.release(topic.listens_to)

    def _begin_topic(self, topic: Topic, tape: Tape) -> None:
        if not topic.begun and topic.begin(tape.position, final=tape.final, mixed=tape.mixed, tape=tape):
            self._broadcaster.heal(topic)

    def _begin_unknown(self, topic: Topic, position: Position) -> None:
        if not topic.begun and topic.begin(position, final=False):
            self._broadcaster.heal(topic)

    # ---- positions -------------------------------------------------------------------------------------------------

    async def offset_ago(self, subject: Subject, tape: Tape, seconds: float) -> int:
        """The offset after which the events of the last `seconds` begin.

        Raises:
            PositionLostError: the tape has been born again meanwhile, or is gone.
        """
        return await self._reader.offset_at(subject, tape, self._clock.now() - timedelta(seconds=seconds))

    async def _resolve(self, topic: Topic, tape: Tape, since: Since | None) -> Opening | None:
        """Where to start on a tape that may be read, and what to say about it. None: it has changed meanwhile."""
        if since is not None and (tape.mixed or topic.mixed):
            return _at_the_end(topic, lost=True)
        floor = max(0, tape.first_offset - 1)
        top = tape.offset if topic.ahead is not None else max(tape.offset, topic.position.offset)
        match since:
            case None | "latest":
                return _at_the_end(topic)
            case "earliest":
                start = floor
            case SinceLast(last=count):
                start = max(floor, top - count)
            case SinceSeconds(seconds=seconds):
                turn = topic.turn
                try:
                    start = await self.offset_ago(topic.subject, tape, seconds)
                except PositionLostError:  # born again just now
                    return _at_the_end(topic, lost=True)
                if topic.turn != turn:
                    return None
            case SincePosition(epoch=epoch, offset=start):
                # A position where nothing was missed yet holds even when everything before it is trimmed.
                if epoch != tape.epoch or start > top or (start < floor and start < top):
                    return _at_the_end(topic, lost=True)
        result = Subscribed(tape.epoch, top, recovered=True, count=top - start)
        return Opening(topic, Position(tape.epoch, start), result)


def _at_the_end(topic: Topic, *, lost: bool = False) -> Opening:
    position = topic.position
    result = Subscribed(position.epoch, position.offset, recovered=not lost, count=0, mixed=topic.mixed)
    return Opening(topic, None, result, lost)


def _say_complete(form: Form, client: Client) -> None:
    data = form.replay_complete(Position("", 0))
    if data is not None:
        client.outbox.force(Push(data))
