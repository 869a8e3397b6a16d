"""One socket after its handshake: performs what its `Session` decides, and moves bytes."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from typing import Final

from livetape.clock import Clock, new_id
from livetape.errors import ChannelError, LivetapeError, NotFoundError
from livetape.gateway import messages
from livetape.gateway.close_codes import CloseCode
from livetape.gateway.forms import SocketForm
from livetape.gateway.messages import Push
from livetape.gateway.options import GatewayOptions
from livetape.gateway.outbox import Outbox
from livetape.gateway.reader import Sleep
from livetape.gateway.session import ClientError, Close, Effect, Pause, Send, Session, Subscribe, Unsubscribe
from livetape.gateway.subjects import Kind, Subject
from livetape.gateway.subscription import Client, Subscription, spawn_in
from livetape.gateway.subscriptions import Subscriptions
from livetape.gateway.transport import Transport, TransportClosedError
from livetape.observability import get_logger

logger = get_logger(__name__)

LONGEST_SLEEP_S: Final = 60.0
"""Wall time may jump: it is looked at this often."""

MAX_LOGGED_CHARS: Final = 500


class Connection:
    """The shell around one accepted socket. `run` once."""

    def __init__(
        self,
        transport: Transport,
        session: Session,
        subscriptions: Subscriptions,
        options: GatewayOptions,
        clock: Clock,
        *,
        sleep: Sleep = asyncio.sleep,
    ) -> None:
        self._transport = transport
        self._session = session
        self._subscriptions = subscriptions
        self._options = options
        self._clock = clock
        self._sleep = sleep
        self._outbox = Outbox(options.outbox_max_bytes, options.outbox_max_messages)
        self._open: dict[Subject, Subscription | None] = {}
        self._ending = asyncio.Event()
        self._drop = False
        self.close_code: CloseCode | None = None
        """With what this side closed it."""

    @property
    def put(self) -> Callable[[Push], bool]:
        """Takes a push that belongs to no subscription; False when there is no room."""
        return self._outbox.put

    def close(self, code: CloseCode, *, drop: bool = False) -> None:
        """Send what waits (or `drop` it), then close. Returns at once; the first code counts."""
        if self.close_code is None:
            self.close_code = code
            self._drop = drop
            self._outbox.close(drop=drop)
            self._ending.set()

    async def run(self) -> None:
        """Until either side has closed."""
        async with asyncio.TaskGroup() as tasks:
            client = Client(
                self._outbox,
                spawn=spawn_in(tasks),
                too_slow=lambda: self.close(CloseCode.TOO_SLOW, drop=True),
                broken=lambda: self.close(CloseCode.INTERNAL_ERROR),
            )
            reader = tasks.create_task(self._read(client), name="socket reader")
            writer = tasks.create_task(self._write(), name="socket writer")
            timer = tasks.create_task(self._watch_time(), name="socket timer")
            try:
                await self._ending.wait()
            finally:
                self._close_subscriptions()
            if self.close_code is not None:
                await self._say_goodbye(self.close_code, writer)
            for task in (reader, writer, timer):
                task.cancel()

    # ---- the tasks -------------------------------------------------------------------------------------------------

    async def _read(self, client: Client) -> None:
        try:
            while True:
                # Who does not take the answers is not asked for more, so that they cannot pile up.
                async with asyncio.timeout(self._options.slow_seconds):
                    await self._outbox.room()
                data = await self._transport.receive()
                for effect in self._session.receive(data, self._clock.monotonic()):
                    if isinstance(effect, Subscribe):
                        await self._subscribe(effect, client)
                    elif isinstance(effect, Pause):
                        await self._sleep(effect.seconds)
                    else:
                        self._perform(effect)
        except TransportClosedError:
            pass
        except TimeoutError:
            client.too_slow()
        finally:
            self._ending.set()

    async def _write(self) -> None:
        try:
            while True:
                await self._outbox.wait()
                batch = self._outbox.take()
                if not batch:
                    return  # closed, and everything has left
                await self._transport.write(batch)
                self._outbox.sent()
        except TransportClosedError:
            pass
        finally:
            self._ending.set()

    async def _watch_time(self) -> None:
        while (wake_at := self._session.wake_at) is not None:
            left = (wake_at - self._clock.now()).total_seconds()
            if left > 0:
                await self._sleep(min(left, LONGEST_SLEEP_S))
            else:
                for effect in self._session.tick(self._clock.now()):
                    self._perform(effect)

    async def _say_goodbye(self, code: CloseCode, writer: asyncio.Task[None]) -> None:
        """Within bounds: a client that does not read cannot hold us."""
        if self._drop:
            writer.cancel()
        with suppress(TimeoutError, TransportClosedError):
            async with asyncio.timeout(self._options.close_seconds):
                await asyncio.wait({writer})
                await self._transport.close(code, code.reason)

    # ---- effects ---------------------------------------------------------------------------------------------------

    def _perform(self, effect: Effect) -> None:
        match effect:
            case Send(data):
                self._outbox.force(Push(data))
            case Unsubscribe(subject):
                self._close_subscription(subject)
            case Close(code):
                self.close(code)
            case ClientError(text):
                logger.info("a client reports: %s", text[:MAX_LOGGED_CHARS], extra={"action": "client_error"})

    async def _subscribe(self, request: Subscribe, client: Client) -> None:
        session, subject = self._session, request.subject
        try:
            opening = await self._subscriptions.open(subject, session.principal, request.since, strict=request.strict)
        except NotFoundError:
            effects = session.refused(request, messages.NOT_FOUND, "not_found")
        except ChannelError:
            effects = session.refused(request, messages.INVALID_DATA, "channel")
        except Exception as error:
            effects = self._failed(request, error)
        else:
            self._close_subscription(subject)
            for effect in session.subscribed(request, opening.result):
                self._perform(effect)
            self._open[subject] = self._subscriptions.begin(
                opening,
                SocketForm.of(request.channel, is_job=subject.kind is Kind.JOB),
                client,
                each=request.each,
                announce=request.since is not None,
                on_finished=lambda: session.finished(subject),
            )
            return
        for effect in effects:
            self._perform(effect)

    def _failed(self, request: Subscribe, error: Exception) -> list[Effect]:
        if isinstance(error, LivetapeError) and error.retryable:
            logger.warning("cannot subscribe: %s", error, extra={"action": "subscribe_unavailable"})
            return self._session.refused(request, "Unavailable, retry", "unavailable", retry=True)
        correlation_id = new_id()
        logger.exception(
            "cannot subscribe", extra={"action": "subscribe_failed", "correlation_id": correlation_id}, exc_info=error
        )
        return self._session.failed(request.request_id, correlation_id)

    def _close_subscription(self, subject: Subject) -> None:
        subscription = self._open.pop(subject, None)
        if subscription is not None:
            subscription.close()

    def _close_subscriptions(self) -> None:
        for subject in tuple(self._open):
            self._close_subscription(subject)
