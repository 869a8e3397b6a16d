"""The gateway's fast path on uvicorn: its handshake, and then sockets without tasks (`LiveSocket`).

    uvicorn.Config(app, ws=GatewayProtocol, ...)

An ASGI application finds the socket as `Transport` in `scope["extensions"][EXTENSION]`. One that does not look for it
is served as by uvicorn itself.

This leans on what uvicorn's `WebSocketsSansIOProtocol` does inside; `tests/unit/gateway/test_uvicorn_internals.py`
says what, and fails when it has moved.
"""

from __future__ import annotations

import asyncio
from typing import Any, Final, cast

from uvicorn._types import ASGIReceiveCallable, ASGISendCallable, ASGISendEvent, Scope
from uvicorn.protocols.utils import ClientDisconnected
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol

from livetape.auth import ConnectionFacts
from livetape.gateway.transport import TransportClosedError
from livetape.gateway.transports.compressed_socket import CompressedSocket
from livetape.gateway.transports.facts import facts_of
from livetape.gateway.transports.live_socket import GOODBYE_SECONDS, LiveSocket
from livetape.gateway.transports.ways import Ways

EXTENSION: Final = "livetape.transport"
SUBPROTOCOL: Final = "livetape.v1"

MAX_EARLY_BYTES: Final = 64 * 1024
"""What a client may send before it is let in; more is not read until then."""


class GatewayProtocol(WebSocketsSansIOProtocol):
    """Give it to uvicorn as `ws=`, or what `gateway_protocol` makes of it."""

    ways: Ways | None = None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._early = bytearray()
        self._detaching = False

    # ---- the Handshake of a LiveSocket -----------------------------------------------------------------------------

    def facts(self) -> ConnectionFacts:
        return facts_of(cast("dict[str, Any]", self.scope))

    async def reject(self, status: int, text: str) -> None:
        headers = [(b"content-type", b"text/plain; charset=utf-8")]
        await self._say({"type": "websocket.http.response.start", "status": status, "headers": headers})
        await self._say({"type": "websocket.http.response.body", "body": text.encode(), "more_body": False})

    async def accept(self, socket: LiveSocket) -> None:
        offered = self.scope["subprotocols"]
        self._detaching = True
        await self._say(
            {"type": "websocket.accept", "subprotocol": SUBPROTOCOL if SUBPROTOCOL in offered else None, "headers": []}
        )
        if not self.handshake_complete or self.transport.is_closing():
            raise TransportClosedError
        if not isinstance(socket, CompressedSocket):
            self.conn.parser.close()  # it refers to itself: do not leave it to the garbage collector
        transport, self.transport = self.transport, _Handed()
        connections = cast("set[object]", self.connections)
        connections.discard(self)
        socket.connected(transport, connections, bytes(self._early))

    async def _say(self, message: ASGISendEvent) -> None:
        try:
            await self.send(message)
        except (ClientDisconnected, RuntimeError) as error:
            raise TransportClosedError from error

    # ---- what differs from uvicorn ---------------------------------------------------------------------------------

    async def run_asgi(self) -> None:
        await asyncio.sleep(0)  # the HTTP protocol has handed over then, whatever makes the tasks
        socket = self._new_socket()
        # A type of fixed keys, and extensions are what is not fixed.
        cast("dict[str, Any]", self.scope["extensions"])[EXTENSION] = socket
        app = self.app

        async def guarded(scope: Scope, receive: ASGIReceiveCallable, send: ASGISendCallable) -> None:
            try:
                await app(scope, receive, send)
            except BaseException:
                # Before the handshake the base answers; after it, the socket lives on unless it is told.
                socket.close(1011, "internal error", within=GOODBYE_SECONDS)
                raise

        self.app = guarded
        try:
            await super().run_asgi()
        finally:
            socket.forget_handshake()

    def data_received(self, data: bytes) -> None:
        if self.handshake_initiated and not self.handshake_complete:
            # The base would answer a ping in the middle of the handshake, and take messages without bound.
            self._early += data
            if len(self._early) > MAX_EARLY_BYTES:
                self.transport.pause_reading()
            return
        super().data_received(data)
        if self.conn.handshake_exc is not None and not self.handshake_initiated:
            self._refuse_head()

    async def send(self, message: ASGISendEvent) -> None:
        await super().send(message)
        if self.initial_response is not None and self.close_sent:
            self.handshake_complete = True  # it was refused; else the base logs an error for each of these
        if self._early and self.handshake_complete and not self._detaching:
            early, self._early = bytes(self._early), bytearray()
            self.transport.resume_reading()
            super().data_received(early)

    def start_keepalive(self) -> None:
        if not self._detaching:  # the gateway looks for silent clients by itself
            super().start_keepalive()

    def _new_socket(self) -> LiveSocket:
        max_size = self.config.ws_max_size
        if self.conn.extensions:
            return CompressedSocket(self, self.loop, self.conn, max_size=max_size)
        return LiveSocket(self, self.loop, max_size=max_size, ways=self.ways)

    def _refuse_head(self) -> None:
        """The base does not answer a request that its parser finds too long or broken, and keeps the connection."""
        self.handshake_complete = True
        self.close_sent = True
        answer = b"".join(self.conn.data_to_send())
        self.transport.write(answer or b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\nContent-Length: 0\r\n\r\n")
        self.transport.close()


def gateway_protocol(ways: Ways | None) -> type[GatewayProtocol]:
    """The protocol with a sender that may send past its transports."""
    return type("GatewayProtocol", (GatewayProtocol,), {"ways": ways})


class _Handed(asyncio.Transport):
    """Stands in for a transport that is another's now: the base closes it when the application returns."""

    def is_closing(self) -> bool:
        return True

    def write(self, data: Any) -> None: ...

    def close(self) -> None: ...
