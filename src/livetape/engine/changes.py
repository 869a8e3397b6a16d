"""What happens to node executions, and what follows from it. Pure."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final, Literal, TypeAlias

from livetape.engine.block_ports import Wait
from livetape.engine.graph_plan import NodePlan
from livetape.events.executions import ExecutionStatus

WAITING: Final = "waiting"
"""The `status_reason` of a node execution that is suspended, and of an execution in which all are."""


@dataclass(slots=True, eq=False)
class NodeRun:
    """One node execution, while it is not over."""

    seq: int
    id: str
    node: NodePlan
    status: ExecutionStatus
    inputs: dict[str, Any]
    outputs: dict[str, list[Any]] = field(default_factory=dict)
    output_count: int = 0
    status_reason: str | None = None
    # What an interrupted run gave before, as far as the new run has not given it again: see `Planner.resume`.
    recorded: deque[tuple[str, Any]] = field(default_factory=deque)
    # The names of all outputs in the order in which they came.
    order: list[str] = field(default_factory=list)
    # Kept by whoever runs it; the planner knows no time.
    add_time: datetime | None = None
    queue_time: datetime | None = None
    start_time: datetime | None = None
    end_time: datetime | None = None
    attempt: int = 1
    waits: tuple[Wait, ...] = ()
    stats: bytes | None = None

    def given(self) -> list[tuple[str, Any]]:
        """All outputs so far, in order."""
        left = {name: iter(values) for name, values in self.outputs.items()}
        return [(name, next(left[name])) for name in self.order]


@dataclass(slots=True)
class Yielded:
    """A node execution gave a value."""

    seq: int
    name: str
    value: Any


@dataclass(slots=True)
class Ended:
    """A node execution is over: COMPLETED, FAILED (with the message) or TERMINATED."""

    seq: int
    status: Literal[ExecutionStatus.COMPLETED, ExecutionStatus.FAILED, ExecutionStatus.TERMINATED]
    error: str | None = None
    reason: str | None = None


@dataclass(slots=True)
class Suspended:
    """A node execution waits for something, and runs no more until it is `Resumed`. `asks`: a person is asked."""

    seq: int
    asks: bool = False


@dataclass(slots=True)
class Resumed:
    """What it waited for has happened: it is run again from its start."""

    seq: int


@dataclass(slots=True)
class CancelRequested:
    """Nothing new starts; what runs is stopped by whoever runs it. The execution then has this status."""

    reason: str = "cancelled_by_user"
    status: Literal[ExecutionStatus.TERMINATED, ExecutionStatus.FAILED] = ExecutionStatus.TERMINATED
    error: str | None = None


Happening: TypeAlias = Yielded | Ended | Suspended | Resumed | CancelRequested


@dataclass(slots=True)
class Output:
    """A value to record. `index` counts within the node execution."""

    run: NodeRun
    index: int
    name: str
    value: Any


@dataclass(slots=True)
class Changes:
    """What followed from one or more happenings, to be written in one commit and then acted upon.

    `told` are runs whose new state is an event of its own, in the order of the changes; `start` are runs to execute
    after the commit. `parked`: everything that is left waits. `over` is the end of the execution.
    """

    created: list[NodeRun] = field(default_factory=list)
    filled: dict[int, NodeRun] = field(default_factory=dict)
    told: list[NodeRun | Output] = field(default_factory=list)
    start: list[NodeRun] = field(default_factory=list)
    completed: int = 0
    failed: int = 0
    stop: bool = False
    parked: bool = False
    over: Over | None = None

    def __bool__(self) -> bool:
        return bool(self.created or self.filled or self.told or self.start or self.stop or self.over is not None)


@dataclass(frozen=True, slots=True)
class Over:
    """How the execution ended. `failed_run` is the first unhandled failure."""

    status: ExecutionStatus
    reason: str | None
    error: str | None
    incomplete: int
