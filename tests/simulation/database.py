"""The database that all simulated processes share: SQLite in memory, the production statements, and a witness.

Triggers report every changed row, so that what is judged is what the database did and not what somebody says about
it. A transaction happens at one moment of virtual time; the way there and back takes some.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final, NamedTuple, TypeVar, cast

from sqlalchemy import Connection, create_engine
from sqlalchemy.exc import DatabaseError
from sqlalchemy.pool import StaticPool

from livetape.adapters.sql.database import Database
from livetape.adapters.sql.tables import metadata
from livetape.errors import CommitUnknownError, StoreError, StoreUnavailableError
from simulation.host import Host
from simulation.threads import Town
from simulation.world import SimClock, State, micros

T = TypeVar("T")

WITNESSED: Final = {
    "execution": (
        "id",
        "status",
        "status_reason",
        "lease_owner",
        "lease_no",
        "lease_until",
        "cancel_requested",
        "due_at",
        "held",
        "started_at",
        "deadline_at",
        "queue_deadline_at",
        "graph_id",
        "parent_id",
        "forked_from",
    ),
    "node_execution": ("execution_id", "seq", "id", "status", "status_reason"),
    "node_output": ("execution_id", "seq", "position"),
    "event": ("tape_id", "number", "event_type", "payload", "final"),
    "tape": ("id", "name", "last_number", "fence"),
    "doorbell": ("id", "graph_exec_id", "taken"),
    "review": ("id", "execution_id", "node_exec_id", "seq", "status"),
    "queue_pause": ("name",),
    "key_value": ("user_id", "key"),
}
"""Columns that are reported, as they were and as they are."""


LOOKS: Final = {
    "paused": "queue_pause",
    "SqlExecutionStore.figures.<locals>.read": "execution",
    "SqlExecutionStore.reviews.<locals>.<lambda>": "review",
}
"""Reads that are made all the time, always with the same arguments, and whose result nothing but a change of this table
changes (ages in figures apart, which nobody judges)."""

TAKE: Final = "SqlQueue._take.<locals>.<lambda>"
FIND: Final = "SqlExecutionStore.sweep.<locals>.find"
_NEXT_FIND: Final = """
SELECT min(moment) FROM (
    SELECT lease_until AS moment FROM execution UNION ALL SELECT ring_at FROM execution
    UNION ALL SELECT deadline_at FROM execution UNION ALL SELECT deadline_at + :grace FROM execution
) WHERE moment >= :now
"""


class Change(NamedTuple):
    """One row that was inserted (`before` is None), updated or deleted (`after` is None): its witnessed columns."""

    table: str
    before: dict[str, Any] | None
    after: dict[str, Any] | None


@dataclass(frozen=True, slots=True)
class Commit:
    """A transaction that changed something. `of` and `lease_no` are what a lease holder said that it was writing."""

    at: float
    host: str
    operation: str
    of: str | None
    lease_no: int | None
    changes: list[Change]


class Saying(NamedTuple):
    """What a caller of the store is about to do, and for a lease holder under which lease."""

    operation: str = ""
    of: str | None = None
    lease_no: int | None = None


NOTHING: Final = Saying()
SAYING: Final[ContextVar[Saying]] = ContextVar("saying")


@contextmanager
def saying(operation: str, of: str | None = None, lease_no: int | None = None) -> Iterator[None]:
    """Units that are written meanwhile are for this."""
    before = SAYING.set(Saying(operation, of, lease_no))
    try:
        yield
    finally:
        SAYING.reset(before)


class Shelf:
    """The database itself. One is enough for many histories, one after the other. `grace_s` is that of
    sweeps. `remembers`: looks that would find the same again are not made, which is faster and changes nothing."""

    def __init__(self, grace_s: float = 25.0, *, remembers: bool = True) -> None:
        self._remembers = remembers
        self._grace_us = round(grace_s * 1_000_000)
        self._raw = sqlite3.connect(":memory:", isolation_level=None, check_same_thread=False)
        engine = create_engine(
            "sqlite://",
            creator=lambda: self._raw,
            poolclass=StaticPool,
            isolation_level="AUTOCOMMIT",
            pool_reset_on_return=None,
        )
        self.connection = engine.connect()
        metadata.create_all(self.connection)
        self._tables = [table.name for table in metadata.sorted_tables]
        self._changes: list[Change] = []
        self._looked: dict[str, Any] = {}
        self._nothing: dict[str, tuple[int | None, Any]] = {}
        """What a look found that found nothing, and until which moment it would find nothing again."""

        for table in WITNESSED:
            self._witness(table)

    def _witness(self, table: str) -> None:
        columns = WITNESSED[table]
        count = len(columns)

        def inserted(*values: Any) -> None:
            self._changes.append(Change(table, None, dict(zip(columns, values, strict=True))))

        def updated(*values: Any) -> None:
            before, after = dict(zip(columns, values, strict=False)), dict(zip(columns, values[count:], strict=True))
            self._changes.append(Change(table, before, after))

        def deleted(*values: Any) -> None:
            self._changes.append(Change(table, dict(zip(columns, values, strict=True)), None))

        old, new = (", ".join(f"{row}.{column}" for column in columns) for row in ("OLD", "NEW"))
        for verb, said, function, arguments in (
            ("INSERT", new, inserted, count),
            ("UPDATE", f"{old}, {new}", updated, 2 * count),
            ("DELETE", old, deleted, count),
        ):
            name = f"saw_{table}_{verb.lower()}"
            self._raw.create_function(name, arguments, function)
            self._raw.execute(
                f"CREATE TEMP TRIGGER {name} AFTER {verb} ON main.{table} BEGIN SELECT {name}({said}); END"
            )

    def clear(self) -> None:
        """Forget all rows."""
        if self._raw.in_transaction:
            self._raw.execute("ROLLBACK")
        for table in self._tables:
            self._raw.execute(f"DELETE FROM {table}")
        self._changes.clear()
        self._looked.clear()
        self._nothing.clear()

    def transact(
        self, unit: Callable[[Connection], T], at: float = 0.0, *, keep: bool = True
    ) -> tuple[T, list[Change]]:
        """Run it in a transaction of its own; `keep` False rolls it back."""
        self._changes.clear()
        self._raw.execute("BEGIN")
        try:
            result = self._take(unit, at) if self._remembers and unit.__qualname__ == TAKE else unit(self.connection)
        except BaseException:
            self._raw.execute("ROLLBACK")
            raise
        self._raw.execute("COMMIT" if keep else "ROLLBACK")
        changes = list(self._changes) if keep else []
        for change in changes:
            self._looked.pop(change.table, None)
            if change.table == "doorbell":
                self._nothing.pop(TAKE, None)
            elif change.table in {"execution", "queue_pause"}:
                self._nothing.pop(FIND, None)
        return result, changes

    def _take(self, unit: Callable[[Connection], Any], at: float) -> Any:
        """Doorbells that are due: most looks find none, and could not since the last one."""
        now = micros(at)
        if TAKE in self._nothing:
            until, _ = self._nothing[TAKE]
            if until is None:
                return [], None
            if now < until:
                return [], (until - now) / 1_000_000
        taken, wait_s = unit(self.connection)
        if not taken:
            self._nothing[TAKE] = (None if wait_s is None else now + round(wait_s * 1_000_000), None)
        return taken, wait_s

    def _find(self, unit: Callable[[Connection], Any], at: float) -> Any:
        """What a sweep has to look after: most find nothing, and could not since the last one."""
        now = micros(at)
        if FIND in self._nothing:
            until, nothing = self._nothing[FIND]
            if until is None or now < until:
                return nothing
        found = unit(self.connection)
        if not any(found):
            until = self._raw.execute(_NEXT_FIND, {"now": now, "grace": self._grace_us}).fetchone()[0]
            self._nothing[FIND] = (until, found)
        return found

    def read(self, unit: Callable[[Connection], T], at: float = 0.0) -> T:
        """Run it; it must not write. What `LOOKS` reads is read once for each state of its table."""
        if not self._remembers:
            return unit(self.connection)
        if unit.__qualname__ == FIND:
            return cast("T", self._find(unit, at))
        table = LOOKS.get(unit.__qualname__)
        if table is None:
            return unit(self.connection)
        if table not in self._looked:
            self._looked[table] = unit(self.connection)
        result: T = self._looked[table]
        return result

    def close(self) -> None:
        """Forget the database."""
        self.connection.close()
        self._raw.close()

    def rows(self, query: str, *parameters: Any) -> list[tuple[Any, ...]]:
        """For judging: straight from the tables."""
        return self._raw.execute(query, parameters).fetchall()


class SimDatabase(Database):
    """The database as one process reaches it."""

    def __init__(self, shelf: Shelf, host: Host, town: Town, witness: Callable[[Commit], None]) -> None:
        self._shelf = shelf
        self._host = host
        self._town = town
        self._witness = witness
        self._server = SimClock(host.world)

    def now(self, db: Connection | None = None) -> datetime:
        """The clock of the database server."""
        return self._server.now()

    async def write(self, unit: Callable[[Connection], T], *, brief: bool = False, read_committed: bool = False) -> T:
        said = SAYING.get(NOTHING)
        return await self._host.call("database", lambda: self._write(unit, said))

    async def locked_write(self, key: str, unit: Callable[[Connection], T], *, within_s: float = 30.0) -> T:
        return await self.write(unit)

    async def read(self, unit: Callable[[Connection], T]) -> T:
        return await self._host.call("database", lambda: self._read(unit))

    def write_now(self, unit: Callable[[Connection], T]) -> T:
        """From a simulated thread; the loop itself has it at once."""
        said = SAYING.get(NOTHING)
        thread = self._town.running
        if thread is None:
            return self._write(unit, said)
        world = self._host.world
        results: list[T] = []
        errors: list[Exception] = []

        def arrive() -> None:
            if self._host.state is State.DEAD:
                return
            try:
                self._host.reach("database")
                results.append(self._write(unit, said))
            except Exception as error:
                errors.append(error)
            world.at(world.now + self._host.latency(), thread, None)

        world.after(self._host.way("database"), arrive)
        thread.suspend()
        if errors:
            raise errors[0]
        return results[0]

    def _read(self, unit: Callable[[Connection], T]) -> T:
        try:
            return self._shelf.read(unit, self._host.world.now)
        except (sqlite3.Error, DatabaseError) as error:
            raise StoreError(f"the database failed: {error}") from error

    def _write(self, unit: Callable[[Connection], T], said: Saying) -> T:
        host = self._host
        name = said.operation or unit.__qualname__.partition(".<locals>")[0].rpartition(".")[2]
        mortal = host.mortal and host.state is not State.DEAD
        if mortal and host.faults.strikes("crash_before_commit"):
            host.crash(f"before the commit of {name}")
            raise StoreUnavailableError("the process is gone")
        keep = not (mortal and host.faults.strikes("crash_in_commit"))
        try:
            if host.faults.strikes("unit_run_again"):
                self._shelf.transact(unit, host.world.now, keep=False)
            result, changes = self._shelf.transact(unit, host.world.now, keep=keep)
        except (sqlite3.Error, DatabaseError) as error:
            raise StoreError(f"the database failed: {error}") from error
        if not keep:
            host.crash(f"in the commit of {name}")
            raise StoreUnavailableError("the process is gone")
        if changes:
            self._witness(Commit(host.world.now, host.name, name, said.of, said.lease_no, changes))
        if mortal and host.faults.strikes("crash_after_commit"):
            host.crash(f"after the commit of {name}")
        elif host.faults.strikes("commit_unknown"):
            raise CommitUnknownError("the connection was lost at the commit")
        return result
