"""Turns what the planner says into what is written: rows, outputs, events and figures of one execution."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import datetime
from typing import Any

from pydantic_core import from_json, to_json

from livetape.engine.changes import WAITING, Changes, NodeRun, Output, Over
from livetape.engine.figures import Figures
from livetape.engine.plain_text import kept_text
from livetape.engine.snapshots import Snapshots
from livetape.engine.waiting import Waiting
from livetape.events.executions import ExecutionStatus
from livetape.events.log import NewEvent
from livetape.store.execution_events import Given, given_outputs, graph_event, in_order, node_event, output_event
from livetape.store.executions import ExecutionChange, ExecutionRow, NodeOutput, NodeRow, Step


class Recorder:
    """What was told of one execution so far, and what is to be told next. `ended` hears of node executions that are
    over, so that whoever runs them can forget them."""

    def __init__(self, row: ExecutionRow, waiting: Waiting, *, ended: Callable[[int], None]) -> None:
        self._row = row
        self._waiting = waiting
        self._ended = ended
        self._snapshots: dict[int, Snapshots] = {}
        self._stale: dict[int, NodeRun] = {}
        self._given: list[Given] = []
        self._recovering = row.recoveries > 0
        self.figures = Figures()

    def restore(self, nodes: Sequence[NodeRow]) -> None:
        """What was stored before this worker came."""
        for node in nodes:
            if node.status.is_terminal:
                self.figures.count_row(node)
        self._given = given_outputs(nodes)

    def step(self, changes: Changes, now: datetime, ticks: float) -> Step:
        """Everything of these changes, for one commit. `ticks` are monotonic seconds."""
        step = Step(self._row.id, self._row.lease_no)
        for run in changes.created:
            run.add_time = now
        last = {id(item): place for place, item in enumerate(changes.told)}
        created = {run.seq for run in changes.created}
        touched: dict[int, NodeRun] = {}
        for place, item in enumerate(changes.told):
            if isinstance(item, Output):
                step.outputs.append(NodeOutput(item.run.seq, item.index, item.name, to_json(item.value)))
                step.events.append(self._output(item))
                self._stale[item.run.seq] = item.run
            elif last[id(item)] == place:
                self._stamp(step, item, now)
                step.events.append(self._told(item))
                if item.seq not in created:
                    touched[item.seq] = item
                self._after_status(item, ticks)
        step.waits, asked = self._waiting.take()
        step.children, step.reviews = asked.children, asked.reviews
        step.is_parent = self._waiting.ever
        step.created = [_node_row(run) for run in changes.created]
        step.filled = [_node_row(run) for seq, run in changes.filled.items() if seq not in created]
        step.touched = [_node_row(run) for run in touched.values()]
        step.events.extend(self._due_snapshots(ticks))
        if changes.completed and self._recovering:
            step.progressed, self._recovering = True, False
        if changes.over is not None:
            self._finish(step, changes.over, now)
        return step

    def park(self, step: Step, *, asks: bool, due: datetime | None) -> None:
        """Let the execution wait without a worker."""
        status = ExecutionStatus.REVIEW if asks else ExecutionStatus.QUEUED
        stats = to_json(self.figures.so_far())
        step.change = ExecutionChange(status, WAITING, stats, due_at=due, wakes=self._waiting.wakes)

    def refuse(self, status: ExecutionStatus, reason: str, error: str, now: datetime) -> Step:
        """End the execution before anything of it has run."""
        step = Step(self._row.id, self._row.lease_no)
        self._finish(step, Over(status, reason, error, 0), now)
        return step

    def next_snapshot(self) -> float | None:
        """When the next snapshot is due, in monotonic seconds."""
        dues = [
            due
            for seq, run in self._stale.items()
            if (pace := self._snapshots.get(seq)) is not None and (due := pace.due_at(run.output_count)) is not None
        ]
        return min(dues, default=None)

    def _stamp(self, step: Step, run: NodeRun, now: datetime) -> None:
        if run.status is ExecutionStatus.QUEUED:
            run.queue_time = run.queue_time or now
        elif run.status is ExecutionStatus.RUNNING and run.status_reason != WAITING:
            run.queue_time = run.queue_time or now
            if not run.waits:
                run.start_time = now
        elif run.status.is_terminal:
            run.end_time = now
            self.figures.count(run)
            if any(wait.answer is None for wait in run.waits):
                step.abandoned.append(run.id)

    def _after_status(self, run: NodeRun, ticks: float) -> None:
        if run.status is ExecutionStatus.RUNNING and run.status_reason != WAITING:
            self._snapshots[run.seq] = Snapshots(ticks, run.output_count)
        elif run.status.is_terminal or run.status_reason == WAITING:
            self._snapshots.pop(run.seq, None)
            self._stale.pop(run.seq, None)
            self._ended(run.seq)
            if run.node.output_name is not None and run.status is ExecutionStatus.COMPLETED:
                assert run.queue_time is not None
                name = kept_text(str(run.inputs.get("name", run.node.output_name)))
                self._given.append((run.queue_time, run.seq, name, run.inputs.get("value")))

    def _output(self, item: Output) -> NewEvent:
        run = item.run
        return output_event(
            self._row, node_id=run.node.id, node_exec_id=run.id, index=item.index, name=item.name, value=item.value
        )

    def _told(self, run: NodeRun) -> NewEvent:
        assert run.add_time is not None
        return node_event(
            self._row,
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

    def _finish(self, step: Step, over: Over, now: datetime) -> None:
        stats = to_json(self.figures.at_end(over, (now - (self._row.started_at or now)).total_seconds()))
        step.change = ExecutionChange(
            status=over.status, status_reason=over.reason, stats=stats, ended_at=now, cost=self.figures.cost
        )
        ended = replace(self._row, status=over.status, status_reason=over.reason, stats=stats, ended_at=now)
        step.events.append(graph_event(ended, in_order(self._given)))


def run_of(node: NodeRow, run: NodeRun) -> NodeRun:
    """Fill a run with what was stored of it."""
    run.add_time, run.queue_time, run.start_time = node.add_time, node.queue_time, node.start_time
    run.attempt, run.stats, run.status_reason = node.attempt, node.stats, node.status_reason
    for name, value in node.outputs:
        given: Any = from_json(value)
        run.outputs.setdefault(name, []).append(given)
        run.order.append(name)
        run.recorded.append((name, given))
    run.output_count = len(node.outputs)
    return run


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
        output_name=None if output_name is None else kept_text(str(run.inputs.get("name", output_name))),
        add_time=run.add_time,
        queue_time=run.queue_time,
        start_time=run.start_time,
        end_time=run.end_time,
        attempt=run.attempt,
        stats=run.stats,
    )
