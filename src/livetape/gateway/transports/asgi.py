"""The Transport over plain ASGI: any server, mountable in any app. Pings are the server's business here."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, MutableMapping, Sequence
from typing import Any, Final, TypeAlias
from urllib.parse import parse_qs

from livetape.auth import ConnectionFacts
from livetape.gateway.messages import Push
from livetape.gateway.transport import Transport, TransportClosedError

Scope: TypeAlias = MutableMapping[str, Any]
Message: TypeAlias = MutableMapping[str, Any]
Receive: TypeAlias = Callable[[], Awaitable[Message]]
Send: TypeAlias = Callable[[Message], Awaitable[None]]

SUBPROTOCOL: Final = "livetape.v1"
BEARER: Final = "bearer."


class AsgiTransport(Transport):
    """One WebSocket scope."""

    def __init__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self._scope = scope
        self._receive = receive
        self._send_message = send
        self._facts = facts_of(scope)

    @property
    def facts(self) -> ConnectionFacts:
        return self._facts

    async def reject(self, status: int, text: str) -> None:
        await self._connect()
        if "websocket.http.response" not in self._scope.get("extensions", {}):
            await self._send({"type": "websocket.close", "code": 1000, "reason": text})  # servers answer 403
            return
        headers = [(b"content-type", b"text/plain; charset=utf-8")]
        await self._send({"type": "websocket.http.response.start", "status": status, "headers": headers})
        await self._send({"type": "websocket.http.response.body", "body": text.encode()})

    async def accept(self) -> None:
        await self._connect()
        offered = self._scope.get("subprotocols", ())
        await self._send(
            {"type": "websocket.accept", "subprotocol": SUBPROTOCOL if SUBPROTOCOL in offered else None, "headers": []}
        )

    async def receive(self) -> str | bytes:
        message = await self._receive()
        if message["type"] != "websocket.receive":
            raise TransportClosedError
        text = message.get("text")
        data: str | bytes = message.get("bytes") or b"" if text is None else text
        return data

    async def write(self, pushes: Sequence[Push]) -> None:
        for push in pushes:
            await self._send({"type": "websocket.send", "text": push.text})

    async def close(self, code: int, reason: str) -> None:
        await self._send({"type": "websocket.close", "code": code, "reason": reason})

    async def _connect(self) -> None:
        message = await self._receive()
        if message["type"] != "websocket.connect":
            raise TransportClosedError

    async def _send(self, message: Message) -> None:
        try:
            await self._send_message(message)
        except (OSError, RuntimeError) as error:
            # OSError: the client is gone (ASGI 2.4). RuntimeError: the close went out before, in either direction.
            raise TransportClosedError from error


def facts_of(scope: Scope) -> ConnectionFacts:
    """Who calls: token from `?token=` or from the subprotocols `livetape.v1, bearer.<token>`."""
    headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}
    client = scope.get("client")
    token = query_value(scope.get("query_string", b""), "token")
    if token is None:
        offered = scope.get("subprotocols", ())
        token = next((name.removeprefix(BEARER) for name in offered if name.startswith(BEARER)), None)
    return ConnectionFacts.of(headers, client[0] if client else None, token)


def query_value(query: bytes, name: str) -> str | None:
    """The first value of a query parameter; None when it is absent, empty, or the query is absurd."""
    try:
        return next(iter(parse_qs(query.decode("latin-1"), max_num_fields=100).get(name, ())), None)
    except ValueError:
        return None
