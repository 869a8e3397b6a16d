"""A worker alone: it runs the executions of a PostgreSQL that it shares with others."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack

from livetape.adapters.sql.executions import SqlExecutionStore
from livetape.clock import SystemClock
from livetape.errors import ConfigError, LivetapeError
from livetape.events.backoff import Backoff
from livetape.runtime.database import open_ports
from livetape.runtime.engine import open_engine
from livetape.runtime.error_hook import error_hook
from livetape.settings import Settings


def check_shared(settings: Settings, what: str) -> None:
    """Raises ConfigError where processes could not find each other. `what`: the command that needs it."""
    if settings.postgres_url is None:
        raise ConfigError(
            f"{what} needs a database that several processes share",
            because="the database is the SQLite file of the data folder, which belongs to one process",
            set_by="database",
            fix="set LIVETAPE_DATABASE=postgresql://USER@HOST/NAME; or run everything in one process: livetape up",
        )
    if not settings.is_distributed:
        raise ConfigError(
            f"{what} needs a Redis over which others see what happens",
            because="neither LIVETAPE_BUS nor REDIS_HOST is set",
            set_by="bus",
            fix="set LIVETAPE_BUS=redis://HOST:6379/0",
        )


async def serve_worker(settings: Settings, *, name: str, on_ready: Callable[[], None]) -> None:
    """Run executions until cancelled, then hand back what is not finished. `name`: see `open_engine`.

    Raises:
        ConfigError, StoreError: as `open_engine`.
    """
    async with AsyncExitStack() as stack:
        stack.enter_context(error_hook(settings))
        engine = await stack.enter_async_context(open_engine(settings, name=name))
        on_ready()
        await engine.failed


async def release_leases(settings: Settings, name: str, *, within_s: float) -> Sequence[str]:
    """Take its executions away from a worker that is known to be gone, so that others go on with them now.

    A database that is away is asked again for `within_s` seconds; after that the leases have ended by themselves.

    Raises:
        LivetapeError: it could not be asked in that time.
    """
    backoff = Backoff(longest=1.0)
    loop = asyncio.get_running_loop()
    until = loop.time() + within_s
    while True:
        try:
            async with AsyncExitStack() as stack:
                ports = await open_ports(stack, settings, SystemClock())
                store = SqlExecutionStore(ports.database, on_commit=lambda committed: None, ring=lambda: None)
                return await store.release_owner(name)
        except LivetapeError:
            if loop.time() > until:
                raise
            await asyncio.sleep(backoff.next())
