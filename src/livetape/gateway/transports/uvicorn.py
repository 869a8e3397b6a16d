"""uvicorn's socket protocol, with one difference: what is sent within one turn of the event loop leaves in one write.

Each `websocket.send` of an ASGI application is a system call of its own otherwise, and the outbox of a client hands
over several messages at a time.
"""

from __future__ import annotations

import asyncio
from typing import Any, cast

from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol


class JoinedWrites:
    """A transport that gathers what is written until the end of the turn. All else is the inner transport's."""

    def __init__(self, inner: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        self._inner = inner
        self._loop = loop
        self._waiting: list[bytes] = []

    def write(self, data: bytes) -> None:
        if not self._waiting:
            self._loop.call_soon(self.flush)
        self._waiting.append(data)

    def flush(self) -> None:
        """Write what was gathered, now."""
        if self._waiting:
            waiting, self._waiting = self._waiting, []
            self._inner.write(b"".join(waiting))

    def close(self) -> None:
        self.flush()
        self._inner.close()

    def write_eof(self) -> None:
        self.flush()
        self._inner.write_eof()

    def abort(self) -> None:
        self._waiting.clear()
        self._inner.abort()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)


class JoinedWritesProtocol(WebSocketsSansIOProtocol):
    """Give it to uvicorn as `ws=`."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        joined = JoinedWrites(cast("asyncio.Transport", transport), self.loop)
        super().connection_made(cast("asyncio.Transport", joined))
