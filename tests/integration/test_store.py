"""The execution store on SQLite and PostgreSQL: state and events in one commit, leases, recovery, migrations."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from alembic.config import Config
from alembic.script import ScriptDirectory
from pydantic_core import from_json
from sqlalchemy import Connection

from databases import postgres_database, sqlite_database
from livetape.adapters.sql.database import Database, SqliteDatabase
from livetape.adapters.sql.executions import SqlExecutionStore
from livetape.adapters.sql.graphs import SqlGraphStore
from livetape.adapters.sql.leasing import RECOVERY_DELAYS_S
from livetape.adapters.sql.log import SqlEventLog
from livetape.adapters.sql.migrate import HEAD, migrate, upgrade
from livetape.adapters.sql.queue import SqlQueue
from livetape.adapters.sql.relay import SqlTapeRelayStore
from livetape.adapters.sqlite.ephemeral import EPHEMERAL_SCHEMA, SqliteEphemeral
from livetape.adapters.sqlite.log import SCHEMA
from livetape.adapters.sqlite.readers import Readers
from livetape.adapters.sqlite.writer import Writer
from livetape.engine.queue import Doorbell
from livetape.errors import ConflictError, LeaseLostError, NotFoundError, StoreError
from livetape.events.executions import EXECUTION_EVENTS, ExecutionStatus, GraphExecutionEvent, NodeExecutionEvent
from livetape.store.execution_events import graph_event, node_event
from livetape.store.executions import (
    Committed,
    ExecutionChange,
    ExecutionRow,
    IdempotencyKey,
    NewExecution,
    NodeOutput,
    NodeRow,
    Step,
)
from livetape.store.graphs import GraphRow

START = datetime(2026, 5, 1, 12, 0, 0, 123456, tzinfo=UTC)


class ManualClock:
    def __init__(self) -> None:
        self.moment = START

    def now(self) -> datetime:
        return self.moment

    def monotonic(self) -> float:
        return (self.moment - START).total_seconds()

    def go(self, seconds: float) -> None:
        self.moment += timedelta(seconds=seconds)


class Stage:
    """A store with everything around it."""

    def __init__(self, database: Database, clock: ManualClock) -> None:
        self.clock = clock
        self.database = database
        self.committed: list[Committed] = []
        self.log = SqlEventLog(database, clock=clock)
        self.queue = SqlQueue(self.database, clock=self.clock)
        self.store = SqlExecutionStore(
            self.database, on_commit=self.committed.append, ring=self.queue.ring, clock=self.clock
        )
        self.graphs = SqlGraphStore(self.database)
        self.relay = SqlTapeRelayStore(self.database)

    async def start(self, name: str = "e1", key: IdempotencyKey | None = None, user: str = "u") -> ExecutionRow:
        new = NewExecution(name, user, "g", 1, b'{"n":1}', self.clock.now(), "epoch")
        return (await self.store.start(new, idempotency=key))[0]

    async def claim(self, name: str = "e1", owner: str = "w") -> ExecutionRow:
        row = await self.store.claim(name, owner=owner, lease_seconds=15)
        assert row is not None
        return row

    async def statuses(self, name: str = "e1") -> list[str]:
        entries = await self.log.read(f"execution_events:{name}")
        return [from_json(entry.payload)["status"] for entry in entries]

    async def agree(self, name: str = "e1") -> None:
        """Numbers without gap, everything told was committed, and the last graph event is the row."""
        entries = await self.log.read(f"execution_events:{name}")
        assert [entry.offset for entry in entries] == list(range(1, len(entries) + 1))
        told = [
            (c.first + i, event.payload)
            for c in self.committed
            if c.execution_id == name
            for i, event in enumerate(c.events)
        ]
        assert told == [(entry.offset, entry.payload) for entry in entries]
        last = [entry for entry in entries if entry.event_type == "graph_execution_update"][-1]
        event = EXECUTION_EVENTS.validate_json(last.payload)
        assert isinstance(event, GraphExecutionEvent)
        row = await self.store.get(name)
        assert (event.status, event.status_reason, event.started_at, event.ended_at) == (
            row.status,
            row.status_reason,
            row.started_at,
            row.ended_at,
        )
        assert last.final == row.status.is_terminal


@pytest.fixture(params=["sqlite", pytest.param("postgres", marks=pytest.mark.needs("postgres"))])
async def stage(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Stage]:
    clock = ManualClock()
    if request.param == "sqlite":
        async with sqlite_database(tmp_path / "a.db", clock=clock) as database:
            yield Stage(database, clock)
    else:
        async with postgres_database(request.getfixturevalue("postgres_url"), clock=clock) as database:
            yield Stage(database, clock)


def node(seq: int, status: ExecutionStatus, **more: object) -> NodeRow:
    fixed = {"id": f"n{seq}", "seq": seq, "node_id": "node", "block_id": "block", "status": status}
    times = {"add_time": START, "queue_time": None, "start_time": None, "end_time": None}
    return NodeRow(**(fixed | times | {"status_reason": None, "inputs": b"{}", "output_name": None} | more))


# ---- starting ------------------------------------------------------------------------------------------------------


async def test_a_start_is_queued_told_and_rung(stage: Stage) -> None:
    row = await stage.start()
    assert row.status is ExecutionStatus.QUEUED
    assert await stage.store.get("e1") == row
    assert [d.doorbell.graph_exec_id for d in await stage.queue.take(5)] == ["e1"]
    tape = await stage.log.describe("execution_events:e1")
    assert tape is not None
    assert (tape.owner, tape.channel, tape.graph_id, tape.epoch) == ("u", "execution_event/u/g/e1", "g", "epoch")
    await stage.agree()


async def test_one_key_is_one_execution_even_at_once(stage: Stage) -> None:
    key = IdempotencyKey("k", "body")
    rows = await asyncio.gather(*(stage.start(f"e{n}", key) for n in range(20)))
    assert len({row.id for row in rows}) == 1
    assert (await stage.store.list("u"))[1] == 1
    assert await stage.queue.depth() == 1


async def test_a_key_with_another_body_is_a_conflict_and_belongs_to_its_user(stage: Stage) -> None:
    await stage.start("e1", IdempotencyKey("k", "body"))
    with pytest.raises(ConflictError):
        await stage.start("e2", IdempotencyKey("k", "other"))
    with pytest.raises(NotFoundError):
        await stage.store.get("e2")
    assert (await stage.start("e3", IdempotencyKey("k", "other"), user="v")).id == "e3"


async def test_a_key_is_forgotten_after_a_day(stage: Stage) -> None:
    await stage.start("e1", IdempotencyKey("k", "body"))
    stage.clock.go(24 * 3600 + 1)
    assert (await stage.start("e2", IdempotencyKey("k", "other"))).id == "e2"


# ---- leases --------------------------------------------------------------------------------------------------------


async def test_only_one_claim_wins(stage: Stage) -> None:
    await stage.start()
    rows = await asyncio.gather(*(stage.store.claim("e1", owner=f"w{n}", lease_seconds=15) for n in range(10)))
    assert sum(row is not None for row in rows) == 1
    assert (await stage.store.get("e1")).lease_no == 1
    await stage.agree()


async def test_a_fenced_worker_writes_nothing(stage: Stage) -> None:
    await stage.start()
    old = await stage.claim(owner="old")
    stage.clock.go(16)
    assert await stage.store.recover(expired_before=stage.clock.now()) == ["e1"]
    step = Step("e1", old.lease_no, created=[node(1, ExecutionStatus.RUNNING)], events=[graph_event(old)])
    with pytest.raises(LeaseLostError):
        await stage.store.commit(step, old)
    new = await stage.claim(owner="new")
    with pytest.raises(LeaseLostError):
        await stage.store.commit(step, old)
    with pytest.raises(LeaseLostError):
        await stage.store.hand_back("e1", lease_no=old.lease_no, reason="x")
    assert await stage.store.nodes("e1") == []
    await stage.store.commit(Step("e1", new.lease_no, created=[node(1, ExecutionStatus.RUNNING)]), new)
    assert len(await stage.store.nodes("e1")) == 1
    await stage.agree()


async def test_renewal_tells_what_is_still_held_and_what_to_cancel(stage: Stage) -> None:
    for name in ("e1", "e2", "e3"):
        await stage.start(name)
        await stage.claim(name)
    await stage.store.request_cancel("e2", user_id="u")
    stage.clock.go(10)
    held = await asyncio.to_thread(stage.store.renew, "w", {"e1": 1, "e2": 1}, 15)
    assert (held.held, held.cancelled) == (frozenset({"e1", "e2"}), frozenset({"e2"}))
    stage.clock.go(10)
    assert await stage.store.recover(expired_before=stage.clock.now()) == ["e3"], "it was not renewed"
    held = await asyncio.to_thread(stage.store.renew, "w", {"e1": 1, "e3": 1}, 15)
    assert held.held == {"e1"}


async def test_a_terminal_execution_never_changes(stage: Stage) -> None:
    await stage.start()
    row = await stage.claim()
    change = ExecutionChange(ExecutionStatus.COMPLETED, None, b"{}", ended_at=stage.clock.now())
    done = ExecutionRow(**{**_fields(row), "status": ExecutionStatus.COMPLETED, "ended_at": stage.clock.now()})
    await stage.store.commit(Step("e1", row.lease_no, change=change, events=[graph_event(done)]), row)
    await stage.agree()
    with pytest.raises(LeaseLostError):
        await stage.store.commit(Step("e1", row.lease_no, change=change, events=[graph_event(done)]), row)
    assert await stage.store.claim("e1", owner="x", lease_seconds=15) is None
    assert await stage.store.recover(expired_before=None) == []
    assert (await stage.store.request_cancel("e1", user_id="u")).status is ExecutionStatus.COMPLETED
    await stage.agree()


# ---- recovery ------------------------------------------------------------------------------------------------------


async def test_lost_executions_wait_longer_each_time_and_are_poison_in_the_end(stage: Stage) -> None:
    await stage.start()
    for delivery in await stage.queue.take(5):
        await stage.queue.ack(delivery)
    for delay in RECOVERY_DELAYS_S:
        await stage.claim()
        assert await stage.store.recover(expired_before=None) == ["e1"]
        row = await stage.store.get("e1")
        assert (row.status, row.status_reason) == (ExecutionStatus.QUEUED, "worker_lost")
        if delay:
            stage.clock.go(delay - 0.5)
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.05):
                    await stage.queue.take(5)
            stage.clock.go(0.6)
        async with asyncio.timeout(5):
            (delivery,) = await stage.queue.take(5)
        await stage.queue.ack(delivery)
    await stage.claim()
    await stage.store.recover(expired_before=None)
    row = await stage.store.get("e1")
    assert (row.status, row.status_reason) == (ExecutionStatus.FAILED, "poison")
    await stage.agree()


async def test_progress_sets_the_count_of_recoveries_back(stage: Stage) -> None:
    await stage.start()
    for _ in range(12):
        row = await stage.claim()
        await stage.store.commit(Step("e1", row.lease_no, progressed=True), row)
        await stage.store.recover(expired_before=None)
    assert (await stage.store.get("e1")).status is ExecutionStatus.QUEUED


async def test_a_doorbell_that_a_dead_process_took_is_due_again_and_a_delayed_one_is_not(stage: Stage) -> None:
    await stage.start("e1")
    (taken,) = await stage.queue.take(5)
    await stage.queue.put(Doorbell("later"), delay_s=60)
    await stage.queue.void_takes()
    async with asyncio.timeout(5):
        assert [d.doorbell for d in await stage.queue.take(5)] == [taken.doorbell]


# ---- cancelling ----------------------------------------------------------------------------------------------------


async def test_what_is_queued_is_terminated_at_once(stage: Stage) -> None:
    await stage.start()
    row = await stage.store.request_cancel("e1", user_id="u")
    assert (row.status, row.status_reason) == (ExecutionStatus.TERMINATED, "cancelled_by_user")
    assert row.ended_at == stage.clock.now()
    await stage.agree()


async def test_a_running_one_is_told_of_the_wish_once(stage: Stage) -> None:
    await stage.start()
    await stage.claim()
    for _ in range(3):
        row = await stage.store.request_cancel("e1", user_id="u")
        assert (row.status, row.cancel_requested) == (ExecutionStatus.RUNNING, True)
    assert await stage.statuses() == ["QUEUED", "RUNNING", "RUNNING"]
    await stage.agree()
    await stage.store.recover(expired_before=None)
    assert (await stage.store.get("e1")).status is ExecutionStatus.TERMINATED, "the wish outlives the worker"
    await stage.agree()


async def test_terminating_an_interrupted_execution_ends_its_open_nodes(stage: Stage) -> None:
    await stage.start()
    row = await stage.claim()
    created = [node(1, ExecutionStatus.RUNNING, start_time=START), node(2, ExecutionStatus.INCOMPLETE)]
    outputs = [NodeOutput(1, 0, "out", b"5")]
    await stage.store.commit(Step("e1", row.lease_no, created=created, outputs=outputs), row)
    await stage.store.recover(expired_before=None)
    await stage.store.request_cancel("e1", user_id="u")
    nodes = await stage.store.nodes("e1")
    assert [n.status for n in nodes] == [ExecutionStatus.TERMINATED, ExecutionStatus.INCOMPLETE]
    last_node = [e for e in await stage.log.read("execution_events:e1") if e.event_type == "node_execution_update"][-1]
    event = EXECUTION_EVENTS.validate_json(last_node.payload)
    assert isinstance(event, NodeExecutionEvent)
    assert (event.status, event.output_data) == (ExecutionStatus.TERMINATED, {"out": [5]})
    await stage.agree()


async def test_somebody_elses_execution_is_not_found(stage: Stage) -> None:
    await stage.start()
    with pytest.raises(NotFoundError):
        await stage.store.request_cancel("e1", user_id="v")
    with pytest.raises(NotFoundError):
        await stage.store.get("e1", user_id="v")
    assert (await stage.store.list("v"))[1] == 0


# ---- the relay's place ---------------------------------------------------------------------------------------------


async def test_the_relays_place_moves_only_forward(stage: Stage) -> None:
    await stage.start()
    await stage.claim()
    (found,) = await stage.relay.unpublished()
    assert (found.tape, found.first, found.channel, found.execution_id) == (
        "execution_events:e1",
        1,
        "execution_event/u/g/e1",
        "e1",
    )
    await stage.relay.mark_published({"execution_events:e1": 2})
    await stage.relay.mark_published({"execution_events:e1": 1})
    assert await stage.relay.unpublished() == []


# ---- graphs --------------------------------------------------------------------------------------------------------


async def test_versions_are_added_and_one_is_active(stage: Stage) -> None:
    first = GraphRow("g", 1, "u", "name", "", True, b"{}", stage.clock.now())
    await stage.graphs.create(first)
    second = await stage.graphs.add_version(first)
    assert second.version == 2
    assert (await stage.graphs.get("u", "g")).version == 2
    await stage.graphs.set_active("u", "g", 1)
    assert (await stage.graphs.get("u", "g")).version == 1
    assert [row.version for row in await stage.graphs.versions("u", "g")] == [2, 1]
    assert [row.version for row in await stage.graphs.list("u")] == [1]
    with pytest.raises(NotFoundError):
        await stage.graphs.set_active("u", "g", 9)
    assert (await stage.graphs.get("u", "g")).version == 1, "a refused change changes nothing"
    with pytest.raises(ConflictError):
        await stage.graphs.create(first)
    for refused in (stage.graphs.get("v", "g"), stage.graphs.versions("v", "g"), stage.graphs.delete("v", "g")):
        with pytest.raises(NotFoundError):
            await refused
    assert await stage.graphs.delete("u", "g") == 2


# ---- events --------------------------------------------------------------------------------------------------------


async def test_events_have_the_fields_of_their_models_in_order(stage: Stage) -> None:
    row = await stage.start()
    told = graph_event(row, {"out": [1]}).payload
    event = EXECUTION_EVENTS.validate_json(told)
    assert event.model_dump_json(exclude={"stats"}).encode() == from_and_back(told, {"stats"})
    told = node_event(
        row,
        node_exec_id="n",
        node_id="node",
        block_id="block",
        status=ExecutionStatus.RUNNING,
        status_reason=None,
        inputs={"a": 1},
        outputs={"out": ["x"]},
        add_time=START,
        queue_time=START,
        start_time=START,
        end_time=None,
    ).payload
    assert EXECUTION_EVENTS.validate_json(told).model_dump_json().encode() == told


def from_and_back(payload: bytes, left_out: set[str]) -> bytes:
    from pydantic_core import to_json

    return to_json({key: value for key, value in from_json(payload).items() if key not in left_out})


# ---- schema --------------------------------------------------------------------------------------------------------


def described(path: Path) -> dict[str, list[tuple[object, ...]]]:
    with sqlite3.connect(path) as db:
        tables = [
            name
            for (name,) in db.execute("SELECT name FROM sqlite_master WHERE type = 'table' ORDER BY name")
            if name != "alembic_version" and not name.startswith("sqlite_")
        ]
        found: dict[str, list[tuple[object, ...]]] = {}
        for table in tables:
            found[table] = [tuple(row) for row in db.execute(f"PRAGMA table_info({table})")]
            ((without_rowid,),) = db.execute("SELECT wr FROM pragma_table_list WHERE name = ?", (table,))
            found[table].append(("without rowid", without_rowid))
            for _, index, unique, _, partial in sorted(db.execute(f"PRAGMA index_list({table})")):
                columns = [row[2] for row in db.execute(f"PRAGMA index_info({index})")]
                name = index if not index.startswith("sqlite_") else ""
                found[table].append((name, unique, partial, *columns))
            found[table] = sorted(found[table], key=repr)
    db.close()
    return found


async def test_migrations_the_tables_and_the_librarys_schema_are_one(tmp_path: Path) -> None:
    async with sqlite_database(tmp_path / "a.db"):
        pass
    writer, readers = Writer(tmp_path / "b.db"), Readers(tmp_path / "b.db")
    writer.open()
    database = SqliteDatabase(writer, readers)
    await database.write(lambda db: upgrade(db, None))
    assert await database.write(migrate) is False, "the migrations lead to the newest revision"
    readers.close()
    writer.close()
    migrated = described(tmp_path / "b.db")
    assert migrated == described(tmp_path / "a.db"), "an empty database gets the tables at once"
    with sqlite3.connect(tmp_path / "c.db") as db:
        db.executescript(SCHEMA + EPHEMERAL_SCHEMA)
    db.close()
    assert described(tmp_path / "c.db") == {name: migrated[name] for name in ("ephemeral", "event", "tape")}


async def test_a_database_of_the_first_version_gets_the_newer_tables(tmp_path: Path) -> None:
    def first(db: Connection) -> None:
        upgrade(db, None, to="0001")

    path = tmp_path / "old.db"
    writer, readers = Writer(path), Readers(path)
    writer.open()
    try:
        database = SqliteDatabase(writer, readers)
        await database.write(first)
        assert "ephemeral" not in described(path)
        assert await database.write(migrate)
        ephemeral = SqliteEphemeral(writer, readers)
        await ephemeral.put("k", b"v", ttl_s=60)
        assert await ephemeral.get("k") == b"v"
    finally:
        readers.close()
        writer.close()


def test_the_head_is_the_newest_migration() -> None:
    config = Config()
    config.set_main_option("script_location", "livetape.adapters.sql:migrations")
    config.set_main_option("path_separator", "os")
    assert ScriptDirectory.from_config(config).get_current_head() == HEAD


async def test_migrating_twice_does_nothing_and_a_newer_database_is_refused(stage: Stage) -> None:
    assert await stage.database.write(migrate) is False

    def make_newer(db: Connection) -> None:
        db.exec_driver_sql("UPDATE alembic_version SET version_num = '9999'")

    await stage.database.write(make_newer)
    with pytest.raises(StoreError, match="newer"):
        await stage.database.write(migrate)


def _fields(row: ExecutionRow) -> dict[str, object]:
    return {name: getattr(row, name) for name in ExecutionRow.__dataclass_fields__}
