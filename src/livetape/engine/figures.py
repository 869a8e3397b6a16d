"""The figures of node executions and of their execution: times, sizes, counts and costs. Kept whatever the end."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from pydantic_core import from_json, to_json

from livetape.engine.changes import NodeRun, Over
from livetape.engine.pointers import whole_size
from livetape.engine.runner import RunStats
from livetape.events.executions import ExecutionStats, ExecutionStatus
from livetape.store.executions import NodeRow

_OWN: Final = frozenset({"walltime", "cputime", "input_size", "output_size", "cost", "attempts"})


def add_run(run: NodeRun, stats: RunStats, *, cpu_s: float, cost: int) -> None:
    """Add one run of a node to its figures: `walltime` and `cputime` in seconds, `cost` in cents, and whatever its
    block counted, by its own names. Sizes are those of the end: what it gave may not be recorded yet."""
    known: dict[str, Any] = {} if run.stats is None else from_json(run.stats)
    known["walltime"] = round(known.get("walltime", 0.0) + stats.seconds, 6)
    known["cputime"] = round(known.get("cputime", 0.0) + cpu_s, 6)
    known["cost"] = known.get("cost", 0) + cost
    known["attempts"] = known.get("attempts", 0) + stats.attempts
    for name, amount in stats.usage.items():
        if name not in _OWN:
            known[name] = known.get(name, 0) + amount
    run.stats = to_json(known)


class Figures:
    """The sums over the node executions that are over."""

    def __init__(self) -> None:
        self._ended = 0
        self._errors = 0
        self._seconds = 0.0
        self._cpu_s = 0.0
        self._others: dict[str, float] = {}
        self.cost = 0

    def count_row(self, node: NodeRow) -> None:
        """A node execution that ended under another worker."""
        seconds = 0.0
        if node.start_time is not None and node.end_time is not None:
            seconds = (node.end_time - node.start_time).total_seconds()
        self._add(node.status, seconds, None if node.stats is None else from_json(node.stats))

    def count(self, run: NodeRun) -> None:
        """A node execution that has just ended: what it was given and gave is known, and how many bytes of JSON it
        has."""
        seconds = 0.0
        if run.start_time is not None and run.end_time is not None:
            seconds = (run.end_time - run.start_time).total_seconds()
        known: dict[str, Any] | None = None
        if run.stats is not None:
            known = from_json(run.stats)
            known["input_size"] = whole_size(to_json(run.inputs))
            known["output_size"] = whole_size(to_json(run.outputs))
            run.stats = to_json(known)
        self._add(run.status, seconds, known)

    def so_far(self) -> dict[str, Any]:
        """As JSON of an execution that goes on."""
        return {"cost": self.cost, "node_exec_count": self._ended, "node_error_count": self._errors}

    def at_end(self, over: Over, duration: float) -> ExecutionStats:
        """Of an execution that took `duration` seconds."""
        others: Mapping[str, Any] = {name: amount for name, amount in self._others.items() if amount}
        return ExecutionStats(
            cost=self.cost,
            duration=duration,
            duration_cpu_only=round(self._cpu_s, 6),
            node_exec_time=round(self._seconds, 6),
            node_exec_time_cpu_only=round(self._cpu_s, 6),
            node_exec_count=self._ended,
            node_error_count=self._errors,
            nodes_incomplete=over.incomplete,
            error=over.error,
            **others,
        )

    def _add(self, status: ExecutionStatus, seconds: float, stats: dict[str, Any] | None) -> None:
        self._ended += 1
        self._errors += status is ExecutionStatus.FAILED
        self._seconds += seconds
        if stats is None:
            return
        for name, amount in stats.items():
            if name == "cost":
                self.cost += amount
            elif name == "cputime":
                self._cpu_s += amount
            elif name not in _OWN and name not in ExecutionStats.model_fields:
                self._others[name] = self._others.get(name, 0) + amount
