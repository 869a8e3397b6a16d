"""Bugs that are put into the engine on purpose, from outside, so that it is known that the simulator would find them.

Each is a subclass of a production part that breaks one promise, the way somebody might by mistake.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import timedelta
from typing import Any, Final

from sqlalchemy import update

from livetape.adapters.sql.tables import execution, tape
from livetape.adapters.sql.transitions import Transitions
from livetape.engine.changes import WAITING
from livetape.engine.queue import Delivery
from livetape.engine.worker import Worker
from livetape.events.executions import ExecutionStatus
from livetape.store.executions import ClaimLimits, ExecutionRow, NewExecution, NodeRow, Step
from simulation.processes import Classes, WitnessedStore


class NoFenceCheck(WitnessedStore):
    """A step is written whoever holds the lease."""

    def _commit(self, change: Transitions, step: Step, row: ExecutionRow) -> None:
        change.db.execute(update(tape).where(tape.c.id == row.tape_id).values(fence=step.lease_no))
        super()._commit(change, step, row)


class AckBeforeClaim(Worker):
    """The doorbell is acknowledged when it arrives."""

    async def _look(self, delivery: Delivery) -> None:
        await self._queue.ack(delivery)
        await super()._look(delivery)


class TerminalOverwritten(WitnessedStore):
    """A stop writes TERMINATED without looking at what is there."""

    async def request_cancel(self, execution_id: str, **options: Any) -> Any:
        row = await self.get(execution_id)
        if row.status.is_terminal:
            overwrite = update(execution).where(execution.c.id == execution_id)
            values = {"status": ExecutionStatus.TERMINATED, "status_reason": "cancelled_by_user"}
            await self.sim.write(lambda db: db.execute(overwrite.values(values)))
        return await super().request_cancel(execution_id, **options)


class GapInNumbers(WitnessedStore):
    """A step that cannot be written has used up its number."""

    async def commit(self, step: Step, row: ExecutionRow) -> None:
        try:
            await super().commit(step, row)
        except Exception:
            skip = update(tape).where(tape.c.id == row.tape_id).values(last_number=tape.c.last_number + 1)
            await self.sim.write(lambda db: db.execute(skip))
            raise


class LostDoorbellNotSwept(WitnessedStore):
    """The sweep looks after leases only."""

    async def sweep(self, *args: Any, **options: Any) -> Any:
        never = self.sim.now() + timedelta(days=1)
        waits = update(execution).where(execution.c.status == ExecutionStatus.QUEUED, execution.c.ring_at < never)
        await self.sim.write(lambda db: db.execute(waits.values(ring_at=never)))
        return await super().sweep(*args, **options)


class RenewAfterExpiry(WitnessedStore):
    """A lease that is over is prolonged, if nobody has taken it yet."""

    def renew(self, owner: str, leases: Mapping[str, int], lease_seconds: float) -> Any:
        until = self.sim.now() + timedelta(seconds=lease_seconds)
        late = update(execution).where(execution.c.lease_owner == owner, execution.c.status == ExecutionStatus.RUNNING)
        self.sim.write_now(lambda db: db.execute(late.values(lease_until=until)))
        return super().renew(owner, leases, lease_seconds)


class KeepsLeases(Worker):
    """Nor does the worker give a lease up that it could not renew."""

    async def _tick_forever(self) -> None:
        while True:
            for execution_id in list(self._leases._held):
                self._leases._held[execution_id].until = self._clock.monotonic() + 1_000.0
            self._leases.tick()
            await asyncio.sleep(1.0)


class DoubleCompletion(WitnessedStore):
    """Whoever takes over runs the nodes again that were COMPLETED last."""

    async def nodes(self, execution_id: str, *, with_outputs: bool = True) -> Sequence[NodeRow]:
        nodes = list(await super().nodes(execution_id, with_outputs=with_outputs))
        for node in reversed(nodes):
            if node.status is ExecutionStatus.COMPLETED:
                node.status = ExecutionStatus.RUNNING
                break
        return nodes


class EventOutsideTheCommit(WitnessedStore):
    """The end is written first, and its event in a commit of its own."""

    async def commit(self, step: Step, row: ExecutionRow) -> None:
        if step.change is None or not step.change.status.is_terminal:
            await super().commit(step, row)
            return
        await super().commit(replace(step, change=None, events=[]), row)
        await super().commit(replace(step, created=[], filled=[], touched=[], outputs=[]), row)


class LimitsNotCounted(WitnessedStore):
    """A claim asks nobody how many run."""

    async def claim(self, *args: Any, limits: ClaimLimits | None = None, **options: Any) -> Any:
        loose = None if limits is None else replace(limits, per_user=None, per_graph=None)
        return await super().claim(*args, limits=loose, **options)


class InterruptedRunsAgain(WitnessedStore):
    """Whoever takes over does not see what was running, and runs it again whatever its block says."""

    async def nodes(self, execution_id: str, *, with_outputs: bool = True) -> Sequence[NodeRow]:
        nodes = list(await super().nodes(execution_id, with_outputs=with_outputs))
        for node in nodes:
            if node.status is ExecutionStatus.RUNNING and node.status_reason != WAITING:
                node.status = ExecutionStatus.QUEUED
        return nodes


class ForkTakesTooMuch(WitnessedStore):
    """A fork begins with what was never done."""

    async def start(self, new: NewExecution, **options: Any) -> Any:
        for node in new.nodes:
            if node.status is ExecutionStatus.QUEUED:
                node.status = ExecutionStatus.COMPLETED
                break
        return await super().start(new, **options)


class TransactionNotRecorded(WitnessedStore):
    """What a block writes into the database is written as often as it is run."""

    async def effect(self, row: ExecutionRow, seq: int, place: int, unit: Callable[[Any], Any]) -> Any:
        return await self.sim.write(unit)


PLANTS: Final[Mapping[str, Callable[[], Classes]]] = {
    "no-fence-check": lambda: Classes(store=NoFenceCheck),
    "ack-before-claim": lambda: Classes(worker=AckBeforeClaim),
    "terminal-overwritten": lambda: Classes(store=TerminalOverwritten),
    "gap-in-numbers": lambda: Classes(store=GapInNumbers),
    "lost-doorbell-not-swept": lambda: Classes(store=LostDoorbellNotSwept),
    "renew-after-expiry": lambda: Classes(store=RenewAfterExpiry, worker=KeepsLeases),
    "double-completion": lambda: Classes(store=DoubleCompletion),
    "event-outside-the-commit": lambda: Classes(store=EventOutsideTheCommit),
    "limits-not-counted": lambda: Classes(store=LimitsNotCounted),
    "interrupted-runs-again": lambda: Classes(store=InterruptedRunsAgain),
    "fork-takes-too-much": lambda: Classes(store=ForkTakesTooMuch),
    "transaction-not-recorded": lambda: Classes(store=TransactionNotRecorded),
}
"""By name, as `scripts/simulate --plant` takes them."""

EXPECTED: Final = {
    "no-fence-check": {1},
    "ack-before-claim": {10},
    "terminal-overwritten": {3},
    "gap-in-numbers": {4},
    "lost-doorbell-not-swept": {5, 8},
    "renew-after-expiry": {1},
    "double-completion": {2, 3},
    "event-outside-the-commit": {4},
    "limits-not-counted": {0},
    "interrupted-runs-again": {0},
    "fork-takes-too-much": {0},
    "transaction-not-recorded": {0},
}
"""The invariants by which each is found."""
