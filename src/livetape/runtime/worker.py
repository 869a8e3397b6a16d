"""A worker alone: it runs the executions of a PostgreSQL that it shares with others."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from pathlib import Path

from livetape.adapters.sql.executions import SqlExecutionStore
from livetape.clock import SystemClock
from livetape.errors import LivetapeError
from livetape.events.backoff import Backoff
from livetape.runtime.database import open_ports
from livetape.runtime.engine import open_engine
from livetape.runtime.error_hook import error_hook
from livetape.runtime.worker_status import told_status
from livetape.settings import Settings


async def serve_worker(
    settings: Settings,
    *,
    name: str,
    on_ready: Callable[[], None],
    label: str | None = None,
    status: Path | None = None,
) -> None:
    """Run executions until cancelled, then hand back what is not finished. `name`, `label`: see `open_engine`.

    `status`: where its supervisor asks how it is (`told_status`).

    Raises:
        ConfigError, StoreError: as `open_engine`.
    """
    async with AsyncExitStack() as stack:
        reporter = stack.enter_context(error_hook(settings))
        engine = await stack.enter_async_context(open_engine(settings, name=name, label=label, reporter=reporter))
        if status is not None:
            await stack.enter_async_context(told_status(status, engine.missing, lambda: engine.metrics.render()[0]))
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
