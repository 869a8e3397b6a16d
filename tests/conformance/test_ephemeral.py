"""The ephemeral stores keep the contract, and the suite notices every store that does not."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from databases import postgres_database, sqlite_database
from livetape.adapters.memory.ephemeral import MemoryEphemeral
from livetape.adapters.redis.dial import Dialer
from livetape.adapters.redis.endpoint import Endpoint
from livetape.adapters.redis.ephemeral import RedisEphemeral
from livetape.adapters.redis.locate import locator_of
from livetape.adapters.redis.pipeline import PipelinedCommands
from livetape.adapters.sql.ephemeral import SqlEphemeral
from livetape.adapters.sqlite.ephemeral import SWEEP_EVERY_US, SqliteEphemeral, create_ephemeral_schema
from livetape.adapters.sqlite.readers import Readers
from livetape.adapters.sqlite.writer import Durability, Writer
from livetape.clock import Clock
from livetape.errors import ClosedError, StoreUnavailableError
from livetape.store.ephemeral import Ephemeral
from livetape.testing.broken_ephemeral import BROKEN_EPHEMERALS, SoftEphemeral
from livetape.testing.conformance.ephemeral import EphemeralSuite
from livetape.testing.conformance.runner import cases, run_suite
from livetape.testing.fakes import ManualClock


class TestMemoryEphemeral(EphemeralSuite):
    async def wait(self, seconds: float) -> None:
        self.clock.advance(seconds)

    @pytest.fixture
    def ephemeral(self) -> Ephemeral:
        self.clock = ManualClock()
        return MemoryEphemeral(clock=self.clock)


class TestRedisEphemeral(EphemeralSuite):
    @pytest.fixture
    async def ephemeral(self, redis_url: str) -> AsyncIterator[Ephemeral]:
        commands = commands_of(redis_url)
        yield RedisEphemeral(commands)
        await commands.close()


class TestSqliteEphemeral(EphemeralSuite):
    async def wait(self, seconds: float) -> None:
        self.clock.advance(seconds)

    @pytest.fixture
    async def ephemeral(self, tmp_path: Path) -> AsyncIterator[Ephemeral]:
        self.clock = ManualClock()
        async with in_file(tmp_path / "a.db", self.clock) as ephemeral:
            yield ephemeral


class TestSqliteEphemeralThatWaitsForTheDisk(TestSqliteEphemeral):
    @pytest.fixture
    async def ephemeral(self, tmp_path: Path) -> AsyncIterator[Ephemeral]:
        self.clock = ManualClock()
        async with in_file(tmp_path / "a.db", self.clock, durability="FULL") as ephemeral:
            yield ephemeral


class TestSqlEphemeralOnSqlite(TestSqliteEphemeral):
    @pytest.fixture
    async def ephemeral(self, tmp_path: Path) -> AsyncIterator[Ephemeral]:
        self.clock = ManualClock()
        async with sqlite_database(tmp_path / "a.db", clock=self.clock) as database:
            yield SqlEphemeral(database)


@pytest.mark.needs("postgres")
class TestPostgresEphemeral(TestSqliteEphemeral):
    @pytest.fixture
    async def ephemeral(self, postgres_url: str) -> AsyncIterator[Ephemeral]:
        self.clock = ManualClock()
        async with postgres_database(postgres_url) as database:
            yield SqlEphemeral(database, clock=self.clock)


@asynccontextmanager
async def in_file(
    path: Path, clock: Clock | None = None, *, durability: Durability = "NORMAL"
) -> AsyncIterator[SqliteEphemeral]:
    writer, readers = Writer(path, durability=durability, prepare=create_ephemeral_schema), Readers(path)
    try:
        yield SqliteEphemeral(writer, readers, clock=clock)
    finally:
        readers.close()
        writer.close()


def commands_of(url: str) -> PipelinedCommands:
    endpoint = Endpoint.from_url(url)
    return PipelinedCommands(Dialer(endpoint, locator_of(endpoint)))


@asynccontextmanager
async def made(make: Callable[[], Ephemeral]) -> AsyncIterator[Ephemeral]:
    yield make()


@pytest.mark.parametrize(
    ("make", "case"), BROKEN_EPHEMERALS.items(), ids=lambda value: getattr(value, "__name__", "in")
)
async def test_a_broken_store_fails(make: Callable[[], Ephemeral], case: str) -> None:
    failures = await run_suite(EphemeralSuite, lambda: made(make), only=[case])
    assert [failure.case for failure in failures] == [case]


async def test_the_broken_stores_are_broken_in_nothing_else() -> None:
    assert await run_suite(EphemeralSuite, lambda: made(SoftEphemeral)) == []


def test_every_case_is_failed_by_some_broken_store() -> None:
    assert set(cases(EphemeralSuite)) == set(BROKEN_EPHEMERALS.values())


async def test_the_memory_store_is_bounded_and_drops_what_ends_first() -> None:
    store = MemoryEphemeral(clock=ManualClock(), max_entries=3)
    for number, ttl_s in enumerate((40, 10, 30, 20)):
        await store.put(f"k{number}", b"", ttl_s=ttl_s)
    assert [await store.get(f"k{number}") for number in range(4)] == [b"", None, b"", b""]
    for ttl_s in range(1, 50):  # setting one key again and again fills nothing
        await store.put("k0", b"again", ttl_s=ttl_s)
    assert await store.get("k0") == b"again"
    await store.close()
    with pytest.raises(ClosedError):
        await store.get("k0")


async def test_what_is_in_a_file_outlives_the_process_but_not_its_time(tmp_path: Path) -> None:
    clock = ManualClock()
    async with in_file(tmp_path / "a.db", clock) as store:
        await store.put("short", b"1", ttl_s=10)
        await store.put("long", b"2", ttl_s=100)
        assert await store.incr("counter", ttl_s=100) == 1
    clock.advance(50)  # while nothing runs
    async with in_file(tmp_path / "a.db", clock) as store:
        assert [await store.get(key) for key in ("short", "long")] == [None, b"2"]
        assert await store.incr("counter", ttl_s=100) == 2
        clock.advance(50)
        assert await store.take("long") is None
        assert await store.incr("counter", ttl_s=100) == 1, "counting did not prolong it"


async def test_of_two_processes_on_a_file_one_takes_it(tmp_path: Path) -> None:
    path = tmp_path / "a.db"
    async with in_file(path) as one, in_file(path) as two:
        for _ in range(20):
            await one.put("k", b"v", ttl_s=60)
            got = await asyncio.gather(*(store.take("k") for store in (one, two, one, two)))
            assert sorted(got, key=bool) == [None, None, None, b"v"]
        put = await asyncio.gather(one.put_once("k", b"", ttl_s=60), two.put_once("k", b"", ttl_s=60))
        assert sorted(put) == [False, True]


async def test_rows_of_what_has_ended_are_removed(tmp_path: Path) -> None:
    clock, path = ManualClock(), tmp_path / "a.db"
    async with in_file(path, clock) as store:
        for number in range(30):
            await store.put(f"k{number}", b"", ttl_s=1)
        clock.advance(SWEEP_EVERY_US / 1_000_000 + 1)
        await store.put("new", b"", ttl_s=1)
        assert await store._readers.run(lambda db: db.execute("SELECT key FROM ephemeral").fetchall()) == [("new",)]


async def test_a_file_that_cannot_be_used_says_so(tmp_path: Path) -> None:
    (tmp_path / "a.db").write_bytes(b"this is no database" * 100)
    async with in_file(tmp_path / "a.db") as store:
        with pytest.raises(StoreUnavailableError):
            await store.put("k", b"", ttl_s=1)
        with pytest.raises(StoreUnavailableError):
            await store.get("k")
    with pytest.raises(ClosedError):
        await store.take("k")
