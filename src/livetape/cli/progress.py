"""What an execution looks like after the events so far. Pure: `watch.py` draws it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from livetape.cli.render import TERMINAL, Names, preview
from livetape.cli.tape import Push


@dataclass(slots=True)
class NodeProgress:
    """One node over all its runs."""

    name: str
    runs: dict[str, str] = field(default_factory=dict)
    outputs: int = 0
    last_output: str = ""
    started: float | None = None
    ended: float | None = None

    @property
    def status(self) -> str:
        """The most telling status of its runs."""
        found = set(self.runs.values())
        for status in ("FAILED", "RUNNING", "REVIEW", "QUEUED", "TERMINATED", "COMPLETED"):
            if status in found:
                return status
        return "INCOMPLETE"

    @property
    def done(self) -> int:
        """Runs that ended."""
        return sum(1 for status in self.runs.values() if status in TERMINAL)

    def elapsed(self, now: float) -> float | None:
        """Seconds since it first ran; None before."""
        if self.started is None:
            return None
        return (self.ended if self.ended is not None and self.done == len(self.runs) else now) - self.started


@dataclass
class Progress:
    """One execution, by node."""

    names: Names
    status: str = "QUEUED"
    events: int = 0
    nodes: dict[str, NodeProgress] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for node_id, name in self.names.all().items():
            self.nodes[node_id] = NodeProgress(name)

    def apply(self, push: Push, now: float) -> None:
        """Take one event in. `now` is monotonic."""
        data: dict[str, Any] = push.data if isinstance(push.data, dict) else {}
        self.events += 1
        if push.method == "graph_execution_event":
            self.status = str(data.get("status", self.status))
            return
        node_id = str(data.get("node_id"))
        node = self.nodes.setdefault(node_id, NodeProgress(self.names.of(node_id)))
        if push.method == "node_output_event":
            node.outputs += 1
            node.last_output = f"{data.get('name')} = {preview(data.get('value'), 60)}"
        elif push.method == "node_execution_event":
            status = str(data.get("status"))
            node.runs[str(data.get("node_exec_id"))] = status
            if status == "RUNNING" and node.started is None:
                node.started = now
            if status in TERMINAL:
                node.started = now if node.started is None else node.started
                node.ended = now
