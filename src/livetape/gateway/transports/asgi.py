"""The Transport over plain ASGI: any server, mountable in any app. Pings are the server's business here."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, MutableMapping
from contextlib import suppress
from typing import Any, Final, TypeAlias

from livetape.auth import ConnectionFacts
from livetape.gateway.frames import fitting_reason
from livetape.gateway.messages import Push
from livetape.gateway.transport import LEAVING_CODES, Receiver, Transport, TransportClosedError
from livetape.gateway.transports.facts import facts_of

Scope: TypeAlias = MutableMapping[str, Any]
Message: TypeAlias = MutableMapping[str, Any]
Receive: TypeAlias = Callable[[], Awaitable[Message]]
Send: TypeAlias = Callable[[Message], Awaitable[None]]

SUBPROTOCOL: Final = "livetape.v1"


class AsgiTransport(Transport):
    """One WebSocket scope. `run` has two tasks, because ASGI asks to wait for each message in each direction."""

    heard_at = None

    def __init__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self._scope = scope
        self._receive = receive
        self._send_message = send
        self._facts = facts_of(scope)
        self._receiver: Receiver | None = None
        self._waiting: list[Push] = []
        self._is_congested = False
        self._ready = asyncio.Event()
        self._reading = asyncio.Event()
        self._reading.set()
        self._closing: tuple[int, str] | None = None
        self._drops = False
        self._left = False
        self._writer: asyncio.Task[None] | None = None
        self._cut: asyncio.TimerHandle | None = None
        self._gone = False

    @property
    def facts(self) -> ConnectionFacts:
        return self._facts

    async def reject(self, status: int, text: str) -> None:
        await self._connect()
        if "websocket.http.response" not in self._scope.get("extensions", {}):
            await self._tell({"type": "websocket.close", "code": 1000, "reason": text})  # servers answer 403
            return
        headers = [(b"content-type", b"text/plain; charset=utf-8")]
        await self._tell({"type": "websocket.http.response.start", "status": status, "headers": headers})
        await self._tell({"type": "websocket.http.response.body", "body": text.encode()})

    async def accept(self, receiver: Receiver) -> None:
        await self._connect()
        offered = self._scope.get("subprotocols", ())
        await self._tell(
            {"type": "websocket.accept", "subprotocol": SUBPROTOCOL if SUBPROTOCOL in offered else None, "headers": []}
        )
        self._receiver = receiver

    async def run(self) -> None:
        assert self._receiver is not None
        reader = asyncio.create_task(self._read(self._receiver), name="socket reader")
        self._writer = asyncio.create_task(self._write(self._receiver), name="socket writer")
        tasks = {reader, self._writer}
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            self._gone = True
            if self._cut is not None:
                self._cut.cancel()
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)
            # What the other end has read is known to the server at best: here it is never certain.
            self._receiver.lost(clean=False, left=self._left)
        for task in tasks:
            if not task.cancelled():
                task.result()

    def send(self, push: Push) -> None:
        if self._gone or self._closing is not None:
            return
        self._waiting.append(push)
        self._ready.set()
        if not self._is_congested and self._receiver is not None:
            # Until the server has taken it: more would only wait here instead of there.
            self._is_congested = True
            self._receiver.congested()

    def pause(self) -> None:
        self._reading.clear()

    def resume(self) -> None:
        self._reading.set()

    def close(self, code: int, reason: str, *, within: float, drop: bool = False) -> None:
        if self._closing is not None or self._gone:
            return
        self._closing = (code, fitting_reason(reason))
        self._drops = drop
        if self._writer is not None:
            self._cut = asyncio.get_running_loop().call_later(within, self._writer.cancel)
        self._ready.set()

    def ping(self) -> None:
        """The server does."""

    # ---- the tasks -------------------------------------------------------------------------------------------------

    async def _read(self, receiver: Receiver) -> None:
        with suppress(TransportClosedError):
            while True:
                await self._reading.wait()
                try:
                    message = await self._receive()
                except (OSError, RuntimeError) as error:
                    raise TransportClosedError from error
                if message["type"] != "websocket.receive":
                    self._left = self._closing is None and message.get("code") in LEAVING_CODES
                    return
                await self._reading.wait()
                if self._closing is None:
                    text = message.get("text")
                    receiver.received(message.get("bytes") or b"" if text is None else text)

    async def _write(self, receiver: Receiver) -> None:
        with suppress(TransportClosedError):
            while True:
                await self._ready.wait()
                self._ready.clear()
                while self._waiting and not self._drops:
                    batch, self._waiting = self._waiting, []
                    await self._write_all(batch)
                if self._closing is not None:
                    code, reason = self._closing
                    await self._tell({"type": "websocket.close", "code": code, "reason": reason})
                    return
                self._is_congested = False
                receiver.drained()

    async def _write_all(self, batch: list[Push]) -> None:
        for push in batch:
            for part in push.parts:
                if self._drops:
                    return
                await self._tell({"type": "websocket.send", "text": part.text})

    async def _connect(self) -> None:
        message = await self._receive()
        if message["type"] != "websocket.connect":
            raise TransportClosedError

    async def _tell(self, message: Message) -> None:
        try:
            await self._send_message(message)
        except (OSError, RuntimeError) as error:
            # OSError: the client is gone (ASGI 2.4). RuntimeError: the close went out before, in either direction.
            raise TransportClosedError from error
