"""What runs next. Pure: the same state and the same happening give the same changes; no I/O, no clock, no ids of
its own.

Rules (execution contract, "Graph semantics"):
- Starting nodes are nodes without incoming links and INPUT blocks.
- A value goes to the oldest INCOMPLETE execution of the sink that lacks that pin, or begins a new one.
- Linked pins always wait; unlinked pins take `input_default`.
- A static link keeps its last value: a new execution takes it from the node's latest queued execution, and when it
  arrives, executions that wait for it are completed.
- Outputs are followed as they are yielded, those of one node execution in their order. `error` is an output.
- A failed node whose `error` pin is linked is handled. Otherwise nothing new starts downstream of it, independent
  branches finish, and the execution is FAILED naming the first.
- More node executions than the step limit: FAILED (`step_limit`).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Literal, TypeAlias

from livetape.clock import IdFactory
from livetape.engine.block import BlockRegistry, BlockType
from livetape.engine.graph import Graph, Link
from livetape.engine.pins import select_output
from livetape.events.executions import ExecutionStatus

Select: TypeAlias = Callable[[str, Any, str], tuple[bool, Any]]


@dataclass(frozen=True, slots=True)
class LinkPlan:
    """A link as its source follows it."""

    source_name: str
    sink: NodePlan
    sink_name: str
    is_static: bool


@dataclass(slots=True, eq=False)
class NodePlan:
    """A node with what the planner must know of it. `pins` are the input pins that links feed."""

    id: str
    block_id: str
    defaults: Mapping[str, Any]
    starts: bool
    is_input: bool
    output_name: str | None
    pins: tuple[str, ...] = ()
    static_pins: frozenset[str] = frozenset()
    links: list[LinkPlan] = field(default_factory=list)
    handles_error: bool = False


class GraphPlan:
    """A graph indexed for running. Built once per execution; never changes."""

    def __init__(self, graph: Graph, blocks: BlockRegistry) -> None:
        fed: dict[str, list[Link]] = {}
        for link in graph.links:
            fed.setdefault(link.sink_id, []).append(link)
        self.nodes: dict[str, NodePlan] = {}
        for node in graph.nodes:
            block = blocks.get(node.block_id)
            kind = BlockType.STANDARD if block is None else block.block_type
            if kind is BlockType.NOTE:
                continue
            pins = dict.fromkeys(link.sink_name for link in fed.get(node.id, ()))
            is_input = kind is BlockType.INPUT
            self.nodes[node.id] = NodePlan(
                id=node.id,
                block_id=node.block_id,
                defaults={k: v for k, v in node.input_default.items() if k not in pins},
                starts=is_input or not pins,
                is_input=is_input,
                output_name=str(node.input_default.get("name", "")) if kind is BlockType.OUTPUT else None,
                pins=tuple(pins),
            )
        static_sources = {
            node.id for node in graph.nodes if (block := blocks.get(node.block_id)) is not None and block.static_output
        }
        for link in graph.links:
            source, sink = self.nodes.get(link.source_id), self.nodes.get(link.sink_id)
            if source is None or sink is None:
                continue
            static = link.is_static or link.source_id in static_sources
            source.links.append(LinkPlan(link.source_name, sink, link.sink_name, static))
            source.handles_error |= link.source_name == "error"
            if static:
                sink.static_pins |= {link.sink_name}

    def downstream(self, node_id: str) -> frozenset[str]:
        """Everything that can be reached from this node, itself only when a loop leads back."""
        reached: set[str] = set()
        waiting = [link.sink for link in self.nodes[node_id].links]
        while waiting:
            current = waiting.pop()
            if current.id not in reached:
                reached.add(current.id)
                waiting.extend(link.sink for link in current.links)
        return frozenset(reached)


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
    # Kept by whoever runs it; the planner knows no time.
    add_time: datetime | None = None
    queue_time: datetime | None = None
    start_time: datetime | None = None
    end_time: datetime | None = None


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
class CancelRequested:
    """Nothing new starts; what runs is stopped by whoever runs it."""

    reason: str = "cancelled_by_user"


Happening: TypeAlias = Yielded | Ended | CancelRequested


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
    after the commit. `over` is the end of the execution.
    """

    created: list[NodeRun] = field(default_factory=list)
    filled: dict[int, NodeRun] = field(default_factory=dict)
    told: list[NodeRun | Output] = field(default_factory=list)
    start: list[NodeRun] = field(default_factory=list)
    completed: int = 0
    failed: int = 0
    stop: bool = False
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


@dataclass(frozen=True, slots=True)
class Rules:
    """Limits and policies of one execution."""

    parallel_nodes: int = 8
    step_limit: int = 100_000
    node_error_policy: Literal["fail", "complete"] = "fail"


class Planner:
    """The state of one execution and the rules by which it goes on.

    `begin` or `resume` once, then `advance` for every happening, in the order in which they came.
    """

    def __init__(self, plan: GraphPlan, rules: Rules, new_id: IdFactory, *, select: Select = select_output) -> None:
        self.plan = plan
        self.rules = rules
        self._new_id = new_id
        self._select = select
        self.last_seq = 0
        self.open: dict[int, NodeRun] = {}
        self._lacking: dict[tuple[str, str], dict[int, NodeRun]] = {}
        self._waiting: dict[str, dict[int, NodeRun]] = {}
        # the static pins of a node's latest queued execution
        self._static: dict[str, dict[str, Any]] = {}
        self._ready: deque[NodeRun] = deque()
        self._running: dict[int, NodeRun] = {}
        self._blocked: set[str] = set()
        self._cancelled: str | None = None
        self._failure: tuple[str, str] | None = None
        self._over = False

    # -- the two ways in -------------------------------------------------------------------------------------

    def begin(self, inputs: Mapping[str, Any]) -> Changes:
        """The first changes of a new execution."""
        changes = Changes()
        for node in self.plan.nodes.values():
            if not node.starts:
                continue
            values = dict(node.defaults)
            if node.is_input:
                name = values.get("name")
                if isinstance(name, str) and name in inputs:
                    values["value"] = inputs[name]
            run = self._create(node, values, changes)
            self._queue(run, changes)
        self._settle(changes)
        return changes

    def resume(
        self,
        runs: Iterable[NodeRun],
        *,
        statics: Mapping[str, Mapping[str, Any]],
        failed: Mapping[int, str],
        last_seq: int,
    ) -> Changes:
        """Go on from stored node executions: `runs` are those that are not over, oldest first.

        RUNNING ones were interrupted: they are started again, and outputs that are recorded already
        (`NodeRun.recorded`) are not recorded or followed a second time as long as the new run gives the same.
        `statics` are the static pins of each node's latest queued execution. `failed` names the interrupted ones
        that must not run again, with what is said of them.
        """
        changes = Changes()
        self.last_seq = last_seq
        self._static = {node: dict(pins) for node, pins in statics.items()}
        for run in runs:
            self.open[run.seq] = run
            if run.status is ExecutionStatus.INCOMPLETE:
                self._wait(run)
            elif run.seq not in failed:
                run.status = ExecutionStatus.QUEUED
                self._ready.append(run)
        for seq, message in failed.items():
            ended = Ended(seq, ExecutionStatus.FAILED, message, "worker_lost")
            self._ended(self.open[seq], ended, changes)
        self._settle(changes)
        return changes

    def failed_before(self, node_id: str, error: str) -> None:
        """Tell, before `resume`, of a node that failed unhandled before the interruption."""
        self._note_failure(node_id, error)

    # -- going on --------------------------------------------------------------------------------------------

    def advance(self, happenings: Iterable[Happening]) -> Changes:
        """What follows from these, in their order."""
        changes = Changes()
        for happening in happenings:
            if self._over:
                break
            match happening:
                case Yielded():
                    run = self.open.get(happening.seq)
                    if run is not None:
                        self._yielded(run, happening.name, happening.value, changes)
                case Ended():
                    run = self.open.get(happening.seq)
                    if run is not None:
                        self._ended(run, happening, changes)
                case CancelRequested():
                    self._cancelled = self._cancelled or happening.reason
        self._settle(changes)
        return changes

    @property
    def running(self) -> Mapping[int, NodeRun]:
        """What was told to start and is not over."""
        return self._running

    # -- rules -----------------------------------------------------------------------------------------------

    def _yielded(self, run: NodeRun, name: str, value: Any, changes: Changes) -> None:
        if run.recorded:
            if run.recorded[0] == (name, value):
                run.recorded.popleft()
                return
            # The new run went another way: from here on everything it gives is new.
            run.recorded.clear()
        self._record(run, name, value, changes)
        for link in run.node.links:
            fires, selected = self._select(name, value, link.source_name)
            if fires:
                self._give(link, selected, changes)

    def _record(self, run: NodeRun, name: str, value: Any, changes: Changes) -> None:
        changes.told.append(Output(run, run.output_count, name, value))
        run.outputs.setdefault(name, []).append(value)
        run.output_count += 1

    def _ended(self, run: NodeRun, ended: Ended, changes: Changes) -> None:
        if ended.status is ExecutionStatus.FAILED:
            message = ended.error or "failed"
            run.recorded.clear()
            self._yielded(run, "error", message, changes)
            changes.failed += 1
            if not run.node.handles_error:
                self._note_failure(run.node.id, message)
        elif ended.status is ExecutionStatus.COMPLETED:
            changes.completed += 1
        self._close(run, ended.status, ended.reason or ("block_error" if ended.error else None), changes)

    def _note_failure(self, node_id: str, message: str) -> None:
        if self.rules.node_error_policy == "fail":
            self._failure = self._failure or (node_id, message)
            self._blocked |= self.plan.downstream(node_id)

    def _give(self, link: LinkPlan, value: Any, changes: Changes) -> None:
        node, pin = link.sink, link.sink_name
        lacking = self._lacking.get((node.id, pin))
        if lacking:
            run = next(iter(lacking.values()))
            del lacking[run.seq]
            run.inputs[pin] = value
            changes.filled[run.seq] = run
        else:
            run = self._create(node, {pin: value}, changes)
            self._wait(run)
        if not self._complete(run, changes) or not link.is_static:
            return
        for other in list(self._waiting.get(node.id, {}).values()):
            self._complete(other, changes)

    def _complete(self, run: NodeRun, changes: Changes) -> bool:
        """Queue the run if every linked pin has a value, static ones counting with the value they kept."""
        node = run.node
        missing = [pin for pin in node.pins if pin not in run.inputs]
        kept = self._static.get(node.id, {})
        if any(pin not in node.static_pins or pin not in kept for pin in missing):
            return False
        for pin in missing:
            run.inputs[pin] = kept[pin]
        del self._waiting[node.id][run.seq]
        for pin in node.pins:
            waiting = self._lacking.get((node.id, pin))
            if waiting is not None:
                waiting.pop(run.seq, None)
        run.inputs = {**node.defaults, **run.inputs}
        changes.filled[run.seq] = run
        self._queue(run, changes)
        return True

    def _create(self, node: NodePlan, inputs: dict[str, Any], changes: Changes) -> NodeRun:
        self.last_seq += 1
        run = NodeRun(self.last_seq, self._new_id(), node, ExecutionStatus.INCOMPLETE, inputs)
        self.open[run.seq] = run
        changes.created.append(run)
        return run

    def _wait(self, run: NodeRun) -> None:
        self._waiting.setdefault(run.node.id, {})[run.seq] = run
        for pin in run.node.pins:
            if pin not in run.inputs:
                self._lacking.setdefault((run.node.id, pin), {})[run.seq] = run

    def _queue(self, run: NodeRun, changes: Changes) -> None:
        run.status = ExecutionStatus.QUEUED
        if run.node.static_pins:
            self._static[run.node.id] = {pin: run.inputs[pin] for pin in run.node.static_pins if pin in run.inputs}
        self._ready.append(run)
        changes.told.append(run)

    def _close(self, run: NodeRun, status: ExecutionStatus, reason: str | None, changes: Changes) -> None:
        run.status, run.status_reason = status, reason
        del self.open[run.seq]
        self._running.pop(run.seq, None)
        changes.told.append(run)

    def _settle(self, changes: Changes) -> None:
        """Start what may start; end the execution when nothing is left to wait for."""
        if self._over:
            return
        limit = self.last_seq > self.rules.step_limit
        stopping = self._cancelled is not None or limit
        held: deque[NodeRun] = deque()
        while self._ready and not stopping and len(self._running) < self.rules.parallel_nodes:
            run = self._ready.popleft()
            if run.node.id in self._blocked:
                held.append(run)
                continue
            run.status = ExecutionStatus.RUNNING
            self._running[run.seq] = run
            changes.start.append(run)
            changes.told.append(run)
        self._ready.extendleft(reversed(held))
        changes.stop = stopping and bool(self._running)
        if not self._running:
            self._end(changes, limit)

    def _end(self, changes: Changes, limit: bool) -> None:
        self._over = True
        reason = self._cancelled or ("step_limit" if limit else "upstream_failed")
        for run in list(self._ready):
            self._close(run, ExecutionStatus.TERMINATED, reason, changes)
        self._ready.clear()
        incomplete = sum(len(waiting) for waiting in self._waiting.values())
        if self._cancelled is not None:
            changes.over = Over(ExecutionStatus.TERMINATED, self._cancelled, None, incomplete)
        elif limit:
            error = f"more than {self.rules.step_limit} node executions: is there a loop without an end?"
            changes.over = Over(ExecutionStatus.FAILED, "step_limit", error, incomplete)
        elif self._failure is not None:
            node_id, message = self._failure
            changes.over = Over(ExecutionStatus.FAILED, "block_error", f"node {node_id}: {message}", incomplete)
        else:
            changes.over = Over(ExecutionStatus.COMPLETED, None, None, incomplete)
