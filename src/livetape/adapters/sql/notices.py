"""Short notices between processes on one database: PostgreSQL carries them at the commit, SQLite has one process."""

from __future__ import annotations

from typing import Final

from sqlalchemy import Connection, text

DOORBELL: Final = "livetape_doorbell"
CANCEL: Final = "livetape_cancel"

_NOTIFY: Final = text("SELECT pg_notify(:channel, :words)")


def notify(db: Connection, channel: str, words: str = "") -> None:
    """Send a notice when the transaction of this connection is committed; nothing where nobody could hear it."""
    if db.dialect.name == "postgresql":
        db.execute(_NOTIFY, {"channel": channel, "words": words})
