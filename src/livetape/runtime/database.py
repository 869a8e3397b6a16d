"""The database of one process and what stands on it: SQLite in the data folder, or a PostgreSQL that others share."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Any, Final

from livetape.adapters.sql.database import Database
from livetape.clock import Clock
from livetape.engine.cancel_hints import CancelHints
from livetape.errors import ConfigError, StoreError, StoreUnavailableError
from livetape.events.log import EventLog
from livetape.observability import Metrics, get_logger
from livetape.settings import Settings
from livetape.store.ephemeral import Ephemeral

logger = get_logger(__name__)

START_S: Final = 20.0
"""A server that is not there yet is waited for at the start."""

_RETRY_S: Final = 1.0
URGENT_SHARE: Final = 4 / 15
"""Of a lease: a renewal that hangs is given up after it, so that there is time for two more."""

NOTICED_POLL_S: Final = 5.0
"""Processes that are told of doorbells look so often all the same."""


@dataclass(frozen=True, slots=True)
class Notified:
    """What hears of other processes, to be run as long as the engine: `listen` for ever, `ready` when it does.

    `ring(look)`: have `look` called when a doorbell was committed by any process.
    """

    listen: Callable[[], Coroutine[Any, Any, None]]
    ready: asyncio.Event
    ring: Callable[[Callable[[], None]], None]
    hints: CancelHints
    is_up: Callable[[], bool]


@dataclass(frozen=True, slots=True)
class DatabasePorts:
    """`sole`: no other process can be using the database. `notified`: None where there is nobody to hear of."""

    database: Database
    tapes: EventLog
    ephemeral: Ephemeral
    sole: bool
    poll_s: float
    notified: Notified | None = None


async def open_ports(
    stack: AsyncExitStack, settings: Settings, clock: Clock, *, metrics: Metrics | None = None
) -> DatabasePorts:
    """Open what the settings name, brought to this version's form.

    Raises:
        ConfigError: the URL cannot be used, or the driver is not installed.
        StoreError: it cannot be reached, is damaged, or was made by a newer version.
    """
    if settings.postgres_url is not None:
        urgent_s = settings.engine.lease_seconds * URGENT_SHARE
        return await _postgres(stack, settings.postgres_url, urgent_s=urgent_s, metrics=metrics)
    from livetape.adapters.sqlite.ephemeral import SqliteEphemeral
    from livetape.adapters.sqlite.log import SqliteEventLog
    from livetape.runtime.folder import open_database

    database, writer, readers = await open_database(stack, settings, clock, metrics=metrics)
    return DatabasePorts(
        database,
        SqliteEventLog(writer, readers, clock=clock),
        SqliteEphemeral(writer, readers, clock=clock),
        sole=True,
        poll_s=1.0,
    )


async def _postgres(stack: AsyncExitStack, url: str, *, urgent_s: float, metrics: Metrics | None) -> DatabasePorts:
    try:
        from livetape.adapters.sql.ephemeral import SqlEphemeral
        from livetape.adapters.sql.log import SqlEventLog
        from livetape.adapters.sql.notices import DOORBELL
        from livetape.adapters.sql.postgres.database import PostgresDatabase, PostgresOptions
        from livetape.adapters.sql.postgres.hints import PostgresCancelHints
        from livetape.adapters.sql.postgres.notices import Notices
        from livetape.adapters.sql.postgres.upgrade import upgrade
    except ModuleNotFoundError as error:
        raise ConfigError(
            "PostgreSQL needs a driver that is not installed",
            because=str(error),
            set_by="database",
            fix="pip install 'livetape[postgres]'",
        ) from error
    await _when_there(lambda: upgrade(url))
    database = PostgresDatabase(url, options=PostgresOptions(urgent_s=urgent_s), metrics=metrics)
    stack.push_async_callback(database.close)
    notices = Notices(url)
    hints = PostgresCancelHints(database, notices, metrics=metrics)
    stack.push_async_callback(hints.close)
    tapes = SqlEventLog(database)
    stack.push_async_callback(tapes.close)

    def ring(look: Callable[[], None]) -> None:
        notices.hear(DOORBELL, lambda _: look(), missed=look)

    return DatabasePorts(
        database,
        tapes,
        SqlEphemeral(database),
        sole=False,
        poll_s=NOTICED_POLL_S,
        notified=Notified(notices.run, notices.ready, ring, hints, lambda: notices.is_listening),
    )


async def _when_there(work: Callable[[], Coroutine[Any, Any, object]]) -> None:
    """A server and those who need it are often started together."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + START_S
    while True:
        try:
            await work()
            return
        except StoreUnavailableError as error:
            if loop.time() > deadline:
                raise StoreUnavailableError(
                    error.message, fix="start it, or correct LIVETAPE_DATABASE", **error.context
                ) from error
            logger.warning("waiting for the database: %s", error, extra={"action": "database_wait"})
            await asyncio.sleep(_RETRY_S)
        except ConfigError as error:
            error.set_by = error.set_by or "database"
            raise
        except StoreError as error:
            error.context.setdefault("fix", "correct LIVETAPE_DATABASE, or what the server allows")
            raise
