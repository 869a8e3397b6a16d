"""An ASGI application on uvicorn, in the event loop of the test."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import uvicorn

PATIENCE_S = 10.0


class Server(uvicorn.Server):
    """Signals are not its business."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.ready = asyncio.Event()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.ready.set()

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


@asynccontextmanager
async def serving(app: Any, **options: Any) -> AsyncIterator[int]:
    """Yields the port."""
    settings = {
        "ws_per_message_deflate": False,
        "proxy_headers": False,
        "ws_ping_interval": None,
        "lifespan": "off",
        "log_config": None,
        "access_log": False,
        "timeout_graceful_shutdown": 2,
    }
    server = Server(uvicorn.Config(app, **settings | options))
    with socket.create_server(("127.0.0.1", 0), backlog=512) as listener:
        port: int = listener.getsockname()[1]
        running = asyncio.create_task(server.serve(sockets=[listener]))
        async with asyncio.timeout(PATIENCE_S):
            await server.ready.wait()
        try:
            yield port
        finally:
            server.should_exit = True
            async with asyncio.timeout(PATIENCE_S):
                await running
