"""What can be followed, and what comes from it."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final


@dataclass(frozen=True, slots=True)
class Topic:
    """What to follow: a method of the protocol and its data without `since`."""

    method: str
    data: dict[str, Any]
    name: str

    @classmethod
    def execution(cls, execution_id: str) -> Topic:
        """All events of an execution, each output as its own event."""
        data = {"graph_exec_id": execution_id, "outputs": "each", "strict": True}
        return cls("subscribe_graph_execution", data, f"execution {execution_id}")

    @classmethod
    def graph(cls, graph_id: str) -> Topic:
        """The graph events of all executions of a graph."""
        return cls("subscribe_graph_executions", {"graph_id": graph_id, "strict": True}, f"graph {graph_id}")

    @classmethod
    def job(cls, job_id: str) -> Topic:
        """All events of a job."""
        return cls("subscribe_job", {"job_id": job_id, "strict": True}, f"job {job_id}")


@dataclass(frozen=True, slots=True)
class Push:
    """One event as the server pushed it. Without offset it stands on no tape."""

    method: str
    data: Any
    offset: int | None = None
    epoch: str | None = None
    final: bool = False
    truncated: bool = False
    time: datetime | None = None


EVENTS: Final = frozenset({"graph_execution_event", "node_execution_event", "node_output_event", "job_event"})

METHODS: Final = {
    "graph_execution_update": "graph_execution_event",
    "node_execution_update": "node_execution_event",
    "node_output_update": "node_output_event",
}
"""Name of an event on the tape -> its name on the socket; anything else is a `job_event`."""
