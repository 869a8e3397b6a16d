"""On PostgreSQL steps, starts, claims and doorbells are one statement: they leave the same rows as units of several."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import Connection, select, text

from livetape.adapters.sql.executions import SqlExecutionStore
from livetape.adapters.sql.migrate import migrate
from livetape.adapters.sql.postgres.database import PostgresDatabase
from livetape.adapters.sql.queue import SqlQueue
from livetape.adapters.sql.single import Single
from livetape.adapters.sql.tables import doorbell, event, execution, node_execution, node_output, tape
from livetape.errors import LeaseLostError
from livetape.events.executions import ExecutionStatus
from livetape.events.log import NewEvent
from livetape.store.executions import Committed, ExecutionChange, ExecutionRow, NewExecution, NodeOutput, NodeRow, Step
from postgres_server import PostgresServer

pytestmark = pytest.mark.needs("postgres")

NOW = datetime(2026, 5, 1, 12, 0, 0, 123456, tzinfo=UTC)
TABLES = (tape, event, execution, node_execution, node_output, doorbell)


class Standing:
    """A clock that stands."""

    def now(self) -> datetime:
        return NOW

    def monotonic(self) -> float:
        return 0.0


class InUnits(PostgresDatabase):
    """Knows no statements that stand for a transaction."""

    @property
    def single(self) -> Single | None:
        return None


def node(seq: int, status: ExecutionStatus, inputs: bytes = b"{}", **more: Any) -> NodeRow:
    return NodeRow(f"n{seq}", seq, f"node{seq}", "block", status, None, inputs, None, NOW, NOW, None, None, **more)


def told(words: str, *, final: bool = False) -> NewEvent:
    return NewEvent("graph_execution_update" if final else "node_execution_update", words.encode(), final)


def steps() -> list[Step]:
    running, done = ExecutionStatus.RUNNING, ExecutionStatus.COMPLETED
    first = Step("e1", 1, created=[node(1, running), node(2, ExecutionStatus.INCOMPLETE)], events=[told("a")])
    grown = node(2, ExecutionStatus.QUEUED, b'{"x":"\xc3\xa9"}')
    second = Step(
        "e1",
        1,
        progressed=True,
        created=[node(3, running, stats=b'{"cost":1}')],
        filled=[grown],
        touched=[node(1, done), grown],
        outputs=[NodeOutput(1, 0, "o", b"1"), NodeOutput(1, 1, "o", b"null")],
        events=[told("b"), told("c"), told("d")],
    )
    change = ExecutionChange(done, None, b'{"cost":7}', ended_at=NOW, cost=7)
    last = Step("e1", 1, touched=[node(2, done), node(3, done)], change=change, events=[told("e", final=True)])
    return [first, second, Step("e1", 1, filled=[node(2, ExecutionStatus.QUEUED, b'{"y":2}')]), last]


async def left(database: PostgresDatabase) -> tuple[dict[str, Any], list[Committed], int]:
    """Everything that a life of two executions leaves in the tables, what was told of it, and how often it rang."""
    committed: list[Committed] = []
    rung: list[None] = []
    store = SqlExecutionStore(database, on_commit=committed.append, ring=lambda: rung.append(None), clock=Standing())
    queue = SqlQueue(database, clock=Standing())
    await database.locked_write("migrations", migrate)
    for name in ("e1", "e2"):
        row, replayed = await store.start(NewExecution(name, "u", "g", 1, b"{}", NOW, "epoch", queue_seconds=5.0))
        assert not replayed
        assert row == await store.get(name)
    await database.write(lambda db: db.execute(text("UPDATE execution SET held = 'user' WHERE id = 'e2'")))
    first, second = await queue.take(5)
    await queue.ack(first)
    await queue.nack(second, delay_s=3)
    row = await store.claim("e1", owner="w", lease_seconds=15)
    assert row == await store.get("e1")
    assert row is not None
    assert await store.claim("e1", owner="x", lease_seconds=15) is None
    for step in steps():
        with pytest.raises(LeaseLostError):
            await store.commit(Step("e1", 2, events=[told("late")]), row)
        await store.commit(step, row)
    with pytest.raises(LeaseLostError):
        await store.commit(steps()[-1], row)
    await queue.close()

    def dump(db: Connection) -> dict[str, Any]:
        return {table.name: sorted((tuple(row) for row in db.execute(select(table))), key=repr) for table in TABLES}

    return await database.read(dump), committed, len(rung)


async def test_one_statement_leaves_what_a_unit_leaves(postgres_server: PostgresServer) -> None:
    seen = []
    for kind in (PostgresDatabase, InUnits):
        database = kind(postgres_server.new_database(), clock=Standing())
        try:
            seen.append(await left(database))
        finally:
            await database.close()
    assert seen[0] == seen[1]
    rows, _, rang = seen[0]
    assert [len(rows[table.name]) for table in TABLES] == [2, 8, 2, 3, 2, 2]
    assert rang == 3, "two starts, and the end let the one go that a limit kept back"


async def test_a_claim_that_others_were_faster_than_is_refused(postgres_server: PostgresServer) -> None:
    database = PostgresDatabase(postgres_server.new_database())
    try:
        await database.locked_write("migrations", migrate)
        store = SqlExecutionStore(database, on_commit=lambda _: None, ring=lambda: None)
        for number in range(10):
            name = f"e{number}"
            await store.start(NewExecution(name, "u", "g", 1, b"{}", datetime.now(UTC), "epoch"))
            claims: list[ExecutionRow | None] = await asyncio.gather(
                *(store.claim(name, owner=f"w{n}", lease_seconds=15) for n in range(6))
            )
            (mine,) = [row for row in claims if row is not None]
            assert mine == await store.get(name)
            assert mine.lease_until is not None
            assert mine.lease_until - datetime.now(UTC) < timedelta(seconds=16)
    finally:
        await database.close()
