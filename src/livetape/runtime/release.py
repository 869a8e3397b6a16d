"""What a supervisor does for a worker that is gone. It loads no engine."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import AsyncExitStack

from livetape.adapters.sql.executions import SqlExecutionStore
from livetape.clock import SystemClock
from livetape.errors import LivetapeError
from livetape.events.backoff import Backoff
from livetape.runtime.database import open_ports
from livetape.settings import Settings


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
