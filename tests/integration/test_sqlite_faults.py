"""A SQLite file whose process dies at a bad moment: in the middle of its migrations."""

from __future__ import annotations

import signal
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest

from databases import sqlite_database
from integration.test_store import described
from livetape.adapters.sql.migrate import HEAD

DIES = """
import asyncio, os, signal, sys
from pathlib import Path
from livetape.adapters.sql.database import SqliteDatabase
from livetape.adapters.sql.migrate import upgrade
from livetape.adapters.sqlite.readers import Readers
from livetape.adapters.sqlite.writer import Writer

path, at = Path(sys.argv[1]), sys.argv[2]
writer = Writer(path)
writer.open()
database = SqliteDatabase(writer, Readers(path))

def begin(db):
    upgrade(db, None, to="0001")
    for number in range(100):
        db.exec_driver_sql(
            "INSERT INTO graph VALUES (?, 1, 'u', 'kept', '', 1, ?, 0)", (f"g{number}", b"{}")
        )

def die(db):
    upgrade(db, "0001", to=at)
    os.kill(os.getpid(), signal.SIGKILL)

asyncio.run(database.write(begin))
asyncio.run(database.write(die))
"""


@pytest.mark.slow
@pytest.mark.parametrize("at", ["0002", "head"])
async def test_a_migration_that_is_killed_in_the_middle_is_made_anew(tmp_path: Path, at: str) -> None:
    path = tmp_path / "a.db"
    child = subprocess.run([sys.executable, "-c", DIES, path, at], check=False, capture_output=True, text=True)
    assert child.returncode == -signal.SIGKILL, child.stderr
    with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as db:
        assert db.execute("SELECT version_num FROM alembic_version").fetchone() == ("0001",), "nothing of it is there"
    async with sqlite_database(path):
        pass
    async with sqlite_database(tmp_path / "new.db"):
        pass
    assert described(path) == described(tmp_path / "new.db")
    with closing(sqlite3.connect(path)) as db:
        assert db.execute("SELECT version_num FROM alembic_version").fetchone() == (HEAD,)
        assert db.execute("SELECT count(*) FROM graph WHERE name = 'kept'").fetchone() == (100,)
        assert db.execute("PRAGMA integrity_check").fetchone() == ("ok",)
