"""`livetape run` against a fake server."""

from __future__ import annotations

import io
import json
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from unit.cli.fake import EXECUTION_ID, GRAPH, GRAPH_ID, PLAIN_LINES, FakeServer, Result, graph_event

Call = Callable[..., Result]


def test_run_prints_the_outputs_alone(on: Call, server: FakeServer) -> None:
    result = on("run", "count words", "--input", "text=one two", "-i", "n=3", "-i", "flag=true", "-i", "s=[1")
    assert result.code == 0, result.err
    assert result.out == "words: 2\n"
    assert result.err == (
        "warning: Count words has no input n; it has: text\n"
        "warning: Count words has no input flag; it has: text\n"
        "warning: Count words has no input s; it has: text\n"
        f"COMPLETED in 1.50 s · 2 node executions · 9 events · {EXECUTION_ID}\n"
    )
    assert "did you mean text?" in on("run", GRAPH_ID, "-i", "txt=1").err
    method, path, body = next(r for r in server.requests if r[0] == "POST")
    assert (method, path) == ("POST", f"/api/graphs/{GRAPH_ID}/execute/3")
    assert body == {"inputs": {"text": "one two", "n": 3, "flag": True, "s": "[1"}}


def test_run_watch_prints_a_line_an_event_when_piped(on: Call) -> None:
    result = on("run", GRAPH_ID, "--watch")
    assert result.code == 0
    assert result.out == PLAIN_LINES + "words: 2\n"


def test_run_json_keeps_stdout_for_the_execution(on: Call) -> None:
    result = on("run", GRAPH_ID, "--watch", "--output", "json")
    assert json.loads(result.out)["outputs"] == {"words": [2]}
    assert PLAIN_LINES in result.err


def test_run_detached_prints_the_id(on: Call, server: FakeServer) -> None:
    result = on("run", "Count words", "--detach", "--idempotency-key", "k1")
    assert (result.code, result.out) == (0, f"{EXECUTION_ID}\n")
    assert server.headers[-1]["idempotency-key"] == "k1"
    assert server.subscriptions == []


@pytest.mark.parametrize("status", ["FAILED", "TERMINATED"])
def test_run_ends_with_1_when_it_failed(on: Call, server: FakeServer, status: str) -> None:
    server.status, server.outputs = status, {}
    server.stats = {"error": "node count: no text"}
    server.tape = [graph_event(status)]
    result = on("run", GRAPH_ID)
    assert (result.code, result.out) == (1, "")
    assert f"{status} in" in result.err
    assert "  because   node count: no text" in result.err


def test_run_times_out_and_says_what_goes_on(on: Call, server: FakeServer) -> None:
    server.ends = False
    result = on("run", GRAPH_ID, "--timeout", "300ms")
    assert result.code == 124
    assert "error[LT-E900]" in result.err
    assert f"livetape executions stop {EXECUTION_ID}" in result.err


@pytest.fixture
def interruptible() -> Iterator[None]:
    """Ctrl-C works here too: what a shell starts in the background ignores it, and hands that on."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_run_interrupted_says_that_the_execution_goes_on(on: Call, server: FakeServer, interruptible: None) -> None:
    server.ends = False

    def interrupt() -> None:
        while not server.subscriptions:
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    thread.start()
    result = on("run", GRAPH_ID)
    thread.join()
    assert (result.code, result.out) == (130, "")
    assert result.err.startswith("interrupted; the execution goes on\n")
    assert f"livetape executions stop {EXECUTION_ID}" in result.err


def test_run_reads_inputs_from_file_and_stdin(
    on: Call, server: FakeServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "in.json").write_text('{"text": "from file", "n": 1}')
    assert on("run", GRAPH_ID, "--detach", "--input-file", "in.json", "--input", "n=2").code == 0
    assert server.requests[-1][2] == {"inputs": {"text": "from file", "n": 2}}
    monkeypatch.setattr("sys.stdin", io.StringIO('{"text": "from stdin"}'))
    assert on("run", GRAPH_ID, "--detach", "-f", "-").code == 0
    assert server.requests[-1][2] == {"inputs": {"text": "from stdin"}}


@pytest.mark.parametrize(
    ("arguments", "code", "text"),
    [
        (["--input", "novalue"], 2, "not NAME=VALUE: novalue"),
        (["-f", "absent.json"], 2, "cannot read absent.json"),
        (["-f", "list.json"], 2, "the inputs are not a JSON object"),
        (["-f", "broken.json"], 2, "broken.json is not JSON"),
        (["--timeout", "soon"], 2, "is not a duration"),
    ],
)
def test_run_refuses_bad_inputs(on: Call, tmp_path: Path, arguments: list[str], code: int, text: str) -> None:
    (tmp_path / "list.json").write_text("[1]")
    (tmp_path / "broken.json").write_text("{")
    result = on("run", GRAPH_ID, *arguments)
    assert result.code == code
    assert text in result.err
    assert "Traceback" not in result.err


def test_run_imports_a_file_once(on: Call, server: FakeServer, tmp_path: Path) -> None:
    graph = {
        "name": "New",
        "nodes": [{"id": "x", "block_id": "b-in"}, {"id": "y", "block_id": "b-count"}],
        "links": [{"id": "l", "source_id": "x", "source_name": "result", "sink_id": "y", "sink_name": "text"}],
    }
    (tmp_path / "new.json").write_text(json.dumps(graph))
    assert on("run", "new.json", "--detach").code == 0
    assert on("run", "./new.json", "--detach").code == 0
    assert [r[1] for r in server.requests if r[0] == "POST"] == [
        "/api/graphs",
        "/api/graphs/new-1/execute/1",
        "/api/graphs/new-1/execute/1",
    ]
    graph["links"] = []
    (tmp_path / "new.json").write_text(json.dumps(graph))
    assert on("run", "new.json", "--detach").code == 0
    assert len(server.graphs) == 3


def test_run_says_which_graphs_there_are(on: Call, server: FakeServer) -> None:
    result = on("run", "Count wrods")
    assert result.code == 6
    assert "did you mean 'Count words'?" in result.err
    server.graphs = [GRAPH, {**GRAPH, "id": "other"}]
    result = on("run", "Count words")
    assert result.code == 2
    assert "Count words fits 2 graphs" in result.err
    assert "other" in result.err


@pytest.mark.parametrize("given", ["Count words", "count-words", "count", "COUNT", GRAPH_ID, GRAPH_ID[:8]])
def test_a_graph_may_be_named_in_short(on: Call, server: FakeServer, given: str) -> None:
    server.graphs = [GRAPH, {**GRAPH, "id": "22", "name": "Other words"}]
    assert on("run", given, "--detach").code == 0


@pytest.mark.parametrize("given", ["words", "-", "1", "", "countwords"])
def test_a_graph_that_is_not_meant_is_not_taken(on: Call, given: str) -> None:
    assert on("run", "--detach", "--", given).code == 6


def test_run_shows_the_errors_of_nodes(on: Call, server: FakeServer) -> None:
    detail = {
        "type": "validation_error",
        "message": "Graph validation failed: 1 issue on 1 node",
        "node_errors": {"n2": {"text": "nothing feeds this pin"}},
    }
    server.fail_with = (400, {"code": "graph_validation", "detail": detail, "hint": "h"})
    result = on("graphs", "list")
    assert result.code == 2
    assert "error[LT-E801]: Graph validation failed: 1 issue on 1 node" in result.err
    assert "n2: text: nothing feeds this pin" in result.err
