"""Looks for executions that do not move, in the database of the settings, while others use it."""

from __future__ import annotations

import sqlite3
from contextlib import closing

from sqlalchemy import create_engine
from sqlalchemy.exc import DatabaseError
from sqlalchemy.pool import StaticPool

from livetape.adapters.sql.diagnosis import read_world
from livetape.clock import SystemClock
from livetape.engine.diagnosis import Finding, findings
from livetape.errors import StoreError
from livetape.settings import Settings


async def diagnose(settings: Settings) -> list[Finding]:
    """What does not move, and why; reads only.

    Raises:
        StoreError: the database cannot be read, or was made by another version.
    """
    elsewhere = settings.broker_url is not None
    if settings.postgres_url is None:
        return _sqlite(settings, elsewhere)
    from livetape.adapters.sql.postgres.database import PostgresDatabase

    database = PostgresDatabase(settings.postgres_url)
    try:
        world = await database.read(lambda db: read_world(db, database.now(db), bells_elsewhere=elsewhere))
    finally:
        await database.close()
    return findings(world)


def _sqlite(settings: Settings, elsewhere: bool) -> list[Finding]:
    path = settings.database_path
    if not path.exists():
        return []
    try:
        with closing(sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True, timeout=2.0)) as raw:
            engine = create_engine("sqlite://", creator=lambda: raw, poolclass=StaticPool, isolation_level="AUTOCOMMIT")
            with engine.connect() as db:
                raw.execute("BEGIN")
                world = read_world(db, SystemClock().now(), bells_elsewhere=elsewhere)
            engine.dispose()
    except (sqlite3.Error, DatabaseError) as error:
        raise StoreError(f"the database {path} cannot be read: {error}", path=str(path)) from error
    return findings(world)
