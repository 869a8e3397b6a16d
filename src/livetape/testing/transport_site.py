"""A served ASGI application that hands its sockets to a test, as transports with a receiver that notes everything."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, MutableMapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from livetape.gateway.transport import Transport
from livetape.testing.socket_client import SocketClient

Scope: TypeAlias = MutableMapping[str, Any]
Receive: TypeAlias = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send: TypeAlias = Callable[[MutableMapping[str, Any]], Awaitable[None]]
TransportOf: TypeAlias = Callable[[Scope, Receive, Send], Transport]
"""How a socket becomes a transport: by the server's extension, or from plain ASGI."""


class Recorder:
    """A Receiver that notes. `told` has everything in order: messages as they are, the rest by name."""

    def __init__(self) -> None:
        self.told: list[object] = []
        self._news = asyncio.Event()

    def received(self, data: str | bytes) -> None:
        self._note(data)

    def congested(self) -> None:
        self._note(("congested",))

    def drained(self) -> None:
        self._note(("drained",))

    def ponged(self) -> None:
        self._note(("ponged",))

    def lost(self, *, clean: bool, left: bool = False) -> None:
        self._note(("lost", clean, left))

    @property
    def messages(self) -> list[str | bytes]:
        return [entry for entry in self.told if isinstance(entry, str | bytes)]

    @property
    def ends(self) -> list[bool]:
        """`clean` of each `lost`."""
        return [entry[1] for entry in self.told if isinstance(entry, tuple) and entry[0] == "lost"]

    @property
    def left(self) -> bool:
        return ("lost", False, True) in self.told

    @property
    def is_congested(self) -> bool:
        waves = [entry for entry in self.told if entry in (("congested",), ("drained",))]
        return bool(waves) and waves[-1] == ("congested",)

    def count(self, name: str) -> int:
        return self.told.count((name,))

    async def until(self, holds: Callable[[Recorder], bool]) -> None:
        """Wait until it holds of what was told."""
        while not holds(self):
            self._news.clear()
            await self._news.wait()

    def _note(self, entry: object) -> None:
        self.told.append(entry)
        self._news.set()


@dataclass
class Met:
    """Both ends of an accepted socket."""

    client: SocketClient
    transport: Transport
    recorder: Recorder

    async def lost(self) -> bool:
        """Wait for the end; whether it was clean."""
        await self.recorder.until(lambda told: bool(told.ends))
        return self.recorder.ends[0]


@dataclass
class TransportSite:
    """The ASGI application that the server serves, on `port`, with `max_message_bytes` as the largest message taken."""

    transport_of: TransportOf
    max_message_bytes: int
    port: int = 0
    arrived: asyncio.Queue[tuple[Transport, Recorder]] = field(default_factory=asyncio.Queue)
    handler: Callable[[Transport], Awaitable[None]] | None = None
    """What is done with a new socket, instead of accepting it."""
    client_options: Mapping[str, Any] = field(default_factory=dict)
    """For every `SocketClient.connect`."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        transport = self.transport_of(scope, receive, send)
        if self.handler is not None:
            await self.handler(transport)
            return
        recorder = Recorder()
        await transport.accept(recorder)
        await self.arrived.put((transport, recorder))
        await transport.run()

    @asynccontextmanager
    async def meet(self, **options: Any) -> AsyncIterator[Met]:
        """A client and its accepted socket. Reset in the end, if it is still there."""
        client = await SocketClient.connect(self.port, **{**self.client_options, **options})
        try:
            transport, recorder = await self.arrived.get()
            yield Met(client, transport, recorder)
        finally:
            client.vanish()
