"""Core statements of the hot path, compiled once and run on the driver's cursor.

SQLAlchemy spends about 75 us of Python on each execution of a cached Core statement, the driver under 10; one step
of an execution has five statements. The statement is still written once in Core, for every database.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from sqlalchemy import BindParameter, Connection, Select
from sqlalchemy.sql.dml import UpdateBase

_UNIX_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND: Final = timedelta(microseconds=1)


def micros(moment: datetime | None) -> int | None:
    """A moment as the tables keep it; what the column type would do."""
    return None if moment is None else (moment - _UNIX_EPOCH) // _MICROSECOND


class Prepared:
    """A statement whose parameters are given as plain column values (no types are applied: see `micros`)."""

    def __init__(self, statement: UpdateBase | Select[Any], columns: Iterable[str] | None = None) -> None:
        self._statement = statement
        self._columns = None if columns is None else list(columns)
        self._compiled: dict[str, tuple[str, list[str], dict[str, Any]]] = {}

    def run(self, db: Connection, rows: Sequence[dict[str, Any]]) -> int:
        """Execute for each row of parameters; returns how many rows of the table it changed."""
        sql, order, constants = self._sql(db)
        cursor = db.connection.cursor()
        try:
            if len(rows) == 1:
                cursor.execute(sql, _positional(constants | rows[0], order))
            else:
                cursor.executemany(sql, [_positional(constants | row, order) for row in rows])
            return cursor.rowcount
        finally:
            cursor.close()

    def one(self, db: Connection, row: dict[str, Any]) -> tuple[Any, ...] | None:
        """Execute with RETURNING; the one row it returned, or None."""
        sql, order, constants = self._sql(db)
        cursor = db.connection.cursor()
        try:
            cursor.execute(sql, _positional(constants | row, order))
            found: tuple[Any, ...] | None = cursor.fetchone()
            return found
        finally:
            cursor.close()

    def all(self, db: Connection, row: dict[str, Any]) -> list[tuple[Any, ...]]:
        """Execute; every row it returned."""
        sql, order, constants = self._sql(db)
        cursor = db.connection.cursor()
        try:
            cursor.execute(sql, _positional(constants | row, order))
            found: list[tuple[Any, ...]] = list(cursor.fetchall())
            return found
        finally:
            cursor.close()

    def _sql(self, db: Connection) -> tuple[str, list[str], dict[str, Any]]:
        name = db.dialect.name
        found = self._compiled.get(name)
        if found is None:
            compiled = self._statement.compile(dialect=db.dialect, column_keys=self._columns)
            order = getattr(compiled, "positiontup", None)
            assert order is not None, "the drivers in use take positional parameters"
            # values that stand in the statement itself, NULL among them
            constants = {
                key: self._plain(compiled.params[key], bind, db)
                for bind, key in compiled.bind_names.items()
                if not bind.required
            }
            found = self._compiled[name] = (str(compiled), list(order), constants)
        return found

    @staticmethod
    def _plain(value: Any, bind: BindParameter[Any], db: Connection) -> Any:
        convert = bind.type.dialect_impl(db.dialect).bind_processor(db.dialect)
        return value if convert is None else convert(value)


def _positional(row: dict[str, Any], order: Sequence[str]) -> tuple[Any, ...]:
    return tuple([row[name] for name in order])
