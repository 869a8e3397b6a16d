"""Ephemeral values in the platform's database, for databases that processes share."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Final, TypeVar

from sqlalchemy import Connection, delete, insert, select, update

from livetape.adapters.sql.database import Database
from livetape.adapters.sql.tables import ephemeral
from livetape.clock import Clock
from livetape.errors import StoreError, StoreUnavailableError
from livetape.store.ephemeral import Ephemeral, check

T = TypeVar("T")

SWEEP_EVERY: Final = timedelta(seconds=10)
SWEPT_AT_ONCE: Final = 1_000


class SqlEphemeral(Ephemeral):
    """Rows of the table `ephemeral`. Times to live go by the database's clock, unless `clock` is given.

    What has ended is never seen again; its rows are removed now and then, by whoever writes.
    """

    def __init__(self, database: Database, *, clock: Clock | None = None) -> None:
        self._database = database
        self._clock = clock
        self._sweep_at: datetime | None = None

    async def put(self, key: str, value: bytes, *, ttl_s: float) -> None:
        check(key, value, ttl_s)
        await self._write(lambda db, now: _set(db, key, value, now + timedelta(seconds=ttl_s)))

    async def put_once(self, key: str, value: bytes, *, ttl_s: float) -> bool:
        check(key, value, ttl_s)

        def unit(db: Connection, now: datetime) -> bool:
            if _get(db, key, now) is not None:
                return False
            _set(db, key, value, now + timedelta(seconds=ttl_s))
            return True

        return await self._write(unit)

    async def get(self, key: str) -> bytes | None:
        check(key)
        try:
            found = await self._database.read(lambda db: _get(db, key, self._now(db)))
        except StoreError as error:
            raise _unavailable(error) from error
        return None if found is None else found[0]

    async def take(self, key: str) -> bytes | None:
        check(key)

        def unit(db: Connection, now: datetime) -> bytes | None:
            found = _get(db, key, now)
            if found is not None:
                db.execute(delete(ephemeral).where(ephemeral.c.key == key))
            return None if found is None else found[0]

        return await self._write(unit)

    async def incr(self, key: str, *, ttl_s: float, by: int = 1) -> int:
        check(key, ttl_s=ttl_s)

        def unit(db: Connection, now: datetime) -> int:
            value, end = _get(db, key, now) or (b"0", now + timedelta(seconds=ttl_s))
            total = int(value) + by
            _set(db, key, b"%d" % total, end)
            return total

        return await self._write(unit)

    async def close(self) -> None:
        """The database belongs to whoever opened it."""

    async def _write(self, unit: Callable[[Connection, datetime], T]) -> T:
        def with_sweep(db: Connection) -> T:
            now = self._now(db)
            if self._sweep_at is None or now >= self._sweep_at:
                self._sweep_at = now + SWEEP_EVERY
                ended = select(ephemeral.c.key).where(ephemeral.c.expires_at <= now).limit(SWEPT_AT_ONCE)
                db.execute(delete(ephemeral).where(ephemeral.c.key.in_(ended.with_for_update(skip_locked=True))))
            return unit(db, now)

        try:
            return await self._database.write(with_sweep)
        except StoreError as error:
            raise _unavailable(error) from error

    def _now(self, db: Connection) -> datetime:
        return self._database.now(db) if self._clock is None else self._clock.now()


def _get(db: Connection, key: str, now: datetime) -> tuple[bytes, datetime] | None:
    """Held until the end of a transaction that writes: of two that take it one is run again, and finds nothing."""
    columns = (ephemeral.c.value, ephemeral.c.expires_at)
    row = db.execute(select(*columns).where(ephemeral.c.key == key, ephemeral.c.expires_at > now)).one_or_none()
    return None if row is None else (row.value, row.expires_at)


def _set(db: Connection, key: str, value: bytes, end: datetime) -> None:
    values = {"value": value, "expires_at": end}
    if not db.execute(update(ephemeral).where(ephemeral.c.key == key).values(values)).rowcount:
        db.execute(insert(ephemeral), {"key": key, **values})


def _unavailable(error: StoreError) -> StoreUnavailableError:
    return StoreUnavailableError(f"the ephemeral store cannot be used: {error}")
