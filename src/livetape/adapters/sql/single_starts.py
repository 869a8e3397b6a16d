"""Starts, claims and doorbells, each as one statement (`single.py`)."""

# ruff: noqa: S608 - the words are names of our own tables; every value is a parameter

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any, Final

from livetape.adapters.sql.execution_rows import plain_row, plain_values
from livetape.adapters.sql.leasing import PAUSED
from livetape.adapters.sql.notices import DOORBELL
from livetape.adapters.sql.prepared import micros
from livetape.adapters.sql.single import CLOCK, Arguments, moment_of, sql_types
from livetape.adapters.sql.tables import execution
from livetape.engine.queue import Doorbell
from livetape.events.executions import ExecutionStatus
from livetape.events.log import NewEvent
from livetape.store.executions import ExecutionRow

_COLUMNS: Final = [column.name for column in execution.columns]
_BY_CLOCK: Final = frozenset({"tape_id", "ring_at", "queue_deadline_at"})


# -- starts --------------------------------------------------------------------------------------------------------


def start_statement(
    row: ExecutionRow,
    tape: Mapping[str, Any],
    told: NewEvent,
    bell: Doorbell,
    *,
    now: datetime | None,
    ring_after: timedelta,
    queue_for: timedelta | None,
) -> tuple[str, list[Any]]:
    """A new execution with its tape, first event and doorbell. Answers with the tape's id, `ring_at` and
    `queue_deadline_at`, which go by the server's clock; those of `row` are not looked at."""
    given = Arguments()
    moment = given.add(None if now is None else micros(now), "bigint")
    ring, ends = given.add(_us(ring_after), "bigint"), given.add(_us(queue_for), "bigint")
    types = sql_types(execution)
    values = plain_values(row)
    named = {name: given.add(values[name], types[name]) for name in _COLUMNS if name not in _BY_CLOCK}
    named |= {
        "tape_id": "t.id",
        "ring_at": "least(m.now + m.ring, m.now + m.ends)",
        "queue_deadline_at": "m.now + m.ends",
    }
    tape_types = {"created_at": "bigint"}
    of_tape = {name: given.add(_plain(value), tape_types.get(name, "varchar")) for name, value in tape.items()}
    event = [given.add(told.event_type, "varchar"), given.add(told.payload, "bytea"), given.add(told.final, "boolean")]
    rung = [given.add(bell.graph_exec_id, "varchar"), given.add(bell.kind, "varchar")]
    rung += [given.add(bell.enqueue_no, "int"), "false", "m.now"]
    rung += [given.add(bell.priority, "int"), given.add(bell.rank, "int")]
    sql = (
        f"WITH m AS MATERIALIZED (SELECT coalesce({moment}, {CLOCK}) AS now, {ring} AS ring, {ends} AS ends),"
        f" t AS (INSERT INTO tape (last_number, first_number, final, published, {', '.join(of_tape)})"
        f" VALUES (1, 1, {event[2]}, 0, {', '.join(of_tape.values())}) RETURNING id),"
        f" x AS (INSERT INTO execution ({', '.join(named)}) SELECT {', '.join(named.values())} FROM t, m),"
        " e AS (INSERT INTO event (tape_id, number, event_type, payload, final, time)"
        f" SELECT t.id, 1, {', '.join(event)}, m.now FROM t, m),"
        " d AS (INSERT INTO doorbell (graph_exec_id, kind, enqueue_no, taken, due_at, priority, rank)"
        f" SELECT {', '.join(rung)} FROM t, m)"
        f" SELECT t.id, {named['ring_at']}, {named['queue_deadline_at']}, pg_notify('{DOORBELL}', '') FROM t, m"
    )
    return sql, given.values


# -- claims --------------------------------------------------------------------------------------------------------

LOOK_SQL: Final = (
    f"SELECT {', '.join(_COLUMNS)}, coalesce($2::bigint, {CLOCK}),"
    f" EXISTS (SELECT 1 FROM queue_pause WHERE name = '{PAUSED}') FROM execution WHERE id = $1::varchar"
)
"""One execution, the moment, and whether nobody may claim."""


def looked(answer: Any) -> tuple[ExecutionRow, datetime, bool]:
    """What `LOOK_SQL` answers with."""
    values = tuple(answer)
    return plain_row(values[:-2]), moment_of(values[-2]), values[-1]


def claim_statement(before: ExecutionRow, after: ExecutionRow, told: NewEvent, now: datetime) -> tuple[str, list[Any]]:
    """Take an execution that nobody has changed since it was looked at. Answers with the event's number, or no row.

    The tape's row is locked first, as in every other change of an execution.
    """
    given = Arguments()
    of, tape = given.add(before.id, "varchar"), given.add(before.tape_id, "bigint")
    lease = given.add(after.lease_no, "int")
    types = sql_types(execution)
    changed = ("status", "status_reason", "started_at", "lease_owner", "lease_until", "deadline_at")
    values = [f"{name} = {given.add(_plain(getattr(after, name)), types[name])}" for name in changed]
    same = ("status", "lease_no", "due_at", "wakes", "recoveries", "cancel_requested")
    unchanged = [
        f"execution.{name} IS NOT DISTINCT FROM {given.add(_plain(getattr(before, name)), types[name])}"
        for name in same
    ]
    event = [given.add(told.event_type, "varchar"), given.add(told.payload, "bytea"), given.add(told.final, "boolean")]
    sql = (
        f"WITH l AS (SELECT id FROM tape WHERE id = {tape} FOR UPDATE),"
        f" x AS (UPDATE execution SET lease_no = {lease}, due_at = NULL, ring_at = NULL, held = NULL, "
        f"{', '.join(values)}"
        f" FROM l WHERE execution.id = {of} AND {' AND '.join(unchanged)}"
        f" AND NOT EXISTS (SELECT 1 FROM queue_pause WHERE name = '{PAUSED}') RETURNING execution.tape_id),"
        f" a AS (UPDATE tape SET fence = {lease}, last_number = last_number + 1 FROM x WHERE tape.id = x.tape_id"
        " RETURNING tape.id, tape.last_number),"
        " e AS (INSERT INTO event (tape_id, number, event_type, payload, final, time)"
        f" SELECT a.id, a.last_number, {', '.join(event)}, {given.add(micros(now), 'bigint')} FROM a)"
        " SELECT last_number FROM a"
    )
    return sql, given.values


def _plain(value: Any) -> Any:
    if isinstance(value, datetime):
        return micros(value)
    return value.value if isinstance(value, ExecutionStatus) else value


def _us(duration: timedelta | None) -> int | None:
    return None if duration is None else duration // timedelta(microseconds=1)
