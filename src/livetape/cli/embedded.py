"""A server inside this command, for as long as the command runs."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
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
    owner = asyncio.current_task()
    assert owner is not None

    def ended(_serving: asyncio.Task[None]) -> None:
        owner.cancel()  # nothing is left to wait for

    try:
        first: set[asyncio.Future[Any]] = {serving, ready}
        await asyncio.wait(first, return_when=asyncio.FIRST_COMPLETED)
        if serving.done():
            raise _failure(serving)
        app.say(f"no server is running: started one here on {settings.data_dir}")
        serving.add_done_callback(ended)
        yield Server(ready.result().url, "the server in this command", app.token)
    except asyncio.CancelledError:
        if not serving.done():
            raise
        owner.uncancel()
        raise _failure(serving)  # noqa: B904 - it has its own cause
    finally:
        serving.remove_done_callback(ended)
        serving.cancel()
        await asyncio.wait({serving})


def _failure(serving: asyncio.Task[None]) -> BaseException:
    """Why the server ended by itself."""
    error = None if serving.cancelled() else serving.exception()
    return error or CommandError("error", "the server in this command ended by itself")
