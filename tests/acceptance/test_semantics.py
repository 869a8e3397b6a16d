"""Sentences of the execution contract that the random graphs cannot show: order in time, errors, versions."""

from __future__ import annotations

import json
from collections import defaultdict
from datetime import datetime
from typing import Any

import pytest

from acceptance.api import Api, Started, graph, link, node, refs
from acceptance.server import MakeServer
from reference.blocks import CALCULATOR, FAIL, INPUT, OUTPUT, STEP, STORE

STREAM = "c4a05001-0000-4000-8000-000000000001"
ECHO = "c4a05001-0000-4000-8000-000000000003"

NEXT = {
    None: {"INCOMPLETE", "QUEUED", "RUNNING"},
    "INCOMPLETE": {"INCOMPLETE", "QUEUED", "RUNNING", "FAILED", "TERMINATED"},
    "QUEUED": {"QUEUED", "RUNNING", "FAILED", "TERMINATED"},
    "RUNNING": {"RUNNING", "QUEUED", "REVIEW", "COMPLETED", "FAILED", "TERMINATED"},
    "REVIEW": {"REVIEW", "QUEUED", "RUNNING", "FAILED", "TERMINATED"},
    "COMPLETED": set(),
    "FAILED": set(),
    "TERMINATED": set(),
}


def by_ref(started: Started, execution: dict[str, Any]) -> dict[str, list[dict[str, Any]]]:
    names = refs(started.graph)
    found: defaultdict[str, list[dict[str, Any]]] = defaultdict(list)
    for one in execution["node_executions"]:
        found[names[one["node_id"]]].append(one)
    return dict(found)


def failing(*, handled: bool) -> dict[str, Any]:
    """one -> bad -> after, beside it one -> beside -> further, and a handler."""
    nodes = [
        node("one", STORE, input=1),
        node("bad", FAIL, limit=5),
        node("after", ECHO),
        node("beside", STREAM, pause=0.05, start=7),
        node("further", ECHO),
        node("handler", ECHO),
    ]
    links = [
        link("one.output", "bad.value"),
        link("bad.value", "after.value"),
        link("one.output", "beside.count"),
        link("beside.value", "further.value"),
        link("bad.error" if handled else "further.value", "handler.value"),
    ]
    return graph(nodes, links)


def test_an_unhandled_error_fails_the_execution_and_names_the_node(api: Api) -> None:
    started = api.run(failing(handled=False))
    execution = api.wait(started)
    assert execution["status"] == "FAILED"
    assert execution["stats"]["node_error_count"] == 1
    ran = by_ref(started, execution)
    assert ran["bad"][0]["status"] == "FAILED"
    assert ran["bad"][0]["output_data"]["error"] == ["1 is below 5"]
    assert "after" not in ran
    assert ran["further"][0]["status"] == "COMPLETED", "independent branches finish"
    assert ran["bad"][0]["node_id"] in json.dumps([execution["stats"], execution["status_reason"]])
    assert (execution["status_reason"] or "").startswith("block_error")


def test_a_handled_error_is_an_output_like_any_other(api: Api) -> None:
    started = api.run(failing(handled=True))
    execution = api.wait(started)
    assert execution["status"] == "COMPLETED"
    assert execution["stats"]["node_error_count"] == 1
    ran = by_ref(started, execution)
    assert ran["bad"][0]["status"] == "FAILED"
    assert ran["handler"][0]["output_data"] == {"value": ["1 is below 5"]}


def test_the_upstreams_way_with_errors_is_a_setting(make_server: MakeServer) -> None:
    server = make_server(blocks=True, env={"LIVETAPE_ENGINE__NODE_ERROR_POLICY": "complete"}).start()
    with Api(server.url) as api:
        execution = api.wait(api.run(failing(handled=False)))
    assert execution["status"] == "COMPLETED"
    assert execution["stats"]["node_error_count"] == 1


def test_downstream_nodes_start_while_the_producer_runs(api: Api) -> None:
    started = api.run(
        graph([node("s", STREAM, count=4, pause=0.1), node("e", ECHO)], [link("s.value", "e.value")]), None
    )
    execution = api.wait(started)
    names = refs(started.graph)
    ended = [
        names[event["node_id"]]
        for event in (item.value for item in api.events(started))
        if event["event_type"] == "node_execution_update" and event["status"] == "COMPLETED"
    ]
    assert ended[:3] == ["e"] * 3
    assert "s" in ended[3:]
    values = [one["input_data"]["value"] for one in by_ref(started, execution)["e"]]
    assert sorted(values) == [[0], [1], [2], [3]]


def test_every_step_of_every_status_is_legal_and_times_are_in_order(api: Api) -> None:
    started = api.run(
        graph([node("s", STREAM, count=30), node("e", ECHO), node("f", ECHO)],
              [link("s.value", "e.value"), link("e.value", "f.value")])
    )  # fmt: skip
    execution = api.wait(started)
    seen: dict[str, str] = {}
    for item in api.events(started):
        event = item.value
        if event["event_type"] == "node_output_update":
            continue
        key = event.get("node_exec_id", event.get("id"))
        assert event["status"] in NEXT[seen.get(key)], f"number {item.offset}: {seen.get(key)} -> {event['status']}"
        seen[key] = event["status"]
    for one in execution["node_executions"]:
        names = ("add_time", "queue_time", "start_time", "end_time")
        times = [datetime.fromisoformat(one[name]) for name in names]
        assert times == sorted(times)
        assert datetime.fromisoformat(execution["started_at"]) <= times[-1]
        assert times[-1] <= datetime.fromisoformat(execution["ended_at"])
    assert execution["stats"]["node_exec_count"] == 61


def test_inputs_and_outputs_of_a_graph(api: Api) -> None:
    shape = graph(
        [
            node("a", INPUT, name="a", value=1),
            node("b", INPUT, name="b", value=2),
            node("none", INPUT, name="none"),
            node("add", CALCULATOR, operation="Add"),
            node("sum", OUTPUT, name="sum"),
            node("never", OUTPUT, name="never"),
        ],
        [
            link("a.result", "add.a"),
            link("b.result", "add.b"),
            link("add.result", "sum.value"),
            link("none.result", "never.value"),
        ],
    )
    created = api.create(shape)
    assert set(created["input_schema"]["properties"]) == {"a", "b", "none"}
    assert set(created["output_schema"]["properties"]) == {"sum", "never"}
    started = Started(created, api.ok(api.start_raw(created, {"a": 40, "none": None})))
    execution = api.wait(started)
    assert execution["status"] == "COMPLETED"
    assert execution["outputs"] == {"sum": [42]}
    assert execution["inputs"]["a"] == 40


def test_what_never_gets_all_its_pins_is_counted(api: Api) -> None:
    started = api.run(
        graph(
            [node("one", STORE, input=1), node("none", STEP, items=[]), node("add", CALCULATOR, operation="Add")],
            [link("one.output", "add.a"), link("none.item", "add.b")],
        )
    )
    execution = api.wait(started)
    assert execution["status"] == "COMPLETED"
    assert execution["stats"]["nodes_incomplete"] == 1
    assert {x["status"] for x in by_ref(started, execution).get("add", [])} <= {"INCOMPLETE"}


def test_a_new_version_has_new_node_ids_and_the_old_one_still_runs(api: Api) -> None:
    first = api.create(graph([node("a", STORE, input=1)], []))
    changed = first | {"nodes": [first["nodes"][0] | {"input_default": {"input": 2}}]}
    second = api.ok(api.http.put(f"/api/graphs/{first['id']}", json=changed))
    assert (second["id"], second["version"]) == (first["id"], 2)
    assert second["nodes"][0]["id"] != first["nodes"][0]["id"]
    for version, value in ((first, 1), (second, 2)):
        execution = api.wait(Started(version, api.ok(api.start_raw(version))))
        assert execution["graph_version"] == version["version"]
        assert execution["node_executions"][0]["output_data"] == {"output": [value]}


VALUES = [0, -0.5, 1e300, "", "ü€😀", "\u0000", 'quote " \\ \n', [], {}, [[], {"a": [None, True]}], False, 2**53 + 1]


@pytest.mark.parametrize("value", VALUES, ids=repr)
def test_any_json_value_goes_through_unchanged(api: Api, value: Any) -> None:
    started = api.run(
        graph(
            [node("a", STORE, input=value), node("e", ECHO), node("o", OUTPUT, name="o")],
            [link("a.output", "e.value"), link("e.value", "o.value")],
        )
    )
    execution = api.wait(started)
    assert execution["status"] == "COMPLETED"
    assert execution["outputs"] == {"o": [value]}
    assert api.events(started)[-1].value["outputs"] == {"o": [value]}


def test_a_large_value_goes_through_the_log_whole(api: Api) -> None:
    text = "0123456789abcdef" * 16_000  # above 256 KiB it would be a file (test_large_values.py)
    started = api.run(graph([node("a", INPUT, name="t"), node("o", OUTPUT, name="o")], [link("a.result", "o.value")]),
                      {"t": text})  # fmt: skip
    execution = api.wait(started)
    assert execution["outputs"] == {"o": [text]}
    assert [x for x in api.events(started) if text in x.data]
