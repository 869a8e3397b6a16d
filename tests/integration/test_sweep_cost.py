"""What a sweep reads does not grow with the executions that are over."""

from __future__ import annotations

from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, text

from databases import sqlite_database
from livetape.adapters.sql import leasing
from livetape.adapters.sql.executions import SqlExecutionStore
from livetape.adapters.sql.tables import execution
from livetape.store.executions import NewExecution
from stage import ManualClock


def add_ended(db: Connection, count: int) -> None:
    """Copies of the one execution there is, ended."""
    fixed = {"id": "'x' || n", "status": "'COMPLETED'", "ring_at": "NULL"}
    columns = [column.name for column in execution.columns]
    numbers = f"WITH RECURSIVE many(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM many LIMIT {count})"
    values = ", ".join(fixed.get(name, name) for name in columns)
    db.execute(text(f"{numbers} INSERT INTO execution ({', '.join(columns)}) SELECT {values} FROM execution, many"))


def steps_of_a_sweep(db: Connection, now: datetime) -> int:
    """What SQLite does for it, in steps of its machine. One execution is lost."""
    steps = 0

    def another_step() -> None:
        nonlocal steps
        steps += 1

    raw: Any = db.connection.dbapi_connection
    raw.set_progress_handler(another_step, 1)
    assert leasing.lost(db, None) == ["e"]
    assert leasing.lost(db, now) == ["e"]
    assert leasing.lost(db, None, "w") == ["e"]
    assert leasing.overdue(db, now, 0) == []
    assert not leasing.unanswered(db, now)
    raw.set_progress_handler(None, 0)
    return steps


async def test_on_sqlite(tmp_path: Path) -> None:
    steps: dict[int, int] = {}
    for count in (10, 3000):
        clock = ManualClock()
        async with sqlite_database(tmp_path / f"{count}.db", clock=clock) as database:
            store = SqlExecutionStore(database, on_commit=lambda _: None, ring=lambda: None, clock=clock)
            await store.start(NewExecution("e", "u", "g", 1, b"{}", clock.now(), "epoch"))
            assert await store.claim("e", owner="w1", lease_seconds=15) is not None
            await database.write(lambda db, count=count: add_ended(db, count))
            now = clock.now() + timedelta(seconds=60)
            steps[count] = await database.write(lambda db, now=now: steps_of_a_sweep(db, now))
    assert steps[3000] < 1.3 * steps[10], f"steps of the database, by the number of executions that are over: {steps}"
