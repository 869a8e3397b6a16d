"""The events of executions: wire models of the seeds, and their union.

Field names and shapes are those that old clients read (`data.id`, `data.status`, `data.input_data`, times as
ISO 8601 strings). `input_data` and `output_data` are `{pin: [values]}`.
"""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum
from typing import Annotated, Any, ClassVar, Literal, TypeAlias

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

from livetape.events.event import CommunicationErrorEvent, Event


class ExecutionStatus(StrEnum):
    """The status words of the seed, for executions and node executions alike; there are no others."""

    INCOMPLETE = "INCOMPLETE"
    QUEUED = "QUEUED"
    RUNNING = "RUNNING"
    REVIEW = "REVIEW"
    COMPLETED = "COMPLETED"
    FAILED = "FAILED"
    TERMINATED = "TERMINATED"

    @property
    def is_terminal(self) -> bool:
        """Whether it never changes again."""
        return self in TERMINAL_STATUSES


TERMINAL_STATUSES = frozenset({ExecutionStatus.COMPLETED, ExecutionStatus.FAILED, ExecutionStatus.TERMINATED})

ALLOWED_SOURCES: dict[ExecutionStatus, frozenset[ExecutionStatus]] = {
    ExecutionStatus.INCOMPLETE: frozenset(),
    ExecutionStatus.QUEUED: frozenset(
        # RUNNING -> QUEUED is recovery, hand-back, supervisor release and node retry
        {ExecutionStatus.INCOMPLETE, ExecutionStatus.REVIEW, ExecutionStatus.RUNNING}
    ),
    ExecutionStatus.RUNNING: frozenset({ExecutionStatus.INCOMPLETE, ExecutionStatus.QUEUED, ExecutionStatus.REVIEW}),
    ExecutionStatus.REVIEW: frozenset({ExecutionStatus.RUNNING}),
    ExecutionStatus.COMPLETED: frozenset({ExecutionStatus.RUNNING}),
    ExecutionStatus.FAILED: frozenset(
        {
            ExecutionStatus.INCOMPLETE,
            ExecutionStatus.QUEUED,
            ExecutionStatus.RUNNING,
            ExecutionStatus.REVIEW,
        }
    ),
    ExecutionStatus.TERMINATED: frozenset(
        {
            ExecutionStatus.INCOMPLETE,
            ExecutionStatus.QUEUED,
            ExecutionStatus.RUNNING,
            ExecutionStatus.REVIEW,
        }
    ),
}
"""From which status a status may be reached. Terminal never changes (execution contract, status words)."""


class ExecutionEventType(StrEnum):
    """Names of execution events on the bus."""

    GRAPH_EXEC_UPDATE = "graph_execution_update"
    NODE_EXEC_UPDATE = "node_execution_update"
    NODE_OUTPUT = "node_output_update"
    ERROR_COMMS_UPDATE = "error_comms_update"


class ExecutionStats(BaseModel):
    """Figures of one execution as they stand on the wire. Durations are seconds; cost is cents."""

    model_config = ConfigDict(extra="allow", frozen=True)

    cost: int = 0
    duration: float = 0
    duration_cpu_only: float = 0
    node_exec_time: float = 0
    node_exec_time_cpu_only: float = 0
    node_exec_count: int = 0
    node_error_count: int = 0
    nodes_incomplete: int = 0
    error: str | None = None
    activity_status: str | None = None


class GraphExecutionMeta(BaseModel):
    """One execution without its outputs."""

    model_config = ConfigDict(frozen=True)

    id: str
    user_id: str
    graph_id: str
    graph_version: int
    inputs: dict[str, Any] | None = None
    credential_inputs: dict[str, Any] | None = None
    nodes_input_masks: dict[str, Any] | None = None
    preset_id: str | None = None
    status: ExecutionStatus
    status_reason: str | None = None
    started_at: datetime | None = None
    ended_at: datetime | None = None
    is_shared: bool = False
    share_token: str | None = None
    is_dry_run: bool = False
    stats: ExecutionStats | None = None


class GraphExecution(GraphExecutionMeta):
    """One execution with the values of its OUTPUT blocks: `{name: [values]}`."""

    inputs: dict[str, Any] = Field(default_factory=dict)
    outputs: dict[str, list[Any]] = Field(default_factory=dict)


class NodeExecutionResult(BaseModel):
    """One run of one node, with everything it has taken and given so far."""

    model_config = ConfigDict(frozen=True)

    user_id: str
    graph_id: str
    graph_version: int
    graph_exec_id: str
    node_exec_id: str
    node_id: str
    block_id: str
    status: ExecutionStatus
    status_reason: str | None = None
    input_data: dict[str, list[Any]]
    output_data: dict[str, list[Any]]
    add_time: datetime
    queue_time: datetime | None = None
    start_time: datetime | None = None
    end_time: datetime | None = None


class GraphExecutionEvent(Event):
    """The state of an execution after something changed it."""

    durable: ClassVar[bool] = True

    event_type: Literal["graph_execution_update"] = "graph_execution_update"
    id: str
    user_id: str
    graph_id: str
    graph_version: int
    inputs: dict[str, Any] = Field(default_factory=dict)
    credential_inputs: dict[str, Any] | None = None
    nodes_input_masks: dict[str, Any] | None = None
    preset_id: str | None = None
    status: ExecutionStatus
    status_reason: str | None = None
    started_at: datetime | None = None
    ended_at: datetime | None = None
    is_shared: bool = False
    share_token: str | None = None
    is_dry_run: bool = False
    stats: ExecutionStats | None = None
    outputs: dict[str, list[Any]] = Field(default_factory=dict)


class NodeExecutionEvent(Event):
    """The state of one node execution, complete: old clients replace what they had, they do not merge."""

    durable: ClassVar[bool] = True

    event_type: Literal["node_execution_update"] = "node_execution_update"
    user_id: str
    graph_id: str
    graph_version: int
    graph_exec_id: str
    node_exec_id: str
    node_id: str
    block_id: str
    status: ExecutionStatus
    status_reason: str | None = None
    input_data: dict[str, list[Any]]
    output_data: dict[str, list[Any]]
    add_time: datetime
    queue_time: datetime | None = None
    start_time: datetime | None = None
    end_time: datetime | None = None


class NodeOutputEvent(Event):
    """One value that a node gave. `index` counts the outputs of this node execution from 0."""

    durable: ClassVar[bool] = True

    event_type: Literal["node_output_update"] = "node_output_update"
    user_id: str
    graph_id: str
    graph_exec_id: str
    node_id: str
    node_exec_id: str
    index: int
    name: str
    value: Any


ExecutionEvent: TypeAlias = Annotated[
    GraphExecutionEvent | NodeExecutionEvent | NodeOutputEvent | CommunicationErrorEvent,
    Field(discriminator="event_type"),
]

EXECUTION_EVENTS: TypeAdapter[GraphExecutionEvent | NodeExecutionEvent | NodeOutputEvent | CommunicationErrorEvent] = (
    TypeAdapter(ExecutionEvent)
)
"""Decodes any execution event from its JSON."""
