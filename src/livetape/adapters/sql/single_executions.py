"""What an execution store does with one statement instead of a transaction of many (`single.py`)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Final

from livetape.adapters.sql.execution_rows import committed_events
from livetape.adapters.sql.leasing import CLAIMABLE
from livetape.adapters.sql.prepared import micros
from livetape.adapters.sql.single import Single, moment_of
from livetape.adapters.sql.single_starts import LOOK_SQL, claim_statement, looked, start_statement
from livetape.adapters.sql.single_steps import answered, step_statement
from livetape.adapters.sql.starting import new_row, tape_values
from livetape.adapters.sql.transitions import RING_AGAIN_S, Written
from livetape.engine.queue import Doorbell
from livetape.events.executions import ExecutionStatus
from livetape.events.log import NewEvent
from livetape.store.execution_events import graph_event
from livetape.store.executions import ExecutionRow, NewExecution, Step

_RING_AFTER: Final = timedelta(seconds=RING_AGAIN_S)


class SingleExecutions:
    """Each call is one transaction; `Written` says what to tell of it. Raises as the store's method of that name."""

    def __init__(self, single: Single) -> None:
        self._single = single

    async def start(self, new: NewExecution) -> tuple[ExecutionRow, Written]:
        """A start without a key, that takes over nothing."""
        row = new_row(new, 0, new.created_at, None)
        told = graph_event(row, {})
        sql, arguments = start_statement(
            row,
            tape_values(new),
            told,
            Doorbell(row.id, enqueue_no=0, priority=row.priority),
            now=self._single.moment(),
            ring_after=_RING_AFTER,
            queue_for=None if new.queue_seconds is None else timedelta(seconds=new.queue_seconds),
        )
        ((tape_id, ring_at, ends, _),) = await self._single.fetch(sql, arguments)
        row.tape_id, row.ring_at = tape_id, moment_of(ring_at)
        row.queue_deadline_at = None if ends is None else moment_of(ends)
        return row, _written(row, [told], 1, rang=True)

    async def claim(
        self, execution_id: str, owner: str, lease_seconds: float, run_seconds: float | None
    ) -> tuple[ExecutionRow, Written] | None:
        """A first claim without limits. None: it cannot be taken, or not like this."""
        found = await self._single.fetch(LOOK_SQL, [execution_id, self._now()], reads=True)
        if not found:
            return None
        before, now, paused = looked(found[0])
        due = before.due_at is None or before.due_at <= now
        if before.status not in CLAIMABLE or not due or paused:
            return None
        if before.lease_no > 0 or before.forked_from is not None:
            return None  # its event tells what it gave so far
        deadline = before.deadline_at
        if deadline is None and run_seconds is not None:
            deadline = now + timedelta(seconds=run_seconds)
        row = replace(
            before,
            status=ExecutionStatus.RUNNING,
            status_reason=None,
            started_at=before.started_at or now,
            lease_owner=owner,
            lease_no=before.lease_no + 1,
            lease_until=now + timedelta(seconds=lease_seconds),
            deadline_at=deadline,
            due_at=None,
            ring_at=None,
            held=None,
        )
        told = graph_event(row)
        sql, arguments = claim_statement(before, row, told, now)
        claimed = await self._single.fetch(sql, arguments)
        if not claimed:
            return None
        return row, _written(row, [told], claimed[0][0])

    async def commit(self, step: Step, row: ExecutionRow) -> Written:
        """A step that `is_single`."""
        sql, arguments = step_statement(step, row, self._single.moment(), _RING_AFTER)
        last, rang = answered(await self._single.fetch(sql, arguments))
        return _written(row, step.events, last, rang=rang)

    def _now(self) -> int | None:
        moment: datetime | None = self._single.moment()
        return micros(moment)


def _written(row: ExecutionRow, events: Sequence[NewEvent], last: int, *, rang: bool = False) -> Written:
    return Written([committed_events(row, events, last)], rang=rang)
