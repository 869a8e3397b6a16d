"""One step of an execution as one statement (`single.py`).

It begins with the tape: allotting the numbers and checking the lease are one update of one row, and every other part
reads from it. Without the lease nothing is written.
"""

# ruff: noqa: S608 - the words are names of our own tables; every value is a parameter

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any, Final

from livetape.adapters.sql.execution_rows import node_values, output_values, touched_values
from livetape.adapters.sql.notices import DOORBELL
from livetape.adapters.sql.prepared import micros
from livetape.adapters.sql.single import CLOCK, Arguments, sql_types
from livetape.adapters.sql.tables import event, node_execution, node_output
from livetape.errors import LeaseLostError
from livetape.events.executions import ALLOWED_SOURCES
from livetape.store.executions import ExecutionChange, ExecutionRow, Step

_CREATED: Final = [column.name for column in node_execution.columns]
_OUTPUTS: Final = [column.name for column in node_output.columns]
_TOLD: Final = ("event_type", "payload", "final")

MOST_CHANGED: Final = 16
"""Node executions that exist already and change in one such statement. Each is a part of its own: joined with a list,
the server may look at every row of the execution, and does so while it knows nothing of the table."""


def is_single(step: Step, row: ExecutionRow) -> bool:
    """Whether nothing follows from this step but what is in it."""
    if step.waits or step.children or step.reviews or step.abandoned:
        return False
    if len({node.seq for node in (*step.filled, *step.touched)}) > MOST_CHANGED:
        return False
    change = step.change
    return change is None or (change.status.is_terminal and not step.is_parent and row.parent_id is None)


def step_statement(step: Step, row: ExecutionRow, now: datetime | None, ring_after: timedelta) -> tuple[str, list[Any]]:
    """The statement for a step that `is_single`. `now`: by another clock than the server's.

    Answers with one row: the last number, and whether a doorbell was rung. No row: the lease is lost.
    """
    given = Arguments()
    tape = given.add(row.tape_id, "bigint")
    lease, count = given.add(step.lease_no, "int"), given.add(len(step.events), "int")
    last = given.add(any(told.final for told in step.events), "boolean")
    moment = given.add(None if now is None else micros(now), "bigint")
    unfence = ", fence = NULL" if step.change is not None else ""
    parts = [
        f"m AS MATERIALIZED (SELECT coalesce({moment}, {CLOCK}) AS now)",
        f"a AS (UPDATE tape SET last_number = last_number + {count}, final = final OR {last}{unfence}"
        f" WHERE id = {tape} AND fence = {lease} RETURNING last_number)",
    ]
    if step.events:
        told = [{"event_type": e.event_type, "payload": e.payload, "final": e.final} for e in step.events]
        rows = given.rows(event, _TOLD, told, numbered=True)
        parts.append(
            "e AS (INSERT INTO event (tape_id, number, event_type, payload, final, time)"
            f" SELECT {tape}, a.last_number - {count} + x.place, x.event_type, x.payload, x.final, m.now"
            f" FROM a, m, {rows})"
        )
    if step.created:
        rows = given.rows(node_execution, _CREATED, [node_values(step.execution_id, node) for node in step.created])
        parts.append(f"c AS (INSERT INTO node_execution ({', '.join(_CREATED)}) SELECT x.* FROM a, {rows})")
    parts += _changes(given, step)
    if step.outputs:
        rows = given.rows(node_output, _OUTPUTS, [output_values(step.execution_id, output) for output in step.outputs])
        parts.append(f"o AS (INSERT INTO node_output ({', '.join(_OUTPUTS)}) SELECT x.* FROM a, {rows})")
    if step.change is not None:
        parts += _end(given, step, step.change, row, ring_after)
        # No row of the execution although the lease is ours would leave a tape without its last event: fail instead.
        rest = f"1 / (SELECT count(*) FROM s), (SELECT count(pg_notify('{DOORBELL}', '')) FROM d)"
    else:
        if step.progressed:
            of = given.add(step.execution_id, "varchar")
            parts.append(f"p AS (UPDATE execution SET recoveries = 0 FROM a WHERE id = {of})")
        rest = "1, 0"
    return f"WITH {', '.join(parts)} SELECT a.last_number, {rest} FROM a", given.values


def answered(rows: Sequence[Any]) -> tuple[int, bool]:
    """The last number that was allotted, and whether a doorbell was rung. Raises LeaseLostError."""
    if not rows:
        raise LeaseLostError
    return rows[0][0], rows[0][2] > 0


def _changes(given: Arguments, step: Step) -> list[str]:
    """Rows that exist already: what was filled and touched is one update of each, found by its key."""
    filled = {node.seq: node for node in step.filled}
    changed = filled | {node.seq: node for node in step.touched}
    if not changed:
        return []
    types = sql_types(node_execution)
    of = given.add(step.execution_id, "varchar")
    parts = []
    for place, (seq, node) in enumerate(changed.items()):
        values: dict[str, Any] = touched_values(node)
        if seq in filled:
            values["inputs"] = filled[seq].inputs
        named = ", ".join(f"{name} = {given.add(value, types[name])}" for name, value in values.items())
        parts.append(
            f"t{place} AS (UPDATE node_execution SET {named} FROM a"
            f" WHERE execution_id = {of} AND seq = {given.add(seq, 'int')})"
        )
    return parts


def _end(given: Arguments, step: Step, ended: ExecutionChange, row: ExecutionRow, ring_after: timedelta) -> list[str]:
    """The end of the execution, and the first that a limit kept back is rung."""
    of, lease = given.add(step.execution_id, "varchar"), given.add(step.lease_no, "int")
    sources = given.add([status.value for status in ALLOWED_SOURCES[ended.status]], "varchar[]")
    values = {
        "status": given.add(ended.status.value, "varchar"),
        "status_reason": given.add(ended.status_reason, "varchar"),
        "stats": given.add(ended.stats, "bytea"),
        "cost": given.add(ended.cost, "int"),
        "ended_at": given.add(micros(ended.ended_at), "bigint"),
        "lease_owner": "NULL",
        "lease_until": "NULL",
    }
    if step.progressed:
        values["recoveries"] = "0"
    user, graph = given.add(row.user_id, "varchar"), given.add(row.graph_id, "varchar")
    ring_us = given.add(ring_after // timedelta(microseconds=1), "bigint")
    return [
        f"s AS (UPDATE execution SET {', '.join(f'{name} = {value}' for name, value in values.items())} FROM a"
        f" WHERE id = {of} AND lease_no = {lease} AND status = ANY({sources}) RETURNING id)",
        f"r AS (UPDATE execution SET held = NULL, ring_at = m.now + {ring_us} FROM s, m"
        " WHERE execution.id = (SELECT h.id FROM execution AS h"
        f" WHERE h.user_id = {user} AND h.held IS NOT NULL AND (h.held = 'user' OR h.graph_id = {graph})"
        " ORDER BY h.priority DESC, h.created_at, h.id LIMIT 1)"
        " RETURNING execution.id, execution.lease_no, execution.priority)",
        "d AS (INSERT INTO doorbell (graph_exec_id, kind, enqueue_no, taken, due_at, priority, rank)"
        " SELECT r.id, 'run', r.lease_no, false, m.now, r.priority, 2 * r.priority + (r.lease_no > 0)::int FROM r, m"
        " RETURNING id)",
    ]
