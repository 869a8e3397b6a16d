"""Claims, renewals and the sweep in SQL: who may run what, and what is taken from those that are gone."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any, Final

from sqlalchemy import (
    BigInteger,
    BindParameter,
    ColumnElement,
    Connection,
    String,
    bindparam,
    exists,
    func,
    literal,
    null,
    or_,
    select,
    update,
)

from livetape.adapters.sql.execution_rows import hold_row, plain_row, read_outputs, set_fence, to_row, write_events
from livetape.adapters.sql.prepared import Prepared, micros
from livetape.adapters.sql.queue import HIDDEN_S
from livetape.adapters.sql.tables import doorbell, execution, queue_pause
from livetape.adapters.sql.transitions import CANCELLED, RING_AGAIN_S, Transitions
from livetape.events.executions import ExecutionStatus
from livetape.store.execution_events import graph_event
from livetape.store.executions import ClaimLimits, ExecutionRow, Renewal

RECOVERY_DELAYS_S: Final = (0, 1, 5, 30, 120)
"""Waits before an execution is tried again after its worker was lost; after the last one it is poison."""

HELD_S: Final = 60.0
"""What a limit holds back is tried again after so long, should no end of another have rung it."""

PAUSED: Final = "run"
_BATCH: Final = 200
CLAIMABLE: Final = (ExecutionStatus.QUEUED, ExecutionStatus.INCOMPLETE, ExecutionStatus.REVIEW)


def _due(of: ColumnElement[str], now: ColumnElement[Any]) -> ColumnElement[bool]:
    """Whether it may be claimed."""
    return (
        (execution.c.id == of)
        & or_(*(execution.c.status == status for status in CLAIMABLE))
        & (execution.c.due_at.is_(None) | (execution.c.due_at <= now))
        & ~exists(select(queue_pause.c.name).where(queue_pause.c.name == PAUSED))
    )


# A word of the statement, not a parameter: else the index of those that run is not used, and all there are are read.
_RUNS: Final = execution.c.status == literal(
    ExecutionStatus.RUNNING, type_=execution.c.status.type, literal_execute=True
)

_NOW: Final = bindparam("now", type_=BigInteger)
_CLAIM: Final = Prepared(
    update(execution)
    .where(_due(bindparam("of", type_=String), _NOW))
    .values(
        status=ExecutionStatus.RUNNING,
        status_reason=null(),
        started_at=func.coalesce(execution.c.started_at, _NOW),
        lease_owner=bindparam("owner", type_=String),
        lease_no=execution.c.lease_no + 1,
        lease_until=bindparam("until", type_=BigInteger),
        due_at=null(),
        ring_at=null(),
        held=null(),
        deadline_at=func.coalesce(execution.c.deadline_at, bindparam("ends", type_=BigInteger)),
    )
    .returning(*execution.columns)
)


def claim(
    change: Transitions, execution_id: str, owner: str, lease_seconds: float, limits: ClaimLimits
) -> ExecutionRow | None:
    """Take it if it is due, the queue is not paused, and no limit is reached."""
    db, now = change.db, change.now
    if (limits.per_user or limits.per_graph) and _held_back(change, execution_id, limits):
        return None
    ends = None if limits.run_seconds is None else now + timedelta(seconds=limits.run_seconds)
    given = {"of": execution_id, "owner": owner, "now": micros(now), "ends": micros(ends)}
    claimed = _CLAIM.one(db, given | {"until": micros(now + timedelta(seconds=lease_seconds))})
    if claimed is None:
        return None
    row = plain_row(claimed)
    set_fence(db, row, row.lease_no)
    outputs = read_outputs(db, row.id) if row.lease_no > 1 or row.forked_from is not None else None
    change.written.committed.append(write_events(db, row, [graph_event(row, outputs)], now, fenced=True))
    return row


def _held_back(change: Transitions, execution_id: str, limits: ClaimLimits) -> bool:
    """Whether it has to wait for a slot; then it is noted, so that the end of another rings it."""
    db = change.db
    due = _due(literal(execution_id), _moment(change.now))
    found = db.execute(select(execution.c.id, execution.c.user_id, execution.c.graph_id).where(due)).one_or_none()
    if found is None:
        return False
    running = _RUNS & (execution.c.user_id == found.user_id)
    held = None
    if limits.per_user is not None and _count(db, running) >= limits.per_user:
        held = "user"
    elif limits.per_graph is not None and (
        _count(db, running & (execution.c.graph_id == found.graph_id)) >= limits.per_graph
    ):
        held = "graph"
    if held is None:
        return False
    ring_at = change.now + timedelta(seconds=HELD_S)
    db.execute(update(execution).where(execution.c.id == found.id).values(held=held, ring_at=ring_at))
    if held == "graph":
        _ring_beside(change, found.user_id, found.graph_id)
    return True


def _ring_beside(change: Transitions, user_id: str, graph_id: str) -> None:
    """A slot of the user is free that this graph may not take: ring the first of another graph that waited for one."""
    first = (
        select(execution.c.id)
        .where(execution.c.user_id == user_id, execution.c.held == "user", execution.c.graph_id != graph_id)
        .order_by(execution.c.priority.desc(), execution.c.created_at, execution.c.id)
        .limit(1)
        .scalar_subquery()
    )
    rung = {"held": None, "ring_at": change.now + timedelta(seconds=RING_AGAIN_S)}
    returned = (execution.c.id, execution.c.lease_no, execution.c.priority)
    found = change.db.execute(
        update(execution).where(execution.c.id == first).values(rung).returning(*returned)
    ).first()
    if found is not None:
        change.ring(found.id, found.lease_no, found.priority)


def _count(db: Connection, where: ColumnElement[bool]) -> int:
    return db.execute(select(func.count()).select_from(execution).where(where)).scalar_one()


def renew(db: Connection, owner: str, leases: Mapping[str, int], now: datetime, lease_seconds: float) -> Renewal:
    """One update for all; what is over or has another number is left alone."""
    rows = db.execute(
        update(execution)
        .where(
            execution.c.id.in_(list(leases)),
            execution.c.lease_owner == owner,
            execution.c.lease_until >= now,
            execution.c.status == ExecutionStatus.RUNNING,
        )
        .values(lease_until=now + timedelta(seconds=lease_seconds))
        .returning(execution.c.id, execution.c.lease_no, execution.c.cancel_requested)
    ).all()
    mine = [row for row in rows if row.lease_no == leases[row.id]]
    return Renewal(
        held=frozenset(row.id for row in mine),
        cancelled=frozenset(row.id for row in mine if row.cancel_requested),
    )


# -- what workers left --------------------------------------------------------------------------------------------


def lost(db: Connection, expired_before: datetime | None, owner_prefix: str | None = None) -> Sequence[str]:
    """Executions whose lease ended before this moment (None: all), or whose owner's name begins so."""
    query = select(execution.c.id).where(_RUNS)
    if expired_before is not None:
        query = query.where(execution.c.lease_until < expired_before)
    if owner_prefix is not None:
        query = query.where(execution.c.lease_owner.startswith(owner_prefix, autoescape=True))
    return sorted(db.execute(query).scalars())  # in the order of ids the database would read them all


def take_back(change: Transitions, execution_id: str, still: Callable[[ExecutionRow], bool]) -> bool:
    """Take it from its worker if it is still so; False when somebody else was first."""
    row = hold_row(change.db, execution_id)
    if row.status is not ExecutionStatus.RUNNING or not still(row):
        return False
    if row.cancel_requested:
        change.end(row, ExecutionStatus.TERMINATED, CANCELLED)
    elif row.recoveries >= len(RECOVERY_DELAYS_S):
        change.end(row, ExecutionStatus.FAILED, "poison", error="its worker was lost again and again without progress")
    else:
        change.requeue(row, "worker_lost", recoveries=row.recoveries + 1, delay_s=RECOVERY_DELAYS_S[row.recoveries])
    return True


def overdue(db: Connection, now: datetime, grace_seconds: float) -> Sequence[str]:
    """Executions that run longer than they may, and that their owner has not ended."""
    query = select(execution.c.id).where(
        _RUNS,
        execution.c.deadline_at < now - timedelta(seconds=grace_seconds),
    )
    return sorted(db.execute(query).scalars())


def end_overdue(change: Transitions, execution_id: str, grace_seconds: float) -> bool:
    """End it, if that is still so."""
    row = hold_row(change.db, execution_id)
    ends = row.deadline_at
    if row.status is not ExecutionStatus.RUNNING or ends is None:
        return False
    if ends >= change.now - timedelta(seconds=grace_seconds):
        return False
    change.end(row, ExecutionStatus.FAILED, "timeout", error="it ran longer than it may")
    return True


def unanswered(db: Connection, now: datetime) -> bool:
    """Whether anything waits for a doorbell that may be lost."""
    if paused(db) is not None:
        return False
    return db.execute(select(execution.c.id).where(execution.c.ring_at <= now).limit(1)).one_or_none() is not None


_RING_LATER: Final = Prepared(
    update(execution)
    .where(execution.c.id == bindparam("of"), execution.c.ring_at == bindparam("was"))
    .values(ring_at=bindparam("next"))
)


def ring_again(change: Transitions) -> tuple[list[str], list[str]]:
    """Ring what is due and was not claimed; end what waited longer than it may. The ids of both.

    Each time it waits twice as long, so that a long queue is not made longer by its own bells.
    """
    db, now = change.db, change.now
    waiting = db.execute(
        select(execution).where(execution.c.ring_at <= now).order_by(execution.c.ring_at).limit(_BATCH)
    ).all()
    if not waiting:
        return [], []
    # One that is due much later (the timer of a node) rings for nobody who can go on now.
    soon = doorbell.c.due_at <= now + timedelta(seconds=HIDDEN_S)
    bells = set(db.execute(select(doorbell.c.graph_exec_id).distinct().where(soon)).scalars())
    rung: list[str] = []
    ended: list[str] = []
    for row in map(to_row, waiting):
        if row.started_at is None and row.queue_deadline_at is not None and row.queue_deadline_at <= now:
            ended.append(row.id)
            continue
        since = now - (row.due_at or row.created_at)
        following = now + max(timedelta(seconds=RING_AGAIN_S), since)
        if row.started_at is None and row.queue_deadline_at is not None:
            following = min(following, row.queue_deadline_at)
        _RING_LATER.run(db, [{"of": row.id, "was": micros(row.ring_at), "next": micros(following)}])
        if row.id not in bells:
            change.ring(row.id, row.lease_no, row.priority)
            rung.append(row.id)
    return rung, ended


def end_unclaimed(change: Transitions, execution_id: str) -> bool:
    """End what nobody has begun in the time that it may wait."""
    row = hold_row(change.db, execution_id)
    ends = row.queue_deadline_at
    if row.status is not ExecutionStatus.QUEUED or row.started_at is not None or ends is None or ends > change.now:
        return False
    change.end(row, ExecutionStatus.FAILED, "timeout", error="nobody began it in the time that it may wait")
    return True


def paused(db: Connection) -> str | None:
    """Why nobody may claim; None: they may."""
    reason: str | None = db.execute(select(queue_pause.c.reason).where(queue_pause.c.name == PAUSED)).scalar()
    return reason


def _moment(value: datetime) -> BindParameter[datetime]:
    return literal(value, execution.c.started_at.type)
