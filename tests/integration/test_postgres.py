"""Units, locks, logs, relays and hints on PostgreSQL, by several processes at once (each a database object)."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from datetime import UTC, datetime

import pytest
from sqlalchemy import Connection, text

from databases import postgres_database
from livetape.adapters.prometheus.metrics import PrometheusMetrics
from livetape.adapters.sql.executions import SqlExecutionStore
from livetape.adapters.sql.log import SqlEventLog
from livetape.adapters.sql.migrate import HEAD, upgrade
from livetape.adapters.sql.postgres.connect import check_url
from livetape.adapters.sql.postgres.database import PostgresDatabase, PostgresOptions, lock_number
from livetape.adapters.sql.postgres.hints import PostgresCancelHints
from livetape.adapters.sql.postgres.notices import Notices
from livetape.adapters.sql.postgres.upgrade import state_of
from livetape.adapters.sql.postgres.upgrade import upgrade as upgrade_server
from livetape.errors import (
    ClosedError,
    ConfigError,
    LeaseLostError,
    LockTimeoutError,
    NotFoundError,
    StoreError,
    StoreUnavailableError,
)
from livetape.events.log import NewEvent
from livetape.store.executions import Committed, NewExecution, Step
from postgres_server import PostgresServer

pytestmark = pytest.mark.needs("postgres")

Processes = Callable[[int], Awaitable[list[PostgresDatabase]]]


@pytest.fixture
async def processes(postgres_url: str) -> AsyncIterator[Processes]:
    """Database objects with connections of their own, as several processes have them."""
    async with AsyncExitStack() as stack:

        async def opened(number: int) -> list[PostgresDatabase]:
            options = PostgresOptions(patience_s=0.5)
            return [
                await stack.enter_async_context(postgres_database(postgres_url, options=options)) for _ in range(number)
            ]

        yield opened


def sql(statement: str) -> Callable[[Connection], object]:
    return lambda db: db.exec_driver_sql(statement)


def number(db: Connection) -> int:
    found: int = db.exec_driver_sql("SELECT n FROM counter").scalar_one()
    return found


def add_one(db: Connection) -> None:
    """Read, think, write: what loses updates where nobody looks after it."""
    db.execute(text("UPDATE counter SET n = :n"), {"n": number(db) + 1})


async def make_counter(database: PostgresDatabase) -> None:
    await database.write(sql("CREATE TABLE counter (n integer)"))
    await database.write(sql("INSERT INTO counter VALUES (0)"))


# ---- units ---------------------------------------------------------------------------------------------------------


async def test_no_update_is_lost(processes: Processes) -> None:
    databases = await processes(3)
    await make_counter(databases[0])
    await asyncio.gather(*(database.write(add_one) for database in databases for _ in range(8)))
    assert await databases[0].read(number) == 24


@pytest.mark.slow
async def test_units_that_block_each_other_are_both_written(processes: Processes) -> None:
    (database,) = await processes(1)
    await database.write(sql("CREATE TABLE pair (name text PRIMARY KEY, n integer)"))
    await database.write(sql("INSERT INTO pair VALUES ('a', 0), ('b', 0)"))

    def unit(names: str) -> Callable[[Connection], None]:
        def run(db: Connection) -> None:
            for name in names:
                db.execute(text("UPDATE pair SET n = n + 1 WHERE name = :name"), {"name": name})
                db.exec_driver_sql("SELECT pg_sleep(0.05)")

        return run

    await asyncio.gather(database.write(unit("ab")), database.write(unit("ba")))
    rows = await database.read(lambda db: db.exec_driver_sql("SELECT name, n FROM pair ORDER BY name").all())
    assert [tuple(row) for row in rows] == [("a", 2), ("b", 2)]


async def test_an_error_of_the_unit_rolls_it_back_and_is_not_tried_again(processes: Processes) -> None:
    (database,) = await processes(1)
    await make_counter(database)
    runs = 0

    def unit(db: Connection) -> None:
        nonlocal runs
        runs += 1
        add_one(db)
        raise NotFoundError("no")

    with pytest.raises(NotFoundError):
        await database.write(unit)
    with pytest.raises(StoreError, match="nowhere"):
        await database.write(sql("SELECT * FROM nowhere"))
    assert (runs, await database.read(number)) == (1, 0)


async def test_a_read_sees_one_state_and_writes_nothing(processes: Processes) -> None:
    one, other = await processes(2)
    await make_counter(one)
    began, go_on = asyncio.Event(), asyncio.Event()
    loop = asyncio.get_running_loop()

    def unit(db: Connection) -> tuple[int, int]:
        first = number(db)
        loop.call_soon_threadsafe(began.set)
        db.exec_driver_sql("SELECT pg_sleep(0.2)")
        return first, number(db)

    reading = asyncio.create_task(one.read(unit))
    await began.wait()
    await other.write(add_one)
    go_on.set()
    assert await reading == (0, 0)
    with pytest.raises(StoreUnavailableError, match="read-only"):
        await PostgresDatabase.read(one, add_one)


async def test_who_is_cancelled_takes_nothing_back(processes: Processes) -> None:
    (database,) = await processes(1)
    await make_counter(database)

    def slow(db: Connection) -> None:
        db.exec_driver_sql("SELECT pg_sleep(0.1)")
        add_one(db)

    task = asyncio.create_task(database.write(slow))
    await asyncio.sleep(0.03)
    task.cancel()
    await asyncio.wait([task])
    assert task.cancelled()
    await database.close()
    with pytest.raises(ClosedError):
        await database.read(number)
    (again,) = await processes(1)
    assert await again.read(number) == 1


async def test_a_statement_and_a_unit_have_an_end(postgres_url: str) -> None:
    options = PostgresOptions(statement_s=0.2, unit_s=1)
    async with postgres_database(postgres_url, options=options) as database:
        with pytest.raises(StoreUnavailableError, match="statement timeout"):
            await database.write(sql("SELECT pg_sleep(5)"))
        assert await database.read(database.now) is not None


async def test_the_clock_is_the_servers(processes: Processes) -> None:
    (database,) = await processes(1)
    moment = await database.write(database.now)
    assert moment.tzinfo is not None
    assert abs(moment - datetime.now(UTC)).total_seconds() < 5


async def test_an_urgent_write_has_a_connection_of_its_own(postgres_url: str) -> None:
    async with postgres_database(postgres_url, options=PostgresOptions(pool=1)) as database:
        await make_counter(database)
        busy = asyncio.create_task(database.write(sql("SELECT pg_sleep(2)")))
        await asyncio.sleep(0.1)
        begun = time.monotonic()
        database.write_now(add_one)  # this thread's loop stands still meanwhile
        assert time.monotonic() - begun < 1.5
        await busy
        assert await database.read(number) == 1


@pytest.mark.parametrize("url", ["sqlite:///a.db", "postgresql://h", "postgresql://h/", "mysql://h/db", "x"])
def test_other_urls_are_refused(url: str) -> None:
    with pytest.raises(ConfigError):
        check_url(url)


# ---- locks ---------------------------------------------------------------------------------------------------------


async def test_a_locked_write_is_alone_and_sees_what_the_one_before_wrote(processes: Processes) -> None:
    databases = await processes(3)
    await make_counter(databases[0])
    runs = 0

    def unit(db: Connection) -> None:
        nonlocal runs
        runs += 1
        add_one(db)

    await asyncio.gather(*(database.locked_write("k", unit) for database in databases for _ in range(5)))
    assert (await databases[0].read(number), runs) == (15, 15), "none had to be run again"


async def test_a_lock_is_waited_for_so_long_and_given_back_after_an_error(processes: Processes) -> None:
    one, other = await processes(2)

    def fail(db: Connection) -> None:
        db.exec_driver_sql("SELECT pg_sleep(1.5)")
        raise NotFoundError("no")

    holding = asyncio.create_task(one.locked_write("k", fail))
    await asyncio.sleep(0.2)
    for impatient in (one, other):
        with pytest.raises(LockTimeoutError):
            await impatient.locked_write("k", one.now, within_s=0.1)
    await other.locked_write("another", one.now, within_s=10)
    with pytest.raises(NotFoundError):
        await holding
    await other.locked_write("k", other.now, within_s=10)


def test_locks_have_the_same_number_for_ever() -> None:
    assert lock_number("livetape:migrations") == -1170027657096626191
    assert lock_number("a") != lock_number("b")


# ---- numbers -------------------------------------------------------------------------------------------------------


async def test_appends_of_many_connections_are_numbered_without_gap(processes: Processes) -> None:
    logs = [SqlEventLog(database) for database in await processes(4)]
    calls = [log.append("t", NewEvent("e", b"%d" % n), idempotency_key=f"{n % 40}") for log in logs for n in range(50)]
    positions = await asyncio.gather(*calls)
    assert {position.offset for position in positions} == set(range(1, 41))
    assert len({position.epoch for position in positions}) == 1
    entries = await logs[0].read("t")
    assert [entry.offset for entry in entries] == list(range(1, 41))
    assert len({int(entry.payload) % 40 for entry in entries}) == 40


@pytest.mark.slow
async def test_an_execution_is_numbered_without_gap_whoever_writes(processes: Processes) -> None:
    """One worker commits steps, another claims it away, users stop it, every process sweeps: 1..n, and n is the row."""
    committed: list[Committed] = []
    stores = [
        SqlExecutionStore(database, on_commit=committed.append, ring=lambda: None) for database in await processes(4)
    ]
    log = SqlEventLog((await processes(1))[0])
    now = datetime.now(UTC)
    ids = [f"e{n}" for n in range(4)]
    for name in ids:
        await stores[0].start(NewExecution(name, "u", "g", 1, b"{}", now, "epoch"))

    async def work(store: SqlExecutionStore, name: str, owner: str) -> int:
        row = await store.claim(name, owner=owner, lease_seconds=60)
        if row is None:
            return 0
        written = 0
        for step in range(12):
            events = [NewEvent("node_output_event", b'{"step":%d}' % step) for _ in range(3)]
            try:
                await store.commit(Step(name, row.lease_no, events=events), row)
            except LeaseLostError:
                return written
            written += 1
        return written

    async def disturb(store: SqlExecutionStore, name: str) -> None:
        await asyncio.sleep(0.02)
        await store.request_cancel(name, user_id="u")
        await store.recover(expired_before=now)

    done = await asyncio.gather(
        *(work(store, name, f"w{place}") for place, store in enumerate(stores) for name in ids),
        *(disturb(store, name) for store in stores for name in ids),
    )
    assert sum(written or 0 for written in done) > 0
    for name in ids:
        entries = await log.read(f"execution_events:{name}")
        told = [c.first + i for c in committed if c.execution_id == name for i in range(len(c.events))]
        assert [entry.offset for entry in entries] == list(range(1, len(entries) + 1)) == sorted(told)
        tape = await log.describe(f"execution_events:{name}")
        assert tape is not None
        assert tape.offset == len(entries)


# ---- hints ---------------------------------------------------------------------------------------------------------


async def test_a_hint_that_cannot_be_followed_is_counted_and_the_next_one_heard(
    processes: Processes, postgres_url: str
) -> None:
    (database,), notices, metrics = await processes(1), Notices(postgres_url), PrometheusMetrics("t")
    hints, heard, ready = PostgresCancelHints(database, notices, metrics=metrics), asyncio.Queue[str](), asyncio.Event()

    def follow(name: str) -> None:
        heard.put_nowait(name)
        raise TypeError(name)

    tasks = [asyncio.create_task(work) for work in (notices.run(), hints.listen(follow, ready))]
    try:
        await ready.wait()
        for name in ("e1", "e2"):
            await hints.send(name)
            async with asyncio.timeout(10):
                assert await heard.get() == name
        assert b't_internal_errors_total{part="hints"} 2.0' in metrics.render()[0]
    finally:
        await hints.close()
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)


async def test_hints_reach_every_process_and_outlive_its_connection(
    processes: Processes, postgres_url: str, postgres_server: PostgresServer
) -> None:
    databases = await processes(2)
    heard: list[list[str]] = [[], []]
    notices = [Notices(postgres_url) for _ in databases]
    hints = [PostgresCancelHints(*pair) for pair in zip(databases, notices, strict=True)]
    tasks = [asyncio.create_task(one.run()) for one in notices]
    for hint, words in zip(hints, heard, strict=True):
        ready = asyncio.Event()
        tasks.append(asyncio.create_task(hint.listen(words.append, ready)))
        await ready.wait()

    async def until_all_heard(name: str) -> None:
        async with asyncio.timeout(10):
            while not all(name in words for words in heard):
                await asyncio.sleep(0.02)

    try:
        await hints[0].send("e1")
        await until_all_heard("e1")
        postgres_server.end_sessions(postgres_url.rpartition("/")[2])
        async with asyncio.timeout(10):
            while not all(name.is_listening for name in notices) or not all(heard):
                await asyncio.sleep(0.02)
        await asyncio.sleep(0.3)
        await hints[1].send("e2")
        await until_all_heard("e2")
    finally:
        for hint in hints:
            await hint.close()
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)


# ---- migrations ----------------------------------------------------------------------------------------------------

CATALOGUE = (
    "SELECT table_name, column_name, data_type, is_nullable, column_default FROM information_schema.columns"
    " WHERE table_schema = 'public' ORDER BY 1, 2",
    "SELECT indexname, indexdef FROM pg_indexes WHERE schemaname = 'public' AND tablename <> 'alembic_version'"
    " ORDER BY 1",
)


def catalogue(db: Connection) -> list[list[tuple[object, ...]]]:
    return [[tuple(row) for row in db.exec_driver_sql(query).all()] for query in CATALOGUE]


@pytest.mark.slow
async def test_migrations_and_tables_are_one(postgres_server: PostgresServer) -> None:
    migrated, made = postgres_server.new_database(), postgres_server.new_database()
    first = PostgresDatabase(migrated)
    try:
        await first.write(lambda db: upgrade(db, None))
        async with postgres_database(made) as second:
            found, expected = await first.read(catalogue), await second.read(catalogue)
    finally:
        await first.close()
    assert found[1] == expected[1]
    version = ("alembic_version", "version_num")
    assert [row for row in found[0] if row[:2] != version] == [row for row in expected[0] if row[:2] != version]
    assert any("WHERE" in str(row[1]) for row in found[1]), "partial indexes are partial"


async def test_of_many_that_upgrade_at_once_one_does(postgres_url: str) -> None:
    assert (await state_of(postgres_url)).revision is None
    assert sorted(await asyncio.gather(*(upgrade_server(postgres_url) for _ in range(4)))) == [
        False,
        False,
        False,
        True,
    ]
    assert (await state_of(postgres_url)).revision == HEAD


async def test_a_newer_database_is_refused(postgres_url: str) -> None:
    async with postgres_database(postgres_url) as database:
        await database.write(sql("UPDATE alembic_version SET version_num = '9999'"))
    with pytest.raises(StoreError, match="newer"):
        await upgrade_server(postgres_url)
