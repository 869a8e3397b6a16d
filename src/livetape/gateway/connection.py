"""One socket after its handshake: performs what its `Session` decides.

It has no task of its own while nothing has to be waited for: the transport calls it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Protocol, TypeAlias

from livetape.auth import EXECUTE_GRAPH, Principal
from livetape.clock import Clock, new_id
from livetape.errors import AuthError, ChannelError, LivetapeError, NotFoundError
from livetape.events.backoff import Backoff
from livetape.events.log import Position
from livetape.gateway import messages
from livetape.gateway.close_codes import CloseCode
from livetape.gateway.compat import Kept, Slot
from livetape.gateway.forms import SocketForm
from livetape.gateway.member import Writer
from livetape.gateway.messages import Push
from livetape.gateway.options import GatewayOptions
from livetape.gateway.outbox import Outbox
from livetape.gateway.reader import Sleep
from livetape.gateway.reports import ClientReports
from livetape.gateway.session import (
    ClientError,
    Close,
    Effect,
    Pause,
    Refresh,
    Send,
    Session,
    Stop,
    Subscribe,
    Unsubscribe,
)
from livetape.gateway.subjects import Kind, Subject
from livetape.gateway.subscription import Client, Subscription
from livetape.gateway.subscriptions import Opening, Subscriptions
from livetape.gateway.transport import Transport
from livetape.observability import NoTracing, Tracer, get_logger

logger = get_logger(__name__)

Positions: TypeAlias = dict[Subject, Position | None]
"""Where subscriptions stand; None: nowhere that could be continued."""


class Stopping(Protocol):
    """Asks the engines to stop an execution."""

    async def stop(self, user_id: str, graph_exec_id: str) -> None:
        """Returns when one has committed it.

        Raises:
            NotFoundError: no engine knows such an execution of this user.
            LivetapeError: retryable; none answers.
        """


class Refreshing(Protocol):
    """Checks a newer token."""

    async def refresh(self, principal: Principal, token: str) -> Principal:
        """Who it stands for: the same user.

        Raises:
            AuthError: it does not hold, or is somebody else's.
        """


@dataclass(frozen=True, slots=True)
class Services:
    """What all connections of a gateway share."""

    subscriptions: Subscriptions
    options: GatewayOptions
    clock: Clock
    sleep: Sleep
    refreshing: Refreshing
    stopping: Stopping | None
    changed: Callable[[Connection], None]
    """The time at which something has to be done for it is another."""

    watching: Callable[[Connection], None]
    """It watches something else, or `arrived` is more than before."""

    lost: Callable[[Connection, bool, bool], None]
    """It is gone; `clean` and `left` as in `Receiver.lost`. Its subscriptions are still there."""

    reports: ClientReports
    tracer: Tracer = field(default_factory=NoTracing)


class Connection:
    """The shell around one accepted socket: a `Receiver`, and `Kept` by the keeper."""

    __slots__ = (
        "_asked",
        "_asked_for",
        "_gone",
        "_last",
        "_open",
        "_outbox",
        "_owed",
        "_paused",
        "_services",
        "_tasks",
        "_transport",
        "arrived",
        "close_code",
        "session",
        "slot",
    )

    def __init__(self, transport: Transport, session: Session, services: Services) -> None:
        options = services.options
        self._transport = transport
        self._services = services
        self._outbox = Outbox(options.outbox_max_bytes, options.outbox_max_messages, transport.send)
        self._outbox.shut = True  # until the handshake is over
        self._open: dict[Subject, Subscription | None] = {}
        self._tasks: set[asyncio.Task[None]] | None = None
        self._asked: float | None = None  # when it was last heard, until the ping is answered
        self._asked_for: Positions | None = None
        self.arrived: Positions = {}
        """Up to where the client certainly has everything, of each subscription of an old client."""
        self.slot: Slot | None = None
        """Where that is written down."""
        self._last: Positions | None = None  # when it was closed
        self._owed: dict[Subject, Position] = {}  # what an earlier socket watched and this one does not yet
        self._paused = False
        self._gone = False
        self.session = session
        self.close_code: CloseCode | None = None
        """With what this side closed it."""

    @property
    def put(self) -> Callable[[Push], bool]:
        """Takes a push that belongs to no subscription; False when there is no room."""
        return self._outbox.put

    @property
    def principal(self) -> Principal:
        """Whose it is."""
        return self.session.principal

    @property
    def subscriptions(self) -> dict[Subject, Subscription | None]:
        """What it watches; None for what it will never get anything of."""
        return dict(self._open)

    @property
    def waiting_bytes(self) -> int:
        """What has not left for it yet."""
        return self._outbox.size

    @property
    def is_barred(self) -> bool:
        """It was closed because its token holds no longer."""
        return self.close_code is CloseCode.INVALID_TOKEN

    def positions(self) -> Positions:
        """Where its subscriptions stand: what has been handed over to the transport. With what is owed to it."""
        if self._last is not None:
            return self._last
        return self._owed | {
            subject: subscription.resume_position
            for subject, subscription in self._open.items()
            if subscription is not None
        }

    def begin(self) -> None:
        """The handshake is over: what came for it meanwhile leaves."""
        if not self._gone:
            self._outbox.open()
            self._shift()

    def tell(self, push: Push) -> None:
        """Send this in any case."""
        self._outbox.force(push)

    def perform(self, effects: Sequence[Effect]) -> None:
        """Do what the session decided elsewhere than on a message of the client."""
        for effect in effects:
            self._perform(effect)

    def close(self, code: CloseCode, *, drop: bool = False) -> None:
        """Send what waits (or `drop` it), then close. Returns at once; the first code counts."""
        if self.close_code is not None or self._gone:
            return
        self.close_code = code
        if self.slot is not None and not drop:
            self._last = self.positions()
        self._close_subscriptions()  # first: what they are still handed leaves before the close
        self._outbox.close(drop=drop)
        self._transport.close(code, code.reason, within=self._services.options.close_seconds, drop=drop)

    # ---- Receiver --------------------------------------------------------------------------------------------------

    def received(self, data: str | bytes) -> None:
        self._go(self.session.receive(data, self._services.clock.monotonic()))

    def congested(self) -> None:
        self._outbox.shut = True
        self._shift()

    def drained(self) -> None:
        if not self._gone:
            self._outbox.open()
            self._shift()

    def ponged(self) -> None:
        self._asked = None
        if self._asked_for is not None:
            asked_for, self._asked_for = self._asked_for, None
            self.arrived |= {subject: position for subject, position in asked_for.items() if subject in self.arrived}
            self._services.watching(self)

    def lost(self, *, clean: bool, left: bool = False) -> None:
        if self._gone:
            return
        self._services.lost(self, clean, left)
        self._gone = True
        self._outbox.close(drop=True)
        self._close_subscriptions()
        for task in tuple(self._tasks or ()):
            task.cancel()

    # ---- Kept ------------------------------------------------------------------------------------------------------

    @property
    def wake_at(self) -> datetime | None:
        return self.session.wake_at

    def tick(self, now: datetime) -> None:
        self.perform(self.session.tick(now))

    def ask(self) -> None:
        if self._transport.heard_at is None or self._paused:
            return  # its server does so; or it is not listened to, and an answer would not be heard
        self._asked = self._transport.heard_at
        if self.session.is_plain and self._open:
            self._asked_for = self.positions()
        self._transport.ping()

    def is_silent(self) -> bool:
        return self._asked is not None and not self._paused and self._transport.heard_at == self._asked

    def give_up(self) -> None:
        self.close(CloseCode.NO_SIGN_OF_LIFE, drop=True)

    # ---- effects ---------------------------------------------------------------------------------------------------

    def _go(self, effects: Sequence[Effect]) -> None:
        for number, effect in enumerate(effects):
            if isinstance(effect, Subscribe | Refresh | Stop | Pause):
                self._pause()
                self.spawn(self._go_waiting(effects[number:]))
                return
            self._perform(effect)
        if not self._outbox.has_room:
            self._pause()
            self.spawn(self._go_waiting(()))

    async def _go_waiting(self, effects: Sequence[Effect]) -> None:
        """Those that take their time, one after the other. The client is not read meanwhile: answers stay in order,
        and who does not take them is not asked for more, so that they cannot pile up."""
        try:
            for effect in effects:
                match effect:
                    case Subscribe():
                        await self._subscribe(effect)
                    case Refresh():
                        await self._refresh(effect)
                    case Stop():
                        await self._stop(effect)
                    case Pause(seconds):
                        await self._services.sleep(seconds)
                    case _:
                        self._perform(effect)
            if not self._outbox.has_room:
                async with asyncio.timeout(self._services.options.slow_seconds):
                    await self._outbox.room()
        except TimeoutError:
            self.close(CloseCode.TOO_SLOW, drop=True)
        except Exception:
            logger.exception("a socket broke", extra={"action": "socket_broke"})
            self.close(CloseCode.INTERNAL_ERROR)
        self._resume()

    def _perform(self, effect: Effect) -> None:
        match effect:
            case Send(data):
                self._outbox.force(Push(data))
            case Unsubscribe(subject):
                self._close_subscription(subject)
                self._disown(subject)
                if self.slot is not None:
                    self._services.watching(self)
            case Close(code):
                self.close(code)
            case ClientError(text):
                self._services.reports.tell(text)

    async def _subscribe(self, request: Subscribe) -> None:
        span = self._services.tracer.begin("gateway.subscribe", kind=request.subject.kind.value)
        try:
            span.end(outcome=await self._answer_subscribe(request))
        finally:
            span.end(outcome="cancelled")

    async def _answer_subscribe(self, request: Subscribe) -> str:
        """Returns what became of it, in a word."""
        session, subject, services = self.session, request.subject, self._services
        try:
            opening = await services.subscriptions.open(
                subject, session.principal, request.since, strict=request.strict
            )
        except NotFoundError:
            self.perform(session.refused(request, messages.NOT_FOUND, "not_found"))
            return "not_found"
        except ChannelError:
            self.perform(session.refused(request, messages.INVALID_DATA, "channel"))
            return "channel"
        except Exception as error:
            self.perform(self._failed(request, error))
            return "failed"
        else:
            if self._gone or self.close_code is not None:
                services.subscriptions.give_back(opening)
                return "gone"
            self._close_subscription(subject)
            self.perform(session.subscribed(request, opening.result))
            self._begin(subject, opening, request.channel, each=request.each, announce=request.since is not None)
            if session.is_plain or self.slot is not None:
                services.watching(self)
            return "subscribed"

    def owe(self, kept: Sequence[Kept]) -> None:
        """An earlier socket of this client watched this: `restore` comes next. Until then it is kept as if watched."""
        self._owed = {one.subject: one.position for one in kept if one.subject not in self._open}
        self.arrived |= self._owed

    async def restore(self) -> None:
        """Go on with what is owed to the client, which is told nothing."""
        for subject, position in tuple(self._owed.items()):
            if not self.session.is_plain:
                break  # it continues by itself
            opening = await self._reopen(Kept(subject, position)) if self.session.has_room else None
            if opening is None:
                self._disown(subject)
            elif self._gone or self.close_code is not None or subject not in self._owed:
                self._services.subscriptions.give_back(opening)
            else:
                channel = subject.client_channel(self.session.principal.user_id)
                self.session.restored(subject, channel)
                self._begin(subject, opening, channel, each=False, announce=False)

    async def _reopen(self, kept: Kept) -> Opening | None:
        """It is tried for as long as the socket is open."""
        backoff = Backoff()
        while True:
            try:
                return await self._services.subscriptions.reopen(kept.subject, self.session.principal, kept.position)
            except LivetapeError as error:
                if not error.retryable:
                    logger.warning("cannot go on with %s: %s", kept.subject, error, extra={"action": "restore_failed"})
                    return None
            await self._services.sleep(backoff.next())

    def _begin(self, subject: Subject, opening: Opening, channel: str, *, each: bool, announce: bool) -> None:
        subscription = self._open[subject] = self._services.subscriptions.begin(
            opening,
            SocketForm.of(channel, is_job=subject.kind is Kind.JOB),
            self._client(),
            each=each,
            announce=announce,
            on_finished=lambda: self.session.finished(subject),
            on_withdrawn=lambda: self.perform(self.session.withdrawn(subject)),
        )
        self._disown(subject)
        if subscription is not None and self.session.is_plain:
            self.arrived[subject] = subscription.resume_position

    def _disown(self, subject: Subject) -> None:
        self._owed.pop(subject, None)
        self.arrived.pop(subject, None)

    async def _refresh(self, request: Refresh) -> None:
        try:
            principal = await self._services.refreshing.refresh(self.session.principal, request.token)
        except AuthError:
            self.perform(self.session.not_refreshed(request))
        except Exception as error:
            self.perform(self._failed(request, error))
        else:
            self.perform(self.session.refreshed(request, principal))
            self._services.changed(self)
            await self.recheck()

    async def _stop(self, request: Stop) -> None:
        session, stopping = self.session, self._services.stopping
        if not session.principal.may(EXECUTE_GRAPH):
            self.perform(session.not_stopped(request, messages.NOT_FOUND, "not_found", retry=False))
            return
        if stopping is None:
            self.perform(session.not_stopped(request, messages.UNAVAILABLE, "unavailable", retry=True))
            return
        try:
            await stopping.stop(session.principal.user_id, request.graph_exec_id)
        except (NotFoundError, ChannelError):
            self.perform(session.not_stopped(request, messages.NOT_FOUND, "not_found", retry=False))
        except LivetapeError as error:
            if not error.retryable:
                raise
            self.perform(session.not_stopped(request, messages.UNAVAILABLE, "unavailable", retry=True))
        else:
            self.perform(session.stopped(request))

    async def recheck(self) -> None:
        """End what its user may not watch any more."""
        for subject, subscription in self.subscriptions.items():
            if subscription is not None and not await self._services.subscriptions.allows(
                subject, self.session.principal, subscription
            ):
                self.perform(self.session.withdrawn(subject))

    def _failed(self, request: Subscribe | Refresh, error: Exception) -> list[Effect]:
        if isinstance(error, LivetapeError) and error.retryable:
            logger.warning("unavailable: %s", error, extra={"action": "unavailable"})
            return self.session.refused(request, messages.UNAVAILABLE, "unavailable", retry=True)
        correlation_id = new_id()
        logger.exception(
            "a request failed", extra={"action": "request_failed", "correlation_id": correlation_id}, exc_info=error
        )
        return self.session.failed(request.request_id, correlation_id)

    # ---- inside ----------------------------------------------------------------------------------------------------

    def _shift(self) -> None:
        for subscription in tuple(self._open.values()):
            if subscription is not None:
                subscription.shift()

    def _writer(self) -> Writer | None:
        outbox = self._outbox
        return None if outbox.shut or outbox.closed or outbox.size else self._transport.writer

    def _client(self) -> Client:
        return Client(
            self._outbox,
            spawn=self.spawn,
            too_slow=lambda: self.close(CloseCode.TOO_SLOW, drop=True),
            broken=lambda: self.close(CloseCode.INTERNAL_ERROR),
            writer=self._writer,
        )

    def spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None] | None:
        """A task that ends with the socket; None when it is gone."""
        if self._gone:
            work.close()
            return None
        if self._tasks is None:
            self._tasks = set()
        task = asyncio.create_task(work, name="socket")
        self._tasks.add(task)
        task.add_done_callback(self._done)
        return task

    def _done(self, task: asyncio.Task[None]) -> None:
        if self._tasks is not None:
            self._tasks.discard(task)
            if not self._tasks:
                self._tasks = None  # an empty set is larger than all else here

    def _pause(self) -> None:
        if not self._paused:
            self._paused = True
            self._transport.pause()

    def _resume(self) -> None:
        if self._paused and not self._gone:
            self._paused = False
            self._transport.resume()

    def _close_subscription(self, subject: Subject) -> None:
        subscription = self._open.pop(subject, None)
        if subscription is not None:
            subscription.close()

    def _close_subscriptions(self) -> None:
        for subject in tuple(self._open):
            self._close_subscription(subject)
