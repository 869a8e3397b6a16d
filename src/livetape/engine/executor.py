"""Runs one claimed execution: what the planner says, one commit per round.

A round takes everything that happened since the last one, asks the planner what follows, writes it with its events
in one commit, and only then starts what may start. The state in memory is disposable: whatever goes wrong with a
commit, the truth is in the store, and another claim builds it anew.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor as ThreadPool
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Final

from pydantic_core import from_json, to_json

from livetape.clock import Clock, IdFactory
from livetape.engine.block import BlockContext, BlockRegistry
from livetape.engine.planner import (
    CancelRequested,
    Changes,
    Ended,
    GraphPlan,
    Happening,
    NodeRun,
    Output,
    Over,
    Planner,
    Rules,
    Yielded,
)
from livetape.engine.runner import Failure, run_block
from livetape.engine.snapshots import Snapshots
from livetape.errors import LeaseLostError
from livetape.events.executions import ExecutionStats, ExecutionStatus
from livetape.events.log import NewEvent
from livetape.observability import Metrics, get_logger
from livetape.store.execution_events import (
    Given,
    given_outputs,
    graph_event,
    in_order,
    node_event,
    output_event,
)
from livetape.store.executions import (
    ExecutionChange,
    ExecutionRow,
    ExecutionStore,
    NodeOutput,
    NodeRow,
    Step,
)

logger = get_logger(__name__)

UNWRITTEN_OUTPUTS: Final = 256
"""How many outputs of one node execution may wait for their commit before the block has to wait."""


@dataclass(frozen=True, slots=True)
class ExecutorOptions:
    """Limits of one execution. `cancel_grace_s`: how long a cancelled block may take to stop."""

    rules: Rules = field(default_factory=Rules)
    cancel_grace_s: float = 10.0
    files: Path = Path("files")


class Executor:
    """One execution in the hands of one lease. `run` returns when it is over, handed back or lost."""

    def __init__(
        self,
        row: ExecutionRow,
        plan: GraphPlan,
        *,
        store: ExecutionStore,
        blocks: BlockRegistry,
        threads: ThreadPool,
        clock: Clock,
        new_id: IdFactory,
        metrics: Metrics,
        options: ExecutorOptions,
        sleep: Callable[[float], Any] = asyncio.sleep,
    ) -> None:
        self.row = row
        self._store = store
        self._blocks = blocks
        self._threads = threads
        self._clock = clock
        self._metrics = metrics
        self._options = options
        self._sleep = sleep
        self._planner = Planner(plan, options.rules, new_id)
        self._inbox: deque[Happening] = deque()
        self._wake = asyncio.Event()
        self._tasks: dict[int, asyncio.Task[None]] = {}
        self._outlets: dict[int, _Outlet] = {}
        self._snapshots: dict[int, Snapshots] = {}
        self._stale: dict[int, NodeRun] = {}
        self._given: list[Given] = []
        self._ended = 0
        self._errors = 0
        self._node_seconds = 0.0
        self._recovering = row.recoveries > 0
        self._stopping = False
        self._fenced = False
        self._handing_back: str | None = None

    # -- from outside, in the loop of `run` ------------------------------------------------------------------

    def cancel(self, reason: str = "cancelled_by_user") -> None:
        """Stop: nothing new starts, running blocks are cancelled, the execution ends TERMINATED."""
        self._happened(CancelRequested(reason))

    def fence(self) -> None:
        """Somebody else owns it, or nobody can know: stop at once and write nothing more."""
        self._fenced = True
        self._wake.set()

    def hand_back(self, reason: str = "worker_stopping") -> None:
        """Stop at once and give it to the next worker; unfinished nodes run again there."""
        self._handing_back = reason
        self._wake.set()

    # -- the loop --------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Drive it to its end. Raises what the store raises, except that a lost lease is a quiet end."""
        try:
            changes = await self._first()
            while True:
                await self._write(changes)
                if changes.over is not None:
                    return
                for run in changes.start:
                    self._start(run)
                if changes.stop:
                    self._stop_running()
                await self._wait()
                if self._fenced:
                    return
                if self._handing_back is not None:
                    await self._end_tasks()
                    await self._store.hand_back(self.row.id, lease_no=self.row.lease_no, reason=self._handing_back)
                    return
                changes = self._planner.advance(self._taken())
        except LeaseLostError:
            logger.warning("lease of %s lost", self.row.id, extra={"action": "lease_lost"})
        finally:
            await self._end_tasks()

    @property
    def _leaving(self) -> bool:
        return self._fenced or self._handing_back is not None

    async def _leave(self) -> None:
        await self._end_tasks()
        if not self._fenced and self._handing_back is not None:
            await self._store.hand_back(self.row.id, lease_no=self.row.lease_no, reason=self._handing_back)

    async def _first(self) -> Changes:
        nodes = await self._store.nodes(self.row.id) if self.row.lease_no > 1 else ()
        if self.row.cancel_requested:
            self.cancel()
        if not nodes:
            return self._planner.begin(from_json(self.row.inputs))
        return self._resume(nodes)

    def _resume(self, nodes: Sequence[NodeRow]) -> Changes:
        plan = self._planner.plan
        runs: list[NodeRun] = []
        statics: dict[str, Mapping[str, Any]] = {}
        failed: dict[int, str] = {}
        queued = sorted((n for n in nodes if n.queue_time is not None), key=lambda n: (n.queue_time, n.seq))
        for node in queued:
            pins = plan.nodes[node.node_id].static_pins
            if pins:
                values = from_json(node.inputs)
                statics[node.node_id] = {pin: values[pin] for pin in pins if pin in values}
        for node in nodes:
            where = plan.nodes[node.node_id]
            if node.status.is_terminal:
                self._count(node)
                if node.status is ExecutionStatus.FAILED and not where.handles_error:
                    said = [value for name, value in node.outputs if name == "error"]
                    self._planner.failed_before(node.node_id, str(from_json(said[-1])) if said else "failed")
                continue
            run = NodeRun(node.seq, node.id, where, node.status, from_json(node.inputs))
            run.add_time, run.queue_time = node.add_time, node.queue_time
            run.start_time = node.start_time
            for name, value in node.outputs:
                given = from_json(value)
                run.outputs.setdefault(name, []).append(given)
                run.recorded.append((name, given))
            run.output_count = len(node.outputs)
            runs.append(run)
            block = self._blocks.get(node.block_id)
            if node.status is ExecutionStatus.RUNNING and block is not None and block.on_interrupt == "fail":
                failed[run.seq] = "its worker was lost while it ran"
        self._given = given_outputs(nodes)
        return self._planner.resume(runs, statics=statics, failed=failed, last_seq=nodes[-1].seq)

    def _count(self, node: NodeRow) -> None:
        self._ended += 1
        self._errors += node.status is ExecutionStatus.FAILED
        if node.start_time is not None and node.end_time is not None:
            self._node_seconds += (node.end_time - node.start_time).total_seconds()

    def _happened(self, happening: Happening) -> None:
        self._inbox.append(happening)
        self._wake.set()

    async def _wait(self) -> None:
        due = self._next_snapshot()
        if due is None:
            await self._wake.wait()
        else:
            try:
                async with asyncio.timeout(max(0.0, due - self._clock.monotonic())):
                    await self._wake.wait()
            except TimeoutError:
                pass
        self._wake.clear()

    def _taken(self) -> list[Happening]:
        taken = list(self._inbox)
        self._inbox.clear()
        for happening in taken:
            if isinstance(happening, Yielded):
                outlet = self._outlets.get(happening.seq)
                if outlet is not None:
                    outlet.taken()
        return taken

    # -- blocks ----------------------------------------------------------------------------------------------

    def _start(self, run: NodeRun) -> None:
        self._outlets[run.seq] = _Outlet(run.seq, self._happened)
        task = self._tasks[run.seq] = asyncio.create_task(self._run_node(run), name=f"node {run.id}")
        task.add_done_callback(partial(self._left, run.seq))

    def _left(self, seq: int, task: asyncio.Task[None]) -> None:
        """A node that was cancelled cannot say so itself: it may not have had its first turn."""
        if task.cancelled():
            self._happened(Ended(seq, ExecutionStatus.TERMINATED, None, "cancelled"))

    async def _run_node(self, run: NodeRun) -> None:
        block = self._blocks.get(run.node.block_id)
        outlet = self._outlets[run.seq]
        started = self._clock.monotonic()
        if block is None:
            failure: Failure | None = Failure(f"no block with the id {run.node.block_id!r} is installed")
        else:
            failure = await run_block(block, run.inputs, self._context(run), outlet, self._threads)
        name = "unknown" if block is None else block.name
        self._metrics.observe("block_duration_seconds", self._clock.monotonic() - started, block_type=name)
        outcome = "success" if failure is None else "error"
        self._metrics.count("block_executions_total", block_type=name, status=outcome)
        if failure is None:
            self._happened(Ended(run.seq, ExecutionStatus.COMPLETED))
        else:
            self._happened(Ended(run.seq, ExecutionStatus.FAILED, failure.message, failure.reason))

    def _context(self, run: NodeRun) -> BlockContext:
        return BlockContext(
            user_id=self.row.user_id,
            graph_id=self.row.graph_id,
            graph_version=self.row.graph_version,
            graph_exec_id=self.row.id,
            node_id=run.node.id,
            node_exec_id=run.id,
            files=self._options.files,
            clock=self._clock,
            sleep=self._sleep,
        )

    def _stop_running(self) -> None:
        """Cancel what runs. A block that does not stop in time cannot hold the status."""
        if self._stopping:
            return
        self._stopping = True
        stubborn = [seq for seq, task in self._tasks.items() if not task.done()]
        for seq in stubborn:
            self._tasks[seq].cancel()
        if stubborn:
            asyncio.get_running_loop().call_later(self._options.cancel_grace_s, self._give_up, stubborn)

    def _give_up(self, seqs: Sequence[int]) -> None:
        for seq in seqs:
            if seq in self._planner.running:
                self._happened(Ended(seq, ExecutionStatus.TERMINATED, None, "cancelled"))

    async def _end_tasks(self) -> None:
        tasks = [task for task in self._tasks.values() if not task.done()]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks, timeout=self._options.cancel_grace_s)

    # -- writing ---------------------------------------------------------------------------------------------

    async def _write(self, changes: Changes) -> None:
        step = self._step(changes)
        if step:
            await self._store.commit(step, self.row)

    def _step(self, changes: Changes) -> Step:
        now, ticks = self._clock.now(), self._clock.monotonic()
        step = Step(self.row.id, self.row.lease_no)
        for run in changes.created:
            run.add_time = now
        last = {id(item): place for place, item in enumerate(changes.told)}
        created = {run.seq for run in changes.created}
        touched: dict[int, NodeRun] = {}
        for place, item in enumerate(changes.told):
            if isinstance(item, Output):
                step.outputs.append(NodeOutput(item.run.seq, item.index, item.name, to_json(item.value)))
                step.events.append(
                    output_event(
                        self.row,
                        node_id=item.run.node.id,
                        node_exec_id=item.run.id,
                        index=item.index,
                        name=item.name,
                        value=item.value,
                    )
                )
                self._stale[item.run.seq] = item.run
            elif last[id(item)] == place:
                self._stamp(item, now)
                step.events.append(self._told(item))
                if item.seq not in created:
                    touched[item.seq] = item
                self._after_status(item, ticks)
        step.created = [_node_row(run) for run in changes.created]
        step.filled = [_node_row(run) for seq, run in changes.filled.items() if seq not in created]
        step.touched = [_node_row(run) for run in touched.values()]
        step.events.extend(self._due_snapshots(ticks))
        if changes.completed and self._recovering:
            step.progressed, self._recovering = True, False
        if changes.over is not None:
            self._finish(step, changes.over, now)
        return step

    def _stamp(self, run: NodeRun, now: Any) -> None:
        if run.status is ExecutionStatus.QUEUED:
            run.queue_time = run.queue_time or now
        elif run.status is ExecutionStatus.RUNNING:
            run.queue_time = run.queue_time or now
            run.start_time = now
        elif run.status.is_terminal:
            run.end_time = now
            self._ended += 1
            self._errors += run.status is ExecutionStatus.FAILED
            if run.start_time is not None:
                self._node_seconds += (now - run.start_time).total_seconds()

    def _after_status(self, run: NodeRun, ticks: float) -> None:
        if run.status is ExecutionStatus.RUNNING:
            self._snapshots[run.seq] = Snapshots(ticks, run.output_count)
        elif run.status.is_terminal:
            self._snapshots.pop(run.seq, None)
            self._stale.pop(run.seq, None)
            self._tasks.pop(run.seq, None)
            self._outlets.pop(run.seq, None)
            if run.node.output_name is not None and run.status is ExecutionStatus.COMPLETED:
                assert run.queue_time is not None
                name = str(run.inputs.get("name", run.node.output_name))
                self._given.append((run.queue_time, run.seq, name, run.inputs.get("value")))

    def _told(self, run: NodeRun) -> NewEvent:
        assert run.add_time is not None
        return node_event(
            self.row,
            node_exec_id=run.id,
            node_id=run.node.id,
            block_id=run.node.block_id,
            status=run.status,
            status_reason=run.status_reason,
            inputs=run.inputs,
            outputs=run.outputs,
            add_time=run.add_time,
            queue_time=run.queue_time,
            start_time=run.start_time,
            end_time=run.end_time,
        )

    def _due_snapshots(self, ticks: float) -> list[NewEvent]:
        events: list[NewEvent] = []
        for seq, run in list(self._stale.items()):
            pace = self._snapshots.get(seq)
            due = None if pace is None else pace.due_at(run.output_count)
            if pace is None or (due is None and run.output_count <= pace.told):
                del self._stale[seq]
            elif due is not None and due <= ticks:
                events.append(self._told(run))
                pace.tell(run.output_count, ticks)
                del self._stale[seq]
        return events

    def _next_snapshot(self) -> float | None:
        dues = [
            due
            for seq, run in self._stale.items()
            if (pace := self._snapshots.get(seq)) is not None and (due := pace.due_at(run.output_count)) is not None
        ]
        return min(dues, default=None)

    def _finish(self, step: Step, over: Over, now: Any) -> None:
        started = self.row.started_at or now
        stats = ExecutionStats(
            duration=(now - started).total_seconds(),
            node_exec_time=round(self._node_seconds, 6),
            node_exec_count=self._ended,
            node_error_count=self._errors,
            nodes_incomplete=over.incomplete,
            error=over.error,
        )
        step.change = ExecutionChange(status=over.status, status_reason=over.reason, stats=to_json(stats), ended_at=now)
        ended = replace(self.row, status=over.status, status_reason=over.reason, stats=step.change.stats, ended_at=now)
        step.events.append(graph_event(ended, in_order(self._given)))
        self._metrics.count("graph_executions_total", status=over.status.value)


class _Outlet:
    """The outputs of one run on their way to the planner."""

    def __init__(self, seq: int, happened: Callable[[Happening], None]) -> None:
        self._seq = seq
        self._happened = happened
        self._waiting = 0
        self._eased = asyncio.Event()

    def give(self, name: str, value: Any) -> None:
        self._waiting += 1
        self._happened(Yielded(self._seq, name, value))

    async def room(self) -> None:
        while self._waiting >= UNWRITTEN_OUTPUTS:
            self._eased.clear()
            await self._eased.wait()

    def taken(self) -> None:
        self._waiting -= 1
        self._eased.set()


def _node_row(run: NodeRun) -> NodeRow:
    assert run.add_time is not None
    output_name = run.node.output_name
    return NodeRow(
        id=run.id,
        seq=run.seq,
        node_id=run.node.id,
        block_id=run.node.block_id,
        status=run.status,
        status_reason=run.status_reason,
        inputs=to_json(run.inputs),
        output_name=None if output_name is None else str(run.inputs.get("name", output_name)),
        add_time=run.add_time,
        queue_time=run.queue_time,
        start_time=run.start_time,
        end_time=run.end_time,
    )
