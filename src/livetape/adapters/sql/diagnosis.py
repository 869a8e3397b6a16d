"""Reads from SQL what the diagnosis of executions needs."""

from __future__ import annotations

from datetime import datetime
from typing import Final

from sqlalchemy import Connection, select

from livetape.adapters.sql.execution_rows import to_row
from livetape.adapters.sql.leasing import paused
from livetape.adapters.sql.tables import doorbell, execution, node_execution, review
from livetape.adapters.sql.transitions import OPEN
from livetape.engine.changes import WAITING
from livetape.engine.diagnosis import Facts, World
from livetape.engine.durable_waits import waits_from_json
from livetape.events.executions import ExecutionStatus

MAX_LOOKED_AT: Final = 10_000


def read_world(db: Connection, now: datetime, *, bells_elsewhere: bool = False) -> World:
    """Everything that is not over, the oldest 10,000, as of one moment."""
    rows = [
        to_row(row)
        for row in db.execute(
            select(execution).where(execution.c.status.in_(OPEN)).order_by(execution.c.created_at).limit(MAX_LOOKED_AT)
        )
    ]
    bells = set(db.execute(select(doorbell.c.graph_exec_id).distinct()).scalars())
    facts = []
    for row in rows:
        children: list[tuple[str, ExecutionStatus]] = []
        reviews: list[tuple[str, datetime]] = []
        timers: list[datetime] = []
        parent = None
        if row.parent_id is not None:
            parent = db.execute(select(execution.c.status).where(execution.c.id == row.parent_id)).scalar()
        if row.status_reason == WAITING:
            found = select(execution.c.id, execution.c.status).where(execution.c.parent_id == row.id)
            children = [(child.id, child.status) for child in db.execute(found)]
            asked = select(review.c.id, review.c.created_at).where(
                review.c.execution_id == row.id, review.c.status == "WAITING"
            )
            reviews = [(one.id, one.created_at) for one in db.execute(asked)]
            kept = select(node_execution.c.waits).where(
                node_execution.c.execution_id == row.id,
                node_execution.c.status_reason == WAITING,
                node_execution.c.waits.is_not(None),
            )
            for waits in db.execute(kept).scalars():
                timers += [wait.due for wait in waits_from_json(waits) if wait.answer is None and wait.due is not None]
        facts.append(Facts(row, row.id in bells, children, reviews, timers, parent))
    return World(now, facts, paused(db), bells_elsewhere)
