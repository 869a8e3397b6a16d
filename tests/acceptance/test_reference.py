"""The real engine agrees with the reference interpreter."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import HealthCheck, given, note, settings

from acceptance.api import Api
from livetape.engine.graph import Graph
from reference.blocks import MODELS
from reference.engine import differences, expected, run_graph
from reference.graphs import small_graphs, upstream_vector
from reference.interpreter import interpret


@pytest.mark.parametrize(
    ("value", "other", "sources"), [(4, 5, 3), (10, -3, 3), (0, 0, 3), (4, 5, 1), (4, 5, 2), (4, 5, 5), (1.5, 2, 20)]
)
def test_upstream_vector(api: Api, value: float, other: float, sources: int) -> None:
    started = api.run(upstream_vector(value, other, sources).model_dump(mode="json"))
    execution = api.wait(started)
    assert execution["status"] == "COMPLETED"
    assert len(execution["node_executions"]) == 2 * sources + 2
    assert {one["status"] for one in execution["node_executions"]} == {"COMPLETED"}
    adder = started.graph["nodes"][0]["id"]
    results = [one["output_data"]["result"] for one in execution["node_executions"] if one["node_id"] == adder]
    assert results == [[value + other]] * sources
    assert execution["stats"]["node_exec_count"] == 2 * sources + 2


@pytest.mark.parametrize("sources", [2, 3, 5])
def test_upstream_vector_in_the_interpreters_words(api: Api, sources: int) -> None:
    graph = upstream_vector(4, 5, sources)
    want = expected(graph, interpret(graph, {}, MODELS))
    for _ in range(5):
        assert differences(want, run_graph(api, graph, {})) == []


# The server lives through all examples, and each of them is independent of the others.
@settings(
    max_examples=100,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
@given(small_graphs(failures=True))
def test_random_graphs(api: Api, case: tuple[Graph, dict[str, Any]]) -> None:
    graph, inputs = case
    want = expected(graph, interpret(graph, inputs, MODELS))
    got = run_graph(api, graph, inputs)
    note(graph.model_dump_json(include={"nodes": {"__all__": {"id", "block_id", "input_default"}}, "links": True}))
    assert differences(want, got) == []
