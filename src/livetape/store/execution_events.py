"""The events of executions, made from their state. The only place that builds them, so that rows and events agree.

They are built as plain dictionaries in the field order of the models in `events.executions` (a test compares both):
validating data that the engine itself just made would cost more than the rest of a step.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, TypeAlias

from pydantic_core import from_json

from livetape.events.codec import encode_payload
from livetape.events.executions import ExecutionStatus
from livetape.events.log import NewEvent
from livetape.store.executions import ExecutionRow, NodeRow


def graph_event(row: ExecutionRow, outputs: Mapping[str, Sequence[Any]] | None = None) -> NewEvent:
    """The execution as it is after a change. `outputs` are the values of its OUTPUT blocks so far."""
    payload, _ = encode_payload(
        {
            "event_type": "graph_execution_update",
            "id": row.id,
            "user_id": row.user_id,
            "graph_id": row.graph_id,
            "graph_version": row.graph_version,
            "inputs": from_json(row.inputs),
            "credential_inputs": None,
            "nodes_input_masks": None if row.masks is None else from_json(row.masks),
            "preset_id": None,
            "status": row.status.value,
            "status_reason": row.status_reason,
            "started_at": row.started_at,
            "ended_at": row.ended_at,
            "is_shared": False,
            "share_token": None,
            "is_dry_run": row.dry_run,
            "stats": from_json(row.stats),
            "outputs": outputs or {},
        }
    )
    return NewEvent("graph_execution_update", payload, final=row.status.is_terminal)


def node_event(
    execution: ExecutionRow,
    *,
    node_exec_id: str,
    node_id: str,
    block_id: str,
    status: ExecutionStatus,
    status_reason: str | None,
    inputs: Mapping[str, Any],
    outputs: Mapping[str, Sequence[Any]],
    add_time: datetime,
    queue_time: datetime | None,
    start_time: datetime | None,
    end_time: datetime | None,
) -> NewEvent:
    """One node execution, complete. Every input pin holds one value; it is told as a list of one."""
    payload, _ = encode_payload(
        {
            "event_type": "node_execution_update",
            "user_id": execution.user_id,
            "graph_id": execution.graph_id,
            "graph_version": execution.graph_version,
            "graph_exec_id": execution.id,
            "node_exec_id": node_exec_id,
            "node_id": node_id,
            "block_id": block_id,
            "status": status.value,
            "status_reason": status_reason,
            "input_data": {pin: [value] for pin, value in inputs.items()},
            "output_data": outputs,
            "add_time": add_time,
            "queue_time": queue_time,
            "start_time": start_time,
            "end_time": end_time,
        }
    )
    return NewEvent("node_execution_update", payload)


def output_event(
    execution: ExecutionRow, *, node_id: str, node_exec_id: str, index: int, name: str, value: Any
) -> NewEvent:
    """One value that a node gave."""
    payload, _ = encode_payload(
        {
            "event_type": "node_output_update",
            "user_id": execution.user_id,
            "graph_id": execution.graph_id,
            "graph_exec_id": execution.id,
            "node_id": node_id,
            "node_exec_id": node_exec_id,
            "index": index,
            "name": name,
            "value": value,
        }
    )
    return NewEvent("node_output_update", payload)


def group_outputs(outputs: Sequence[tuple[str, bytes]]) -> dict[str, list[Any]]:
    """`{name: [values]}` from stored outputs, in yield order."""
    grouped: dict[str, list[Any]] = {}
    for name, value in outputs:
        grouped.setdefault(name, []).append(from_json(value))
    return grouped


def stored_node_event(execution: ExecutionRow, node: NodeRow) -> NewEvent:
    """`node_event` of a node execution as it was read from the store, with all its outputs."""
    return node_event(
        execution,
        node_exec_id=node.id,
        node_id=node.node_id,
        block_id=node.block_id,
        status=node.status,
        status_reason=node.status_reason,
        inputs=from_json(node.inputs),
        outputs=group_outputs(node.outputs),
        add_time=node.add_time,
        queue_time=node.queue_time,
        start_time=node.start_time,
        end_time=node.end_time,
    )


def stored_output_events(execution: ExecutionRow, node: NodeRow) -> list[NewEvent]:
    """`output_event` of everything that a stored node execution gave."""
    return [
        output_event(
            execution, node_id=node.node_id, node_exec_id=node.id, index=index, name=name, value=from_json(value)
        )
        for index, (name, value) in enumerate(node.outputs)
    ]


def execution_outputs(nodes: Sequence[NodeRow]) -> dict[str, list[Any]]:
    """`{name: [values]}` of the OUTPUT nodes that completed, in the order in which they were queued."""
    return in_order(given_outputs(nodes))


Given: TypeAlias = tuple[datetime, int, str, Any]
"""What an OUTPUT node gave: when it was queued, its `seq`, the name and the value."""


def given_outputs(nodes: Sequence[NodeRow]) -> list[Given]:
    """What the OUTPUT nodes that completed gave, in no particular order."""
    return [
        (node.queue_time or node.add_time, node.seq, node.output_name, from_json(node.inputs).get("value"))
        for node in nodes
        if node.output_name is not None and node.status is ExecutionStatus.COMPLETED
    ]


def in_order(given: Sequence[Given]) -> dict[str, list[Any]]:
    """`{name: [values]}` in the order in which the nodes were queued: nodes that run at once end in any order."""
    outputs: dict[str, list[Any]] = {}
    for _, _, name, value in sorted(given, key=lambda one: one[:2]):
        outputs.setdefault(name, []).append(value)
    return outputs
