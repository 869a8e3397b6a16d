"""Units of work on PostgreSQL: many connections, transactions that see one state, and what to do when one is lost."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from hashlib import blake2b
from typing import Any, Final, NoReturn, TypeVar
from weakref import WeakValueDictionary

from sqlalchemy import Connection, RootTransaction, text
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from livetape.adapters.sql.database import Database
from livetape.adapters.sql.postgres.connect import make_engine, session_settings
from livetape.adapters.sql.postgres.direct import Direct
from livetape.adapters.sql.postgres.failures import Fate, fate_of
from livetape.adapters.sql.postgres.lane import Lane
from livetape.adapters.sql.single import Single
from livetape.clock import Clock
from livetape.errors import ClosedError, CommitUnknownError, LockTimeoutError, StoreError, StoreUnavailableError
from livetape.observability import Metrics, get_logger

logger = get_logger(__name__)

T = TypeVar("T")

AGAIN_S: Final = 10.0
"""So long a unit is run again when others were faster."""

_CLOCK: Final = text("SELECT clock_timestamp()")
_LOCK: Final = text("SELECT set_config('lock_timeout', :within, false), pg_advisory_lock(:key)")
_UNLOCK: Final = text("SELECT pg_advisory_unlock(:key), set_config('lock_timeout', :usual, false)")

_SNAPSHOT: Final = {"isolation_level": "REPEATABLE READ"}
_STATEMENTS: Final = {"isolation_level": "READ COMMITTED"}
_READ_ONLY: Final = {"isolation_level": "REPEATABLE READ", "postgresql_readonly": True}
_SINGLE: Final = {"isolation_level": "AUTOCOMMIT"}


@dataclass(frozen=True, slots=True)
class PostgresOptions:
    """`pool` connections for each process, besides one for lease renewals and one for notices, and up to `direct` for
    transactions of one statement. Times in seconds.

    `patience_s`: a server that is away is waited for so long before a unit fails. `connect_s`: for one connection.
    `statement_s`: the server ends a statement after it. `lock_s`: the longest wait for one lock. `unit_s`: the whole
    transaction, also when nothing is heard of the server. `urgent_s`: all of `write_now`.
    """

    pool: int = 10
    direct: int = 4
    patience_s: float = 3.0
    connect_s: float = 5.0
    statement_s: float = 20.0
    lock_s: float = 10.0
    unit_s: float = 30.0
    urgent_s: float = 4.0


class PostgresDatabase(Database):
    """The store's database on a PostgreSQL server (13 or newer), by URL: `postgresql://user:password@host/name`.

    Connections are made when they are needed. The session must stay the same from one transaction to the next
    (prepared statements, locks): through PgBouncer only in session mode.

    A unit that another transaction disturbed, or whose connection was lost before the commit, is run again. A
    connection lost at the commit is CommitUnknownError. `clock` takes the place of the server's, for tests.
    """

    def __init__(
        self,
        url: str,
        *,
        options: PostgresOptions | None = None,
        clock: Clock | None = None,
        metrics: Metrics | None = None,
    ) -> None:
        super().__init__(metrics)
        self._options = options or PostgresOptions()
        self._clock = clock
        self._engine = make_engine(url, self._options)
        self._snapshots = self._engine.execution_options(**_SNAPSHOT)
        self._statements = self._engine.execution_options(**_STATEMENTS)
        self._reads = self._engine.execution_options(**_READ_ONLY)
        self._lane = Lane(lambda: make_engine(url, self._options, pool=1))
        self._direct = Direct(
            url,
            size=self._options.direct,
            connect_s=self._options.connect_s,
            limit_s=self._options.unit_s,
            session=session_settings(self._options),
        )
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        self._running: set[asyncio.Task[Any]] = set()
        self._closed = False

    async def write(self, unit: Callable[[Connection], T], *, brief: bool = False, read_committed: bool = False) -> T:
        engine = self._statements if read_committed else self._snapshots
        with self.timed("write"):
            return await self._through(self._repeated(lambda: self._transaction(engine, unit)))

    async def read(self, unit: Callable[[Connection], T]) -> T:
        with self.timed("read"):
            return await self._through(self._repeated(lambda: self._transaction(self._reads, unit, reads=True)))

    @property
    def single(self) -> Single:
        return self

    async def fetch(self, sql: str, arguments: Sequence[Any], *, reads: bool = False) -> list[Any]:
        with self.timed("single"):
            return await self._through(self._repeated(lambda: self._direct.fetch(sql, arguments, reads=reads)))

    def moment(self) -> datetime | None:
        return None if self._clock is None else self._clock.now()

    async def locked_write(self, key: str, unit: Callable[[Connection], T], *, within_s: float = 30.0) -> T:
        with self.timed("locked"):
            return await self._written_alone(key, unit, within_s)

    async def _written_alone(self, key: str, unit: Callable[[Connection], T], within_s: float) -> T:
        deadline = time.monotonic() + within_s
        # Of this process one waits at the server, so that waiting takes no more than one connection.
        lock = self._locks.setdefault(key, asyncio.Lock())
        try:
            async with asyncio.timeout(within_s):
                await lock.acquire()
        except TimeoutError:
            raise LockTimeoutError(f"the lock {key} was held for {within_s:g} s") from None
        try:
            return await self._through(self._repeated(lambda: self._locked(key, unit, deadline)))
        finally:
            lock.release()

    def write_now(self, unit: Callable[[Connection], T]) -> T:
        async def run(engine: AsyncEngine) -> T:
            snapshots = engine.execution_options(**_SNAPSHOT)
            return await self._repeated(lambda: self._transaction(snapshots, unit))

        with self.timed("urgent"):
            return self._lane.run(run, self._options.urgent_s)

    def now(self, db: Connection) -> datetime:
        if self._clock is not None:
            return self._clock.now()
        moment: datetime = db.execute(_CLOCK).scalar_one()
        return moment.astimezone(UTC)

    async def close(self) -> None:
        """Units that run are waited for. Idempotent."""
        self._closed = True
        if self._running:
            await asyncio.wait(self._running, timeout=self._options.unit_s)
        await self._engine.dispose()
        await self._direct.close()
        await asyncio.to_thread(self._lane.close)

    async def _through(self, work: Coroutine[Any, Any, T]) -> T:
        """Run it to its end even when the caller is cancelled: half a commit is worse than one too many."""
        if self._closed:
            work.close()
            raise ClosedError("the database is closed")
        task = asyncio.create_task(work, name="postgres unit")
        self._running.add(task)
        task.add_done_callback(self._forget)
        return await asyncio.shield(task)

    def _forget(self, task: asyncio.Task[Any]) -> None:
        self._running.discard(task)
        if not task.cancelled():
            task.exception()  # the caller may be gone

    async def _repeated(self, attempt: Callable[[], Awaitable[T]]) -> T:
        begun = time.monotonic()
        tries = taken = 0
        while True:
            try:
                return await attempt()
            except StoreError:
                raise
            except Exception as error:
                fate = fate_of(error)
                tries += 1
                taken += fate is Fate.TAKEN
                if fate is None:
                    raise
                spent = time.monotonic() - begun
                if (fate is Fate.AGAIN or (fate is Fate.TAKEN and taken <= 3)) and spent < AGAIN_S:
                    pause = random.uniform(0, min(0.001 * 2**tries, 0.1))  # noqa: S311 - to come at different times
                elif fate is Fate.AWAY and spent < self._options.patience_s:
                    pause = min(0.02 * 2**tries, 0.5)
                else:
                    _fail(error, fate)
            await asyncio.sleep(pause)

    async def _transaction(self, engine: AsyncEngine, unit: Callable[[Connection], T], *, reads: bool = False) -> T:
        async with engine.connect() as connection:
            run = _read if reads else _write
            return await _bounded(connection, self._options.unit_s, lambda: connection.run_sync(run, unit))

    async def _locked(self, key: str, unit: Callable[[Connection], T], deadline: float) -> T:
        """The lock first, then the transaction: what it sees is then newer than the lock."""
        number = lock_number(key)
        wait_ms = max(1, round((deadline - time.monotonic()) * 1000))
        async with self._engine.connect() as connection:

            async def locked() -> T:
                await connection.execution_options(**_SINGLE)
                try:
                    await connection.execute(_LOCK, {"key": number, "within": str(wait_ms)})
                except Exception as error:
                    if fate_of(error) is Fate.LOCKED:
                        raise LockTimeoutError(f"the lock {key} was held by another process") from error
                    raise
                await connection.commit()
                await connection.execution_options(**_SNAPSHOT)
                try:
                    return await connection.run_sync(_write, unit)
                finally:
                    await self._unlock(connection, number)

            return await _bounded(connection, wait_ms / 1000 + self._options.unit_s, locked)

    async def _unlock(self, connection: AsyncConnection, number: int) -> None:
        usual = str(round(self._options.lock_s * 1000))
        try:
            await connection.execution_options(**_SINGLE)
            await connection.execute(_UNLOCK, {"key": number, "usual": usual})
            await connection.commit()
        except (SQLAlchemyError, OSError) as error:
            logger.debug("a lock goes with its connection: %s", error)
            with suppress(SQLAlchemyError, OSError):
                await connection.invalidate()


def _write(db: Connection, unit: Callable[[Connection], T]) -> T:
    transaction = db.begin()
    result = _rolled_back_if_it_fails(transaction, lambda: unit(db))
    try:
        transaction.commit()
    except asyncio.CancelledError as error:
        raise CommitUnknownError("the server did not answer to the commit") from error
    except (SQLAlchemyError, OSError) as error:
        if fate_of(error) in (Fate.AGAIN, Fate.TAKEN, Fate.REFUSED):
            raise  # the server said no
        raise CommitUnknownError(f"the connection broke at the commit: {_cause(error)}") from error
    return result


def _read(db: Connection, unit: Callable[[Connection], T]) -> T:
    transaction = db.begin()
    result = _rolled_back_if_it_fails(transaction, lambda: unit(db))
    with suppress(SQLAlchemyError, OSError):
        transaction.rollback()
    return result


def _rolled_back_if_it_fails(transaction: RootTransaction, work: Callable[[], T]) -> T:
    try:
        return work()
    except Exception:  # not when it is cancelled: then the connection is given up
        with suppress(SQLAlchemyError, OSError):
            transaction.rollback()
        raise


async def _bounded(connection: AsyncConnection, limit_s: float, work: Callable[[], Awaitable[T]]) -> T:
    try:
        async with asyncio.timeout(limit_s):
            return await work()
    except (TimeoutError, asyncio.CancelledError, CommitUnknownError):
        # It may be in the middle of a statement, at a server that answers nothing.
        with suppress(SQLAlchemyError, OSError):
            await connection.invalidate()
        raise
    except Exception as error:
        if fate_of(error) is Fate.AWAY:  # the next connection may lead to a server that is there, or takes writes
            with suppress(SQLAlchemyError, OSError):
                await connection.invalidate()
        raise


def lock_number(key: str) -> int:
    """The number of an advisory lock: the same in every process and version."""
    return int.from_bytes(blake2b(key.encode(), digest_size=8, person=b"livetape").digest(), "big", signed=True)


def _fail(error: Exception, fate: Fate) -> NoReturn:
    if fate is Fate.REFUSED or fate is Fate.TAKEN:
        raise StoreError(f"the database failed: {_cause(error)}") from error
    raise StoreUnavailableError(f"the database cannot be used: {_cause(error)}") from error


def _cause(error: BaseException) -> str:
    original = getattr(error, "orig", None) or error
    deepest = original.__cause__ or original
    return str(deepest).partition("\n")[0] or type(deepest).__name__
