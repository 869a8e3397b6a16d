"""What happens to an execution that no worker holds any more: queued again, parked, ended. In the caller's transaction.

Everything that follows from a change is in the same commit: the children of what ends are stopped, whoever waits for
it is woken, its open reviews are closed, and one execution that a concurrency limit kept back is rung.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from pydantic_core import from_json, to_json
from sqlalchemy import (
    BindParameter,
    ColumnElement,
    Connection,
    bindparam,
    case,
    literal,
    literal_column,
    null,
    select,
    update,
)

from livetape.adapters.sql.execution_rows import (
    get_row,
    hold_row,
    read_nodes,
    read_outputs,
    set_fence,
    to_row,
    touch_node,
    write_events,
)
from livetape.adapters.sql.prepared import Prepared, micros
from livetape.adapters.sql.queue import insert_doorbell
from livetape.adapters.sql.tables import execution, review
from livetape.engine.queue import Doorbell
from livetape.events.executions import TERMINAL_STATUSES, ExecutionStatus
from livetape.events.log import NewEvent
from livetape.store.execution_events import graph_event, stored_node_event
from livetape.store.executions import Committed, ExecutionRow

RING_AGAIN_S: Final = 15.0
"""A doorbell that nobody answered for so long is taken for lost; later ones wait twice as long each."""

NEVER: Final = datetime(9999, 12, 31, tzinfo=UTC)
"""`due_at` of an execution that only a wake sets going."""

CANCELLED: Final = "cancelled_by_user"
_STARTED: Final = (ExecutionStatus.QUEUED, ExecutionStatus.RUNNING, ExecutionStatus.REVIEW)
OPEN: Final = tuple(status for status in ExecutionStatus if status not in TERMINAL_STATUSES)
_WAITING: Final = (ExecutionStatus.QUEUED, ExecutionStatus.REVIEW)

# One statement on the hot path: whose slot is free now lets one go that waited for it.
_RELEASE_HELD: Final = Prepared(
    update(execution)
    .where(
        execution.c.id
        == select(execution.c.id)
        .where(
            execution.c.user_id == bindparam("user"),
            execution.c.held.is_not(None),
            (execution.c.held == bindparam("by_user")) | (execution.c.graph_id == bindparam("graph")),
        )
        .order_by(execution.c.priority.desc(), execution.c.created_at, execution.c.id)
        .limit(literal_column("1"))
        .scalar_subquery()
    )
    .values(held=null(), ring_at=bindparam("at"))
    .returning(execution.c.id, execution.c.lease_no, execution.c.priority)
)


@dataclass(slots=True)
class Written:
    """What one transaction did, for those who act after its commit.

    `rang`: it wrote a doorbell. `hints` are executions that run and should look at their row.
    """

    committed: list[Committed] = field(default_factory=list)
    hints: list[str] = field(default_factory=list)
    rang: bool = False


class Transitions:
    """Changes in the caller's transaction; `now` is the moment of the commit, by the database's clock."""

    def __init__(self, db: Connection, now: datetime) -> None:
        self.db = db
        self.now = now
        self.written = Written()

    def ring(self, execution_id: str, enqueue_no: int, priority: int, delay_s: float = 0) -> None:
        """Write its doorbell."""
        bell = Doorbell(execution_id, enqueue_no=enqueue_no, priority=priority)
        insert_doorbell(self.db, bell, self.now, delay_s)
        self.written.rang = True

    def tell(self, row: ExecutionRow, events: list[NewEvent]) -> None:
        """Write events that need no lease."""
        self.written.committed.append(write_events(self.db, row, events, self.now, fenced=False))

    def requeue(self, row: ExecutionRow, reason: str | None, *, recoveries: int, delay_s: float) -> ExecutionRow:
        """Let go of it: QUEUED, with its doorbell. A stop that was asked for ends it instead."""
        if row.cancel_requested:
            return self.end(row, ExecutionStatus.TERMINATED, CANCELLED)
        due = self.now + timedelta(seconds=delay_s)
        row = self._update(
            row,
            status=ExecutionStatus.QUEUED,
            status_reason=reason,
            lease_owner=None,
            lease_until=None,
            recoveries=recoveries,
            due_at=due,
            ring_at=due + timedelta(seconds=RING_AGAIN_S),
        )
        set_fence(self.db, row, None)
        self.ring(row.id, row.lease_no, row.priority, delay_s)
        self.tell(row, [graph_event(row, read_outputs(self.db, row.id))])
        self.release_held(row)
        return row

    def park(
        self, row: ExecutionRow, status: ExecutionStatus, reason: str | None, stats: bytes, due: datetime
    ) -> ExecutionRow:
        """Let it wait without a worker until it is due (NEVER: until a wake). Its time limit begins anew then."""
        row = self._update(
            row,
            status=status,
            status_reason=reason,
            stats=stats,
            lease_owner=None,
            lease_until=None,
            deadline_at=None,
            due_at=due,
            ring_at=None if due == NEVER else due + timedelta(seconds=RING_AGAIN_S),
        )
        set_fence(self.db, row, None)
        if due != NEVER:
            self.ring(row.id, row.lease_no, row.priority, max(0.0, (due - self.now).total_seconds()))
        self.tell(row, [graph_event(row, read_outputs(self.db, row.id))])
        self.release_held(row)
        return row

    def unpark(self, row: ExecutionRow, reason: str) -> ExecutionRow:
        """Queue what waited for a person."""
        row = self._update(
            row,
            status=ExecutionStatus.QUEUED,
            status_reason=reason,
            wakes=row.wakes + 1,
            due_at=self.now,
            ring_at=self.now + timedelta(seconds=RING_AGAIN_S),
        )
        self.ring(row.id, row.lease_no, row.priority)
        self.tell(row, [graph_event(row, read_outputs(self.db, row.id))])
        return row

    def wake(self, execution_id: str) -> None:
        """Something that it waits for has happened: it is due now, or looks by itself if it runs."""
        ring_at = self.now + timedelta(seconds=RING_AGAIN_S)
        waits = execution.c.status.in_(_WAITING)
        changed = self.db.execute(
            update(execution)
            .where(execution.c.id == execution_id, execution.c.status.in_(OPEN))
            .values(
                wakes=execution.c.wakes + 1,
                due_at=case((waits, _moment(self.now)), else_=execution.c.due_at),
                ring_at=case((waits, _moment(ring_at)), else_=execution.c.ring_at),
            )
            .returning(execution.c.status, execution.c.lease_no, execution.c.priority)
        ).one_or_none()
        if changed is None:
            return
        if changed.status in _WAITING:
            self.ring(execution_id, changed.lease_no, changed.priority)
        else:
            self.written.hints.append(execution_id)

    def end(self, row: ExecutionRow, status: ExecutionStatus, reason: str, *, error: str | None = None) -> ExecutionRow:
        """End an execution that no worker may go on with, with the node executions that it leaves open."""
        self.stop_children(row.id)
        events: list[NewEvent] = []
        for node in read_nodes(self.db, row.id, with_outputs=True):
            if node.status not in _STARTED:
                continue
            node.status, node.status_reason, node.end_time = ExecutionStatus.TERMINATED, reason, self.now
            touch_node(self.db, row.id, node)
            events.append(stored_node_event(row, node))
        ran = row.status is ExecutionStatus.RUNNING
        stats = row.stats if error is None else to_json(from_json(row.stats) | {"error": error})
        cancelled = row.cancel_requested or status is ExecutionStatus.TERMINATED
        row = self._update(
            row,
            status=status,
            status_reason=reason,
            ended_at=self.now,
            lease_owner=None,
            lease_until=None,
            due_at=None,
            ring_at=None,
            held=None,
            cancel_requested=cancelled,
            stats=stats,
        )
        set_fence(self.db, row, None)
        events.append(graph_event(row, read_outputs(self.db, row.id)))
        self.tell(row, events)
        self.after_end(row, ran=ran)
        return row

    def after_end(self, row: ExecutionRow, *, ran: bool) -> None:
        """What follows from an end beside the end itself."""
        if row.parent_id is not None:
            self.wake(row.parent_id)
        if ran:
            self.release_held(row)

    def stop_children(self, execution_id: str) -> None:
        """Nothing that an execution started outlives it, and nobody need decide what it asked."""
        self._stop_those(execution.c.parent_id == execution_id, review.c.execution_id == execution_id)

    def abandon(self, node_exec_id: str) -> None:
        """As `stop_children`, for one node execution."""
        self._stop_those(execution.c.parent_node_exec_id == node_exec_id, review.c.node_exec_id == node_exec_id)

    def _stop_those(self, children: ColumnElement[bool], reviews: ColumnElement[bool]) -> None:
        closed = {"status": "CANCELLED", "decided_at": self.now}
        self.db.execute(update(review).where(reviews, review.c.status == "WAITING").values(closed))
        found = select(execution.c.id).where(execution.c.parent_id.is_not(None), children, execution.c.status.in_(OPEN))
        for child in sorted(self.db.execute(found).scalars()):
            self.stop(hold_row(self.db, child), reason="parent_ended")

    def stop(self, row: ExecutionRow, *, reason: str = CANCELLED) -> ExecutionRow:
        """Note the wish and tell of it; what does not run ends at once."""
        if row.status.is_terminal:
            return row
        if row.status is not ExecutionStatus.RUNNING:
            return self.end(row, ExecutionStatus.TERMINATED, reason)
        if row.cancel_requested:
            return row
        # It runs: the owner ends it. Told at once, so that watchers see that the wish was heard.
        row = self._update(row, cancel_requested=True, status_reason="cancel_requested")
        self.tell(row, [graph_event(row, read_outputs(self.db, row.id))])
        self.written.hints.append(row.id)
        return row

    def stop_tree(self, row: ExecutionRow) -> ExecutionRow:
        """Stop it with everything that it started, the innermost first."""
        children = self.db.execute(
            select(execution.c.id).where(execution.c.parent_id == row.id, execution.c.status.in_(OPEN))
        ).scalars()
        for child in sorted(children):
            self.stop_tree(hold_row(self.db, child))
        return self.stop(get_row(self.db, row.id))

    def release_held(self, row: ExecutionRow) -> None:
        """A slot of this user is free: ring the first that waited for one."""
        ring_at = self.now + timedelta(seconds=RING_AGAIN_S)
        whose = {"user": row.user_id, "graph": row.graph_id, "by_user": "user"}
        found = _RELEASE_HELD.one(self.db, whose | {"at": micros(ring_at)})
        if found is not None:
            self.ring(found[0], found[1], found[2])

    def _update(self, row: ExecutionRow, **values: Any) -> ExecutionRow:
        changed = self.db.execute(
            update(execution).where(execution.c.id == row.id).values(values).returning(execution)
        ).one()
        return to_row(changed)


def _moment(value: datetime) -> BindParameter[datetime]:
    return literal(value, execution.c.due_at.type)
