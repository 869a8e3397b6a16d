"""The writer thread: group commit, units that fail alone, order, and its end."""

from __future__ import annotations

import asyncio
import sqlite3
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from livetape.adapters.sqlite.writer import Writer
from livetape.errors import ClosedError


@pytest.fixture
def writer(tmp_path: Path) -> Iterator[Writer]:
    writer = Writer(tmp_path / "w.db")
    writer.open()
    writer.submit(lambda db: db.execute("CREATE TABLE t (n INTEGER PRIMARY KEY)")).result()
    yield writer
    writer.close()


def put(number: int) -> object:
    def unit(db: sqlite3.Connection) -> int:
        db.execute("INSERT INTO t VALUES (?)", (number,))
        return number

    return unit


def numbers(path: Path) -> list[int]:
    with sqlite3.connect(path) as db:
        found = [n for (n,) in db.execute("SELECT n FROM t ORDER BY rowid")]
    db.close()
    return found


class Held:
    """Keeps the writer busy, so that what comes meanwhile waits and shares one commit."""

    def __init__(self, writer: Writer) -> None:
        self._let_go, started = threading.Event(), threading.Event()

        def unit(_: sqlite3.Connection) -> None:
            started.set()
            self._let_go.wait(10)

        self.done = writer.submit(unit)
        started.wait(10)

    def let_go(self) -> None:
        self._let_go.set()


def test_what_waits_shares_one_commit(writer: Writer) -> None:
    held, before = Held(writer), writer.commits
    futures = [writer.submit(put(n)) for n in range(100)]
    held.let_go()
    assert [future.result() for future in futures] == list(range(100))
    assert writer.commits - before == 2
    assert numbers(writer.path) == list(range(100))


def test_a_failing_unit_takes_nobody_with_it(writer: Writer) -> None:
    def half(db: sqlite3.Connection) -> None:
        db.execute("INSERT INTO t VALUES (50)")
        raise RuntimeError("after its first row")

    held = Held(writer)
    futures = [writer.submit(put(1)), writer.submit(half), writer.submit(put(1)), writer.submit(put(2))]
    held.let_go()
    assert futures[0].result() == 1
    with pytest.raises(RuntimeError, match="first row"):
        futures[1].result()
    with pytest.raises(sqlite3.IntegrityError):
        futures[2].result()
    assert futures[3].result() == 2
    assert numbers(writer.path) == [1, 2]


def test_a_unit_that_fails_alone_leaves_nothing_and_the_next_works(writer: Writer) -> None:
    def half(db: sqlite3.Connection) -> None:
        db.execute("INSERT INTO t VALUES (50)")
        raise RuntimeError

    with pytest.raises(RuntimeError):
        writer.submit(half).result()
    assert writer.submit(put(1)).result() == 1
    assert numbers(writer.path) == [1]


def test_urgent_units_go_first_and_the_others_keep_their_order(writer: Writer) -> None:
    held = Held(writer)
    futures = [writer.submit(put(n)) for n in (10, 11)] + [writer.submit(put(1), urgent=True)]
    order: list[int] = []
    for future in futures:
        future.add_done_callback(lambda done: order.append(done.result()))
    held.let_go()
    for future in futures:
        future.result()
    assert order == [1, 10, 11]


def test_closing_writes_what_waits_and_refuses_the_rest(writer: Writer) -> None:
    held = Held(writer)
    futures = [writer.submit(put(n)) for n in range(5)]
    closing = threading.Thread(target=writer.close)
    closing.start()
    held.let_go()
    closing.join(10)
    assert not closing.is_alive()
    assert [future.result() for future in futures] == list(range(5))
    with pytest.raises(ClosedError):
        writer.submit(put(9))
    writer.close()


def test_a_file_that_cannot_be_opened_is_said_at_once(tmp_path: Path) -> None:
    with pytest.raises(sqlite3.Error):
        Writer(tmp_path / "no folder" / "w.db").open()


async def test_a_cancelled_caller_does_not_take_its_unit_back(writer: Writer) -> None:
    held = Held(writer)
    waiting = asyncio.ensure_future(writer.run(put(1)))
    await asyncio.sleep(0)
    waiting.cancel()
    held.let_go()
    assert await writer.run(put(2)) == 2
    assert numbers(writer.path) == [1, 2]


async def test_a_full_disk_fails_all_and_nothing_is_half_there(writer: Writer) -> None:
    def limit(db: sqlite3.Connection) -> None:
        (pages,) = db.execute("PRAGMA page_count").fetchone()
        db.execute(f"PRAGMA max_page_count={pages}")

    await writer.run(limit)
    many = (
        "WITH RECURSIVE c(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM c WHERE n < 100000) INSERT INTO t SELECT n FROM c"
    )
    with pytest.raises(sqlite3.OperationalError, match="full"):
        await writer.run(lambda db: db.execute(many))
    assert numbers(writer.path) == []
    assert await writer.run(put(1)) == 1


# ---- brief units ---------------------------------------------------------------------------------------------------


def where(_: sqlite3.Connection) -> str:
    return threading.current_thread().name


async def test_a_brief_unit_runs_in_the_loop_when_nothing_is_being_written(writer: Writer) -> None:
    assert await writer.run(where, brief=True) == threading.current_thread().name
    assert await writer.run(where) == "livetape-sqlite-writer"


async def test_brief_units_of_one_tick_share_a_commit_and_fail_alone(writer: Writer) -> None:
    before = writer.commits
    results = await asyncio.gather(*(writer.run(put(n), brief=True) for n in (1, 2, 1, 3)), return_exceptions=True)
    assert [r for r in results if isinstance(r, int)] == [1, 2, 3]
    assert isinstance(results[2], sqlite3.IntegrityError)
    assert writer.commits - before == 1
    assert numbers(writer.path) == [1, 2, 3]


async def test_a_brief_unit_never_waits_in_the_loop(writer: Writer) -> None:
    held = Held(writer)
    waiting = asyncio.ensure_future(writer.run(where, brief=True))
    for _ in range(3):
        await asyncio.sleep(0)
    assert not waiting.done()
    held.let_go()
    assert await waiting == "livetape-sqlite-writer"


async def test_a_full_disk_fails_a_brief_unit_too(writer: Writer) -> None:
    (pages,) = await writer.run(lambda db: db.execute("PRAGMA page_count").fetchone())
    await writer.run(lambda db: db.execute(f"PRAGMA max_page_count={pages}"))
    big = (
        "INSERT INTO t SELECT value FROM json_each((SELECT '[' || group_concat(n) || ']' FROM (WITH RECURSIVE c(n) AS "
    )
    big += "(SELECT 1 UNION ALL SELECT n + 1 FROM c WHERE n < 20000) SELECT n FROM c)))"
    with pytest.raises(sqlite3.OperationalError, match="full"):
        await writer.run(lambda db: db.execute(big), brief=True)
    assert await writer.run(put(1), brief=True) == 1
    assert numbers(writer.path) == [1]


async def test_the_write_ahead_log_stays_small(writer: Writer) -> None:
    for number in range(3000):
        await writer.run(put(number), brief=True)
    await writer.run(where)
    log = writer.path.with_name(writer.path.name + "-wal")
    assert log.stat().st_size < 8 * 1024 * 1024


async def test_closing_writes_brief_units_that_wait(writer: Writer) -> None:
    waiting = asyncio.ensure_future(writer.run(put(1), brief=True))
    await asyncio.sleep(0)
    writer.close()
    assert await waiting == 1
    with pytest.raises(ClosedError):
        await writer.run(put(2), brief=True)
    assert numbers(writer.path) == [1]
