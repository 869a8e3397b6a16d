"""Where store statements run: synchronous functions of a SQLAlchemy Core connection, inside one transaction.

On SQLite they run through the process's one writer, together with everything else that waits there (one commit for
all); reads have threads of their own. The same functions run on PostgreSQL through `AsyncConnection.run_sync`.
"""

from __future__ import annotations

import sqlite3
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from datetime import datetime
from typing import Literal, Protocol, TypeAlias, TypeVar

from sqlalchemy import Connection, create_engine
from sqlalchemy.exc import DatabaseError, OperationalError
from sqlalchemy.pool import StaticPool

from livetape.adapters.sql.single import Single
from livetape.clock import Clock, SystemClock
from livetape.errors import StoreError, StoreUnavailableError
from livetape.observability import Metrics, NoMetrics

T = TypeVar("T")

Operation: TypeAlias = Literal["read", "write", "locked", "single", "urgent"]


class Database(ABC):
    """Runs units of work: functions of a connection that do nothing but read and write there.

    A unit may be run several times until one run is committed, so it keeps nothing from an earlier run. What it reads
    and then writes was not changed by anybody in between. Cancelling the caller does not take a unit back.

    Writes raise:
        StoreUnavailableError: nothing of it was written.
        CommitUnknownError: nobody knows whether it was written. Never repeat such a unit as it is: read first, or let
            a lease or a doorbell bring the matter up again.

    `metrics` hear how long each took, until its commit and with all its waits.
    """

    def __init__(self, metrics: Metrics | None = None) -> None:
        self._metrics = metrics or NoMetrics()

    @contextmanager
    def timed(self, operation: Operation) -> Iterator[None]:
        """What is done inside is one such operation, whatever becomes of it."""
        began = time.perf_counter()
        try:
            yield
        finally:
            self._metrics.observe("database_query_duration_seconds", time.perf_counter() - began, operation=operation)

    @abstractmethod
    async def write(self, unit: Callable[[Connection], T], *, brief: bool = False, read_committed: bool = False) -> T:
        """Run it in a transaction; returns after the commit. An exception of the unit rolls it back.

        `brief`: it writes a few rows and reads next to nothing. SQLite may then do it in the event loop.
        `read_committed`: each statement sees what was committed before it, instead of all statements the same; for
        units of one conditional statement that many run at once on the same rows.
        """

    @abstractmethod
    async def locked_write(self, key: str, unit: Callable[[Connection], T], *, within_s: float = 30.0) -> T:
        """Like `write`, while no other process is in a `locked_write` with this key. The unit sees what they wrote.

        Raises:
            LockTimeoutError: others held the key all the time; the unit did not run.
        """

    @abstractmethod
    async def read(self, unit: Callable[[Connection], T]) -> T:
        """Run it on one consistent state of the database. It must not write."""

    @abstractmethod
    def write_now(self, unit: Callable[[Connection], T]) -> T:
        """Like `write`, ahead of everything that waits, for threads that are no event loop. Blocks."""

    @abstractmethod
    def now(self, db: Connection) -> datetime:
        """The moment by the one clock that all processes on this database go by (leases), inside a unit. UTC."""

    @property
    def single(self) -> Single | None:
        """What runs one statement as a transaction of its own; None where a unit of several is as quick."""
        return None


class UnitWriter(Protocol):
    """What is needed of the writer thread."""

    def submit(self, unit: Callable[[sqlite3.Connection], T], *, urgent: bool = False) -> Future[T]: ...

    async def run(self, unit: Callable[[sqlite3.Connection], T], *, brief: bool = False) -> T: ...


class UnitReader(Protocol):
    """What is needed of the reading threads."""

    async def run(self, read: Callable[[sqlite3.Connection], T]) -> T: ...


class SqliteDatabase(Database):
    """Units of the process's one writer. Commits belong to it: SQLAlchemy never begins or ends a transaction."""

    def __init__(
        self, writer: UnitWriter, readers: UnitReader, *, clock: Clock | None = None, metrics: Metrics | None = None
    ) -> None:
        super().__init__(metrics)
        self._writer = writer
        self._readers = readers
        self._clock = clock or SystemClock()
        self._local = threading.local()
        # Its own unit, alone: the first connect of an engine rolls back what is open on the connection.
        self._write_connection = writer.submit(_core_connection).result()

    async def write(self, unit: Callable[[Connection], T], *, brief: bool = False, read_committed: bool = False) -> T:
        with self.timed("write"):
            return await self._written(unit, brief=brief)

    async def locked_write(self, key: str, unit: Callable[[Connection], T], *, within_s: float = 30.0) -> T:
        with self.timed("locked"):
            return await self._written(unit)  # there is one writer: every unit has the file to itself

    async def _written(self, unit: Callable[[Connection], T], *, brief: bool = False) -> T:
        try:
            return await self._writer.run(lambda _: unit(self._write_connection), brief=brief)
        except (sqlite3.Error, DatabaseError) as error:
            raise _mapped(error) from error

    def now(self, db: Connection) -> datetime:
        return self._clock.now()

    def write_now(self, unit: Callable[[Connection], T]) -> T:
        with self.timed("urgent"):
            try:
                return self._writer.submit(lambda _: unit(self._write_connection), urgent=True).result()
            except (sqlite3.Error, DatabaseError) as error:
                raise _mapped(error) from error

    async def read(self, unit: Callable[[Connection], T]) -> T:
        def run(raw: sqlite3.Connection) -> T:
            connection: Connection | None = getattr(self._local, "connection", None)
            if connection is None:
                connection = self._local.connection = _core_connection(raw)
            raw.execute("BEGIN")
            try:
                return unit(connection)
            finally:
                raw.execute("ROLLBACK")

        with self.timed("read"):
            try:
                return await self._readers.run(run)
            except (sqlite3.Error, DatabaseError) as error:
                raise _mapped(error) from error


def _core_connection(raw: sqlite3.Connection) -> Connection:
    engine = create_engine(
        "sqlite://", creator=lambda: raw, poolclass=StaticPool, isolation_level="AUTOCOMMIT", pool_reset_on_return=None
    )
    return engine.connect()


def _mapped(error: sqlite3.Error | DatabaseError) -> StoreError:
    cause = error.orig if isinstance(error, DatabaseError) else error
    if isinstance(error, OperationalError | sqlite3.OperationalError):
        return StoreUnavailableError(f"the database cannot be used: {cause}")
    return StoreError(f"the database failed: {cause}")
