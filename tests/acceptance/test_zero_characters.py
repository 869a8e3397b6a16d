"""`\\u0000`, which PostgreSQL's text cannot hold: refused in names, carried in values, alike on both databases."""

from __future__ import annotations

from typing import Any

import pytest

from acceptance.api import Api, graph, link, node
from reference.blocks import INPUT, OUTPUT, STORE

ZERO = "a\0b"


def whole() -> dict[str, Any]:
    return graph([node("one", STORE, input=1), node("two", STORE)], [link("one.output", "two.input")])


FIELDS = {
    "name": lambda g: g.update(name=ZERO),
    "description": lambda g: g.update(description=ZERO),
    "instructions": lambda g: g.update(instructions=ZERO),
    "nodes/0/id": lambda g: g["nodes"][0].update(id=ZERO),
    "nodes/1/block_id": lambda g: g["nodes"][1].update(block_id=ZERO),
    "links/0/source_name": lambda g: g["links"][0].update(source_name=ZERO),
    "links/0/sink_id": lambda g: g["links"][0].update(sink_id=ZERO),
}


@pytest.mark.parametrize("field", FIELDS)
def test_names_with_it_are_refused_by_their_field(api: Api, field: str) -> None:
    body = whole()
    FIELDS[field](body)
    answer = api.http.post("/api/graphs", json={"graph": body})
    assert answer.status_code == 422, answer.text
    (error,) = answer.json()["errors"]
    assert error["pointer"] == f"/graph/{field}"
    assert "zero character" in error["detail"]


@pytest.mark.parametrize(
    "path", ["graphs/a%00b", "graphs/a%00b/executions", "graphs/g/executions/a%00b", f"blobs/a%00b/{'0' * 64}"]
)
def test_paths_with_it_are_refused(api: Api, path: str) -> None:
    assert api.http.get(f"/api/{path}").status_code == 422


def test_values_with_it_come_back_as_they_were(api: Api) -> None:
    value = {ZERO: [ZERO, "\0", {"\0": None}]}
    started = api.run(
        graph(
            [
                node("in", INPUT, name=ZERO, value=None),
                node("kept", STORE, data=value),
                node("out", OUTPUT, name="r"),
                node("other", OUTPUT, name="s"),
                node("named", OUTPUT, name=ZERO),
            ],
            [
                link("in.result", "out.value"),
                link("in.result", "named.value"),
                link("in.result", "kept.input"),
                link("kept.output", "other.value"),
            ],
        ),
        {ZERO: value},
    )
    execution = api.wait(started)
    assert execution["status"] == "COMPLETED", execution["stats"]
    assert execution["inputs"] == {ZERO: value}
    assert execution["outputs"]["r"] == [value]
    assert execution["outputs"]["s"] == [value]
    assert execution["outputs"]["a\ufffdb"] == [value], "the name of an output stands in a column of text"
    last = api.events(started)[-1].value
    assert last["outputs"] == execution["outputs"]
