"""Executions in SQL: every change of state with its events, in one transaction."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from typing import Any, Final

from sqlalchemy import Boolean, Connection, Integer, Row, bindparam, case, func, insert, select, update

from livetape.adapters.sql.database import Database
from livetape.adapters.sql.prepared import Prepared, micros
from livetape.adapters.sql.queue import insert_doorbell
from livetape.adapters.sql.tables import event, execution, idempotency, node_execution, node_output, tape
from livetape.clock import Clock, SystemClock
from livetape.engine.queue import Doorbell
from livetape.errors import ConflictError, LeaseLostError, NotFoundError
from livetape.events.channel import execution_channel, execution_tape
from livetape.events.executions import ALLOWED_SOURCES, ExecutionStatus
from livetape.events.log import NewEvent
from livetape.store.execution_events import execution_outputs, graph_event, stored_node_event
from livetape.store.executions import (
    CommitListener,
    Committed,
    ExecutionRow,
    ExecutionStore,
    IdempotencyKey,
    NewExecution,
    NodeRow,
    Renewal,
    Step,
)

START_ROUTE: Final = "start_execution"
IDEMPOTENCY_FOR: Final = timedelta(hours=24)
BRIEF_BYTES: Final = 64 * 1024
"""A step with more than this in its events is not brief (`Database.write`)."""

RECOVERY_DELAYS_S: Final = (0, 1, 5, 30, 120)
"""Waits before an execution is tried again after its worker was lost; after the last one it is poison."""

_STARTED: Final = (ExecutionStatus.QUEUED, ExecutionStatus.RUNNING, ExecutionStatus.REVIEW)

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
_TOUCH_NODE: Final = Prepared(
    update(node_execution)
    .where(_SAME_NODE)
    .values({name: bindparam(name) for name in ("status", "status_reason", "queue_time", "start_time", "end_time")})
)
_PROGRESS: Final = Prepared(update(execution).where(execution.c.id == bindparam("of")).values(recoveries=0))
_FENCE = update(tape).where(tape.c.id == bindparam("tape")).values(fence=bindparam("lease"))


class SqlExecutionStore(ExecutionStore):
    """`on_commit` is called with what a commit wrote, `ring` when it wrote a doorbell; both after the commit."""

    def __init__(
        self,
        database: Database,
        *,
        on_commit: CommitListener,
        ring: Callable[[], None],
        clock: Clock | None = None,
    ) -> None:
        self._database = database
        self._on_commit = on_commit
        self._ring = ring
        self._clock = clock or SystemClock()

    async def start(self, new: NewExecution, *, idempotency: IdempotencyKey | None = None) -> tuple[ExecutionRow, bool]:
        brief = len(new.inputs) <= BRIEF_BYTES
        row, written = await self._database.write(lambda db: self._start(db, new, idempotency), brief=brief)
        if written is not None:
            self._on_commit(written)
            self._ring()
        return row, written is None

    def _start(
        self, db: Connection, new: NewExecution, key: IdempotencyKey | None
    ) -> tuple[ExecutionRow, Committed | None]:
        now = self._clock.now()
        if key is not None:
            earlier = self._remembered(db, new, key, now)
            if earlier is not None:
                return _get(db, earlier), None
        tape_id = db.execute(
            insert(tape).returning(tape.c.id),
            {
                "name": execution_tape(new.id),
                "owner": new.user_id,
                "graph_id": new.graph_id,
                "channel": execution_channel(new.user_id, new.graph_id, new.id),
                "epoch": new.epoch,
                "last_number": 0,
                "first_number": 1,
                "final": False,
                "published": 0,
                "created_at": new.created_at,
            },
        ).scalar_one()
        row = ExecutionRow(
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
        )
        db.execute(insert(execution), _values(row))
        written = _write_events(db, row, [graph_event(row)], now, fenced=False)
        insert_doorbell(db, Doorbell(new.id), self._clock)
        return row, written

    def _remembered(self, db: Connection, new: NewExecution, key: IdempotencyKey, now: datetime) -> str | None:
        mine = (
            (idempotency.c.user_id == new.user_id)
            & (idempotency.c.route == START_ROUTE)
            & (idempotency.c.key == key.key)
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

    async def get(self, execution_id: str, *, user_id: str | None = None) -> ExecutionRow:
        return await self._database.read(lambda db: _get(db, execution_id, user_id))

    async def list(
        self, user_id: str, *, graph_id: str | None = None, limit: int = 25, offset: int = 0
    ) -> tuple[Sequence[tuple[ExecutionRow, int]], int]:
        where = execution.c.user_id == user_id
        if graph_id is not None:
            where &= execution.c.graph_id == graph_id
        page = (
            select(execution, tape.c.last_number)
            .join(tape, tape.c.id == execution.c.tape_id)
            .where(where)
            .order_by(execution.c.created_at.desc(), execution.c.id.desc())
            .limit(limit)
            .offset(offset)
        )

        def read(db: Connection) -> tuple[Sequence[tuple[ExecutionRow, int]], int]:
            total = db.execute(select(func.count()).select_from(execution).where(where)).scalar_one()
            return [_with_number(row) for row in db.execute(page)], total

        return await self._database.read(read)

    async def nodes(self, execution_id: str, *, with_outputs: bool = True) -> Sequence[NodeRow]:
        return await self._database.read(lambda db: _nodes(db, execution_id, with_outputs=with_outputs))

    async def claim(self, execution_id: str, *, owner: str, lease_seconds: float) -> ExecutionRow | None:
        def unit(db: Connection) -> tuple[ExecutionRow, Committed] | None:
            now = self._clock.now()
            claimed = db.execute(
                update(execution)
                .where(
                    execution.c.id == execution_id,
                    execution.c.status.in_([ExecutionStatus.QUEUED, ExecutionStatus.INCOMPLETE]),
                )
                .values(
                    status=ExecutionStatus.RUNNING,
                    status_reason=None,
                    started_at=func.coalesce(execution.c.started_at, _moment(now)),
                    lease_owner=owner,
                    lease_no=execution.c.lease_no + 1,
                    lease_until=now + timedelta(seconds=lease_seconds),
                )
                .returning(execution)
            ).one_or_none()
            if claimed is None:
                return None
            row = _row(claimed)
            db.execute(_FENCE, {"tape": row.tape_id, "lease": row.lease_no})
            outputs = _outputs(db, row.id) if row.recoveries else None
            return row, _write_events(db, row, [graph_event(row, outputs)], now, fenced=True)

        claimed = await self._database.write(unit, brief=True)
        if claimed is None:
            return None
        row, written = claimed
        self._on_commit(written)
        return row

    async def commit(self, step: Step, row: ExecutionRow) -> None:
        brief = sum(len(event.payload) for event in step.events) <= BRIEF_BYTES
        written = await self._database.write(lambda db: self._commit(db, step, row), brief=brief)
        if written is not None:
            self._on_commit(written)

    def _commit(self, db: Connection, step: Step, row: ExecutionRow) -> Committed | None:
        # First the tape: allotting numbers and checking the lease are this one update.
        written = _write_events(db, row, step.events, self._clock.now(), fenced=True, lease_no=step.lease_no)
        change = step.change
        if change is not None:
            values: dict[str, Any] = {
                "status": change.status,
                "status_reason": change.status_reason,
                "stats": change.stats,
                "ended_at": change.ended_at,
            }
            if change.status is not ExecutionStatus.RUNNING:
                values |= {"lease_owner": None, "lease_until": None}
                db.execute(_FENCE, {"tape": row.tape_id, "lease": None})
            changed = db.execute(
                update(execution)
                .where(
                    execution.c.id == step.execution_id,
                    execution.c.lease_no == step.lease_no,
                    execution.c.status.in_(ALLOWED_SOURCES[change.status]),
                )
                .values(values)
            )
            if not changed.rowcount:
                raise LeaseLostError
        of = step.execution_id
        if step.created:
            _INSERT_NODES.run(db, [_node_values(of, node) for node in step.created])
        if step.filled:
            _FILL_NODE.run(db, [{"of": of, "nr": n.seq, "inputs": n.inputs} for n in step.filled])
        if step.touched:
            _TOUCH_NODE.run(
                db,
                [
                    {
                        "of": of,
                        "nr": n.seq,
                        "status": n.status.value,
                        "status_reason": n.status_reason,
                        "queue_time": micros(n.queue_time),
                        "start_time": micros(n.start_time),
                        "end_time": micros(n.end_time),
                    }
                    for n in step.touched
                ],
            )
        if step.outputs:
            _INSERT_OUTPUTS.run(
                db,
                [
                    {"execution_id": of, "seq": o.seq, "position": o.index, "name": o.name, "value": o.value}
                    for o in step.outputs
                ],
            )
        if step.progressed:
            _PROGRESS.run(db, [{"of": of}])
        return written

    def renew(self, owner: str, execution_ids: Sequence[str], lease_seconds: float) -> Renewal:
        def unit(db: Connection) -> Renewal:
            rows = db.execute(
                update(execution)
                .where(
                    execution.c.id.in_(execution_ids),
                    execution.c.lease_owner == owner,
                    execution.c.status == ExecutionStatus.RUNNING,
                )
                .values(lease_until=self._clock.now() + timedelta(seconds=lease_seconds))
                .returning(execution.c.id, execution.c.cancel_requested)
            ).all()
            return Renewal(
                held=frozenset(row.id for row in rows),
                cancelled=frozenset(row.id for row in rows if row.cancel_requested),
            )

        return self._database.write_now(unit)

    async def hand_back(self, execution_id: str, *, lease_no: int, reason: str) -> None:
        def unit(db: Connection) -> Committed:
            now = self._clock.now()
            row = _get(db, execution_id)
            if row.lease_no != lease_no or row.status is not ExecutionStatus.RUNNING:
                raise LeaseLostError
            return self._requeue(db, row, reason, now, recoveries=row.recoveries, delay_s=0)

        written = await self._database.write(unit)
        self._on_commit(written)
        self._ring()

    async def request_cancel(self, execution_id: str, *, user_id: str) -> ExecutionRow:
        def unit(db: Connection) -> tuple[ExecutionRow, Committed | None]:
            now = self._clock.now()
            row = _get(db, execution_id, user_id)
            if row.status.is_terminal or row.cancel_requested:
                return row, None
            if row.status is not ExecutionStatus.RUNNING:
                return self._end(db, row, ExecutionStatus.TERMINATED, "cancelled_by_user", now)
            # It runs: the owner ends it. Told at once, so that watchers see that the wish was heard.
            changed = db.execute(
                update(execution)
                .where(execution.c.id == row.id, execution.c.status == ExecutionStatus.RUNNING)
                .values(cancel_requested=True, status_reason="cancel_requested")
                .returning(execution)
            ).one()
            row = _row(changed)
            return row, _write_events(db, row, [graph_event(row, _outputs(db, row.id))], now, fenced=False)

        row, written = await self._database.write(unit)
        if written is not None:
            self._on_commit(written)
        return row

    async def recover(self, *, expired_before: datetime | None) -> Sequence[str]:
        def unit(db: Connection) -> list[tuple[str, Committed]]:
            now = self._clock.now()
            lost = select(execution).where(execution.c.status == ExecutionStatus.RUNNING)
            if expired_before is not None:
                lost = lost.where(execution.c.lease_until < expired_before)
            return [(row.id, self._recover_one(db, row, now)) for row in map(_row, db.execute(lost).all())]

        recovered = await self._database.write(unit)
        for _, written in recovered:
            self._on_commit(written)
        if recovered:
            self._ring()
        return [execution_id for execution_id, _ in recovered]

    def _recover_one(self, db: Connection, row: ExecutionRow, now: datetime) -> Committed:
        if row.cancel_requested:
            return self._end(db, row, ExecutionStatus.TERMINATED, "cancelled_by_user", now)[1]
        if row.recoveries >= len(RECOVERY_DELAYS_S):
            return self._end(db, row, ExecutionStatus.FAILED, "poison", now)[1]
        return self._requeue(
            db,
            row,
            "worker_lost",
            now,
            recoveries=row.recoveries + 1,
            delay_s=RECOVERY_DELAYS_S[row.recoveries],
        )

    def _requeue(
        self, db: Connection, row: ExecutionRow, reason: str, now: datetime, *, recoveries: int, delay_s: float
    ) -> Committed:
        changed = db.execute(
            update(execution)
            .where(execution.c.id == row.id)
            .values(
                status=ExecutionStatus.QUEUED,
                status_reason=reason,
                lease_owner=None,
                lease_until=None,
                recoveries=recoveries,
            )
            .returning(execution)
        ).one()
        db.execute(_FENCE, {"tape": row.tape_id, "lease": None})
        row = _row(changed)
        insert_doorbell(db, Doorbell(row.id, enqueue_no=row.lease_no), self._clock, delay_s)
        return _write_events(db, row, [graph_event(row, _outputs(db, row.id))], now, fenced=False)

    def _end(
        self, db: Connection, row: ExecutionRow, status: ExecutionStatus, reason: str, now: datetime
    ) -> tuple[ExecutionRow, Committed]:
        """End an execution that nobody runs, with the node executions that it leaves open."""
        events: list[NewEvent] = []
        for node in _nodes(db, row.id, with_outputs=True):
            if node.status not in _STARTED:
                continue
            node.status, node.status_reason, node.end_time = ExecutionStatus.TERMINATED, reason, now
            db.execute(
                update(node_execution)
                .where(node_execution.c.execution_id == row.id, node_execution.c.seq == node.seq)
                .values(status=node.status, status_reason=reason, end_time=now)
            )
            events.append(stored_node_event(row, node))
        changed = db.execute(
            update(execution)
            .where(execution.c.id == row.id)
            .values(
                status=status,
                status_reason=reason,
                ended_at=now,
                lease_owner=None,
                lease_until=None,
                cancel_requested=case((execution.c.cancel_requested, True), else_=status is ExecutionStatus.TERMINATED),
            )
            .returning(execution)
        ).one()
        db.execute(_FENCE, {"tape": row.tape_id, "lease": None})
        row = _row(changed)
        events.append(graph_event(row, _outputs(db, row.id)))
        return row, _write_events(db, row, events, now, fenced=False)

    async def counts(self) -> dict[ExecutionStatus, int]:
        query = select(execution.c.status, func.count()).group_by(execution.c.status)
        rows = await self._database.read(lambda db: db.execute(query).all())
        return {row[0]: row[1] for row in rows}


def _write_events(
    db: Connection,
    row: ExecutionRow,
    events: Sequence[NewEvent],
    now: datetime,
    *,
    fenced: bool,
    lease_no: int | None = None,
) -> Committed:
    """Allot numbers and write. `fenced`: only while this lease number (the row's) is the current one."""
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
    return Committed(
        tape=execution_tape(row.id),
        channel=execution_channel(row.user_id, row.graph_id, row.id),
        epoch=row.epoch,
        graph_id=row.graph_id,
        execution_id=row.id,
        first=first,
        events=events,
    )


def _moment(value: datetime) -> Any:
    return bindparam(None, value, type_=execution.c.started_at.type)


def _get(db: Connection, execution_id: str, user_id: str | None = None) -> ExecutionRow:
    query = select(execution).where(execution.c.id == execution_id)
    if user_id is not None:
        query = query.where(execution.c.user_id == user_id)
    row = db.execute(query).one_or_none()
    if row is None:
        raise NotFoundError(f"Graph execution #{execution_id} not found.")
    return _row(row)


def _with_number(row: Row[Any]) -> tuple[ExecutionRow, int]:
    values = dict(row._mapping)
    number = values.pop("last_number")
    return ExecutionRow(**values), number


def _row(row: Row[Any]) -> ExecutionRow:
    return ExecutionRow(**row._mapping)


def _values(row: ExecutionRow) -> dict[str, Any]:
    return {name: getattr(row, name) for name in ExecutionRow.__dataclass_fields__}


def _node_values(execution_id: str, node: NodeRow) -> dict[str, Any]:
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
    }


def _nodes(db: Connection, execution_id: str, *, with_outputs: bool) -> list[NodeRow]:
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


def _outputs(db: Connection, execution_id: str) -> dict[str, list[Any]]:
    """What the OUTPUT blocks gave so far."""
    return execution_outputs(_nodes(db, execution_id, with_outputs=False))
