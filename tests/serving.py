"""An ASGI application on uvicorn, in the event loop of the test."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import uvicorn

PATIENCE_S = 10.0


class _Server(uvicorn.Server):
    """Signals are not its business."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.ready = asyncio.Event()
        self.stopping = asyncio.Event()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.ready.set()

    async def main_loop(self) -> None:
        """As the base's, which looks ten times a second whether it shall stop."""
        await self.on_tick(0)
        await self.stopping.wait()

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


@asynccontextmanager
async def serving(app: Any, *, port: int = 0, **options: Any) -> AsyncIterator[int]:
    """Yields the port, a free one unless it is given, when the server listens there and the lifespan has begun."""
    settings = {
        "ws_per_message_deflate": False,
        "proxy_headers": False,
        "ws_ping_interval": None,
        "lifespan": "off",
        "log_config": None,
        "access_log": False,
        "timeout_graceful_shutdown": 2,
    }
    server = _Server(uvicorn.Config(app, **settings | options))
    with socket.create_server(("127.0.0.1", port), backlog=512) as listener:
        running = asyncio.create_task(server.serve(sockets=[listener]))
        async with asyncio.timeout(PATIENCE_S):
            await server.ready.wait()
        try:
            yield listener.getsockname()[1]
        finally:
            server.stopping.set()
            async with asyncio.timeout(PATIENCE_S):
                await running
