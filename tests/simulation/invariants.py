"""The ten invariants of the execution contract, judged by rows, events and side effects, never by asking the engine.

A `Judge` is told of every commit when it happens, and of what callers, blocks and watchers saw. It knows a row as it
was before the commit, so that each judgement is about one change.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final

from pydantic_core import from_json

from livetape.events.executions import ALLOWED_SOURCES, ExecutionStatus
from livetape.store.executions import ClaimLimits
from simulation.bounds import Bounds
from simulation.database import Change, Commit
from simulation.world import micros, seconds

TERMINAL: Final = frozenset({"COMPLETED", "FAILED", "TERMINATED"})

EXECUTION_TAPES: Final = "execution_events:"

AWAKE_S: Final = 2.0
"""A process that was held up may need so long to see what it has missed."""

NAMES: Final = {
    0: "limits, times, pauses and interrupted nodes are as the contract says",
    1: "one unfenced writer at a time",
    2: "a node execution is COMPLETED at most once",
    3: "terminal never changes",
    4: "event numbers have no gap, and replay gives the row",
    5: "every live execution makes progress",
    6: "a watcher sees every event once, in order",
    7: "no leaked slot",
    8: "stop leads to the end",
    9: "one Idempotency-Key, one execution",
    10: "no accepted command is lost",
}


@dataclass(frozen=True, slots=True)
class Violation:
    """A broken invariant: its number, when, and what was seen. `of` is the execution."""

    invariant: int
    at: float
    of: str
    said: str

    def __str__(self) -> str:
        return f"{self.at:.4f} s: invariant {self.invariant} ({NAMES[self.invariant]}): {self.of}: {self.said}"


@dataclass(slots=True)
class _Node:
    id: str
    status: str
    completions: int = 0
    outputs: int = 0
    taken_over: bool = False
    """A fork began with it: what was done for it, was done for an earlier execution."""


@dataclass(slots=True)
class _Execution:
    id: str
    status: str
    owner: str | None = None
    lease_no: int = 0
    lease_until: int | None = None
    cancel: bool = False
    due_at: int = 0
    held: str | None = None
    changed_at: float = 0.0
    claimed_at: float = 0.0
    queued: int = 0
    """How often it became QUEUED, or was let go by a limit: each time it is rung anew."""

    key: str = ""
    graph: str = ""
    parent: str | None = None
    forked_from: str | None = None
    deadline: int | None = None
    tape: int = 0
    last_number: int = 0
    ended_by_event: bool = False
    bells: set[int] = field(default_factory=set)
    nodes: dict[int, _Node] = field(default_factory=dict)


class Judge:
    """Collects violations. `alive` tells whether a process of this name still is; `bells_are_safe`: nothing may take
    the doorbell of a QUEUED execution away, because the queue is the table."""

    def __init__(
        self,
        *,
        alive: Callable[[str], bool] = lambda _: True,
        bells_are_safe: bool = True,
        limits: ClaimLimits | None = None,
    ) -> None:
        self.violations: list[Violation] = []
        self.executions: dict[str, _Execution] = {}
        self.stops: dict[str, float] = {}
        self.acted: Counter[str] = Counter()
        self._alive = alive
        self._bells_are_safe = bells_are_safe
        self._tapes: dict[int, _Execution] = {}
        self._tape_names: dict[int, str] = {}
        self._started: dict[str, set[str]] = defaultdict(set)
        self._taken: dict[int, tuple[str, int]] = {}
        self._at = 0.0
        self.bounds = Bounds(limits or ClaimLimits(), partial(self._say, 0))

    def _say(self, invariant: int, of: str, said: str) -> None:
        self.violations.append(Violation(invariant, self._at, of, said))

    # ---- commits ---------------------------------------------------------------------------------------------------

    def committed(self, commit: Commit) -> None:
        """A transaction happened."""
        self._at = commit.at
        mine: dict[str, list[Change]] = defaultdict(list)
        for change in commit.changes:
            row = change.after or change.before or {}
            match change.table:
                case "execution":
                    mine[row["id"]].append(change)
                case "node_execution" | "node_output":
                    mine[row["execution_id"]].append(change)
                case "tape" if change.before is None:
                    self._tape_names[row["id"]] = row["name"]
                case "event":
                    self._tape_event(change, mine)
                case "doorbell":
                    mine[row["graph_exec_id"]].append(change)
                case "review" | "queue_pause" | "key_value":
                    self.bounds.beside(commit.at, change)
        for execution_id, changes in mine.items():
            self._judge(commit, execution_id, changes)

    def _tape_event(self, change: Change, mine: dict[str, list[Change]]) -> None:
        row = change.after
        if row is None or change.before is not None:
            return
        known, name = self._tapes.get(row["tape_id"]), self._tape_names.get(row["tape_id"], "")
        if known is not None:
            mine[known.id].append(change)
        elif name.startswith(EXECUTION_TAPES):
            mine[name.removeprefix(EXECUTION_TAPES)].append(change)
        elif row["event_type"] == "graph_execution_update":
            mine[from_json(row["payload"])["id"]].append(change)

    def _judge(self, commit: Commit, execution_id: str, changes: list[Change]) -> None:
        known = self.executions.get(execution_id)
        rows = [change for change in changes if change.table == "execution"]
        if known is None:
            if not rows or rows[0].after is None:
                return
            known = self.executions[execution_id] = _Execution(execution_id, "INCOMPLETE")
        self._leases(commit, known, rows, changes)
        before, lease_no = known.status, known.lease_no
        for change in rows:
            self._execution_row(known, change, commit)
        if rows:
            claimed = known if known.lease_no > lease_no else None
            self.bounds.counted(commit.at, self.executions.values(), claimed)
        told = self._events(known, [change for change in changes if change.table == "event"])
        self._nodes(known, [change for change in changes if change.table == "node_execution"], told)
        outputs = Counter(change.after["seq"] for change in changes if change.table == "node_output" and change.after)
        self._outputs(known, outputs, told)
        if known.status not in {before, told.graph}:
            self._say(4, known.id, f"{before} became {known.status} and the commit tells of {told.graph}")
        elif told.graph is not None and told.graph != known.status:
            self._say(4, known.id, f"an event tells of {told.graph} and the row is {known.status}")
        self._doorbells(known, [change for change in changes if change.table == "doorbell"])
        if any(change.table == "event" for change in changes):
            known.changed_at = commit.at  # a lease that is renewed is no progress

    def _leases(self, commit: Commit, known: _Execution, rows: list[Change], changes: list[Change]) -> None:
        now_us = micros(commit.at)
        is_step = commit.of == known.id and commit.lease_no is not None
        nodes = any(change.table in {"node_execution", "node_output"} for change in changes)
        moved = any(c.before and c.after and c.before["status"] != c.after["status"] for c in rows)
        events = any(change.table == "event" for change in changes)
        if is_step and (nodes or moved or events):
            if known.status != "RUNNING" or known.lease_no != commit.lease_no or known.owner != commit.host:
                self._say(
                    1,
                    known.id,
                    f"{commit.host} wrote with lease {commit.lease_no}; it is {known.status},"
                    f" lease {known.lease_no} of {known.owner}",
                )
            return
        if known.status == "RUNNING" and (nodes or moved) and known.owner != commit.host:
            lives = known.lease_until is not None and known.lease_until >= now_us and self._alive(known.owner or "")
            if lives:
                self._say(
                    1, known.id, f"{commit.host} took it from {known.owner}, whose lease goes on ({commit.operation})"
                )
        for change in rows:
            if change.before is None or change.after is None or moved:
                continue
            until, later = change.before["lease_until"], change.after["lease_until"]
            if until is not None and later is not None and later > until and until < now_us:
                self._say(
                    1, known.id, f"{commit.host} renewed a lease that was over for {(now_us - until) / 1e6:.3f} s"
                )

    def _execution_row(self, known: _Execution, change: Change, commit: Commit) -> None:
        row = change.after
        if row is None:
            self._say(3, known.id, "it was deleted")
            return
        if change.before is not None:
            self.bounds.row(commit.at, known, change.before, row)
            was = change.before["status"]
            if row["status"] != was and ExecutionStatus(was) not in ALLOWED_SOURCES[ExecutionStatus(row["status"])]:
                self._say(3, known.id, f"{was} became {row['status']} ({commit.operation})")
            elif was in TERMINAL and row["status_reason"] != change.before["status_reason"]:
                self._say(3, known.id, f"{was} has another reason: {row['status_reason']} ({commit.operation})")
        let_go = known.held is not None and row.get("held") is None
        if row["status"] == "QUEUED" and (let_go or change.before is None or change.before["status"] != "QUEUED"):
            known.queued += 1
        if row["lease_no"] != known.lease_no:
            known.claimed_at = commit.at
        known.status, known.owner, known.lease_no = row["status"], row["lease_owner"], row["lease_no"]
        known.lease_until, known.cancel = row["lease_until"], bool(row["cancel_requested"])
        known.due_at, known.deadline, known.held = row.get("due_at") or 0, row.get("deadline_at"), row.get("held")
        known.graph, known.parent, known.forked_from = (
            row.get("graph_id", ""),
            row.get("parent_id"),
            row.get("forked_from"),
        )

    def _events(self, known: _Execution, changes: list[Change]) -> _Told:
        told = _Told()
        for change in changes:
            row = change.after
            assert row is not None
            self._tapes[row["tape_id"]] = known
            known.tape = row["tape_id"]
            if row["number"] != known.last_number + 1:
                self._say(4, known.id, f"event {row['number']} follows {known.last_number}")
            if known.ended_by_event:
                self._say(3, known.id, f"event {row['number']} follows the final event")
            known.last_number = row["number"]
            known.ended_by_event |= bool(row["final"])
            payload = from_json(row["payload"])
            match row["event_type"]:
                case "graph_execution_update":
                    told.graph = payload["status"]
                    value = payload["inputs"].get("value")
                    if not known.key and isinstance(value, dict):
                        self._keyed(known, value["key"])
                    if bool(row["final"]) != (payload["status"] in TERMINAL):
                        self._say(
                            4, known.id, f"event {row['number']} tells of {payload['status']}: final {row['final']}"
                        )
                case "node_execution_update":
                    told.nodes[payload["node_exec_id"]] = payload["status"]
                case "node_output_update":
                    told.outputs[payload["node_exec_id"]] += 1
        return told

    def _keyed(self, known: _Execution, key: str) -> None:
        """Forks and children have the inputs of others, and are one of a kind all the same."""
        if known.parent is not None:
            key = f"{known.parent}/{key}"
        known.key = key if known.forked_from is None else fork_key(known.forked_from)
        same = self._started[known.key]
        same.add(known.id)
        if len(same) > 1:
            self._say(9, known.id, f"the key {known.key} has {len(same)} executions")

    def _nodes(self, known: _Execution, changes: list[Change], told: _Told) -> None:
        moved: dict[int, _Node] = {}
        for change in changes:
            row = change.after
            if row is None:
                self._say(3, known.id, f"node execution {change.before} was deleted")
                continue
            node = known.nodes.setdefault(row["seq"], _Node(row["id"], "INCOMPLETE"))
            was = change.before["status"] if change.before else None
            self.bounds.node(change.before or {}, row)
            if was is None and row["status"] != "INCOMPLETE" and known.forked_from is not None and not known.lease_no:
                self._taken_over(known, node, row["status"])
            if was in TERMINAL and row["status"] != was:
                self._say(3, known.id, f"node execution {row['seq']}: {was} became {row['status']}")
            if row["status"] == "COMPLETED" and was != "COMPLETED":
                node.completions += 1
                if node.completions > 1:
                    self._say(2, known.id, f"node execution {row['seq']} ({row['id']}) was completed again")
            node.id, node.status = row["id"], row["status"]
            if was != row["status"] and not (was is None and row["status"] == "INCOMPLETE"):
                moved[row["seq"]] = node
        for seq, node in moved.items():  # on the way it may have been something else, which nobody has seen
            if told.nodes.get(node.id) != node.status:
                self._say(4, known.id, f"node execution {seq} became {node.status} without an event in the commit")

    def _taken_over(self, known: _Execution, node: _Node, status: str) -> None:
        node.taken_over = status in TERMINAL
        if node.taken_over:
            earlier = self.executions.get(known.forked_from or "")
            self.bounds.taken_over(known, earlier, earlier is not None and earlier.status in TERMINAL)

    def _outputs(self, known: _Execution, outputs: Counter[int], told: _Told) -> None:
        for seq, count in outputs.items():
            node = known.nodes.get(seq)
            if node is None or told.outputs[node.id] != count:
                self._say(4, known.id, f"{count} outputs of node execution {seq}, not as many events in the commit")
            elif node is not None:
                node.outputs += count

    def _doorbells(self, known: _Execution, changes: list[Change]) -> None:
        for change in changes:
            if change.after is not None:
                known.bells.add(change.after["id"])
            elif change.before is not None:
                known.bells.discard(change.before["id"])
                if self._bells_are_safe and self._claimable(known) and not known.bells:
                    self._say(10, known.id, "its only doorbell was acknowledged, and nobody has claimed it")

    def _claimable(self, known: _Execution) -> bool:
        return known.status == "QUEUED" and not known.held and known.due_at <= micros(self._at)

    # ---- the broker ------------------------------------------------------------------------------------------------

    def bell_taken(self, at: float, execution_id: str, tag: int) -> None:
        """A broker handed a doorbell out."""
        known = self.executions.get(execution_id)
        if known is not None and known.status == "QUEUED":
            self._taken[tag] = (execution_id, known.queued)

    def bell_acknowledged(self, at: float, execution_id: str, tag: int) -> None:
        """A broker was told to forget a doorbell."""
        self._at = at
        known = self.executions.get(execution_id)
        if known is not None and self._claimable(known) and self._taken.get(tag) == (execution_id, known.queued):
            self._say(10, execution_id, "its doorbell was acknowledged before anybody had claimed it")

    # ---- blocks, callers -------------------------------------------------------------------------------------------

    def block_began(
        self, at: float, host: str, execution_id: str, node_exec_id: str, on_interrupt: str = "rerun"
    ) -> None:
        """A block begins to act for this node execution."""
        self._at = at
        self.bounds.block_began(at, host, execution_id, node_exec_id, on_interrupt)
        known = self.executions.get(execution_id)
        if known is None or known.owner != host:
            return  # one that does not know yet that it has lost its lease
        for node in known.nodes.values():
            if node.id == node_exec_id and node.status in TERMINAL:
                self._say(2, execution_id, f"{node_exec_id} is {node.status} and runs again on {host}")

    def block_acted(
        self,
        at: float,
        host: str,
        execution_id: str,
        node_exec_id: str,
        awake_s: float,
        timeout: float | None = None,
    ) -> None:
        """A block does something to the world outside; its process was neither paused nor held up for so long."""
        self._at = at
        self.acted[node_exec_id] += 1
        known = self.executions.get(execution_id)
        if known is None or awake_s < AWAKE_S:
            return
        self.bounds.block_acted(at, host, execution_id, node_exec_id, None if timeout is None else timeout + AWAKE_S)
        if known.status == "RUNNING" and known.owner != host and at - known.claimed_at > AWAKE_S:
            self._say(1, execution_id, f"{host} acts for {node_exec_id}, which {known.owner} has taken over")

    def start_accepted(self, at: float, key: str, execution_id: str) -> None:
        """A caller was told that its execution is accepted."""
        self._at = at
        if execution_id not in self.executions:
            self._say(10, execution_id, "it was accepted and is not there")
        self._started[key].add(execution_id)
        if len(self._started[key]) > 1:
            self._say(9, execution_id, f"the key {key} was answered with {len(self._started[key])} executions")

    def stop_accepted(self, at: float, execution_id: str) -> None:
        """A caller was told that its stop is accepted."""
        self._at = at
        known = self.executions.get(execution_id)
        if known is None or not (known.cancel or known.status in TERMINAL):
            self._say(10, execution_id, "a stop was accepted and is not noted")
        self.stops.setdefault(execution_id, at)

    # ---- time ------------------------------------------------------------------------------------------------------

    def patience(self, at: float, healthy_since: float, progress_s: float, stop_s: float) -> None:
        """Since `healthy_since` nothing goes wrong any more: what has not moved for so long is stuck."""
        self._at = at
        for known in self.live():
            since = max(known.changed_at, healthy_since)
            if known.status in {"QUEUED", "REVIEW"}:  # until then it waits for something
                since = max(since, self.bounds.free_since(at, known), seconds(known.due_at))
            if at - since > progress_s:
                self._say(5, known.id, f"{known.status} and nothing has happened for {at - since:.1f} s")
                known.changed_at = at  # said once
            self.bounds.patience(at, known, healthy_since, stop_s)
            asked = self.stops.get(known.id)
            if asked is not None and at - max(asked, healthy_since) > stop_s:
                self._say(8, known.id, f"{known.status}, {at - max(asked, healthy_since):.1f} s after the stop")
                del self.stops[known.id]

    def live(self) -> Iterable[_Execution]:
        """Executions that are not over."""
        return [known for known in self.executions.values() if known.status not in TERMINAL]

    # ---- the end ---------------------------------------------------------------------------------------------------

    def over(self, at: float) -> None:
        """There was time enough for everything."""
        self._at = at
        for known in self.live():
            self._say(5, known.id, f"{known.status} at the end")

    def slots(self, at: float, together: int, expected: int) -> None:
        """So many probes ran at once, where there are so many slots."""
        self._at = at
        if together < expected:
            self._say(7, "-", f"{together} executions ran at once on {expected} slots")

    def watched(self, at: float, execution_id: str, offsets: list[int], gaps: int, last: int) -> None:
        """What a watcher saw of a tape that ends with the number `last`."""
        self._at = at
        if gaps:
            self._say(6, execution_id, f"a watcher was told of {gaps} gaps")
        if offsets != list(range(1, last + 1)):
            self._say(6, execution_id, f"a watcher saw {offsets} of {last} events")

    def replayed(
        self,
        at: float,
        execution: dict[str, Any],
        nodes: Iterable[dict[str, Any]],
        events: Iterable[tuple[int, str, bytes]],
    ) -> None:
        """The rows of an execution and the whole of its tape say the same."""
        self._at = at
        state: dict[str, Any] = {}
        told: dict[str, dict[str, Any]] = {}
        values: dict[str, list[tuple[str, Any]]] = defaultdict(list)
        completions: Counter[str] = Counter()
        for expected, (number, kind, payload) in enumerate(events, 1):
            if number != expected:
                self._say(4, execution["id"], f"event {expected} is missing")
            event = from_json(payload)
            if kind == "graph_execution_update":
                state = event
            elif kind == "node_execution_update":
                completions[event["node_exec_id"]] += event["status"] == "COMPLETED"
                told[event["node_exec_id"]] = event
            elif kind == "node_output_update":
                values[event["node_exec_id"]].append((event["name"], event["value"]))
        for name in ("id", "status", "status_reason"):
            if state.get(name) != execution[name]:
                self._say(4, execution["id"], f"{name} is {execution[name]}; replay gives {state.get(name)}")
        for node in nodes:
            last = told.get(node["id"], {})
            if node["status"] != "INCOMPLETE" and last.get("status") != node["status"]:
                self._say(
                    4, execution["id"], f"node {node['id']} is {node['status']}; replay gives {last.get('status')}"
                )
            if values[node["id"]] != node["outputs"]:
                self._say(4, execution["id"], f"the outputs of node {node['id']} are not those of its events")
            if node["status"] in TERMINAL and sum(map(len, last.get("output_data", {}).values())) != len(
                node["outputs"]
            ):
                self._say(4, execution["id"], f"the last event of node {node['id']} has not all its outputs")
            if node.get("acts") and node["status"] == "COMPLETED" and not self.acted[node["id"]]:
                self._say(2, execution["id"], f"{node['id']} is COMPLETED and has never acted")
            if completions[node["id"]] > 1:
                self._say(2, execution["id"], f"{completions[node['id']]} events complete {node['id']}")


def fork_key(execution_id: str) -> str:
    """What the fork of an execution is known by: here nobody makes two."""
    return f"fork of {execution_id}"


@dataclass(slots=True)
class _Told:
    """What the events of one commit say."""

    graph: str | None = None
    nodes: dict[str, str] = field(default_factory=dict)
    outputs: Counter[str] = field(default_factory=Counter)
