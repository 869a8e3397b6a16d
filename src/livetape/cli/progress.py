"""What an execution looks like after the events so far. Pure: `watch.py` draws it."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from livetape.cli.render import TERMINAL, Names, moment, preview
from livetape.cli.tape import Push


@dataclass(slots=True)
class NodeProgress:
    """One node over all its runs."""

    name: str
    runs: dict[str, str] = field(default_factory=dict)
    outputs: int = 0
    last_output: str = ""
    seen_running: float | None = None
    began: datetime | None = None
    ended: datetime | None = None

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
        """Seconds from its first start to its last end, by the server's clock; while it runs, since we saw it."""
        if self.began is not None and self.ended is not None and self.done == len(self.runs):
            return max(0.0, (self.ended - self.began).total_seconds())
        return None if self.seen_running is None else now - self.seen_running


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
            if data.get("name") != "name":  # an OUTPUT block also gives its own name
                node.last_output = f"{data.get('name')} = {preview(data.get('value'), 60)}"
        elif push.method == "node_execution_event":
            status = str(data.get("status"))
            node.runs[str(data.get("node_exec_id"))] = status
            if status == "RUNNING" and node.seen_running is None:
                node.seen_running = now
            began, ended = moment(data.get("start_time")), moment(data.get("end_time"))
            node.began = began if node.began is None else node.began
            node.ended = max(filter(None, (node.ended, ended)), default=None)
