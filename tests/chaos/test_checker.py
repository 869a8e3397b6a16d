"""The checker can fail: every doctored transcript is noticed, and an honest one is not."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from acceptance.api import Item
from acceptance.rawjson import elements, members
from chaos.checker import (
    GRAPH,
    Line,
    check_graph_tape,
    check_numbers,
    check_replay,
    check_side_effects,
    check_statuses,
    check_transcript,
    check_work,
)

EPOCH = "k3v9x0aq"


def honest() -> tuple[list[Item], dict[str, Any]]:
    """A small run: one stream of three values into one writer each."""
    events: list[dict[str, Any]] = []
    rows: list[dict[str, Any]] = []

    def graph(status: str) -> None:
        events.append(
            {"event_type": "graph_execution_update", "id": "E", "status": status, "outputs": {}, "stats": {"cost": 1}}
        )

    def node(key: str, node_id: str, status: str, inputs: dict[str, Any], outputs: dict[str, Any]) -> dict[str, Any]:
        row = {
            "node_exec_id": key,
            "node_id": node_id,
            "block_id": "b",
            "status": status,
            "input_data": inputs,
            "output_data": copy.deepcopy(outputs),
        }
        events.append({"event_type": "node_execution_update", **row})
        return row

    def output(key: str, index: int, value: int) -> None:
        events.append(
            {"event_type": "node_output_update", "node_exec_id": key, "index": index, "name": "value", "value": value}
        )

    graph("QUEUED")
    graph("RUNNING")
    node("s", "stream", "RUNNING", {"count": [3]}, {})
    for n in range(3):
        output("s", n, n)
        node(f"w{n}", "writer", "RUNNING", {"value": [n]}, {})
        rows.append(node(f"w{n}", "writer", "COMPLETED", {"value": [n]}, {}))
    rows.append(node("s", "stream", "COMPLETED", {"count": [3]}, {"value": [0, 1, 2]}))
    graph("COMPLETED")
    log = [
        Item(offset=n, epoch=EPOCH, data=json.dumps(event), final=n == len(events))
        for n, event in enumerate(events, start=1)
    ]
    return log, {"status": "COMPLETED", "outputs": {}, "stats": {"cost": 1}, "node_executions": rows}


LINES = [Line("stream", "s", 0), Line("write", "w0", 0), Line("write", "w1", 1), Line("write", "w2", 2)]
EXPECTED = {"writer": [0, 1, 2]}


def test_an_honest_run_has_no_complaint() -> None:
    log, state = honest()
    assert check_numbers(log, "log") == []
    assert check_transcript(list(log), log) == []
    assert check_statuses(log) == []
    assert check_replay(log, state) == []
    assert check_side_effects(LINES, state, 0) == []
    assert check_work(LINES, state, EXPECTED) == []


def swapped(items: list[Item]) -> list[Item]:
    return [*items[:4], items[5], items[4], *items[6:]]


DOCTORED: dict[str, Callable[[list[Item]], list[Item]]] = {
    "lost one": lambda items: items[:3] + items[4:],
    "lost the first": lambda items: items[1:],
    "lost the last": lambda items: items[:-1],
    "lost all": lambda items: [],
    "doubled one": lambda items: items[:4] + items[3:],
    "doubled the last": lambda items: [*items, items[-1]],
    "swapped two": swapped,
    "bytes changed, same meaning": lambda items: [*items[:2], replace(items[2], data=items[2].data + " "), *items[3:]],
    "bytes changed": lambda items: [
        *items[:2],
        replace(items[2], data=items[2].data.replace("RUN", "RAN")),
        *items[3:],
    ],
    "another epoch": lambda items: [*items[:2], replace(items[2], epoch="other"), *items[3:]],
    "final lost": lambda items: [*items[:-1], replace(items[-1], final=False)],
    "final too early": lambda items: [replace(items[0], final=True), *items[1:]],
    "invented one": lambda items: [*items, replace(items[-1], offset=items[-1].offset + 1)],
}


@pytest.mark.parametrize("how", DOCTORED)
def test_a_doctored_transcript_is_noticed(how: str) -> None:
    log, _ = honest()
    assert check_transcript(DOCTORED[how](list(log)), log) != []


@pytest.mark.parametrize("how", ["lost one", "lost the first", "lost the last", "doubled one", "swapped two"])
def test_a_doctored_log_is_noticed(how: str) -> None:
    """Even when the client saw exactly that log."""
    log, _ = honest()
    assert check_numbers(DOCTORED[how](log), "log") != []


def test_a_doctored_graph_tape_is_noticed() -> None:
    log, _ = honest()
    events = [i for i in log if i.value["event_type"] == GRAPH]
    seen = [replace(item, offset=n, final=False) for n, item in enumerate(events, start=1)]
    assert check_graph_tape(seen, {"E": log}) == []
    for doctored in (
        seen[1:],
        seen[:-1],
        [*seen, seen[-1]],
        [*seen, replace(seen[-1], offset=len(seen) + 1)],
        [seen[1], seen[0], *seen[2:]],
        [replace(seen[0], data=seen[0].data + " "), *seen[1:]],
        [replace(seen[0], epoch="other"), *seen[1:]],
        [replace(seen[0], data=json.dumps(seen[0].value | {"id": "F"})), *seen[1:]],
    ):
        assert check_graph_tape(doctored, {"E": log}) != []


def insert(log: list[Item], at: int, **changes: Any) -> list[Item]:
    """An event once more, changed."""
    event = log[at].value | changes
    items = [*log[:at], replace(log[at], data=json.dumps(event)), *log[at:]]
    return [replace(item, offset=n) for n, item in enumerate(items, start=1)]


def test_two_completions_are_noticed() -> None:
    log, _ = honest()
    at = next(n for n, item in enumerate(log) if '"node_exec_id": "w1"' in item.data and "COMPLETED" in item.data)
    assert check_statuses(insert(log, at)) != []
    assert check_statuses(insert(log, at, status="FAILED")) != []
    after = insert(log, at, status="COMPLETED")
    after[at + 1] = replace(after[at + 1], data=json.dumps(after[at + 1].value | {"status": "RUNNING"}))
    assert check_statuses(after) != []


def test_terminal_that_changes_is_noticed() -> None:
    log, _ = honest()
    assert check_statuses(insert(log, len(log) - 1, status="FAILED")) != []


def changed(state: dict[str, Any], row: int, **changes: Any) -> dict[str, Any]:
    state["node_executions"][row] |= changes
    return state


STATES: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
    "other status": lambda s: s | {"status": "FAILED"},
    "other stats": lambda s: s | {"stats": {"cost": 2}},
    "other outputs": lambda s: s | {"outputs": {"x": [1]}},
    "node lost": lambda s: s | {"node_executions": s["node_executions"][1:]},
    "node doubled": lambda s: s | {"node_executions": [*s["node_executions"], s["node_executions"][0]]},
    "node invented": lambda s: (
        s | {"node_executions": [*s["node_executions"], s["node_executions"][0] | {"node_exec_id": "new"}]}
    ),
    "node status": lambda s: changed(s, 1, status="RUNNING"),
    "node input": lambda s: changed(s, 1, input_data={"value": [7]}),
    "node output": lambda s: changed(s, 3, output_data={"value": [0, 1]}),
}


@pytest.mark.parametrize("how", STATES)
def test_a_state_that_the_log_does_not_give_is_noticed(how: str) -> None:
    log, state = honest()
    assert check_replay(log, STATES[how](state)) != []


def test_output_numbers_with_a_hole_are_noticed() -> None:
    log, state = honest()
    at = next(n for n, item in enumerate(log) if item.value.get("index") == 1)
    log[at] = replace(log[at], data=json.dumps(log[at].value | {"index": 2}))
    assert check_replay(log, state) != []


def test_side_effects_too_often_are_noticed() -> None:
    _, state = honest()
    assert check_side_effects([*LINES, LINES[1]], state, 1) == []
    assert check_side_effects([*LINES, LINES[1]], state, 0) != []
    assert check_side_effects([*LINES, Line("write", "nobody", 1)], state, 3) != []


def test_work_not_done_is_noticed() -> None:
    _, state = honest()
    assert check_work(LINES[:-1], state, EXPECTED) != []
    assert check_work(LINES, state, {"writer": [0, 1, 2, 3]}) != []
    assert check_work(LINES, state, {"writer": [0, 1]}) != []
    lost = state | {"node_executions": state["node_executions"][1:]}
    assert check_work(LINES, lost, EXPECTED) != []
    twice = state | {"node_executions": [*state["node_executions"], state["node_executions"][0]]}
    assert check_work(LINES, twice, EXPECTED) != []
    assert check_work(LINES, changed(state, 0, status="RUNNING"), EXPECTED) != []


def test_raw_text_is_taken_as_it_stands() -> None:
    frame = '{"method":"x", "data": {"a":1.50, "b":"\\u00e9},"} ,"offset":3}'
    assert members(frame) == {"method": '"x"', "data": '{"a":1.50, "b":"\\u00e9},"}', "offset": "3"}
    assert elements('[1 , {"a":[2]},"]"]') == ["1", '{"a":[2]}', '"]"']
    assert elements("[]") == []
    assert members("{}") == {}
    for bad in ('{"a":1,"a":2}', "[1]", '{"a":1} x'):
        with pytest.raises(ValueError, match=r"."):
            members(bad)
