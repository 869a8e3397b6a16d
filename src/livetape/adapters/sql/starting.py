"""A new execution in SQL: its tape, its row, what it takes over, its first events and its doorbell, in one commit."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any, Final

from sqlalchemy import Connection, insert, select

from livetape.adapters.sql.execution_rows import get_row, insert_nodes, insert_row
from livetape.adapters.sql.prepared import Prepared, micros
from livetape.adapters.sql.tables import execution, idempotency, review, tape
from livetape.adapters.sql.transitions import RING_AGAIN_S, Transitions
from livetape.errors import ConflictError
from livetape.events.channel import execution_channel, execution_tape
from livetape.events.executions import ExecutionStatus
from livetape.events.log import NewEvent
from livetape.store.execution_events import execution_outputs, graph_event, stored_node_event, stored_output_events
from livetape.store.executions import ExecutionRow, IdempotencyKey, NewExecution
from livetape.store.reviews import NewReview, ReviewStatus

START_ROUTE: Final = "start_execution"
IDEMPOTENCY_FOR: Final = timedelta(hours=24)

_INSERT_TAPE: Final = Prepared(
    insert(tape).returning(tape.c.id),
    [
        *("name", "owner", "graph_id", "channel", "epoch", "created_at"),
        *("last_number", "first_number", "final", "published"),
    ],
)


def start_once(change: Transitions, new: NewExecution, key: IdempotencyKey | None) -> tuple[ExecutionRow, bool]:
    """The row, and whether an earlier start with this key made it. Raises ConflictError."""
    if key is not None:
        earlier = _remembered(change.db, new, key, change.now)
        if earlier is not None:
            return get_row(change.db, earlier), True
    return start_execution(change, new), False


def start_execution(change: Transitions, new: NewExecution) -> ExecutionRow:
    """Write it, QUEUED and rung."""
    db, now = change.db, change.now
    numbers = {"last_number": 0, "first_number": 1, "final": False, "published": 0}
    named = tape_values(new) | {"created_at": micros(new.created_at)}
    made = _INSERT_TAPE.one(db, named | numbers)
    assert made is not None
    tape_id = made[0]
    ends = None if new.queue_seconds is None else now + timedelta(seconds=new.queue_seconds)
    ring_at = now + timedelta(seconds=RING_AGAIN_S)
    row = new_row(new, tape_id, ring_at if ends is None else min(ring_at, ends), ends)
    insert_row(db, row)
    events: list[NewEvent] = []
    if new.nodes:
        insert_nodes(db, row.id, new.nodes)
        for node in new.nodes:
            events.extend(stored_output_events(row, node))
            if node.status is not ExecutionStatus.INCOMPLETE:
                events.append(stored_node_event(row, node))
    events.append(graph_event(row, execution_outputs(new.nodes)))
    change.tell(row, events)
    change.ring(row.id, 0, row.priority)
    return row


def tape_values(new: NewExecution) -> dict[str, Any]:
    """What its tape is called, and whose it is."""
    return {
        "name": execution_tape(new.id),
        "owner": new.user_id,
        "graph_id": new.graph_id,
        "channel": execution_channel(new.user_id, new.graph_id, new.id),
        "epoch": new.epoch,
        "created_at": new.created_at,
    }


def new_row(new: NewExecution, tape_id: int, ring_at: datetime, ends: datetime | None) -> ExecutionRow:
    """A new execution, QUEUED. `ends`: nobody may claim it for the first time after this moment."""
    return ExecutionRow(
        id=new.id,
        user_id=new.user_id,
        graph_id=new.graph_id,
        graph_version=new.graph_version,
        status=ExecutionStatus.QUEUED,
        status_reason=None,
        inputs=new.inputs,
        stats=b"{}",
        created_at=new.created_at,
        started_at=None,
        ended_at=None,
        cancel_requested=False,
        lease_owner=None,
        lease_no=0,
        lease_until=None,
        recoveries=0,
        tape_id=tape_id,
        epoch=new.epoch,
        priority=new.priority,
        forked_from=new.forked_from,
        parent_id=new.parent_id,
        parent_node_exec_id=new.parent_node_exec_id,
        depth=new.depth,
        queue_deadline_at=ends,
        dry_run=new.dry_run,
        ring_at=ring_at,
        masks=new.masks,
    )


def start_child(change: Transitions, new: NewExecution) -> None:
    """As `start_execution`, once: the id of a child is that of the wait it answers."""
    known = change.db.execute(select(execution.c.id).where(execution.c.id == new.id)).one_or_none()
    if known is None:
        start_execution(change, new)


def open_review(change: Transitions, row: ExecutionRow, new: NewReview) -> None:
    """Ask it, once."""
    db = change.db
    if db.execute(select(review.c.id).where(review.c.id == new.id)).one_or_none() is not None:
        return
    db.execute(
        insert(review),
        {
            "id": new.id,
            "user_id": row.user_id,
            "graph_id": row.graph_id,
            "execution_id": row.id,
            "node_exec_id": new.node_exec_id,
            "seq": new.number,
            "payload": new.payload,
            "instructions": new.instructions,
            "editable": new.editable,
            "status": ReviewStatus.WAITING.value,
            "created_at": change.now,
            "message": "",
        },
    )


def _remembered(db: Connection, new: NewExecution, key: IdempotencyKey, now: datetime) -> str | None:
    mine = (
        (idempotency.c.user_id == new.user_id) & (idempotency.c.route == START_ROUTE) & (idempotency.c.key == key.key)
    )
    db.execute(idempotency.delete().where(mine, idempotency.c.created_at < now - IDEMPOTENCY_FOR))
    found = db.execute(select(idempotency).where(mine)).one_or_none()
    if found is None:
        db.execute(
            insert(idempotency),
            {
                "user_id": new.user_id,
                "route": START_ROUTE,
                "key": key.key,
                "fingerprint": key.fingerprint,
                "execution_id": new.id,
                "created_at": now,
            },
        )
        return None
    if found.fingerprint != key.fingerprint:
        raise ConflictError("this Idempotency-Key was used with another request", reason="idempotency")
    return str(found.execution_id)
