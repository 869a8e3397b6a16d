"""What runs next. Pure: the same state and the same happening give the same changes; no I/O, no clock, no ids of
its own.

Rules (execution contract, "Graph semantics"):
- Starting nodes are nodes without incoming links and INPUT blocks.
- A value goes to the oldest INCOMPLETE execution of the sink that lacks that pin, or begins a new one.
- Linked pins always wait; unlinked pins take `input_default`.
- A static link keeps its last value: a new execution takes it from the node's latest queued execution, and when it
  arrives, executions that wait for it are completed.
- Outputs are followed as they are yielded, those of one node execution in their order. `error` is an output.
- A failed node whose `error` pin is linked is handled. Otherwise nothing new starts downstream of it, independent
  branches finish, and the execution is FAILED naming the first.
- More node executions than the step limit: FAILED (`step_limit`).
- A node execution that waits keeps no place among those that run. When nothing runs and something waits, the execution
  is parked; when what it waits for has happened, the node runs again, and outputs that it repeats are not followed.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from livetape.clock import IdFactory
from livetape.engine.changes import (
    WAITING,
    CancelRequested,
    Changes,
    Ended,
    Happening,
    NodeRun,
    Output,
    Over,
    Resumed,
    Suspended,
    Yielded,
)
from livetape.engine.graph_plan import GraphPlan, LinkPlan, NodePlan
from livetape.engine.pins import select_output
from livetape.events.executions import ExecutionStatus

Select: TypeAlias = Callable[[str, Any, str], tuple[bool, Any]]


@dataclass(frozen=True, slots=True)
class Rules:
    """Limits and policies of one execution."""

    parallel_nodes: int = 8
    step_limit: int = 100_000
    node_error_policy: Literal["fail", "complete"] = "fail"


class Planner:
    """The state of one execution and the rules by which it goes on.

    `begin` or `resume` once, then `advance` for every happening, in the order in which they came.
    """

    def __init__(
        self,
        plan: GraphPlan,
        rules: Rules,
        new_id: IdFactory,
        *,
        masks: Mapping[str, Mapping[str, Any]] | None = None,
        select: Select = select_output,
    ) -> None:
        self.plan = plan
        self.rules = rules
        self._new_id = new_id
        self._masks = masks or {}
        self._select = select
        self.last_seq = 0
        self.open: dict[int, NodeRun] = {}
        self._lacking: dict[tuple[str, str], dict[int, NodeRun]] = {}
        self._waiting: dict[str, dict[int, NodeRun]] = {}
        # the static pins of a node's latest queued execution
        self._static: dict[str, dict[str, Any]] = {}
        self._ready: deque[NodeRun] = deque()
        self._running: dict[int, NodeRun] = {}
        self.suspended: dict[int, NodeRun] = {}
        self._blocked: set[str] = set()
        self._cancelled: CancelRequested | None = None
        self._failure: tuple[str, str] | None = None
        self._over = False

    # -- the two ways in -------------------------------------------------------------------------------------

    def begin(self, inputs: Mapping[str, Any]) -> Changes:
        """The first changes of a new execution."""
        changes = Changes()
        for node in self.plan.nodes.values():
            if not node.starts:
                continue
            values = dict(node.defaults)
            if node.is_input:
                name = values.get("name")
                if isinstance(name, str) and name in inputs:
                    values["value"] = inputs[name]
            values |= self._masks.get(node.id, {})
            run = self._create(node, values, changes)
            self._queue(run, changes)
        self._settle(changes)
        return changes

    def resume(
        self,
        runs: Iterable[NodeRun],
        *,
        statics: Mapping[str, Mapping[str, Any]],
        failed: Mapping[int, str],
        last_seq: int,
        asked: Iterable[int] = (),
    ) -> Changes:
        """Go on from stored node executions: `runs` are those that are not over, oldest first.

        RUNNING ones were interrupted: they are started again, and outputs that are recorded already
        (`NodeRun.recorded`) are not recorded or followed a second time as long as the new run gives the same.
        Those with the reason WAITING go on waiting.
        `statics` are the static pins of each node's latest queued execution. `failed` names the interrupted ones
        that must not run again, with what is said of them; `asked` those that wait since just now.
        """
        changes = Changes()
        self.last_seq = last_seq
        self._static = {node: dict(pins) for node, pins in statics.items()}
        for run in runs:
            self.open[run.seq] = run
            if run.status is ExecutionStatus.INCOMPLETE:
                self._wait(run)
            elif run.status_reason == WAITING:
                self.suspended[run.seq] = run
            elif run.seq not in failed:
                run.status = ExecutionStatus.QUEUED
                self._ready.append(run)
        changes.told.extend(self.open[seq] for seq in asked)
        for seq, message in failed.items():
            ended = Ended(seq, ExecutionStatus.FAILED, message, "worker_lost")
            self._ended(self.open[seq], ended, changes)
        self._settle(changes)
        return changes

    def failed_before(self, node_id: str, error: str) -> None:
        """Tell, before `resume`, of a node that failed unhandled before the interruption."""
        self._note_failure(node_id, error)

    def mask(self, masks: Mapping[str, Mapping[str, Any]]) -> None:
        """Inputs by node that go before all others, in place of those given before. Before `begin` or `resume`."""
        self._masks = masks

    # -- going on --------------------------------------------------------------------------------------------

    def advance(self, happenings: Iterable[Happening]) -> Changes:
        """What follows from these, in their order."""
        changes = Changes()
        for happening in happenings:
            if self._over:
                break
            match happening:
                case Yielded():
                    run = self.open.get(happening.seq)
                    if run is not None:
                        self._yielded(run, happening.name, happening.value, changes)
                case Ended():
                    run = self.open.get(happening.seq)
                    if run is not None:
                        self._ended(run, happening, changes)
                case Suspended():
                    run = self._running.pop(happening.seq, None)
                    if run is not None:
                        run.status = ExecutionStatus.REVIEW if happening.asks else ExecutionStatus.RUNNING
                        run.status_reason = WAITING
                        self.suspended[run.seq] = run
                        changes.told.append(run)
                case Resumed():
                    run = self.suspended.pop(happening.seq, None)
                    if run is not None:
                        run.status, run.status_reason = ExecutionStatus.QUEUED, None
                        run.recorded = deque(run.given())
                        self._ready.append(run)
                        changes.told.append(run)
                case CancelRequested():
                    self._cancelled = self._cancelled or happening
        self._settle(changes)
        return changes

    @property
    def running(self) -> Mapping[int, NodeRun]:
        """What was told to start and is not over."""
        return self._running

    # -- rules -----------------------------------------------------------------------------------------------

    def _yielded(self, run: NodeRun, name: str, value: Any, changes: Changes) -> None:
        if run.recorded:
            if run.recorded[0] == (name, value):
                run.recorded.popleft()
                return
            # The new run went another way: from here on everything it gives is new.
            run.recorded.clear()
        self._record(run, name, value, changes)
        for link in run.node.links:
            fires, selected = self._select(name, value, link.source_name)
            if fires:
                self._give(link, selected, changes)

    def _record(self, run: NodeRun, name: str, value: Any, changes: Changes) -> None:
        changes.told.append(Output(run, run.output_count, name, value))
        run.outputs.setdefault(name, []).append(value)
        run.order.append(name)
        run.output_count += 1

    def _ended(self, run: NodeRun, ended: Ended, changes: Changes) -> None:
        if ended.status is ExecutionStatus.FAILED:
            message = ended.error or "failed"
            run.recorded.clear()
            self._yielded(run, "error", message, changes)
            changes.failed += 1
            if not run.node.handles_error:
                self._note_failure(run.node.id, message)
        elif ended.status is ExecutionStatus.COMPLETED:
            changes.completed += 1
        self._close(run, ended.status, ended.reason or ("block_error" if ended.error else None), changes)

    def _note_failure(self, node_id: str, message: str) -> None:
        if self.rules.node_error_policy == "fail":
            self._failure = self._failure or (node_id, message)
            self._blocked |= self.plan.downstream(node_id)

    def _give(self, link: LinkPlan, value: Any, changes: Changes) -> None:
        node, pin = link.sink, link.sink_name
        lacking = self._lacking.get((node.id, pin))
        if lacking:
            run = next(iter(lacking.values()))
            del lacking[run.seq]
            run.inputs[pin] = value
            changes.filled[run.seq] = run
        else:
            run = self._create(node, {pin: value}, changes)
            self._wait(run)
        if not self._complete(run, changes) or not link.is_static:
            return
        for other in list(self._waiting.get(node.id, {}).values()):
            self._complete(other, changes)

    def _complete(self, run: NodeRun, changes: Changes) -> bool:
        """Queue the run if every linked pin has a value, static ones counting with the value they kept."""
        node = run.node
        missing = [pin for pin in node.pins if pin not in run.inputs]
        kept = self._static.get(node.id, {})
        if any(pin not in node.static_pins or pin not in kept for pin in missing):
            return False
        for pin in missing:
            run.inputs[pin] = kept[pin]
        del self._waiting[node.id][run.seq]
        for pin in node.pins:
            waiting = self._lacking.get((node.id, pin))
            if waiting is not None:
                waiting.pop(run.seq, None)
        run.inputs = {**node.defaults, **run.inputs, **self._masks.get(node.id, {})}
        changes.filled[run.seq] = run
        self._queue(run, changes)
        return True

    def _create(self, node: NodePlan, inputs: dict[str, Any], changes: Changes) -> NodeRun:
        self.last_seq += 1
        run = NodeRun(self.last_seq, self._new_id(), node, ExecutionStatus.INCOMPLETE, inputs)
        self.open[run.seq] = run
        changes.created.append(run)
        return run

    def _wait(self, run: NodeRun) -> None:
        self._waiting.setdefault(run.node.id, {})[run.seq] = run
        for pin in run.node.pins:
            if pin not in run.inputs:
                self._lacking.setdefault((run.node.id, pin), {})[run.seq] = run

    def _queue(self, run: NodeRun, changes: Changes) -> None:
        run.status = ExecutionStatus.QUEUED
        if run.node.static_pins:
            self._static[run.node.id] = {pin: run.inputs[pin] for pin in run.node.static_pins if pin in run.inputs}
        self._ready.append(run)
        changes.told.append(run)

    def _close(self, run: NodeRun, status: ExecutionStatus, reason: str | None, changes: Changes) -> None:
        run.status, run.status_reason = status, reason
        del self.open[run.seq]
        self._running.pop(run.seq, None)
        self.suspended.pop(run.seq, None)
        changes.told.append(run)

    def _settle(self, changes: Changes) -> None:
        """Start what may start; end the execution when nothing is left to wait for."""
        if self._over:
            return
        limit = self.last_seq > self.rules.step_limit
        stopping = self._cancelled is not None or limit
        held: deque[NodeRun] = deque()
        while self._ready and not stopping and len(self._running) < self.rules.parallel_nodes:
            run = self._ready.popleft()
            if run.node.id in self._blocked:
                held.append(run)
                continue
            run.status, run.status_reason = ExecutionStatus.RUNNING, None
            self._running[run.seq] = run
            changes.start.append(run)
            changes.told.append(run)
        self._ready.extendleft(reversed(held))
        changes.stop = stopping and bool(self._running)
        if self._running:
            return
        if self.suspended and not stopping:
            changes.parked = True
        else:
            self._end(changes, limit)

    def _end(self, changes: Changes, limit: bool) -> None:
        self._over = True
        cancelled = self._cancelled
        reason = cancelled.reason if cancelled is not None else "step_limit" if limit else "upstream_failed"
        for run in [*self.suspended.values(), *self._ready]:
            self._close(run, ExecutionStatus.TERMINATED, reason, changes)
        self._ready.clear()
        incomplete = sum(len(waiting) for waiting in self._waiting.values())
        if cancelled is not None:
            changes.over = Over(cancelled.status, cancelled.reason, cancelled.error, incomplete)
        elif limit:
            error = f"more than {self.rules.step_limit} node executions: is there a loop without an end?"
            changes.over = Over(ExecutionStatus.FAILED, "step_limit", error, incomplete)
        elif self._failure is not None:
            node_id, message = self._failure
            changes.over = Over(ExecutionStatus.FAILED, "block_error", f"node {node_id}: {message}", incomplete)
        else:
            changes.over = Over(ExecutionStatus.COMPLETED, None, None, incomplete)
