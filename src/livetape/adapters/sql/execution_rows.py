"""Rows of executions in SQL: read, written step by step, and the events that tell of a change."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any, Final

from sqlalchemy import Boolean, Connection, Integer, Row, bindparam, insert, null, select, update

from livetape.adapters.sql.prepared import Prepared, micros
from livetape.adapters.sql.single import moment_of
from livetape.adapters.sql.tables import Moment, event, execution, node_execution, node_output, tape
from livetape.errors import LeaseLostError, NotFoundError
from livetape.events.channel import execution_channel, execution_tape
from livetape.events.executions import ExecutionStatus
from livetape.events.log import NewEvent
from livetape.store.execution_events import execution_outputs
from livetape.store.executions import Committed, ExecutionChange, ExecutionRow, NodeOutput, NodeRow, Step

_COUNTED = {
    "last_number": tape.c.last_number + bindparam("count", type_=Integer),
    "final": tape.c.final | bindparam("last", type_=Boolean),
}
_ALLOT: Final = Prepared(
    update(tape)
    .where(tape.c.id == bindparam("tape"), tape.c.fence == bindparam("lease"))
    .values(_COUNTED)
    .returning(tape.c.last_number)
)
_ALLOT_UNFENCED: Final = Prepared(
    update(tape).where(tape.c.id == bindparam("tape")).values(_COUNTED).returning(tape.c.last_number)
)
_INSERT_EVENTS: Final = Prepared(insert(event), ["tape_id", "number", "event_type", "payload", "final", "time"])
_INSERT_NODES: Final = Prepared(insert(node_execution), [c.name for c in node_execution.columns])
_INSERT_OUTPUTS: Final = Prepared(insert(node_output), [c.name for c in node_output.columns])
_SAME_NODE = (node_execution.c.execution_id == bindparam("of")) & (node_execution.c.seq == bindparam("nr"))
_FILL_NODE: Final = Prepared(update(node_execution).where(_SAME_NODE).values(inputs=bindparam("inputs")))
_TOUCHED: Final = ("status", "status_reason", "queue_time", "start_time", "end_time", "attempt", "stats")
_TOUCH_NODE: Final = Prepared(
    update(node_execution).where(_SAME_NODE).values({name: bindparam(name) for name in _TOUCHED})
)
_WAITS: Final = Prepared(update(node_execution).where(_SAME_NODE).values(waits=bindparam("waits")))
_PROGRESS: Final = Prepared(update(execution).where(execution.c.id == bindparam("of")).values(recoveries=0))
_FENCE: Final = Prepared(update(tape).where(tape.c.id == bindparam("tape")).values(fence=bindparam("lease")))
_INSERT_ROW: Final = Prepared(insert(execution), [c.name for c in execution.columns])
_ENDED: Final = ("status", "status_reason", "stats", "cost", "ended_at")
_END: Final = Prepared(
    update(execution)
    .where(
        execution.c.id == bindparam("of"),
        execution.c.lease_no == bindparam("lease", type_=Integer),
        execution.c.status == ExecutionStatus.RUNNING,
    )
    .values({name: bindparam(name) for name in _ENDED} | {"lease_owner": null(), "lease_until": null()})
)
_FIELDS: Final = [c.name for c in execution.columns]
_MOMENTS: Final = [c.name for c in execution.columns if isinstance(c.type, Moment)]
_FLAGS: Final = [c.name for c in execution.columns if isinstance(c.type, Boolean)]


def get_row(db: Connection, execution_id: str, user_id: str | None = None) -> ExecutionRow:
    """Raises NotFoundError, also when it belongs to another user."""
    query = select(execution).where(execution.c.id == execution_id)
    if user_id is not None:
        query = query.where(execution.c.user_id == user_id)
    row = db.execute(query).one_or_none()
    if row is None:
        raise NotFoundError(f"Graph execution #{execution_id} not found.")
    return to_row(row)


def hold_row(db: Connection, execution_id: str, user_id: str | None = None) -> ExecutionRow:
    """As `get_row`, for changing it: nobody else changes it before this transaction ends.

    The tape's row is locked before the execution's, here as in a worker's commit, so that no two wait for each other.
    """
    db.execute(select(tape.c.id).where(tape.c.name == execution_tape(execution_id)).with_for_update())
    return get_row(db, execution_id, user_id)


def set_fence(db: Connection, row: ExecutionRow, lease_no: int | None) -> None:
    """Say which lease may write to the tape from now on; None: no worker."""
    _FENCE.run(db, [{"tape": row.tape_id, "lease": lease_no}])


def write_events(
    db: Connection,
    row: ExecutionRow,
    events: Sequence[NewEvent],
    now: datetime,
    *,
    fenced: bool,
    lease_no: int | None = None,
) -> Committed:
    """Allot numbers and write. `fenced`: only while this lease number (the row's) is the current one.

    Raises:
        LeaseLostError
    """
    parameters: dict[str, Any] = {"tape": row.tape_id, "count": len(events), "last": any(e.final for e in events)}
    if fenced:
        parameters["lease"] = row.lease_no if lease_no is None else lease_no
    allotted = (_ALLOT if fenced else _ALLOT_UNFENCED).one(db, parameters)
    if allotted is None:
        raise LeaseLostError
    last = allotted[0]
    first = last - len(events) + 1
    if events:
        moment = micros(now)
        _INSERT_EVENTS.run(
            db,
            [
                {
                    "tape_id": row.tape_id,
                    "number": number,
                    "event_type": new.event_type,
                    "payload": new.payload,
                    "final": new.final,
                    "time": moment,
                }
                for number, new in enumerate(events, first)
            ],
        )
    return committed_events(row, events, last)


def committed_events(row: ExecutionRow, events: Sequence[NewEvent], last: int) -> Committed:
    """Events of which the last has this number."""
    return Committed(
        tape=execution_tape(row.id),
        channel=execution_channel(row.user_id, row.graph_id, row.id),
        epoch=row.epoch,
        graph_id=row.graph_id,
        execution_id=row.id,
        first=last - len(events) + 1,
        events=events,
    )


def write_nodes(db: Connection, step: Step) -> None:
    """What a step says of node executions."""
    of = step.execution_id
    if step.created:
        insert_nodes(db, of, step.created)
    if step.filled:
        _FILL_NODE.run(db, [{"of": of, "nr": n.seq, "inputs": n.inputs} for n in step.filled])
    if step.touched:
        _TOUCH_NODE.run(db, [_touch(of, node) for node in step.touched])
    if step.waits:
        _WAITS.run(db, [{"of": of, "nr": seq, "waits": waits} for seq, waits in step.waits.items()])
    if step.outputs:
        _INSERT_OUTPUTS.run(
            db,
            [output_values(of, output) for output in step.outputs],
        )
    if step.progressed:
        _PROGRESS.run(db, [{"of": of}])


def insert_nodes(db: Connection, execution_id: str, nodes: Sequence[NodeRow]) -> None:
    """New node executions, with the outputs that they have already."""
    _INSERT_NODES.run(db, [node_values(execution_id, node) for node in nodes])
    outputs = [
        {"execution_id": execution_id, "seq": node.seq, "position": position, "name": name, "value": value}
        for node in nodes
        for position, (name, value) in enumerate(node.outputs)
    ]
    if outputs:
        _INSERT_OUTPUTS.run(db, outputs)


def touch_node(db: Connection, execution_id: str, node: NodeRow) -> None:
    """Its new status, times, attempt and figures."""
    _TOUCH_NODE.run(db, [_touch(execution_id, node)])


def to_row(row: Row[Any]) -> ExecutionRow:
    return ExecutionRow(**row._mapping)


def plain_row(values: Sequence[Any]) -> ExecutionRow:
    """From the plain values of all columns, in the order of the table."""
    named: dict[str, Any] = dict(zip(_FIELDS, values, strict=True))
    for name in _MOMENTS:
        if named[name] is not None:
            named[name] = moment_of(named[name])
    for name in _FLAGS:
        named[name] = bool(named[name])
    named["status"] = ExecutionStatus(named["status"])
    return ExecutionRow(**named)


def plain_values(row: ExecutionRow) -> dict[str, Any]:
    """All columns as plain values."""
    named = row_values(row)
    for name in _MOMENTS:
        named[name] = micros(named[name])
    named["status"] = row.status.value
    return named


def insert_row(db: Connection, row: ExecutionRow) -> None:
    """A new execution."""
    _INSERT_ROW.run(db, [plain_values(row)])


def end_row(db: Connection, execution_id: str, lease_no: int, ended: ExecutionChange) -> bool:
    """End what runs under this lease; False: it does not."""
    given = {
        "of": execution_id,
        "lease": lease_no,
        "status": ended.status.value,
        "status_reason": ended.status_reason,
        "stats": ended.stats,
        "cost": ended.cost,
        "ended_at": micros(ended.ended_at),
    }
    return _END.run(db, [given]) > 0


def row_values(row: ExecutionRow) -> dict[str, Any]:
    return {name: getattr(row, name) for name in ExecutionRow.__dataclass_fields__}


def read_nodes(db: Connection, execution_id: str, *, with_outputs: bool) -> list[NodeRow]:
    """In the order of `seq`."""
    query = select(node_execution).where(node_execution.c.execution_id == execution_id)
    nodes: list[NodeRow] = []
    by_seq: dict[int, NodeRow] = {}
    for row in db.execute(query.order_by(node_execution.c.seq)):
        values = dict(row._mapping)
        del values["execution_id"]
        node = NodeRow(**values)
        nodes.append(node)
        by_seq[node.seq] = node
    if with_outputs:
        columns = (node_output.c.seq, node_output.c.name, node_output.c.value)
        yielded = select(*columns).where(node_output.c.execution_id == execution_id)
        for seq, name, value in db.execute(yielded.order_by(node_output.c.seq, node_output.c.position)):
            by_seq[seq].outputs.append((name, value))
    return nodes


def read_outputs(db: Connection, execution_id: str) -> dict[str, list[Any]]:
    """What the OUTPUT blocks gave so far."""
    return execution_outputs(read_nodes(db, execution_id, with_outputs=False))


def _touch(execution_id: str, node: NodeRow) -> dict[str, Any]:
    return {"of": execution_id, "nr": node.seq, **touched_values(node)}


def touched_values(node: NodeRow) -> dict[str, Any]:
    """What changes while a node execution goes on, as plain values."""
    return {
        "status": node.status.value,
        "status_reason": node.status_reason,
        "queue_time": micros(node.queue_time),
        "start_time": micros(node.start_time),
        "end_time": micros(node.end_time),
        "attempt": node.attempt,
        "stats": node.stats,
    }


def output_values(execution_id: str, output: NodeOutput) -> dict[str, Any]:
    """A row of outputs as plain values."""
    return {
        "execution_id": execution_id,
        "seq": output.seq,
        "position": output.index,
        "name": output.name,
        "value": output.value,
    }


def node_values(execution_id: str, node: NodeRow) -> dict[str, Any]:
    """The row of a node execution as plain values."""
    return {
        "execution_id": execution_id,
        "seq": node.seq,
        "id": node.id,
        "node_id": node.node_id,
        "block_id": node.block_id,
        "status": node.status.value,
        "status_reason": node.status_reason,
        "inputs": node.inputs,
        "output_name": node.output_name,
        "add_time": micros(node.add_time),
        "queue_time": micros(node.queue_time),
        "start_time": micros(node.start_time),
        "end_time": micros(node.end_time),
        "attempt": node.attempt,
        "stats": node.stats,
        "waits": node.waits,
        "effects": node.effects,
    }
