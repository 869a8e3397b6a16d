"""Transactions of one statement, for databases where every statement is a journey to the server and back.

What belongs together stands in one statement with several parts (`WITH … AS (UPDATE … RETURNING …), …`). The parts
see the same state; a part that finds nothing leaves those that read from it without rows. Lists of rows go as one
array for each column.
"""

# ruff: noqa: S608 - the words are names of our own tables; every value is a parameter

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from functools import cache
from typing import Any, Final, Protocol

from sqlalchemy import BigInteger, Boolean, Integer, LargeBinary, Table

from livetape.adapters.sql.tables import Moment

_UNIX_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)

CLOCK: Final = "(extract(epoch FROM clock_timestamp()) * 1000000)::bigint"
"""The moment by the server's clock, as the tables keep it."""


class Single(Protocol):
    """Runs such statements. `clock` is None where the server's own counts."""

    async def fetch(self, sql: str, arguments: Sequence[Any], *, reads: bool = False) -> list[Any]:
        """The rows of one statement, after its commit. Raises as `Database.write`, or as `Database.read` where it only
        `reads`."""

    def moment(self) -> datetime | None:
        """The moment by another clock than the server's; None: the server's counts."""


class Arguments:
    """Values on their way into a statement, each named by its number."""

    def __init__(self) -> None:
        self.values: list[Any] = []

    def add(self, value: Any, sql_type: str) -> str:
        """How the statement names it."""
        self.values.append(value)
        return f"${len(self.values)}::{sql_type}"

    def rows(
        self, table: Table, names: Sequence[str], rows: Sequence[dict[str, Any]], *, numbered: bool = False
    ) -> str:
        """Rows of these columns of a table, as a list in FROM that is named `x`. `numbered`: their `place`, from 1."""
        types = sql_types(table)
        arrays = [self.add([row[name] for row in rows], f"{types[name]}[]") for name in names]
        if numbered:
            return f"unnest({', '.join(arrays)}) WITH ORDINALITY AS x({', '.join(names)}, place)"
        return f"unnest({', '.join(arrays)}) AS x({', '.join(names)})"


@cache
def sql_types(table: Table) -> dict[str, str]:
    """The types of PostgreSQL for the columns of a table."""
    types: dict[str, str] = {}
    for column in table.columns:
        kind = column.type
        if isinstance(kind, Moment | BigInteger):
            types[column.name] = "bigint"
        elif isinstance(kind, Integer):
            types[column.name] = "int"
        elif isinstance(kind, Boolean):
            types[column.name] = "boolean"
        elif isinstance(kind, LargeBinary):
            types[column.name] = "bytea"
        else:
            types[column.name] = "varchar"
    return types


def moment_of(micros: int) -> datetime:
    """A moment as the tables keep it."""
    return _UNIX_EPOCH + timedelta(microseconds=micros)


TAKE_SQL: Final = (
    f"WITH RECURSIVE m AS MATERIALIZED (SELECT coalesce($1::bigint, {CLOCK}) AS now),"
    " r AS (SELECT max(rank) AS rank FROM doorbell UNION ALL"
    " SELECT (SELECT max(d.rank) FROM doorbell AS d WHERE d.rank < r.rank) FROM r WHERE r.rank IS NOT NULL),"
    " w AS (SELECT f.id, f.due_at FROM r, LATERAL (SELECT d.id, d.due_at FROM doorbell AS d"
    " WHERE d.rank = r.rank AND d.due_at <= (SELECT now FROM m)"
    " ORDER BY d.due_at, d.id LIMIT $2::int FOR UPDATE SKIP LOCKED) AS f LIMIT $2::int),"
    " u AS (UPDATE doorbell AS d SET due_at = m.now + $3::bigint, taken = true FROM w, m WHERE d.id = w.id"
    " RETURNING d.id, d.graph_exec_id, d.enqueue_no, d.kind, d.priority, d.due_at, w.due_at AS was, d.rank)"
    " SELECT u.*, m.now, (SELECT min(due_at) FROM doorbell) FROM m LEFT JOIN u ON true"
    " ORDER BY u.rank DESC, u.was, u.id"
)
"""Hide doorbells that are due; without any, one row of nothing. Each with the moment, and when the next was due.

Of each rank the first are looked up, the highest rank first, and no further than until there are enough: with one sort
of all that wait a take would cost more the more there are.
"""

GONE_SQL: Final = "DELETE FROM doorbell WHERE id = $1::bigint AND taken AND due_at = $2::bigint"
