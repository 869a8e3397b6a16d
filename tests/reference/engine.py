"""The real engine seen through the public API, in the terms of the reference interpreter."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from typing import Any

from acceptance.api import Api, refs
from livetape.engine.graph import Graph
from reference.interpreter import RunResult, execution_key, text


def run_graph(api: Api, graph: Graph, inputs: Mapping[str, Any], *, timeout: float = 30) -> RunResult:
    """Store the graph, run it to its end and read back what happened."""
    started = api.run(graph.model_dump(mode="json"), inputs)
    execution = api.wait(started, timeout)
    ref = refs(started.graph)
    nodes = {node.id: node for node in graph.nodes}
    ended: Counter[str] = Counter()
    starved: set[str] = set()
    failed: set[str] = set()
    outputs: dict[str, list[str]] = {}
    for one in execution["node_executions"]:
        node = nodes[ref[one["node_id"]]]
        if one["status"] not in ("COMPLETED", "FAILED"):
            starved.add(node.id)
            continue
        given = {pin: values[-1] for pin, values in one["input_data"].items()}
        ended[execution_key(node.id, one["status"], comparable(graph, node.id, given), one["output_data"])] += 1
        if one["status"] == "FAILED" and not any(
            x.source_id == node.id and x.source_name == "error" for x in graph.links
        ):
            failed.add(node.id)
    for name, values in execution["outputs"].items():
        outputs[name] = sorted(text(value) for value in values)
    return RunResult(execution["status"], ended, frozenset(starved), outputs, frozenset(failed))


def comparable(graph: Graph, node_id: str, pins: Mapping[str, Any]) -> dict[str, Any]:
    """The pins on which the contract leaves no choice: those that links feed.

    Whether defaults of unlinked pins are repeated in `input_data` is not said anywhere, so it is not compared.
    """
    linked = {link.sink_name for link in graph.links if link.sink_id == node_id}
    return {pin: pins.get(pin) for pin in linked}


def expected(graph: Graph, result: RunResult) -> RunResult:
    """The interpreter's result, reduced to what is comparable."""
    reduced: Counter[str] = Counter()
    for key, n in result.executions.items():
        node_id, status, inputs, outputs = json.loads(key)
        reduced[execution_key(node_id, status, comparable(graph, node_id, inputs), outputs)] += n
    return RunResult(result.status, reduced, result.starved, result.outputs, result.failed_nodes)


def differences(want: RunResult, got: RunResult) -> list[str]:
    """In words, for a failure that can be read."""
    found = []
    if want.status != got.status:
        found.append(f"status: want {want.status}, got {got.status}")
    found += [f"missing {n}x {key}" for key, n in (want.executions - got.executions).items()]
    found += [f"too many {n}x {key}" for key, n in (got.executions - want.executions).items()]
    if want.outputs != got.outputs:
        found.append(f"outputs: want {want.outputs}, got {got.outputs}")
    if want.failed_nodes != got.failed_nodes:
        found.append(f"unhandled errors: want {set(want.failed_nodes)}, got {set(got.failed_nodes)}")
    return found
