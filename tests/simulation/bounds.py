"""What the execution contract bounds beside the ten invariants: slots, times, pauses, interrupted nodes, forks.

Like the judge that asks it, it goes by changed rows and by what blocks do, and counts what it has seen, so that it is
known that each of these things happened.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from livetape.engine.waiting import FIRST_ASK
from livetape.store.executions import ClaimLimits
from simulation.database import Change
from simulation.world import micros, seconds


class Known(Protocol):
    """What is known of an execution."""

    id: str
    status: str
    graph: str
    deadline: int | None


@dataclass(slots=True)
class Bounds:
    """`say` is told what is wrong with which execution."""

    limits: ClaimLimits
    say: Callable[[str, str], None]
    seen: Counter[str] = field(default_factory=Counter)
    paused: bool = False
    _free_at: float = 0.0
    """When the queue was last resumed."""

    _full: dict[str, bool] = field(default_factory=dict)
    """Which limits are reached: of the user, and by name those of graphs."""

    _full_until: dict[str, float] = field(default_factory=dict)
    _began: Counter[str] = field(default_factory=Counter)
    _began_at: dict[tuple[str, str], float] = field(default_factory=dict)
    _approved: Counter[str] = field(default_factory=Counter)
    _booked: set[tuple[str, str]] = field(default_factory=set)

    # ---- rows ------------------------------------------------------------------------------------------------------

    def beside(self, at: float, change: Change) -> None:
        """A row of a review, of a pause, or of a transaction of a block has changed."""
        before, after = change.before or {}, change.after or {}
        if change.table == "queue_pause":
            self.paused = change.after is not None
            self._free_at = at
        elif change.table == "key_value" and change.before is None:
            self.seen["transaction"] += 1
            self._booked.add((after["user_id"], after["key"]))
        elif change.table == "key_value":
            self.say(after["user_id"], f"the transaction of {after['key']} was run again")
        elif after.get("status") == "APPROVED" and before.get("status") != "APPROVED":
            self._approved[after["node_exec_id"]] += 1
        elif change.before is None and after["seq"] >= FIRST_ASK:
            self.seen["interrupted_asks"] += 1

    def row(self, at: float, known: Known, before: Mapping[str, Any], after: Mapping[str, Any]) -> None:
        """The row of an execution has changed."""
        if after["lease_no"] > before["lease_no"] and self.paused:
            self.say(known.id, "it was claimed while the queue was paused")
        if after.get("held") and after.get("held") != before.get("held"):
            self.seen[f"held_by_{after['held']}"] += 1
        if after["status"] != "FAILED" or before["status"] == "FAILED" or after["status_reason"] != "timeout":
            return
        ran = before["status"] == "RUNNING"
        ends = before.get("deadline_at" if ran else "queue_deadline_at")
        self.seen["run_timeout" if ran else "queue_timeout"] += 1
        if ends is None or ends > micros(at):
            self.say(known.id, "it timed out before its time")
        if not ran and before.get("started_at") is not None:
            self.say(known.id, "it had begun, and timed out as if it had not")

    def node(self, before: Mapping[str, Any], after: Mapping[str, Any]) -> None:
        """The row of a node execution has changed."""
        self.seen["ran_before_its_commit"] += not before and after["status"] == "COMPLETED"
        if after["status"] == "FAILED" and before.get("status") != "FAILED":
            reason = after.get("status_reason")
            self.seen["node_timeout"] += reason == "timeout"
            self.seen["interrupted_fails"] += reason == "worker_lost"

    def counted(self, at: float, executions: Iterable[Known], claimed: Known | None) -> None:
        """So it is after a commit, which perhaps claimed one of them."""
        running = [known for known in executions if known.status == "RUNNING"]
        limits = {"": self.limits.per_user}
        if self.limits.per_graph is not None:
            limits |= dict.fromkeys({known.graph for known in running} | set(self._full) - {""}, self.limits.per_graph)
        for name, limit in limits.items():
            count = sum(1 for known in running if not name or known.graph == name)
            full = limit is not None and count >= limit
            if full or self._full.get(name):
                self._full_until[name] = at
            self._full[name] = full
            if limit is not None and count > limit and claimed is not None and name in {"", claimed.graph}:
                self.say(claimed.id, f"{count} run where {limit} may")

    def taken_over(self, known: Known, earlier: Known | None, terminal: bool) -> None:
        """A fork begins with a node execution of an earlier execution."""
        self.seen["fork_takes_over"] += 1
        if earlier is None or not terminal:
            self.say(known.id, "it goes on where something is not over")

    def booked(self, execution_id: str, node_exec_ids: Iterable[str]) -> None:
        """These node executions are COMPLETED, and each has a transaction."""
        for one in node_exec_ids:
            if (execution_id, one) not in self._booked:
                self.say(execution_id, f"the transaction of {one} is lost")

    def forked(self, execution_id: str, taken: Iterable[str], done: Iterable[str]) -> None:
        """With what a fork begins, and what was done in the execution that it goes on with."""
        left = Counter(done)
        for said in taken:
            if not left[said]:
                self.say(execution_id, f"it begins with what was not done: {said}")
            left[said] -= 1

    # ---- blocks ----------------------------------------------------------------------------------------------------

    def block_began(self, at: float, host: str, execution_id: str, node_exec_id: str, on_interrupt: str) -> None:
        """A block begins, for the first time or again."""
        self._began_at[host, node_exec_id] = at
        self._began[node_exec_id] += 1
        may = {"fail": 1, "ask": 1 + self._approved[node_exec_id]}.get(on_interrupt)
        if may is not None and self._began[node_exec_id] > may:
            self.say(execution_id, f"{node_exec_id} runs again, and nobody allowed it")

    def block_acted(self, at: float, host: str, execution_id: str, node_exec_id: str, timeout: float | None) -> None:
        """A block acts that has so many seconds; its process was not held up."""
        if timeout is not None and at - self._began_at.get((host, node_exec_id), at) > timeout:
            self.say(execution_id, f"{node_exec_id} acts after the end of its time")

    # ---- time ------------------------------------------------------------------------------------------------------

    def free_since(self, at: float, known: Known) -> float:
        """Since when it may be claimed, as far as pauses and limits go; the present while it may not."""
        if self.paused or self._full.get("") or self._full.get(known.graph):
            return at
        return max(self._free_at, self._full_until.get("", 0.0), self._full_until.get(known.graph, 0.0))

    def patience(self, at: float, known: Known, healthy_since: float, stop_s: float) -> None:
        """So long after its time, an execution that runs has to be ended."""
        if known.status == "RUNNING" and known.deadline is not None:
            late = at - max(seconds(known.deadline), healthy_since)
            if late > stop_s:
                self.say(known.id, f"it runs {late:.1f} s longer than it may")
                known.deadline = None  # said once
