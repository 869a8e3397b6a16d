"""The gateway: joins its parts, lets sockets in, and stops in order."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from contextlib import suppress

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, WebSocketRoute

from livetape.auth import Authenticator, Principal
from livetape.clock import Clock, SystemClock
from livetape.errors import AuthError, ChannelError, NotAuthorizedError
from livetape.events.bus import Bus
from livetape.events.channel import notification_channel
from livetape.events.log import EventLog, Tape
from livetape.gateway import messages
from livetape.gateway.close_codes import CloseCode, close_code_of
from livetape.gateway.connection import Connection
from livetape.gateway.messages import Push
from livetape.gateway.options import GatewayOptions
from livetape.gateway.reader import Sleep
from livetape.gateway.session import Session
from livetape.gateway.streams import TapeStreams
from livetape.gateway.transport import Transport, TransportClosedError
from livetape.gateway.transports.asgi import AsgiTransport, Receive, Scope, Send
from livetape.observability import Metrics, NoMetrics, get_logger

logger = get_logger(__name__)


class WebSocketEndpoint:
    """`/ws` as an ASGI app. Every connection goes the same way: origin, limits, caller, then its session."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._gateway.serve(AsgiTransport(scope, receive, send))


class Gateway:
    """One per process. `run` for as long as it serves; mount `websocket_endpoint` (or `routes`) in any ASGI app."""

    def __init__(
        self,
        options: GatewayOptions,
        bus: Bus,
        log: EventLog,
        authenticator: Authenticator,
        *,
        metrics: Metrics | None = None,
        clock: Clock | None = None,
        sleep: Sleep = asyncio.sleep,
    ) -> None:
        self._options = options
        self._authenticator = authenticator
        self._metrics = metrics or NoMetrics()
        self._clock = clock or SystemClock()
        self._sleep = sleep
        self._streams = TapeStreams(options, bus, log, metrics=metrics, clock=clock, sleep=sleep)
        self._hub = self._streams.hub
        self._broadcaster = self._streams.broadcaster
        self._subscriptions = self._streams.subscriptions
        self._connections: set[Connection] = set()
        self._sockets: Counter[str] = Counter()
        self._draining = False
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

    async def run(self) -> None:
        """Move events from the bus to the watchers, until cancelled; then `drain`. Once.

        A socket that comes before or after is turned away.
        """
        try:
            await self._streams.run()
        finally:
            self.drain()

    def drain(self) -> None:
        """Let nobody in any more; close every socket (1012) and end every stream, after what waits for them.

        Returns at once. A server that waits for its connections before it stops has to call this first.
        """
        self._draining = True
        for connection in tuple(self._connections):
            connection.close(CloseCode.SERVICE_RESTART)
        self._streams.end_all()

    # ---- ways in ---------------------------------------------------------------------------------------------------

    def routes(self, path: str = "/ws") -> list[BaseRoute]:
        """The socket's route, for `app.routes.extend(gateway.routes())`."""
        return [WebSocketRoute(path, self.websocket_endpoint, name="ws")]

    async def event_stream(self, request: Request, tape: Tape) -> Response:
        """The events of a tape as the request asks: JSON page, `text/event-stream` or `application/x-ndjson`.

        The caller has checked that the tape may be read; who it is stands in `request.state.principal`. A stream
        ends with its token.
        """
        principal: Principal | None = getattr(request.state, "principal", None)
        return await self._streams.respond(request, tape, until=principal.expires_at if principal else None)

    async def serve(self, transport: Transport) -> None:
        """One socket, from its handshake to its end."""
        with suppress(TransportClosedError):
            facts = transport.facts
            if not self._authenticator.origins.permits(facts.origin, facts.host):
                self._metrics.count("gateway_rejected_total", reason="origin")
                await transport.reject(403, "This origin may not connect")
                return
            if self._draining or not self.ready.is_set() or len(self._connections) >= self._options.max_sockets:
                self._metrics.count("gateway_rejected_total", reason="unavailable")
                await transport.reject(503, "Try again later")
                return
            try:
                principal = self._authenticator.authenticate(facts)
                channel = notification_channel(principal.user_id)
            except NotAuthorizedError:
                await transport.reject(403, "This origin may not connect")
            except AuthError as error:
                await self._refuse(transport, close_code_of(error))
            except ChannelError:  # a user id that cannot be part of a channel name is none
                await self._refuse(transport, CloseCode.NO_USER)
            else:
                if self._is_full(principal):
                    await self._refuse(transport, CloseCode.TOO_MANY, self._too_many())
                else:
                    await self._connect(transport, principal, channel)

    # ---- inside ----------------------------------------------------------------------------------------------------

    async def _connect(self, transport: Transport, principal: Principal, channel: str) -> None:
        session = Session(principal, self._options, self._clock.now(), self._clock.monotonic())
        connection = Connection(transport, session, self._subscriptions, self._options, self._clock, sleep=self._sleep)
        self._enter(connection, principal)
        try:
            await self._broadcaster.acquire(channel)
            try:
                self._hub.listen(channel, connection.put)
                await transport.accept()
                await connection.run()
            finally:
                self._hub.unlisten(channel, connection.put)
                self._broadcaster.release(channel)
        except TransportClosedError:
            raise
        except Exception:
            logger.exception("a socket broke", extra={"action": "socket_broke"})
            await transport.close(CloseCode.INTERNAL_ERROR, CloseCode.INTERNAL_ERROR.reason)
        finally:
            self._leave(connection, principal)

    async def _refuse(self, transport: Transport, code: CloseCode, told: Push | None = None) -> None:
        """Accept, so that a browser sees the code; and not at once, because old clients come back every second."""
        self._metrics.count("gateway_closed_total", code=str(int(code)))
        await transport.accept()
        if told is not None:
            await transport.write([told])
        delay = random.uniform(  # noqa: S311 - only so that they do not all come back at once
            self._options.refuse_delay_min_seconds, self._options.refuse_delay_max_seconds
        )
        gone = asyncio.ensure_future(_until_gone(transport))
        waited = asyncio.ensure_future(self._sleep(delay))
        try:
            await asyncio.wait({gone, waited}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            gone.cancel()
            waited.cancel()
        await transport.close(code, code.reason)

    def _is_full(self, principal: Principal) -> bool:
        if not self._authenticator.auth_enabled:  # everybody is the same user then
            return False
        return self._sockets[principal.user_id] >= self._options.max_sockets_per_user

    def _too_many(self) -> Push:
        text = f"At most {self._options.max_sockets_per_user} sockets of one user"
        return Push(messages.error_push(text, code="too_many_sockets", retry=True, retry_after=30))

    def _enter(self, connection: Connection, principal: Principal) -> None:
        self._connections.add(connection)
        self._sockets[principal.user_id] += 1
        self._metrics.gauge("websocket_connections_total", len(self._connections))

    def _leave(self, connection: Connection, principal: Principal) -> None:
        self._connections.discard(connection)
        self._sockets[principal.user_id] -= 1
        if self._sockets[principal.user_id] <= 0:
            del self._sockets[principal.user_id]
        self._metrics.gauge("websocket_connections_total", len(self._connections))
        if connection.close_code is not None:
            self._metrics.count("gateway_closed_total", code=str(int(connection.close_code)))


async def _until_gone(transport: Transport) -> None:
    with suppress(TransportClosedError):
        while True:
            await transport.receive()


def create_gateway(
    options: GatewayOptions,
    bus: Bus,
    log: EventLog,
    authenticator: Authenticator,
    *,
    metrics: Metrics | None = None,
    clock: Clock | None = None,
    sleep: Sleep = asyncio.sleep,
) -> Gateway:
    """A gateway over these ports. It opens nothing and closes nothing of them."""
    return Gateway(options, bus, log, authenticator, metrics=metrics, clock=clock, sleep=sleep)
