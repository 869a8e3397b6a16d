"""A value of 20 MB goes from block to block and to its owner; events and rows have a pointer in its place."""

from __future__ import annotations

import pytest

from acceptance.api import Api, graph, link, node
from reference.blocks import OUTPUT

BULK = "c4a05001-0000-4000-8000-000000000006"
ECHO = "c4a05001-0000-4000-8000-000000000003"

POINTER = "$livetape.blob"
SIZE = 20_000_000


@pytest.mark.slow
def test_twenty_megabytes_never_stand_in_an_event(api: Api) -> None:
    started = api.run(
        graph(
            [node("bulk", BULK, value=SIZE), node("echo", ECHO), node("out", OUTPUT, name="r")],
            [link("bulk.text", "echo.value"), link("echo.value", "out.value")],
        )
    )
    execution = api.wait(started, timeout=60)
    assert execution["status"] == "COMPLETED", execution
    (value,) = execution["outputs"]["r"]
    assert list(value) == [POINTER]
    assert value[POINTER]["size"] == SIZE + 2
    answer = api.http.get(f"/api/blobs/{started.id}/{value[POINTER]['sha256']}")
    assert answer.status_code == 200
    assert answer.json() == "x" * SIZE
    events = api.events(started)
    assert max(len(event.data) for event in events) < 10_000
    assert sum(POINTER in event.data for event in events) >= 4
    assert api.http.get(f"/api/blobs/{started.id}/{'0' * 64}").status_code == 404


def test_too_much_fails_its_node_and_says_so(api: Api) -> None:
    started = api.run(graph([node("bulk", BULK, value=53_000_000)], []))
    execution = api.wait(started, timeout=60)
    assert execution["status"] == "FAILED"
    assert "50 MiB" in execution["stats"]["error"]
