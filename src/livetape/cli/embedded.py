"""A server inside this command, for as long as the command runs."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING, Any

from livetape.cli.discover import Server, find_server
from livetape.cli.errors import CommandError
from livetape.cli.options import App

if TYPE_CHECKING:
    from livetape.runtime import ServerInfo


@asynccontextmanager
async def server_or_own(app: App) -> AsyncIterator[Server]:
    """The server that is there, else one started here on the data folder."""
    found = find_server(app, os.environ)
    if found is not None:
        yield found
        return
    async with own_server(app) as server:
        yield server


@asynccontextmanager
async def own_server(app: App) -> AsyncIterator[Server]:
    """Start everything in this process on a free port of the loopback address, and stop it at the end."""
    from livetape.runtime import serve

    settings = app.load(host="127.0.0.1", port=0, log_level=None if app.verbose else "warning").settings
    ready: asyncio.Future[ServerInfo] = asyncio.get_running_loop().create_future()
    serving = asyncio.create_task(serve(settings, on_ready=ready.set_result), name="embedded server")
    try:
        waited: list[asyncio.Future[Any]] = [serving, ready]
        await asyncio.wait(waited, return_when=asyncio.FIRST_COMPLETED)
        if not ready.done():
            await serving
            raise CommandError("error", "the server in this command ended before it was ready")
        app.say(f"no server is running: started one here on {settings.data_dir}")
        yield Server(ready.result().url, "the server in this command", app.token)
    finally:
        serving.cancel()
        with suppress(asyncio.CancelledError):
            await serving
