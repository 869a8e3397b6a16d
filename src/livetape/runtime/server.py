"""uvicorn as one service among others."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final

import uvicorn
from starlette.types import ASGIApp, Receive, Scope, Send

from livetape.gateway.transports.http import http_protocol
from livetape.gateway.transports.uvicorn import gateway_protocol
from livetape.gateway.transports.ways import Ways
from livetape.settings import Settings

BACKLOG: Final = 16_384
"""Who comes when it is full tries again a second later at the earliest. The system has a bound of its own."""

REQUESTS_END_S: Final = 5
"""After the drain, requests that are still being answered have so long."""


def uvicorn_config(settings: Settings, app: Any, ways: Ways | None = None) -> uvicorn.Config:
    """For this application behind our socket protocol."""
    return uvicorn.Config(
        app,
        http=http_protocol(stall_seconds=settings.gateway.slow_seconds),
        backlog=BACKLOG,
        ws=gateway_protocol(ways),
        ws_max_size=settings.gateway.max_message_bytes,
        ws_ping_interval=settings.gateway.ping_interval_seconds,
        ws_ping_timeout=settings.gateway.ping_timeout_seconds,
        ws_per_message_deflate=settings.gateway.compression,
        proxy_headers=False,
        server_header=False,
        lifespan="off",
        log_config=None,
        access_log=False,
        timeout_graceful_shutdown=REQUESTS_END_S,
    )


class SocketsFirst:
    """Sockets go straight to their endpoint: what stands around the routes of the API does nothing for them, and when
    thousands come back at once its layers are a tenth of all work."""

    def __init__(self, app: ASGIApp, endpoint: ASGIApp, path: str = "/ws") -> None:
        self._app = app
        self._endpoint = endpoint
        self._path = path

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        is_socket = scope["type"] == "websocket" and scope["path"] == self._path
        await (self._endpoint if is_socket else self._app)(scope, receive, send)


class Server(uvicorn.Server):
    """Signals are not its business, and before it stops it drains: uvicorn cuts sockets off at once."""

    def __init__(self, config: uvicorn.Config, drain: Callable[[], Awaitable[None]]) -> None:
        super().__init__(config)
        self._drain = drain
        self.ready = asyncio.Event()

    async def run_on(self, listener: socket.socket) -> None:
        """Serve until cancelled; then drain, and let requests end, as `shutdown` says."""
        serving = asyncio.create_task(self.serve(sockets=[listener]), name="http")
        try:
            await asyncio.shield(serving)
        except asyncio.CancelledError:
            # It goes on listening meanwhile: who asks whether it is ready is told that it is not.
            try:
                await self._drain()
            finally:
                self.should_exit = True
                await serving
            raise

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.ready.set()


def listen(settings: Settings) -> socket.socket:
    """The listening socket of these settings. Raises OSError when it cannot be had."""
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    return socket.create_server((settings.host, settings.port), family=family, backlog=BACKLOG)


def urls_of(settings: Settings, listener: socket.socket) -> tuple[str, str]:
    """Where it answers: HTTP and the socket, by a name that works on this machine."""
    port = listener.getsockname()[1]
    host = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(settings.host, settings.host)  # noqa: S104 - only shown
    host = f"[{host}]" if ":" in host and not host.startswith("[") else host
    return f"http://{host}:{port}", f"ws://{host}:{port}/ws"
