"""Connections to PostgreSQL, all with the same settings of the session."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

import asyncpg
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from livetape.errors import ConfigError

if TYPE_CHECKING:
    from livetape.adapters.sql.postgres.database import PostgresOptions

SCHEMES: Final = ("postgresql", "postgres")
CLOSE_S: Final = 2.0


async def _close(connection: Any, *, timeout: float | None = None) -> None:
    """Say good-bye, and do not wait for ever for the answer: a server that hangs must not hold up a stop."""
    with suppress(TimeoutError):  # then it was cut off
        await asyncpg.Connection.close(connection, timeout=CLOSE_S if timeout is None else timeout)


# The driver has no types: a class statement could not be checked.
_Connection: Final[Any] = type("_Connection", (asyncpg.Connection,), {"__slots__": (), "close": _close})


async def connect(url: str, *, timeout_s: float, **session: str) -> Any:
    """A connection of the driver. URLs are those of libpq: several hosts, `sslmode`, `target_session_attrs`.

    Raises:
        OSError, TimeoutError, asyncpg.PostgresError: no connection.
    """
    return await asyncpg.connect(
        url,
        timeout=timeout_s,
        connection_class=_Connection,
        server_settings={
            "application_name": "livetape",
            "jit": "off",
            # A commit that was told of (an event that was published) must not be undone by a crash of the server.
            "synchronous_commit": "on",
            # A host that vanished without a word must not hold its locks for hours.
            "tcp_keepalives_idle": "10",
            "tcp_keepalives_interval": "5",
            "tcp_keepalives_count": "3",
            **session,
        },
    )


def make_engine(url: str, options: PostgresOptions, *, pool: int | None = None) -> AsyncEngine:
    """Connects nothing yet.

    Raises:
        ConfigError: not the URL of a PostgreSQL database.
    """
    check_url(url)
    session = session_settings(options)

    async def creator() -> Any:
        return await connect(url, timeout_s=options.connect_s, **session)

    return create_async_engine(
        "postgresql+asyncpg://",
        async_creator=creator,
        pool_size=pool or options.pool,
        max_overflow=0,
        pool_timeout=options.connect_s,
        pool_use_lifo=True,
        pool_recycle=1800,
    )


def session_settings(options: PostgresOptions) -> dict[str, str]:
    """The time limits that the server keeps."""
    return {
        "statement_timeout": _milliseconds(options.statement_s),
        "lock_timeout": _milliseconds(options.lock_s),
        "idle_in_transaction_session_timeout": _milliseconds(options.unit_s),
    }


def check_url(url: str) -> None:
    """Raises ConfigError."""
    try:
        parts = urlsplit(url)
        known = parts.scheme in SCHEMES and len(parts.path) > 1
    except ValueError:
        known = False
    if not known:
        raise ConfigError(
            "this is not the URL of a PostgreSQL database", fix="postgresql://user:password@host:5432/name"
        )


def _milliseconds(seconds: float) -> str:
    return str(round(seconds * 1000))
