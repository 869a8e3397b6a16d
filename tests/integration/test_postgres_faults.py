"""PostgreSQL restarted, killed, away, read-only or cut off in the middle: what is written, said and done then."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import asyncpg
import pytest
from sqlalchemy import BigInteger, Column, Connection, MetaData, Table, text
from sqlalchemy import insert as insert_of
from sqlalchemy.exc import DBAPIError

import support
from chaos.proxy import Proxy
from databases import postgres_database
from livetape.adapters.sql.migrate import HEAD, migrate
from livetape.adapters.sql.postgres.database import PostgresDatabase, PostgresOptions
from livetape.adapters.sql.postgres.failures import Fate, fate_of
from livetape.adapters.sql.postgres.upgrade import LOCK, state_of, upgrade
from livetape.adapters.sql.prepared import Prepared
from livetape.engine.graph import Graph, Link, Node
from livetape.errors import CommitUnknownError, StoreError, StoreUnavailableError
from livetape.events.channel import execution_tape
from livetape.events.executions import ExecutionStatus
from livetape.runtime import Engine, open_engine
from livetape.settings import EngineSettings, Settings
from postgres_server import PostgresServer

pytestmark = [pytest.mark.needs("postgres"), pytest.mark.slow, pytest.mark.heavy]

STORE_VALUE = "1ff065e9-88e8-4358-9d82-8dc91f622ba9"
WAIT_S = 60.0
WRITTEN = Table("written", MetaData(), Column("n", BigInteger))


def sql(statement: str, **values: object) -> Callable[[Connection], object]:
    return lambda db: db.execute(text(statement), values)


async def rows(database: PostgresDatabase) -> list[int]:
    return list(await database.read(lambda db: db.execute(text("SELECT n FROM written ORDER BY n")).scalars().all()))


class Writers:
    """Write numbers until told to stop, each once, and remember what was said to each."""

    def __init__(self, database: PostgresDatabase) -> None:
        self._database = database
        self._next = 0
        self.acknowledged: list[int] = []
        self.unknown: list[int] = []
        self.refused: list[int] = []
        self.stopped = False

    async def write(self) -> None:
        while not self.stopped:
            self._next += 1
            n = self._next
            try:
                await self._database.write(sql("INSERT INTO written VALUES (:n)", n=n))
            except CommitUnknownError:
                self.unknown.append(n)
            except StoreUnavailableError:
                self.refused.append(n)
            else:
                self.acknowledged.append(n)

    async def check(self) -> None:
        found = await rows(self._database)
        assert len(found) == len(set(found)), "nothing was written twice"
        assert set(self.acknowledged) <= set(found), "what was acknowledged is there"
        assert not set(self.refused) & set(found), "what was refused is not"
        assert set(found) <= set(self.acknowledged) | set(self.unknown)


@pytest.mark.parametrize("how", ["restart", "immediate", "kill"])
async def test_writes_go_on_over_a_restart(own_postgres: PostgresServer, how: str) -> None:
    async with postgres_database(own_postgres.url()) as database:
        await database.write(sql("CREATE TABLE written (n integer)"))
        writers = Writers(database)
        tasks = [asyncio.create_task(writers.write()) for _ in range(5)]
        for _ in range(3):
            async with asyncio.timeout(20):
                while len(writers.acknowledged) < 50:
                    await asyncio.sleep(0.01)
            before = len(writers.acknowledged)
            if how == "kill":
                await asyncio.to_thread(own_postgres.kill)
            else:
                await asyncio.to_thread(own_postgres.stop, immediate=how == "immediate")
            await asyncio.to_thread(own_postgres.start)
            async with asyncio.timeout(20):
                while len(writers.acknowledged) < before + 20:
                    await asyncio.sleep(0.02)
        writers.stopped = True
        await asyncio.gather(*tasks)
        await writers.check()


async def test_a_server_that_is_away_is_said_to_be_and_comes_back(own_postgres: PostgresServer) -> None:
    options = PostgresOptions(patience_s=0.5)
    async with postgres_database(own_postgres.url(), options=options) as database:
        own_postgres.stop()
        begun = time.monotonic()
        with pytest.raises(StoreUnavailableError) as error:
            await database.write(database.now)
        assert not isinstance(error.value, CommitUnknownError)
        assert 0.3 < time.monotonic() - begun < 5
        with pytest.raises(StoreUnavailableError):
            await asyncio.to_thread(database.write_now, database.now)
        own_postgres.start()
        await database.write(database.now)
        await asyncio.to_thread(database.write_now, database.now)


async def test_a_server_that_answers_nothing_is_given_up(own_postgres: PostgresServer) -> None:
    options = PostgresOptions(patience_s=0.2, unit_s=1, connect_s=1, urgent_s=1)
    async with postgres_database(own_postgres.url(), options=options) as database:
        await asyncio.to_thread(database.write_now, database.now)
        own_postgres.pause()
        try:
            begun = time.monotonic()
            with pytest.raises(StoreUnavailableError):
                await database.read(database.now)
            with pytest.raises(StoreUnavailableError):
                await asyncio.to_thread(database.write_now, database.now)
            assert time.monotonic() - begun < 15
        finally:
            own_postgres.resume()
        async with asyncio.timeout(20):
            await database.read(database.now)
            await asyncio.to_thread(database.write_now, database.now)


async def test_a_server_that_takes_no_writes_is_read_and_written_again_later(own_postgres: PostgresServer) -> None:
    url = own_postgres.new_database()
    name = url.rpartition("/")[2]
    async with postgres_database(url, options=PostgresOptions(patience_s=0.3)) as database:
        await database.write(sql("CREATE TABLE written (n integer)"))
        own_postgres.sql(f"ALTER DATABASE {name} SET default_transaction_read_only = on")
        own_postgres.end_sessions(name)
        assert await rows(database) == []
        with pytest.raises(StoreUnavailableError, match="read-only"):
            await database.write(sql("INSERT INTO written VALUES (1)"))
        assert await rows(database) == []
        own_postgres.sql(f"ALTER DATABASE {name} RESET default_transaction_read_only")
        await database.write(sql("INSERT INTO written VALUES (2)"))
        assert await rows(database) == [2]


# ---- the moment of the commit --------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["unit", "many", "single"])
async def test_a_session_whose_end_was_said_but_not_seen_is_not_used_again(
    own_postgres: PostgresServer, path: str
) -> None:
    """The server says that it ends the session, and then ends it: in between the driver is in no state for anything."""
    insert = Prepared(insert_of(WRITTEN), ["n"])
    async with (
        Proxy(own_postgres.port, endless=True) as proxy,
        postgres_database(own_postgres.url(port=proxy.port)) as database,
    ):
        await database.write(sql("CREATE TABLE written (n bigint)"))

        async def write(first: int) -> None:
            if path == "unit":
                await database.write(sql("INSERT INTO written VALUES (:n), (:n + 1)", n=first))
            elif path == "many":
                await database.write(lambda db: insert.run(db, [{"n": first}, {"n": first + 1}]))
            else:
                await database.fetch("INSERT INTO written VALUES ($1::bigint), ($1::bigint + 1)", [first])

        for first in (0, 10, 20):
            async with asyncio.timeout(10):
                await write(first)
            own_postgres.end_sessions("postgres")
            await asyncio.sleep(0.1)  # what the server said has come
        assert await rows(database) == [0, 1, 10, 11, 20, 21]


async def test_a_driver_that_lost_its_place_is_a_server_that_is_away() -> None:
    error = asyncpg.InternalClientError("cannot switch to state 12; another operation (2) is in progress")
    assert fate_of(error) is Fate.AWAY
    assert fate_of(DBAPIError("INSERT", {}, error)) is Fate.AWAY


@asynccontextmanager
async def cut_at_commit(port: int, *, after_it_arrived: bool) -> AsyncIterator[tuple[int, asyncio.Event]]:
    """A way to the server that breaks at the next commit, once `armed`: before the server hears of it, or after."""
    armed = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        server_reader, server_writer = await asyncio.open_connection("127.0.0.1", port)

        async def back() -> None:
            while data := await server_reader.read(65536):
                writer.write(data)
                await writer.drain()
            writer.close()

        answers = asyncio.create_task(back())
        try:
            while data := await reader.read(65536):
                if armed.is_set() and b"COMMIT" in data:
                    armed.clear()
                    answers.cancel()
                    await asyncio.wait([answers])
                    if after_it_arrived:
                        server_writer.write(data)
                        await server_writer.drain()
                        await server_reader.read(65536)
                    return
                server_writer.write(data)
                await server_writer.drain()
        except ConnectionError:
            pass
        finally:
            answers.cancel()
            for one in (writer, server_writer):
                one.transport.abort()

    own = support.free_port()
    listener = await asyncio.start_server(serve, "127.0.0.1", own)
    try:
        yield own, armed
    finally:
        listener.close()


@pytest.mark.parametrize("arrived", [False, True])
async def test_a_connection_lost_at_the_commit_is_said_and_not_repeated(
    own_postgres: PostgresServer, arrived: bool
) -> None:
    url = own_postgres.url()
    async with postgres_database(url) as direct, cut_at_commit(own_postgres.port, after_it_arrived=arrived) as way:
        port, armed = way
        await direct.write(sql("CREATE TABLE written (n integer)"))
        async with postgres_database(own_postgres.url(port=port)) as database:
            await database.write(sql("INSERT INTO written VALUES (1)"))
            armed.set()
            with pytest.raises(CommitUnknownError):
                await database.write(sql("INSERT INTO written VALUES (2)"))
            assert await rows(direct) == ([1, 2] if arrived else [1])
            await database.write(sql("INSERT INTO written VALUES (3)"))


# ---- migrations ----------------------------------------------------------------------------------------------------


async def test_a_migration_that_dies_in_the_middle_leaves_nothing(own_postgres: PostgresServer) -> None:
    url = own_postgres.new_database()
    half = asyncio.Event()
    loop = asyncio.get_running_loop()

    def unit(db: Connection) -> None:
        migrate(db)
        loop.call_soon_threadsafe(half.set)
        db.execute(text("SELECT pg_sleep(30)"))

    dying = PostgresDatabase(url, options=PostgresOptions(patience_s=0))
    try:
        task = asyncio.create_task(dying.locked_write(LOCK, unit))
        await half.wait()
        waiting = asyncio.create_task(upgrade(url))
        async with asyncio.timeout(20):
            while own_postgres.sql("SELECT count(*) FROM pg_locks WHERE NOT granted") == "0":
                await asyncio.sleep(0.05)
        assert not waiting.done(), "one at a time"
        own_postgres.sql(
            "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE query LIKE '%pg_sleep%'"
            " AND pid <> pg_backend_pid()"
        )
        with pytest.raises(StoreError):
            await task
        assert await waiting is True
        assert (await state_of(url)).revision == HEAD
    finally:
        await dying.close()


# ---- the engine ----------------------------------------------------------------------------------------------------


def chain(length: int) -> Graph:
    nodes = [Node(id=f"n{i}", block_id=STORE_VALUE, input_default={"input": i}) for i in range(length)]
    links = [
        Link(source_id=f"n{i}", source_name="output", sink_id=f"n{i + 1}", sink_name="input") for i in range(length - 1)
    ]
    return Graph(name="chain", nodes=nodes, links=links)


async def completed(engine: Engine, execution_id: str) -> int:
    """Waits for the end; returns how many events there were, numbered without gap."""
    async with asyncio.timeout(WAIT_S):
        while True:
            try:
                row = await engine.store.get(execution_id)
            except StoreUnavailableError:
                pass
            else:
                if row.status.is_terminal:
                    break
            await asyncio.sleep(0.05)
    assert row.status is ExecutionStatus.COMPLETED, row.status_reason
    entries = []
    while more := await engine.tapes.read(execution_tape(execution_id), len(entries)):
        entries += more
    assert [entry.offset for entry in entries] == list(range(1, len(entries) + 1))
    assert entries[-1].final
    return len(entries)


@asynccontextmanager
async def engine_on(folder: Path, url: str) -> AsyncIterator[Engine]:
    quick = EngineSettings(lease_seconds=3, renew_seconds=1, sweep_seconds=0.5, cancel_grace_seconds=1)
    async with open_engine(Settings(data_dir=folder, database=url, engine=quick)) as engine:
        yield engine


@pytest.mark.parametrize("away_s", [0, 10])
async def test_executions_complete_although_the_database_goes_away(
    tmp_path: Path, own_postgres: PostgresServer, away_s: float
) -> None:
    async with engine_on(tmp_path, own_postgres.url()) as engine:
        graph = await engine.graphs.create("u", chain(60))
        started = [(await engine.executions.start("u", graph.id, None, {})).execution.id for _ in range(4)]
        async with asyncio.timeout(20):
            while len((await engine.executions.get("u", started[0])).node_executions) < 5:
                await asyncio.sleep(0.01)
        await asyncio.to_thread(own_postgres.stop)
        await asyncio.sleep(away_s)
        await asyncio.to_thread(own_postgres.start)
        for execution_id in started:
            assert await completed(engine, execution_id) > 60
        assert not engine.failed.done()
        again = (await engine.executions.start("u", graph.id, None, {})).execution.id
        await completed(engine, again)


async def test_two_engines_on_one_database_share_the_work(tmp_path: Path, own_postgres: PostgresServer) -> None:
    url = own_postgres.url()
    async with engine_on(tmp_path / "a", url) as one, engine_on(tmp_path / "b", url) as other:
        graph = await one.graphs.create("u", chain(10))
        started = [(await one.executions.start("u", graph.id, None, {})).execution.id for _ in range(30)]
        for execution_id in started:
            await completed(other, execution_id)
        for execution_id in started[:5]:
            assert (await other.executions.get("u", execution_id)).execution.status is ExecutionStatus.COMPLETED
