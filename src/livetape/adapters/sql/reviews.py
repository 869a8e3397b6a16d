"""Reviews in SQL, and what those that an execution waits for have come to."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pydantic_core import from_json
from sqlalchemy import Connection, Row, select, update

from livetape.adapters.sql.execution_rows import hold_row, read_outputs, to_row
from livetape.adapters.sql.tables import execution, review
from livetape.adapters.sql.transitions import Transitions
from livetape.errors import ConflictError, NotFoundError
from livetape.events.executions import TERMINAL_STATUSES, ExecutionStatus
from livetape.store.executions import ChildOutcome, Outcomes
from livetape.store.reviews import Decision, ReviewRow, ReviewStatus


def list_reviews(
    db: Connection, user_id: str, *, execution_id: str | None, node_exec_id: str | None, waiting: bool, limit: int
) -> Sequence[ReviewRow]:
    """Oldest first."""
    query = select(review).where(review.c.user_id == user_id)
    if execution_id is not None:
        query = query.where(review.c.execution_id == execution_id)
    if node_exec_id is not None:
        query = query.where(review.c.node_exec_id == node_exec_id)
    if waiting:
        query = query.where(review.c.status == ReviewStatus.WAITING.value)
    query = query.order_by(review.c.created_at, review.c.id).limit(limit)
    return [_review(row) for row in db.execute(query)]


def decide(change: Transitions, review_id: str, decision: Decision, user_id: str) -> ReviewRow:
    """Write it and let the execution go on. Raises NotFoundError, ConflictError."""
    db = change.db
    mine = (review.c.id == review_id) & (review.c.user_id == user_id)
    found = db.execute(select(review).where(mine)).one_or_none()
    if found is None:
        raise NotFoundError(f"Review #{review_id} not found.")
    known = _review(found)
    wanted = ReviewStatus.APPROVED if decision.approved else ReviewStatus.REJECTED
    if known.status is wanted and decision.payload in (None, known.payload):
        return known
    if known.status is not ReviewStatus.WAITING:
        raise ConflictError(f"this review is {known.status.value.lower()} already", status=known.status.value)
    edited = decision.payload is not None and from_json(decision.payload) != from_json(known.payload)
    if edited and not known.editable:
        raise ConflictError("the data of this review may not be changed")
    row = hold_row(db, known.execution_id)
    changed = db.execute(
        update(review)
        .where(mine)
        .values(
            status=wanted.value,
            payload=decision.payload if edited else known.payload,
            decided_by=user_id,
            decided_at=change.now,
            message=decision.message,
        )
        .returning(review)
    ).one()
    if row.status is ExecutionStatus.REVIEW:
        change.unpark(row, "reviewed")
    else:
        change.wake(row.id)
    return _review(changed)


def outcomes(db: Connection, execution_id: str, children: Sequence[str], reviews: Sequence[str]) -> Outcomes:
    """As the store's method."""
    wakes = db.execute(select(execution.c.wakes).where(execution.c.id == execution_id)).scalar()
    ended: list[ChildOutcome] = []
    if children:
        over = select(execution).where(execution.c.id.in_(children), execution.c.status.in_(sorted(TERMINAL_STATUSES)))
        for row in map(to_row, db.execute(over.order_by(execution.c.ended_at, execution.c.id))):
            said: dict[str, Any] = from_json(row.stats)
            ended.append(
                ChildOutcome(
                    execution_id=row.id,
                    status=row.status,
                    outputs=read_outputs(db, row.id),
                    error=said.get("error") or (None if row.status is ExecutionStatus.COMPLETED else row.status_reason),
                    ended_at=row.ended_at or row.created_at,
                )
            )
    decided: list[ReviewRow] = []
    if reviews:
        query = select(review).where(review.c.id.in_(reviews), review.c.status != ReviewStatus.WAITING.value)
        decided = [_review(row) for row in db.execute(query.order_by(review.c.decided_at, review.c.id))]
    return Outcomes(wakes or 0, ended, decided)


def _review(row: Row[Any]) -> ReviewRow:
    values = dict(row._mapping)
    values["status"] = ReviewStatus(values["status"])
    return ReviewRow(**values)
