"""The gateway: joins its parts, lets sockets in, and stops in order."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from contextlib import suppress
from typing import Final

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, WebSocketRoute

from livetape.auth import Authenticator, Principal
from livetape.clock import Clock, SystemClock
from livetape.errors import AuthError, ChannelError, ClosedError, LivetapeError, NotAuthorizedError
from livetape.events.bus import Bus
from livetape.events.channel import notification_channel
from livetape.events.log import EventLog, Tape
from livetape.gateway import messages
from livetape.gateway.access import AccessCheck
from livetape.gateway.close_codes import CloseCode, close_code_of
from livetape.gateway.compat import CompatResume
from livetape.gateway.connection import Connection, Services, Stopping
from livetape.gateway.control_listener import ControlListener
from livetape.gateway.doorkeeper import Doorkeeper
from livetape.gateway.drain import move
from livetape.gateway.keeper import Keeper
from livetape.gateway.messages import Push
from livetape.gateway.old_clients import OldClients
from livetape.gateway.options import GatewayOptions
from livetape.gateway.reader import Sleep
from livetape.gateway.reports import ClientReports
from livetape.gateway.sender import Sender
from livetape.gateway.session import Session
from livetape.gateway.streams import TapeStreams
from livetape.gateway.transport import EXTENSION, Receiver, Transport, TransportClosedError
from livetape.gateway.transports.asgi import AsgiTransport, Receive, Scope, Send
from livetape.gateway.warden import Warden
from livetape.observability import Metrics, NoMetrics, NoTracing, Span, Tracer, get_logger

logger = get_logger(__name__)

FIGURES_SECONDS: Final = 5.0
"""What there is of sockets and what waits for them is counted this often: there may be many."""


class WebSocketEndpoint:
    """`/ws` as an ASGI app. Every connection goes the same way: origin, limits, caller, then its session."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        transport = scope.get("extensions", {}).get(EXTENSION)
        await self._gateway.serve(transport or AsgiTransport(scope, receive, send))


class Gateway:
    """One per process. `run` for as long as it serves; mount `websocket_endpoint` (or `routes`) in any ASGI app.

    `doorkeeper` decides who callers are (default: tokens only, by `authenticator`), `check` what they may watch
    (default: what is theirs), `stopping` passes requests to stop an execution on (default: nobody does), `compat`
    keeps what old clients watch (default: it is not kept), `sender` hands frames to sockets (default: one by one).
    """

    def __init__(
        self,
        options: GatewayOptions,
        bus: Bus,
        log: EventLog,
        authenticator: Authenticator,
        *,
        doorkeeper: Doorkeeper | None = None,
        check: AccessCheck | None = None,
        compat: CompatResume | None = None,
        stopping: Stopping | None = None,
        metrics: Metrics | None = None,
        tracer: Tracer | None = None,
        sender: Sender | None = None,
        clock: Clock | None = None,
        sleep: Sleep = asyncio.sleep,
    ) -> None:
        self._options = options
        self._authenticator = authenticator
        self._doorkeeper = doorkeeper or Doorkeeper(authenticator)
        self._metrics = metrics or NoMetrics()
        self._tracer = tracer or NoTracing()
        self._clock = clock or SystemClock()
        self._sleep = sleep
        self._streams = TapeStreams(
            options,
            bus,
            log,
            check=check,
            is_revoked=self._doorkeeper.knows_revoked,
            one_user=not authenticator.auth_enabled,
            metrics=metrics,
            tracer=tracer,
            sender=sender,
            clock=clock,
            sleep=sleep,
        )
        self._hub = self._streams.hub
        self._broadcaster = self._streams.broadcaster
        self._keeper = Keeper(options, self._clock, sleep=sleep, on_beat=self._tell_figures)
        self._figures_due = 0.0
        self._old_clients = OldClients(compat, sleep=sleep, clock=self._clock) if compat is not None else None
        self._connections: dict[Connection, str | None] = {}
        """With the channel of its user's notifications."""
        self._sockets: Counter[str] = Counter()
        self.warden = Warden(
            self._connections.keys, self._streams, self._doorkeeper, self._old_clients, sleep=sleep, metrics=metrics
        )
        self._control = ControlListener(bus, self.warden.follow, sleep=sleep, metrics=metrics)
        self._draining = False
        self._services = Services(
            subscriptions=self._streams.subscriptions,
            options=options,
            clock=self._clock,
            sleep=sleep,
            refreshing=self._doorkeeper,
            stopping=stopping,
            changed=self._keeper.changed,
            watching=self._watching,
            lost=self._lost,
            reports=ClientReports(self._clock),
            tracer=self._tracer,
        )
        self.websocket_endpoint = WebSocketEndpoint(self)

    # ---- life ------------------------------------------------------------------------------------------------------

    @property
    def ready(self) -> asyncio.Event:
        """Set when the link to the bus stood for the first time."""
        return self._broadcaster.ready

    @property
    def sockets(self) -> int:
        """How many sockets are open."""
        return len(self._connections)

    @property
    def topics(self) -> int:
        """How many tapes are watched."""
        return len(self._hub.topics())

    @property
    def streams(self) -> TapeStreams:
        """The watching of tapes that its sockets and its answers over HTTP share."""
        return self._streams

    async def run(self) -> None:
        """Move events from the bus to the watchers, until cancelled; then `drain`. Once.

        A socket that comes before or after is turned away.
        """
        beside = [
            asyncio.create_task(self._keeper.run(), name="socket keeper"),
            asyncio.create_task(self._control.run(), name="control events"),
            asyncio.create_task(self.warden.run(), name="warden"),
        ]
        if self._old_clients is not None:
            beside.append(asyncio.create_task(self._old_clients.run(), name="old clients"))
        try:
            await self._streams.run()
        finally:
            self.drain()
            for task in beside:
                task.cancel()
            await asyncio.wait(beside)

    @property
    def draining(self) -> bool:
        """It lets nobody in any more."""
        return self._draining

    def drain(self) -> None:
        """Let nobody in any more; close every socket (1012) and end every stream, after what waits for them.

        Returns at once.
        """
        self._draining = True
        for connection in tuple(self._connections):
            connection.close(CloseCode.SERVICE_RESTART)
        self._streams.end_all()

    async def move_out(self, within: float) -> None:
        """As `drain`, but sockets are told to `reconnect` first and closed in rounds; `within` seconds at most.

        Over at once when there are no sockets.
        """
        self._draining = True
        left = self._connections.__len__
        await move(tuple(self._connections), left, within=within, clock=self._clock, sleep=self._sleep)
        self.drain()

    # ---- ways in ---------------------------------------------------------------------------------------------------

    def routes(self, path: str = "/ws") -> list[BaseRoute]:
        """The socket's route, for `app.routes.extend(gateway.routes())`."""
        return [WebSocketRoute(path, self.websocket_endpoint, name="ws")]

    async def event_stream(self, request: Request, tape: Tape) -> Response:
        """The events of a tape as the request asks: JSON page, `text/event-stream` or `application/x-ndjson`.

        The caller has checked that the tape may be read; who it is stands in `request.state.principal`. A stream
        ends with its token.

        Raises:
            ClosedError: the server stops.
        """
        if self._draining:
            raise ClosedError("The server is stopping")
        principal: Principal | None = getattr(request.state, "principal", None)
        until = principal.expires_at if principal else None
        return await self._streams.respond(request, tape, until=until, reader=principal)

    async def serve(self, transport: Transport) -> None:
        """One socket, from its handshake to its end."""
        span = self._tracer.begin("gateway.handshake")
        try:
            with suppress(TransportClosedError):
                facts = transport.facts
                if not self._authenticator.origins.permits(facts.origin, facts.host):
                    self._metrics.count("gateway_rejected_total", reason="origin")
                    await transport.reject(403, "This origin may not connect")
                    return
                if self._is_closed():
                    await self._turn_away(transport)
                    return
                try:
                    principal = await self._doorkeeper.authenticate(facts)
                    channel = notification_channel(principal.user_id)
                except NotAuthorizedError:
                    self._metrics.count("gateway_rejected_total", reason="origin")
                    await transport.reject(403, "This origin may not connect")
                except AuthError as error:
                    await self._refuse(transport, close_code_of(error))
                except ChannelError:  # a user id that cannot be part of a channel name is none
                    await self._refuse(transport, CloseCode.NO_USER)
                except LivetapeError as error:
                    if not error.retryable:
                        raise
                    await self._turn_away(transport)
                else:
                    if self._is_closed():
                        await self._turn_away(transport)
                    elif self._is_full(principal):
                        await self._refuse(transport, CloseCode.TOO_MANY, self._too_many())
                    else:
                        await self._connect(transport, principal, channel, span)
        finally:
            span.end(outcome="turned away")

    # ---- inside ----------------------------------------------------------------------------------------------------

    async def _connect(self, transport: Transport, principal: Principal, channel: str, span: Span) -> None:
        session = Session(principal, self._options, self._clock.now(), self._clock.monotonic())
        connection = Connection(transport, session, self._services)
        self._enter(connection)
        try:
            if not principal.is_limited:  # notifications are for the user alone
                await self._broadcaster.acquire(channel)
                self._connections[connection] = channel
                self._hub.listen(channel, connection.put)
            await transport.accept(connection)
        except BaseException:
            self._leave(connection)
            raise
        span.end(outcome="accepted")
        self._keeper.add(connection)
        connection.begin()
        if self._old_clients is not None and not principal.is_limited:
            self._old_clients.opened(connection)
        # What happened while it was let in:
        if self._draining:
            connection.close(CloseCode.SERVICE_RESTART)
        elif self._doorkeeper.knows_revoked(principal):
            connection.close(CloseCode.INVALID_TOKEN)
        await transport.run()

    def _watching(self, connection: Connection) -> None:
        if self._old_clients is not None:
            self._old_clients.changed(connection)

    def _lost(self, connection: Connection, clean: bool, left: bool) -> None:
        if self._old_clients is not None:
            self._old_clients.lost(connection, clean=clean, left=left)
        self._keeper.discard(connection)
        self._leave(connection)
        if connection.close_code is not None:
            self._metrics.count("gateway_closed_total", code=str(int(connection.close_code)))

    async def _refuse(self, transport: Transport, code: CloseCode, told: Push | None = None) -> None:
        """Accept, so that a browser sees the code; and not at once, because old clients come back every second."""
        self._metrics.count("gateway_closed_total", code=str(int(code)))
        refused = _Refused()
        await transport.accept(refused)
        transport.pause()  # what it says is nobody's business, and costs nothing unread
        if told is not None:
            transport.send(told)
        running = asyncio.create_task(transport.run())
        delay = random.uniform(  # noqa: S311 - only so that they do not all come back at once
            self._options.refuse_delay_min_seconds, self._options.refuse_delay_max_seconds
        )
        waited = asyncio.ensure_future(self._sleep(delay))
        try:
            await asyncio.wait({refused.gone, waited}, return_when=asyncio.FIRST_COMPLETED)
            transport.close(code, code.reason, within=self._options.close_seconds)
            await asyncio.wait({running})
        finally:
            waited.cancel()
            running.cancel()

    def _is_closed(self) -> bool:
        return self._draining or not self.ready.is_set() or len(self._connections) >= self._options.max_sockets

    async def _turn_away(self, transport: Transport) -> None:
        self._metrics.count("gateway_rejected_total", reason="unavailable")
        await transport.reject(503, "Try again later")

    def _is_full(self, principal: Principal) -> bool:
        if not self._authenticator.auth_enabled:  # everybody is the same user then
            return False
        return self._sockets[principal.user_id] >= self._options.max_sockets_per_user

    def _too_many(self) -> Push:
        text = f"At most {self._options.max_sockets_per_user} sockets of one user"
        return Push(messages.error_push(text, code="too_many_sockets", retry=True, retry_after=30))

    def _tell_figures(self) -> None:
        now = self._clock.monotonic()
        if now < self._figures_due:
            return
        self._figures_due = now + FIGURES_SECONDS
        waiting = [connection.waiting_bytes for connection in self._connections]
        self._metrics.gauge("gateway_outbox_bytes", sum(waiting))
        self._metrics.gauge("gateway_outbox_largest_bytes", max(waiting, default=0))
        self._streams.tell_figures()

    def _enter(self, connection: Connection) -> None:
        self._connections[connection] = None
        self._sockets[connection.principal.user_id] += 1
        self._metrics.gauge("websocket_connections_total", len(self._connections))

    def _leave(self, connection: Connection) -> None:
        if connection not in self._connections:
            return
        channel = self._connections.pop(connection)
        if channel is not None:
            self._hub.unlisten(channel, connection.put)
            self._broadcaster.release(channel)
        user_id = connection.principal.user_id
        self._sockets[user_id] -= 1
        if self._sockets[user_id] <= 0:
            del self._sockets[user_id]
        self._metrics.gauge("websocket_connections_total", len(self._connections))


class _Refused(Receiver):
    """Nobody listens to what this client says."""

    def __init__(self) -> None:
        self.gone: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def received(self, data: str | bytes) -> None: ...

    def congested(self) -> None: ...

    def drained(self) -> None: ...

    def ponged(self) -> None: ...

    def lost(self, *, clean: bool, left: bool = False) -> None:
        if not self.gone.done():
            self.gone.set_result(None)
