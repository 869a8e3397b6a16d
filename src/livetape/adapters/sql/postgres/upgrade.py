"""Bring a PostgreSQL database to the version of this code, by one process at a time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from sqlalchemy import Connection, text

from livetape.adapters.sql.migrate import HEAD, migrate, revision
from livetape.adapters.sql.postgres.database import PostgresDatabase, PostgresOptions

LOCK: Final = "livetape:migrations"
OTHERS_S: Final = 600.0
"""So long another process may be at it."""

_PATIENT: Final = PostgresOptions(pool=1, statement_s=0, unit_s=3600)
_VERSION: Final = text("SHOW server_version")
_SIZE: Final = text("SELECT pg_database_size(current_database())")


@dataclass(frozen=True, slots=True)
class DatabaseState:
    """What is known of a database. `revision` is None for an empty one. `size` is in bytes."""

    revision: str | None
    server: str
    size: int


async def state_of(url: str) -> DatabaseState:
    """Raises StoreUnavailableError, StoreError."""

    def unit(db: Connection) -> DatabaseState:
        return DatabaseState(revision(db), str(db.execute(_VERSION).scalar()), int(db.execute(_SIZE).scalar() or 0))

    database = PostgresDatabase(url, options=_PATIENT)
    try:
        return await database.read(unit)
    finally:
        await database.close()


async def upgrade(url: str) -> bool:
    """Run what is missing, all in one transaction; returns whether there was anything to do.

    Processes that come meanwhile wait, and find it done. Whoever dies in the middle leaves the database as it was.

    Raises:
        StoreUnavailableError: the server cannot be reached.
        LockTimeoutError: another process has been at it for ten minutes.
        StoreError: the database was made by a newer version.
    """
    database = PostgresDatabase(url, options=_PATIENT)
    try:
        if await database.read(revision) == HEAD:
            return False
        return await database.locked_write(LOCK, migrate, within_s=OTHERS_S)
    finally:
        await database.close()
