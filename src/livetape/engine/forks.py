"""What a new execution takes over from an earlier one, so that it begins where that one failed. Pure.

The graph is followed anew, and wherever a node would run with inputs with which it completed before, its outputs are
taken instead. So what is taken over is what would have happened, whatever had begun beside it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from typing import Any, TypeAlias

from pydantic_core import from_json, to_json

from livetape.clock import IdFactory
from livetape.engine.changes import Changes, Ended, Happening, NodeRun, Yielded
from livetape.engine.graph_plan import GraphPlan
from livetape.engine.pins import select_output
from livetape.engine.plain_text import kept_text
from livetape.engine.planner import Planner, Rules, Select
from livetape.events.executions import ExecutionStatus
from livetape.store.executions import NodeRow

_Key: TypeAlias = tuple[str, bytes]


def fork_nodes(
    plan: GraphPlan,
    inputs: Mapping[str, Any],
    earlier: Sequence[NodeRow],
    *,
    now: datetime,
    new_id: IdFactory,
    rules: Rules,
    masks: Mapping[str, Mapping[str, Any]] | None = None,
    from_node: str | None = None,
    select: Select = select_output,
) -> list[NodeRow]:
    """The node executions with which the fork begins; empty when there is nothing left to run.

    Taken over are those that completed, and failures that are handled; nothing of `from_node` or of what lies
    downstream of it.
    """
    again = frozenset() if from_node is None else plan.downstream(from_node) | {from_node}
    known: dict[_Key, deque[NodeRow]] = {}
    for node in sorted(earlier, key=lambda n: (n.end_time or n.add_time, n.seq)):
        where = plan.nodes.get(node.node_id)
        handled = node.status is ExecutionStatus.FAILED and where is not None and where.handles_error
        if (node.status is ExecutionStatus.COMPLETED or handled) and node.node_id not in again:
            known.setdefault((node.node_id, _canonical(from_json(node.inputs))), deque()).append(node)
    everything = replace(rules, parallel_nodes=len(earlier) + len(plan.nodes) + 1)
    planner = Planner(plan, everything, new_id, masks=masks, select=select)
    rows: dict[int, NodeRow] = {}
    runs: dict[int, NodeRun] = {}
    changes = planner.begin(inputs)
    while True:
        _note(changes, runs)
        if changes.over is not None:
            return []
        found = _next(planner.running.values(), known)
        if found is None:
            break
        run, node = found
        rows[run.seq] = node
        changes = planner.advance(_replay(run.seq, node))
    return [_row(run, rows.get(run.seq), now) for run in runs.values()]


def _note(changes: Changes, runs: dict[int, NodeRun]) -> None:
    for run in changes.created:
        runs[run.seq] = run


def _next(running: Any, known: dict[_Key, deque[NodeRow]]) -> tuple[NodeRun, NodeRow] | None:
    """Of those that would run now and ran before, the one that ended first."""
    best: tuple[NodeRun, deque[NodeRow]] | None = None
    for run in running:
        candidates = known.get((run.node.id, _canonical(run.inputs)))
        if candidates and (best is None or _ended(candidates[0]) < _ended(best[1][0])):
            best = run, candidates
    return None if best is None else (best[0], best[1].popleft())


def _ended(node: NodeRow) -> tuple[datetime, int]:
    return node.end_time or node.add_time, node.seq


def _replay(seq: int, node: NodeRow) -> list[Happening]:
    outputs = [(name, from_json(value)) for name, value in node.outputs]
    if node.status is ExecutionStatus.FAILED:
        *before, (_, message) = outputs
        return [
            *(Yielded(seq, name, value) for name, value in before),
            Ended(seq, ExecutionStatus.FAILED, str(message), node.status_reason),
        ]
    return [*(Yielded(seq, name, value) for name, value in outputs), Ended(seq, ExecutionStatus.COMPLETED)]


def _row(run: NodeRun, taken: NodeRow | None, now: datetime) -> NodeRow:
    status = ExecutionStatus.QUEUED if run.status is ExecutionStatus.RUNNING else run.status
    output_name = run.node.output_name
    row = NodeRow(
        id=run.id,
        seq=run.seq,
        node_id=run.node.id,
        block_id=run.node.block_id,
        status=status,
        status_reason=run.status_reason,
        inputs=to_json(run.inputs),
        output_name=None if output_name is None else kept_text(str(run.inputs.get("name", output_name))),
        add_time=now,
        queue_time=None if status is ExecutionStatus.INCOMPLETE else now,
        start_time=None,
        end_time=None,
        outputs=[(name, to_json(value)) for name, value in run.given()],
    )
    if taken is not None:
        row.add_time, row.queue_time = taken.add_time, taken.queue_time
        row.start_time, row.end_time = taken.start_time, taken.end_time
    return row


def _canonical(value: Any) -> bytes:
    if isinstance(value, dict):
        return b"{" + b",".join(to_json(name) + b":" + _canonical(value[name]) for name in sorted(value)) + b"}"
    if isinstance(value, list):
        return b"[" + b",".join(map(_canonical, value)) + b"]"
    return to_json(value)
