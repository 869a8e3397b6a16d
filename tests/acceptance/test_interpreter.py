"""The reference interpreter by itself: the vectors of the contract, and that random graphs are confluent."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from livetape.engine.graph import Graph
from reference.blocks import CALCULATOR, CONDITION, CREATE_DICTIONARY, FAIL, MODELS, OUTPUT, STEP, STORE
from reference.graphs import Draft, small_graphs, upstream_vector
from reference.interpreter import execution_key, interpret, newest_first, select, shuffled


@pytest.mark.parametrize("order", [lambda n: 0, newest_first, *(shuffled(s) for s in range(30))])
@pytest.mark.parametrize(("value", "other", "sources"), [(4, 5, 3), (10, -3, 3), (4, 5, 2), (1.5, 2, 5)])
def test_upstream_vector(value: float, other: float, sources: int, order: Any) -> None:
    result = interpret(upstream_vector(value, other, sources), {}, MODELS, choose=order)
    # 3 + 2 stores and 3 calculators: "8 node executions, three results of 9"
    assert result.executions.total() == 2 * sources + 2
    inputs = {"a": value, "b": other, "operation": "Add"}
    key = execution_key("n0", "COMPLETED", inputs, {"result": [value + other]})
    assert result.executions[key] == sources
    assert result.status == "COMPLETED"
    assert not result.starved


def test_the_vector_of_the_contract_in_its_numbers() -> None:
    result = interpret(upstream_vector(), {}, MODELS)
    assert result.executions.total() == 8
    assert sum(n for key, n in result.executions.items() if '"result": [9]' in key) == 3


def test_linked_pins_wait_even_with_a_default() -> None:
    d = Draft()
    never = d.node(STEP, items=[])
    adder = d.node(CALCULATOR, operation="Add", a=1, b=1)
    d.link(never, "item", adder, "a")
    result = interpret(d.graph(), {}, MODELS)
    assert result.executions.total() == 1
    assert result.status == "COMPLETED"


def test_streamed_values_meet_in_order() -> None:
    d = Draft()
    step = d.node(STEP, items=[7, 8, 9])
    adder = d.node(CALCULATOR, operation="Add")
    d.link(step, "item", adder, "a")
    d.link(step, "key", adder, "b")
    result = interpret(d.graph(), {}, MODELS, choose=shuffled(1))
    sums = Counter(key for key in result.executions if key.startswith('["n1"'))
    assert len(sums) == 3
    assert all(f'"result": [{n}]' in "".join(sums) for n in (7, 9, 11))


def test_a_loop_ends() -> None:
    graph = counting_loop(4)
    result = interpret(graph, {}, MODELS)
    assert result.executions.total() == 1 + 4 + 4 + 1
    assert result.outputs == {"end": ["4"]}


def counting_loop(end: int) -> Graph:
    d = Draft()
    start = d.node(STORE, input=0)
    add = d.node(CALCULATOR, operation="Add", b=1)
    test = d.node(CONDITION, operator="<", value2=end)
    out = d.node(OUTPUT, name="end")
    d.link(start, "output", add, "a")
    d.link(add, "result", test, "value1")
    d.link(test, "yes_output", add, "a")
    d.link(test, "no_output", out, "value")
    return d.graph()


def test_a_loop_without_end_reaches_the_step_limit() -> None:
    result = interpret(counting_loop(10**9), {}, MODELS, step_limit=50)
    assert result.status == "FAILED"
    assert result.executions.total() <= 50


def test_an_unhandled_error_fails_the_execution_and_lets_other_branches_finish() -> None:
    d = Draft()
    a = d.node(STORE, input=1)
    bad = d.node(FAIL, limit=5)
    after = d.node(STORE)
    beside = d.node(STORE)
    d.link(a, "output", bad, "value")
    d.link(bad, "value", after, "input")
    d.link(a, "output", beside, "input")
    result = interpret(d.graph(), {}, MODELS)
    assert result.status == "FAILED"
    assert result.failed_nodes == {bad}
    assert any(key.startswith(f'["{beside}", "COMPLETED"') for key in result.executions)
    assert not any(key.startswith(f'["{after}"') for key in result.executions)
    d.link(bad, "error", after, "input")
    handled = interpret(d.graph(), {}, MODELS)
    assert handled.status == "COMPLETED"
    assert any(key.startswith(f'["{after}", "COMPLETED"') and "1 is below 5" in key for key in handled.executions)


def test_containers_and_selectors() -> None:
    d = Draft()
    one = d.node(STORE, input=1)
    made = d.node(CREATE_DICTIONARY)
    got = d.node(STORE)
    d.link(one, "output", made, "values_#_x")
    d.link(made, "dictionary_#_x", got, "input")
    d.link(made, "dictionary_#_nothing", got, "input")
    result = interpret(d.graph(), {}, MODELS)
    assert any(key.startswith(f'["{got}"') and '"output": [1]' in key for key in result.executions)
    assert result.executions.total() == 3
    assert select("r_$_1_#_k", "r", [0, {"k": 5}]) == (True, 5)
    assert select("r_$_7", "r", [0]) == (False, None)
    assert select("r", "r", None) == (True, None)
    assert select("r", "s", 1) == (False, None)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(small_graphs(failures=True), st.integers(0, 2**32))
def test_random_graphs_do_not_depend_on_the_order(case: tuple[Graph, dict[str, Any]], seed: int) -> None:
    graph, inputs = case
    first = interpret(graph, inputs, MODELS)
    assert interpret(graph, inputs, MODELS, choose=newest_first) == first
    for n in range(4):
        assert interpret(graph, inputs, MODELS, choose=shuffled(seed + n)) == first
