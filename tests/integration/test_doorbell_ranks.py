"""Which doorbells of the table are taken first, on SQLite and PostgreSQL, and that many that wait cost no more."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Connection, insert, text

from databases import postgres_database, sqlite_database
from livetape.adapters.sql.database import Database
from livetape.adapters.sql.executions import SqlExecutionStore
from livetape.adapters.sql.migrate import migrate, upgrade
from livetape.adapters.sql.postgres.database import PostgresDatabase
from livetape.adapters.sql.queue import SqlQueue
from livetape.adapters.sql.tables import doorbell
from livetape.engine.queue import Doorbell
from livetape.store.executions import NewExecution
from postgres_server import PostgresServer
from stage import ManualClock

MANY = 3000
LEASE_S = 15.0


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture(params=["sqlite", pytest.param("postgres", marks=pytest.mark.needs("postgres"))])
async def database(request: pytest.FixtureRequest, tmp_path: Path, clock: ManualClock) -> AsyncIterator[Database]:
    if request.param == "sqlite":
        async with sqlite_database(tmp_path / "a.db", clock=clock) as opened:
            yield opened
    else:
        async with postgres_database(request.getfixturevalue("postgres_url"), clock=clock) as opened:
            yield opened


async def taken(queue: SqlQueue, most: int) -> list[str]:
    deliveries = await queue.take(most)
    for delivery in deliveries:
        await queue.ack(delivery)
    return [delivery.doorbell.graph_exec_id for delivery in deliveries]


async def test_the_highest_priority_goes_first_and_in_it_what_has_begun(database: Database) -> None:
    queue = SqlQueue(database)
    for name, priority, enqueue_no in (
        ("new", 0, 0),
        ("newer", 0, 0),
        ("begun", 0, 2),
        ("later", -1, 7),
        ("urgent", 5, 0),
        ("urgent and begun", 5, 1),
        ("a little urgent", 1, 0),
    ):
        await queue.put(Doorbell(name, enqueue_no=enqueue_no, priority=priority))
    await queue.put(Doorbell("far away", enqueue_no=3, priority=9), delay_s=3600)
    assert await taken(queue, 3) == ["urgent and begun", "urgent", "a little urgent"]
    assert await taken(queue, 10) == ["begun", "new", "newer", "later"]
    await queue.close()


async def test_an_execution_that_lost_its_worker_goes_before_those_that_wait(
    database: Database, clock: ManualClock
) -> None:
    queue = SqlQueue(database)
    store = SqlExecutionStore(database, on_commit=lambda _: None, ring=queue.ring, clock=clock)

    async def start(name: str) -> None:
        await store.start(NewExecution(name, "u", "g", 1, b"{}", clock.now(), "epoch"))

    await start("first")
    assert await taken(queue, 10) == ["first"]
    assert await store.claim("first", owner="w", lease_seconds=LEASE_S) is not None
    for name in ("second", "third"):
        clock.go(1)
        await start(name)
    clock.go(LEASE_S)
    assert (await store.sweep()).recovered == ["first"]
    assert await taken(queue, 1) == ["first"]
    assert await taken(queue, 10) == ["second", "third"]
    await queue.close()


def waiting(db: Connection, count: int, clock: ManualClock) -> None:
    """So many doorbells, of several ranks."""
    bells = [Doorbell(f"w{n}", enqueue_no=n % 2, priority=n % 3) for n in range(count)]
    values = [
        {
            "graph_exec_id": bell.graph_exec_id,
            "kind": bell.kind,
            "enqueue_no": bell.enqueue_no,
            "priority": bell.priority,
            "rank": bell.rank,
            "taken": False,
            "due_at": clock.now(),
        }
        for bell in bells
    ]
    db.execute(insert(doorbell), values)


async def test_a_take_from_sqlite_looks_at_no_more_when_many_wait(tmp_path: Path, clock: ManualClock) -> None:
    steps: dict[int, int] = {}
    for count in (100, MANY):
        async with sqlite_database(tmp_path / f"{count}.db", clock=clock) as database:
            seen = 0

            def another_step() -> None:
                nonlocal seen
                seen += 1

            def watch(db: Connection) -> None:
                raw: Any = db.connection.dbapi_connection
                raw.set_progress_handler(another_step, 1)

            queue = SqlQueue(database)
            await database.write(lambda db, count=count: waiting(db, count, clock))
            await database.write(watch)
            for _ in range(30):
                assert len(await taken(queue, 2)) == 2
            steps[count] = seen
            await queue.close()
    assert steps[MANY] < 1.3 * steps[100], f"steps of the database for 30 takes, by the number that waits: {steps}"


async def rows_read(server: PostgresServer, clock: ManualClock, count: int) -> int:
    """What the server reads for 30 takes when so many wait. It has planned them while the table was empty."""
    url = server.new_database()
    name = url.rpartition("/")[2]
    async with postgres_database(url, clock=clock) as database:
        queue = SqlQueue(database)
        await queue.put(Doorbell("e"))
        assert await taken(queue, 2) == ["e"]
        await database.write(lambda db: waiting(db, count, clock))
        for _ in range(30):
            assert len(await taken(queue, 2)) == 2
        await queue.close()
    sessions = f"SELECT count(*) FROM pg_stat_activity WHERE datname = '{name}'"
    while server.sql(sessions) != "0":  # a session tells what it read when it ends
        await asyncio.sleep(0.01)
    indexes = "SELECT sum(idx_tup_read) FROM pg_stat_user_indexes"
    tables = "SELECT sum(seq_tup_read + coalesce(idx_tup_fetch, 0)) FROM pg_stat_user_tables"
    return int(server.sql(indexes, database=name)) + int(server.sql(tables, database=name))


@pytest.mark.needs("postgres")
async def test_a_take_from_postgres_looks_at_no_more_when_many_wait(
    postgres_server: PostgresServer, clock: ManualClock
) -> None:
    few, many = await rows_read(postgres_server, clock, 100), await rows_read(postgres_server, clock, MANY)
    assert many < 1.3 * few, f"{few} rows were read for 30 takes with 100 waiting, {many} with {MANY}"


@pytest.mark.needs("postgres")
async def test_doorbells_of_an_older_version_get_their_rank(postgres_url: str) -> None:
    database = PostgresDatabase(postgres_url)
    queue = SqlQueue(database)
    try:
        await database.write(lambda db: upgrade(db, None, to="0003"))
        for name, number, priority in (("new", 0, 0), ("begun", 1, 0), ("urgent", 0, 3)):
            old = (
                "INSERT INTO doorbell (graph_exec_id, kind, enqueue_no, priority, taken, due_at)"
                f" VALUES ('{name}', 'run', {number}, {priority}, false, 0)"
            )
            await database.write(lambda db, old=old: db.execute(text(old)))
        assert await database.locked_write("migrations", migrate)
        assert await taken(queue, 5) == ["urgent", "begun", "new"]
    finally:
        await queue.close()
        await database.close()
