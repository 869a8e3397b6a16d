"""Bring a database to the version of this code."""

from __future__ import annotations

from typing import Final

from sqlalchemy import Connection, inspect, text

from livetape.adapters.sql.tables import metadata
from livetape.errors import StoreError

HEAD: Final = "0004"
"""The newest revision. Kept here so that a start with nothing to do need not load Alembic; a test compares."""


def revision(db: Connection) -> str | None:
    """The database's revision; None for an empty database."""
    if not inspect(db).has_table("alembic_version"):
        return None
    found = db.execute(text("SELECT version_num FROM alembic_version")).scalar()
    return None if found is None else str(found)


def migrate(db: Connection) -> bool:
    """Bring it to HEAD inside the caller's transaction; returns whether there was anything to do.

    An empty database gets the tables as they are now, which is what all migrations one after the other would make (a
    test compares) and spares the start of a new data folder from loading Alembic.

    Raises:
        StoreError: the database was made by a newer version.
    """
    before = revision(db)
    if before == HEAD:
        return False
    if before is None and not inspect(db).get_table_names():
        _make_tables(db)
        db.execute(text("CREATE TABLE alembic_version (version_num VARCHAR(32) NOT NULL PRIMARY KEY)"))
        db.execute(text("INSERT INTO alembic_version VALUES (:head)"), {"head": HEAD})
    else:
        upgrade(db, before)
    return True


def _make_tables(db: Connection) -> None:
    if db.dialect.name == "postgresql":
        # The tables name the conditions of partial indexes for SQLite alone, so that SQLite need not load the other.
        for table in metadata.tables.values():
            for index in table.indexes:
                options = index.dialect_options
                options["postgresql"]["where"] = options["sqlite"]["where"]
    metadata.create_all(db)


def upgrade(db: Connection, before: str | None, *, to: str = "head") -> None:
    """Run the migrations after `before`, up to `to`. Raises StoreError as `migrate`."""
    # Alembic costs a tenth of a second to import; most starts do not need it.
    from alembic import command  # noqa: PLC0415
    from alembic.config import Config  # noqa: PLC0415
    from alembic.util import CommandError  # noqa: PLC0415

    config = Config()
    config.set_main_option("script_location", "livetape.adapters.sql:migrations")
    config.set_main_option("path_separator", "os")
    config.attributes["connection"] = db
    try:
        command.upgrade(config, to)
    except CommandError as error:
        raise StoreError(
            f"the database has revision {before}, which this version ({HEAD}) does not know: it was made by a newer one"
        ) from error
