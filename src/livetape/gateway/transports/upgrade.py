"""The short way from a request that asks for a socket to the socket, behind uvicorn's HTTP protocol.

uvicorn writes the parsed head down again, parses it a second time and makes a protocol, a queue and a parser for it;
when thousands of sockets come back at once, that is a third of all work. Here the head is looked at as it was parsed.
Whatever is not plain about it (extensions, a head that would be refused) goes uvicorn's way, and so does an
application that speaks ASGI instead of taking the `Transport` in `scope["extensions"][EXTENSION]`.
"""

from __future__ import annotations

import asyncio
import email.utils
import logging
import re
from base64 import b64encode
from binascii import Error, a2b_base64
from collections.abc import Sequence
from hashlib import sha1
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Final, cast
from urllib.parse import unquote

from uvicorn._types import ASGIReceiveEvent, ASGISendEvent, Scope
from uvicorn.protocols.utils import ClientDisconnected, get_client_addr, get_path_with_query_string

from livetape.auth import ConnectionFacts
from livetape.gateway.transport import EXTENSION, TransportClosedError
from livetape.gateway.transports.facts import facts_of
from livetape.gateway.transports.live_socket import GOODBYE_SECONDS, LiveSocket
from livetape.gateway.transports.uvicorn import MAX_EARLY_BYTES, SUBPROTOCOL, GatewayProtocol
from livetape.gateway.transports.ways import Ways

if TYPE_CHECKING:
    from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

Headers = Sequence[tuple[bytes, bytes]]

MAX_LINE_BYTES: Final = 8000
MAX_HEADERS: Final = 100
"""Beyond these it is not plain."""

_MAGIC: Final = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
_KEY_BYTES: Final = 16
_TOKENS: Final = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+(?:[ \t]*,[ \t]*[!#$%&'*+\-.^_`|~0-9A-Za-z]+)*")
_CONTROL: Final = re.compile(rb"[\x00-\x08\x0a-\x1f\x7f]")
_ONCE: Final = frozenset({b"connection", b"upgrade", b"sec-websocket-key", b"sec-websocket-version", b"origin"})

logger = logging.getLogger("uvicorn.error")


def accept_of(headers: Headers, *, compression: bool) -> bytes | None:
    """`Sec-WebSocket-Accept` for a plain request with these headers (names in lower case); None when it is not plain.

    With `compression` whoever offers extensions is not plain.
    """
    found: dict[bytes, bytes] = {}
    for name, value in headers:
        if len(value) > MAX_LINE_BYTES or (name in _ONCE and name in found):
            return None
        if name == b"sec-websocket-protocol" and _TOKENS.fullmatch(value) is None:
            return None
        found[name] = value
    if _CONTROL.search(b"".join([value for _, value in headers])) is not None:
        return None
    if len(headers) > MAX_HEADERS or (compression and b"sec-websocket-extensions" in found):
        return None
    connection = found.get(b"connection", b"")
    if found.get(b"upgrade", b"").lower() != b"websocket" or _TOKENS.fullmatch(connection) is None:
        return None
    if connection.lower() != b"upgrade" and b"upgrade" not in [part.strip() for part in connection.lower().split(b",")]:
        return None
    key = found.get(b"sec-websocket-key", b"")
    try:
        is_key = len(a2b_base64(key, strict_mode=True)) == _KEY_BYTES
    except Error:
        is_key = False
    if not is_key or found.get(b"sec-websocket-version") != b"13":
        return None
    return b64encode(sha1(key + _MAGIC, usedforsecurity=False).digest())


class Upgrade(asyncio.Protocol):
    """The `Handshake` of a `LiveSocket`, and the protocol of its connection until it is over."""

    def __init__(self, http: HttpToolsProtocol, accept: bytes, ways: Ways | None) -> None:
        self._http = http
        self._accept = accept
        self._transport = http.transport
        self._early = bytearray()
        self._answered = False
        self._lost = False
        self._usual: GatewayProtocol | None = None
        self._over: asyncio.Future[None] | None = None
        self._scope = _scope_of(http)
        self._socket = LiveSocket(self, http.loop, max_size=http.config.ws_max_size, ways=ways)
        self._scope["extensions"][EXTENSION] = self._socket

    @classmethod
    def begin(cls, http: HttpToolsProtocol, ways: Ways | None = None) -> bool:
        """Take over from the HTTP protocol. False, and nothing has happened, when the request is not plain."""
        scope = http.scope
        if scope["method"] != "GET" or scope["http_version"] != "1.1" or len(http.url) > MAX_LINE_BYTES:
            return False
        accept = accept_of(http.headers, compression=bool(http.config.ws_per_message_deflate))
        if accept is None or not http.url.isascii():
            return False
        upgrade = cls(http, accept, ways)
        connections = cast("set[object]", http.connections)
        connections.discard(http)
        connections.add(upgrade)
        http.transport.set_protocol(upgrade)
        task = http.loop.create_task(upgrade._run())
        http.tasks.add(task)
        task.add_done_callback(http.tasks.discard)
        return True

    # ---- the Handshake ---------------------------------------------------------------------------------------------

    def facts(self) -> ConnectionFacts:
        return facts_of(self._scope)

    async def reject(self, status: int, text: str) -> None:
        if self._usual is not None:
            await self._usual.reject(status, text)
            return
        self._require_unanswered()
        self._answered = True
        self._log("%d", status)
        self._answer(status, "content-type: text/plain; charset=utf-8\r\n", text.encode())

    async def accept(self, socket: LiveSocket) -> None:
        if self._usual is not None:
            await self._usual.accept(socket)
            return
        self._require_unanswered()
        self._answered = True
        self._log("[accepted]")
        lines = [
            b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: ",
            self._accept,
            *(b"\r\n%b: %b" % header for header in self._http.server_state.default_headers),
        ]
        if SUBPROTOCOL in self._scope["subprotocols"]:
            lines.append(b"\r\nSec-WebSocket-Protocol: " + SUBPROTOCOL.encode())
        lines.append(b"\r\n\r\n")
        self._transport.write(b"".join(lines))
        connections = self._leave()
        socket.connected(self._transport, connections, bytes(self._early))

    # ---- the application -------------------------------------------------------------------------------------------

    async def _run(self) -> None:
        try:
            await self._http.app(cast("Scope", self._scope), self._receive, self._send)
        except BaseException as error:
            self._failed(error)
        else:
            if self._over is not None:
                self._over.set_result(None)
            elif not self._answered:
                logger.error("ASGI callable returned without completing handshake.")
                self._fail()
        finally:
            self._socket.forget_handshake()

    async def _receive(self) -> ASGIReceiveEvent:
        if self._usual is None and (self._lost or self._answered):
            return {"type": "websocket.disconnect", "code": 1006}
        return await self._go_usual().receive()

    async def _send(self, message: ASGISendEvent) -> None:
        if self._usual is None and (self._lost or self._answered):
            raise ClientDisconnected
        await self._go_usual().send(message)

    def _go_usual(self) -> GatewayProtocol:
        """The application speaks ASGI: it gets what it would have had from uvicorn."""
        if self._usual is None:
            http, self._over = self._http, self._http.loop.create_future()
            over = self._over
            protocol = self._usual = GatewayProtocol(
                config=http.config, server_state=http.server_state, app_state=http.app_state
            )

            async def running(scope: object, receive: object, send: object) -> None:
                await over

            protocol.app = running
            self._leave()
            protocol.connection_made(self._transport)
            protocol.data_received(_head_of(http))
            if self._early:
                protocol.data_received(bytes(self._early))
            self._transport.set_protocol(protocol)
        return self._usual

    def _failed(self, error: BaseException) -> None:
        # Before the handshake it is answered; after it, the socket lives on unless it is told.
        self._socket.close(1011, "internal error", within=GOODBYE_SECONDS)
        if self._over is not None:
            self._over.set_exception(error)
            return
        logger.error("Exception in ASGI application\n", exc_info=error)
        self._fail()

    def _fail(self) -> None:
        if not self._answered:
            self._answered = True
            status = HTTPStatus.INTERNAL_SERVER_ERROR
            self._answer(status, "Content-Type: text/plain; charset=utf-8\r\n", status.phrase.encode())

    # ---- the connection --------------------------------------------------------------------------------------------

    def data_received(self, data: bytes) -> None:
        self._early += data
        if len(self._early) > MAX_EARLY_BYTES:
            self._transport.pause_reading()

    def connection_lost(self, exc: Exception | None) -> None:
        self._lost = True
        self._leave()

    def shutdown(self) -> None:
        """The server stops."""
        self._fail()
        self._transport.close()

    # ---- inside ----------------------------------------------------------------------------------------------------

    def _leave(self) -> set[object]:
        connections = cast("set[object]", self._http.connections)
        connections.discard(self)
        return connections

    def _require_unanswered(self) -> None:
        if self._answered or self._lost or self._transport.is_closing():
            raise TransportClosedError

    def _answer(self, status: int, headers: str, body: bytes) -> None:
        if self._lost or self._transport.is_closing():
            return  # whoever asked is gone
        date = email.utils.formatdate(usegmt=True)
        head = (
            f"HTTP/1.1 {int(status)} {HTTPStatus(status).phrase}\r\n{headers}"
            f"Date: {date}\r\nConnection: close\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        self._transport.write(head.encode() + body)
        self._transport.close()

    def _log(self, what: str, *more: object) -> None:
        if logger.isEnabledFor(logging.INFO):
            scope = cast("Any", self._scope)
            told = (get_client_addr(scope), get_path_with_query_string(scope), *more)
            logger.info('%s - "WebSocket %s" ' + what, *told)


def _scope_of(http: HttpToolsProtocol) -> dict[str, Any]:
    """As uvicorn's own protocol makes it."""
    raw_path, _, query = http.url.partition(b"?")
    path = raw_path.decode("ascii")
    offered = [value.decode("ascii") for name, value in http.headers if name == b"sec-websocket-protocol"]
    return {
        "type": "websocket",
        "asgi": {"version": http.asgi_version, "spec_version": "2.4"},
        "http_version": "1.1",
        "scheme": "wss" if http.scheme == "https" else "ws",
        "server": http.server,
        "client": http.client,
        "root_path": http.root_path,
        "path": http.root_path + (unquote(path) if "%" in path else path),
        "raw_path": http.root_path.encode("ascii") + raw_path,
        "query_string": query,
        "headers": http.headers,
        "subprotocols": [name.strip() for value in offered for name in value.split(",")],
        "state": http.app_state.copy(),
        "extensions": {"websocket.http.response": {}},
    }


def _head_of(http: HttpToolsProtocol) -> bytes:
    lines = [b"GET %b HTTP/1.1" % http.url, *(b"%b: %b" % header for header in http.headers), b"", b""]
    return b"\r\n".join(lines)
