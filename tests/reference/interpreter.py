"""What a graph must do, one sentence of the contract at a time. Slow, sequential and obvious on purpose.

Written from the execution contract ("Graph semantics") and the facts that it cites, never from the
planner. The comment above each step quotes the sentence that it implements.

Independent nodes run in parallel, so only a confluent graph has one right answer. `choose` decides which of the
things that could happen next does happen: `graphs.py` generates graphs whose results do not depend on it, and a
property test runs each of them under several choices to show that.
"""

from __future__ import annotations

import json
import random
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from livetape.engine.graph import Graph, Link, Node

Pins = dict[str, Any]
Choose = Callable[[int], int]

STEP_LIMIT = 100_000


class ModelError(Exception):
    """A model of a block says that the block fails with this message."""


@dataclass(frozen=True)
class BlockModel:
    """A pure Python model of a block: from the values of its pins to the `(pin, value)` pairs it yields."""

    run: Callable[[Pins], Iterable[tuple[str, Any]]]
    static_output: bool = False
    is_input: bool = False
    is_output: bool = False
    is_note: bool = False


@dataclass
class NodeExecution:
    node_id: str
    inputs: Pins = field(default_factory=dict)
    status: str = "INCOMPLETE"
    outputs: list[tuple[str, Any]] = field(default_factory=list)


@dataclass(frozen=True)
class RunResult:
    """What a run comes to, without order: executions are counted by their canonical text.

    `executions` holds only node executions that ended. `starved` are the nodes with an execution left that never
    got all its pins. `outputs` are the values of the OUTPUT blocks by name, sorted. `failed_nodes` are nodes with an
    unhandled error.
    """

    status: str
    executions: Counter[str]
    starved: frozenset[str]
    outputs: dict[str, list[str]]
    failed_nodes: frozenset[str]


# ---- Values ----------------------------------------------------------------------------------------------------------


def canonical(value: Any) -> Any:
    """Equal values become the same text: 9 and 9.0 are one number in JSON."""
    if isinstance(value, bool) or value is None or isinstance(value, str):
        return value
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, Mapping):
        return {str(k): canonical(v) for k, v in sorted(value.items())}
    if isinstance(value, list | tuple):
        return [canonical(v) for v in value]
    return value


def text(value: Any) -> str:
    return json.dumps(canonical(value), sort_keys=True)


def execution_key(node_id: str, status: str, inputs: Mapping[str, Any], outputs: Mapping[str, list[Any]]) -> str:
    """One ended node execution as one line of text. Outputs are `{pin: [values in the order yielded]}`."""
    return text([node_id, status, dict(inputs), dict(outputs)])


def by_pin(outputs: Iterable[tuple[str, Any]]) -> dict[str, list[Any]]:
    result: dict[str, list[Any]] = {}
    for pin, value in outputs:
        result.setdefault(pin, []).append(value)
    return result


# ---- Selectors -------------------------------------------------------------------------------------------------------

_SELECTOR = re.compile(r"(_\$_|_#_|_@_)")


def split_selectors(name: str) -> tuple[str, list[tuple[str, str]]]:
    """`result_$_0_#_key` is pin `result`, then list index 0, then dictionary key `key`."""
    base, *rest = _SELECTOR.split(name)
    return base, list(zip(rest[0::2], rest[1::2], strict=True))


def select(source_name: str, pin: str, value: Any) -> tuple[bool, Any]:
    """Whether an output `(pin, value)` goes over a link with this `source_name`, and as which value."""
    # "A link fires when output name == `source_name`" ... "a produced value None under the exact name is forwarded"
    if pin == source_name:
        return True, value
    # "... or `source_name` is a selector into that output: list index, dict key, object attribute, chainable"
    base, path = split_selectors(source_name)
    if base != pin or not path:
        return False, None
    for kind, key in path:
        if kind == "_$_" and isinstance(value, list) and key.isdigit() and int(key) < len(value):
            value = value[int(key)]
        elif kind == "_#_" and isinstance(value, dict) and key in value:
            value = value[key]
        else:
            # "Missing path -> None -> not forwarded if names differ"
            return False, None
    return value is not None, value


def merge_selected(pins: Pins) -> Pins:
    """ "Sink pins accept the same suffixes to build containers"."""
    merged = dict(pins)
    for name, value in pins.items():
        base, path = split_selectors(name)
        if not path:
            continue
        kind, key = path[0]
        if kind == "_#_":
            merged[base] = {**merged.get(base, {}), key: value}
        elif kind == "_$_":
            # "list padded with null"
            items = list(merged.get(base, []))
            items += [None] * (int(key) + 1 - len(items))
            items[int(key)] = value
            merged[base] = items
    return merged


# ---- The interpreter -------------------------------------------------------------------------------------------------


class Interpreter:
    def __init__(
        self,
        graph: Graph,
        inputs: Mapping[str, Any],
        models: Mapping[str, BlockModel],
        *,
        choose: Choose = lambda n: 0,
        step_limit: int = STEP_LIMIT,
    ) -> None:
        self.graph = graph
        self.inputs = inputs
        self.models = models
        self.choose = choose
        self.step_limit = step_limit
        self.nodes = {node.id: node for node in graph.nodes}
        self.executions: list[NodeExecution] = []  # in the order in which they were made: oldest first
        self.static_values: dict[tuple[str, str], Any] = {}
        self.running: list[tuple[NodeExecution, Iterator[tuple[str, Any]]]] = []
        self.unhandled: set[str] = set()
        self.blocked: set[str] = set()
        self.steps = 0
        self.over_limit = False

    def model(self, node: Node) -> BlockModel:
        return self.models[node.block_id]

    def linked_pins(self, node_id: str) -> set[str]:
        return {link.sink_name for link in self.graph.links if link.sink_id == node_id}

    def is_static(self, link: Link) -> bool:
        # "Static link (`is_static`, forced true when the source block has `static_output`)"
        return link.is_static or self.model(self.nodes[link.source_id]).static_output

    # -- start

    def start(self) -> None:
        for node in self.graph.nodes:
            if self.model(node).is_note:
                continue  # "NOTE blocks skipped"
            # "Starting nodes = nodes without incoming links plus INPUT blocks."
            if self.linked_pins(node.id) and not self.model(node).is_input:
                continue
            execution = NodeExecution(node.id, dict(node.input_default))
            if self.model(node).is_input:
                # "INPUT block value = `inputs[name]` if given, else its own default"
                name = node.input_default.get("name")
                if name in self.inputs:
                    execution.inputs["value"] = self.inputs[name]
            self.executions.append(execution)
            execution.status = "QUEUED"

    # -- one value over one link

    def deliver(self, link: Link, value: Any) -> None:
        sink, pin = link.sink_id, link.sink_name
        # "A value goes to the oldest INCOMPLETE execution of the sink that lacks that pin" ...
        waiting = [e for e in self.executions if e.node_id == sink and e.status == "INCOMPLETE"]
        execution = next((e for e in waiting if pin not in e.inputs), None)
        if execution is None:
            # ... "else create a new INCOMPLETE execution"
            execution = NodeExecution(sink)
            self.executions.append(execution)
            waiting.append(execution)
        execution.inputs[pin] = value
        # "static links keep their last value and back-fill waiting executions"
        if self.is_static(link):
            self.static_values[sink, pin] = value
        for other in waiting:
            for name in self.linked_pins(sink):
                if name not in other.inputs and (sink, name) in self.static_values:
                    other.inputs[name] = self.static_values[sink, name]
            # "linked pins always wait" (an `input_default` for a linked pin does not count)
            if self.linked_pins(sink) <= other.inputs.keys():
                # "unlinked pins use `input_default`"
                other.inputs = {**self.nodes[sink].input_default, **other.inputs}
                other.status = "QUEUED"

    # -- run

    def follow(self, execution: NodeExecution, pin: str, value: Any) -> None:
        # "Outputs are followed as they are yielded: downstream nodes start while the producer still runs."
        execution.outputs.append((pin, value))
        for link in self.graph.links:
            if link.source_id == execution.node_id:
                fires, selected = select(link.source_name, pin, value)
                if fires:
                    self.deliver(link, selected)

    def fail(self, execution: NodeExecution, message: str) -> None:
        execution.status = "FAILED"
        # "`error` is an output like any other"; "On FAILED an extra output `error` = message is stored and routed"
        self.follow(execution, "error", message)
        # "an error whose `error` pin is linked is handled"
        if any(x.source_id == execution.node_id and x.source_name == "error" for x in self.graph.links):
            return
        # "Nothing new starts downstream of it, independent branches finish, then FAILED naming the first."
        self.unhandled.add(execution.node_id)
        reach = [execution.node_id]
        while reach:
            node_id = reach.pop()
            for link in self.graph.links:
                if link.source_id == node_id and link.sink_id not in self.blocked:
                    self.blocked.add(link.sink_id)
                    reach.append(link.sink_id)

    def run(self) -> RunResult:
        self.start()
        while True:
            queued = [e for e in self.executions if e.status == "QUEUED" and e.node_id not in self.blocked]
            actions = len(queued) + len(self.running)
            if not actions:
                break
            pick = self.choose(actions)
            if pick < len(queued):
                # "Cycles are legal loops, bounded by a step limit"
                if self.steps >= self.step_limit:
                    self.over_limit = True
                    break
                self.steps += 1
                execution = queued[pick]
                execution.status = "RUNNING"
                model = self.model(self.nodes[execution.node_id])
                self.running.append((execution, iter(model.run(merge_selected(execution.inputs)))))
                continue
            execution, outputs = entry = self.running[pick - len(queued)]
            # "Outputs of one node are followed in the order in which they were yielded."
            try:
                pin, value = next(outputs)
            except StopIteration:
                execution.status = "COMPLETED"
                self.running.remove(entry)
            except ModelError as error:
                self.running.remove(entry)
                self.fail(execution, str(error))
            else:
                self.follow(execution, pin, value)
        return self.result()

    def result(self) -> RunResult:
        ended = [e for e in self.executions if e.status in ("COMPLETED", "FAILED")]
        outputs: dict[str, list[str]] = {}
        for e in ended:
            if self.model(self.nodes[e.node_id]).is_output:
                # "for each executed OUTPUT block, list of `value` under its `name`"
                outputs.setdefault(e.inputs["name"], []).append(text(e.inputs["value"]))
        # "An execution with an unhandled node error ends FAILED"; "Quiescent with nodes that never got all pins:
        # COMPLETED"
        failed = bool(self.unhandled) or self.over_limit
        return RunResult(
            status="FAILED" if failed else "COMPLETED",
            executions=Counter(execution_key(e.node_id, e.status, e.inputs, by_pin(e.outputs)) for e in ended),
            starved=frozenset(e.node_id for e in self.executions if e.status == "INCOMPLETE"),
            outputs={name: sorted(values) for name, values in outputs.items()},
            failed_nodes=frozenset(self.unhandled),
        )


def interpret(
    graph: Graph,
    inputs: Mapping[str, Any],
    models: Mapping[str, BlockModel],
    *,
    choose: Choose = lambda n: 0,
    step_limit: int = STEP_LIMIT,
) -> RunResult:
    """Run the graph in the order that `choose` picks (the default is one possible order)."""
    return Interpreter(graph, inputs, models, choose=choose, step_limit=step_limit).run()


def shuffled(seed: int) -> Choose:
    """A choice of order that a seed fixes."""
    return random.Random(seed).randrange


def newest_first(n: int) -> int:
    return n - 1
