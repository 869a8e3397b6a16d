"""Executions in SQL: every change of state with its events, in one transaction."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Any, Final, TypeVar

from pydantic_core import from_json, to_json
from sqlalchemy import Connection, Row, func, literal, select, update

from livetape.adapters.sql import leasing, reviews, starting
from livetape.adapters.sql.database import Database
from livetape.adapters.sql.execution_rows import (
    end_row,
    get_row,
    hold_row,
    read_nodes,
    set_fence,
    write_events,
    write_nodes,
)
from livetape.adapters.sql.single_executions import SingleExecutions
from livetape.adapters.sql.single_steps import is_single
from livetape.adapters.sql.tables import execution, node_execution, queue_pause, tape
from livetape.adapters.sql.transitions import CANCELLED, NEVER, Transitions, Written
from livetape.clock import Clock, SystemClock
from livetape.errors import LeaseLostError, NotFoundError, StoreUnavailableError
from livetape.events.executions import ExecutionStatus
from livetape.observability import Metrics, NoMetrics, get_logger
from livetape.store.executions import (
    ClaimLimits,
    CommitListener,
    ExecutionChange,
    ExecutionRow,
    ExecutionStore,
    IdempotencyKey,
    NewExecution,
    NodeRow,
    Outcomes,
    QueueFigures,
    Renewal,
    Step,
    Swept,
)
from livetape.store.reviews import Decision, ReviewRow

T = TypeVar("T")
logger = get_logger(__name__)

BRIEF_BYTES: Final = 64 * 1024
"""A step with more than this in its events is not brief (`Database.write`)."""

_NO_LIMITS: Final = ClaimLimits()


def _unheard(_execution_id: str) -> None:
    """Nobody runs anything here."""


class SqlExecutionStore(ExecutionStore):
    """`on_commit` is called with what a commit wrote, `ring` when it wrote a doorbell, `hint` with executions that run
    and should look at their row; all after the commit."""

    def __init__(
        self,
        database: Database,
        *,
        on_commit: CommitListener,
        ring: Callable[[], None],
        clock: Clock | None = None,
        hint: Callable[[str], None] = _unheard,
        metrics: Metrics | None = None,
    ) -> None:
        self._database = database
        self._on_commit = on_commit
        self._ring = ring
        self._clock = clock or SystemClock()
        self._hint = hint
        self._metrics = metrics or NoMetrics()
        self._pausing = asyncio.Lock()
        self._single = None if database.single is None else SingleExecutions(database.single)

    async def _change(
        self,
        unit: Callable[[Transitions], T],
        *,
        brief: bool = False,
        lock: str | None = None,
        local: bool = False,
        fenced: bool = False,
    ) -> T:
        """Run it in one transaction and tell afterwards. `local`: nothing is due by the moment, no lease and no
        doorbell. `fenced`: its first
        statement checks the lease and keeps it, and it reads nothing that others change meanwhile."""

        def run(db: Connection) -> tuple[T, Written]:
            # made anew each time: the database may run a unit more than once
            change = Transitions(db, self._clock.now() if local else self._database.now(db))
            return unit(change), change.written

        if lock is None:
            result, written = await self._database.write(run, brief=brief, read_committed=fenced)
        else:
            result, written = await self._database.locked_write(lock, run)
        self._tell(written)
        return result

    def _tell(self, written: Written) -> None:
        for committed in written.committed:
            self._on_commit(committed)
        if written.rang:
            self._ring()
        for execution_id in written.hints:
            self._hint(execution_id)

    # -- starting and reading --------------------------------------------------------------------------------------

    async def start(self, new: NewExecution, *, idempotency: IdempotencyKey | None = None) -> tuple[ExecutionRow, bool]:
        if self._single is not None and idempotency is None and not new.nodes:
            row, written = await self._single.start(new)
            self._tell(written)
            return row, False
        brief = len(new.inputs) <= BRIEF_BYTES and not new.nodes
        return await self._change(lambda change: starting.start_once(change, new, idempotency), brief=brief)

    async def get(self, execution_id: str, *, user_id: str | None = None) -> ExecutionRow:
        return await self._database.read(lambda db: get_row(db, execution_id, user_id))

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
        return await self._database.read(lambda db: read_nodes(db, execution_id, with_outputs=with_outputs))

    # -- workers ---------------------------------------------------------------------------------------------------

    async def claim(
        self, execution_id: str, *, owner: str, lease_seconds: float, limits: ClaimLimits | None = None
    ) -> ExecutionRow | None:
        limits = limits or _NO_LIMITS
        limited = limits.per_user is not None or limits.per_graph is not None
        if self._single is not None and not limited:
            claimed = await self._single.claim(execution_id, owner, lease_seconds, limits.run_seconds)
            if claimed is not None:
                self._tell(claimed[1])
                return claimed[0]
        lock = None
        if limited:
            # Slots are counted from rows: nobody else may count this user's at the same time.
            try:
                lock = f"slots:{(await self.get(execution_id)).user_id}"
            except NotFoundError:
                return None
        return await self._change(
            lambda change: leasing.claim(change, execution_id, owner, lease_seconds, limits), brief=True, lock=lock
        )

    async def commit(self, step: Step, row: ExecutionRow) -> None:
        if self._single is not None and is_single(step, row):
            self._tell(await self._single.commit(step, row))
            return
        brief = sum(len(event.payload) for event in step.events) <= BRIEF_BYTES
        goes_on = step.change is None and not step.abandoned
        await self._change(
            lambda change: self._commit(change, step, row),
            brief=brief,
            local=goes_on and not step.children,
            fenced=goes_on,
        )

    def _commit(self, change: Transitions, step: Step, row: ExecutionRow) -> None:
        db = change.db
        # First the tape: allotting numbers and checking the lease are this one update.
        change.written.committed.append(
            write_events(db, row, step.events, change.now, fenced=True, lease_no=step.lease_no)
        )
        if step.change is not None and not _parks(step.change):
            self._end(change, step, step.change, row)
        write_nodes(db, step)
        for node_exec_id in step.abandoned:
            change.abandon(node_exec_id)
        for child in step.children:
            starting.start_child(change, child)
        for asked in step.reviews:
            starting.open_review(change, row, asked)
        if step.change is not None and _parks(step.change):
            self._park(change, step, step.change)

    def _end(self, change: Transitions, step: Step, ended: ExecutionChange, row: ExecutionRow) -> None:
        if step.is_parent:
            change.stop_children(row.id)
        set_fence(change.db, row, None)
        changed = end_row(change.db, step.execution_id, step.lease_no, ended)
        if not changed:
            raise LeaseLostError
        if ended.status.is_terminal:
            change.after_end(row, ran=True)

    def _park(self, change: Transitions, step: Step, parked: ExecutionChange) -> None:
        """Let it wait without a worker. What happened in the meantime makes it due at once, or ends it."""
        row = get_row(change.db, step.execution_id)
        if row.lease_no != step.lease_no or row.status is not ExecutionStatus.RUNNING:
            raise LeaseLostError
        if row.cancel_requested:
            change.end(row, ExecutionStatus.TERMINATED, CANCELLED)
            return
        due = change.now if row.wakes > parked.wakes else parked.due_at or NEVER
        change.park(row, parked.status, parked.status_reason, parked.stats, due)

    async def effect(self, row: ExecutionRow, seq: int, place: int, unit: Callable[[Any], Any]) -> Any:
        where = (node_execution.c.execution_id == row.id) & (node_execution.c.seq == seq)

        def run(db: Connection) -> Any:
            write_events(db, row, [], self._clock.now(), fenced=True)  # the lease is still ours, and stays so
            recorded = db.execute(select(node_execution.c.effects).where(where)).scalar_one()
            results = [] if recorded is None else from_json(recorded)
            if place < len(results):
                return results[place]
            result = from_json(to_json(unit(db)))
            effects = to_json([*results, result])
            db.execute(update(node_execution).where(where).values(effects=effects))
            return result

        return await self._database.write(run)

    def renew(self, owner: str, leases: Mapping[str, int], lease_seconds: float) -> Renewal:
        return self._database.write_now(
            lambda db: leasing.renew(db, owner, leases, self._database.now(db), lease_seconds)
        )

    async def hand_back(self, execution_id: str, *, lease_no: int, reason: str) -> None:
        def unit(change: Transitions) -> None:
            row = hold_row(change.db, execution_id)
            if row.lease_no != lease_no or row.status is not ExecutionStatus.RUNNING:
                raise LeaseLostError
            change.requeue(row, reason, recoveries=row.recoveries, delay_s=0)

        await self._change(unit)

    # -- control ---------------------------------------------------------------------------------------------------

    async def request_cancel(self, execution_id: str, *, user_id: str) -> ExecutionRow:
        def unit(change: Transitions) -> ExecutionRow:
            row = get_row(change.db, execution_id, user_id)
            if row.status.is_terminal:
                return row
            return change.stop_tree(hold_row(change.db, execution_id))

        return await self._change(unit)

    async def outcomes(self, execution_id: str, children: Sequence[str], reviews_: Sequence[str]) -> Outcomes:
        return await self._database.read(lambda db: reviews.outcomes(db, execution_id, children, reviews_))

    async def reviews(
        self,
        user_id: str,
        *,
        execution_id: str | None = None,
        node_exec_id: str | None = None,
        waiting: bool = True,
        limit: int = 100,
    ) -> Sequence[ReviewRow]:
        return await self._database.read(
            lambda db: reviews.list_reviews(
                db, user_id, execution_id=execution_id, node_exec_id=node_exec_id, waiting=waiting, limit=limit
            )
        )

    async def decide(self, review_id: str, decision: Decision, *, user_id: str) -> ReviewRow:
        return await self._change(lambda change: reviews.decide(change, review_id, decision, user_id))

    async def pause(self, reason: str) -> None:
        def unit(db: Connection) -> None:
            if leasing.paused(db) is None:
                db.execute(
                    queue_pause.insert(),
                    {"name": leasing.PAUSED, "since": self._database.now(db), "reason": reason},
                )

        # In the order in which they are asked for: while the database is away, both are tried again and again.
        async with self._pausing:
            await self._database.write(unit)

    async def resume(self) -> None:
        gone = queue_pause.delete().where(queue_pause.c.name == leasing.PAUSED)
        async with self._pausing:
            await self._database.write(lambda db: db.execute(gone))
        self._ring()

    async def paused(self) -> str | None:
        return await self._database.read(leasing.paused)

    # -- what workers left -----------------------------------------------------------------------------------------

    async def recover(self, *, expired_before: datetime | None) -> Sequence[str]:
        lost = await self._database.read(lambda db: leasing.lost(db, expired_before))

        def still(row: ExecutionRow) -> bool:
            return expired_before is None or (row.lease_until is not None and row.lease_until < expired_before)

        return await self._take_back(lost, lambda _: still)

    async def release_owner(self, owner_prefix: str) -> Sequence[str]:
        lost = await self._database.read(lambda db: leasing.lost(db, None, owner_prefix))
        return await self._take_back(lost, lambda _: lambda row: (row.lease_owner or "").startswith(owner_prefix))

    async def sweep(self, *, grace_seconds: float = 0) -> Swept:
        def find(db: Connection) -> tuple[Sequence[str], Sequence[str], bool]:
            now = self._database.now(db)
            late = leasing.overdue(db, now, grace_seconds)
            return leasing.lost(db, now), late, leasing.unanswered(db, now)

        lost, late, unanswered = await self._database.read(find)
        recovered = await self._take_back(
            lost, lambda now: lambda row: row.lease_until is not None and row.lease_until < now
        )
        ended: Any = [
            name for name in late if await self._each(name, lambda c, n: leasing.end_overdue(c, n, grace_seconds))
        ]
        rung: Sequence[str] = ()
        if unanswered:
            rung, unclaimed = await self._change(leasing.ring_again)
            ended += [name for name in unclaimed if await self._each(name, leasing.end_unclaimed)]
        return Swept(recovered, rung, ended)

    async def _take_back(
        self, lost: Sequence[str], still: Callable[[datetime], Callable[[ExecutionRow], bool]]
    ) -> Sequence[str]:
        def one(change: Transitions, execution_id: str) -> bool:
            return leasing.take_back(change, execution_id, still(change.now))

        return [execution_id for execution_id in lost if await self._each(execution_id, one)]

    async def _each(self, execution_id: str, unit: Callable[[Transitions, str], bool]) -> bool:
        """In a transaction of its own: one that cannot be handled keeps no other from it."""
        try:
            return await self._change(lambda change: unit(change, execution_id))
        except NotFoundError:
            return False
        except StoreUnavailableError:
            raise
        except Exception:
            logger.exception("execution %s cannot be swept", execution_id, extra={"action": "sweep_failed"})
            self._metrics.count("internal_errors_total", part="sweep")
            return False

    async def figures(self) -> QueueFigures:
        def read(db: Connection) -> QueueFigures:
            now = self._database.now(db)
            since = func.coalesce(execution.c.due_at, execution.c.created_at)
            waiting = (
                execution.c.ring_at.is_not(None)
                & (execution.c.status == ExecutionStatus.QUEUED)
                & (since <= literal(now, execution.c.due_at.type))
            )
            depth, oldest = db.execute(
                select(func.count(), func.min(since, type_=execution.c.due_at.type)).where(waiting)
            ).one()
            return QueueFigures(depth, 0.0 if oldest is None else max(0.0, (now - oldest).total_seconds()))

        return await self._database.read(read)

    async def counts(self) -> dict[ExecutionStatus, int]:
        query = select(execution.c.status, func.count()).group_by(execution.c.status)
        rows = await self._database.read(lambda db: db.execute(query).all())
        return {row[0]: row[1] for row in rows}


def _parks(change: ExecutionChange | None) -> bool:
    return change is not None and change.status in (ExecutionStatus.QUEUED, ExecutionStatus.REVIEW)


def _with_number(row: Row[Any]) -> tuple[ExecutionRow, int]:
    values = dict(row._mapping)
    number = values.pop("last_number")
    return ExecutionRow(**values), number
