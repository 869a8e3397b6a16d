"""The other commands that talk to a server, against a fake one."""

from __future__ import annotations

import io
import json
import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from livetape.cli import follow
from unit.cli.fake import EPOCH, EXECUTION_ID, GRAPH_ID, PLAIN_LINES, FakeServer, Result, graph_event

Call = Callable[..., Result]


@pytest.mark.parametrize(
    ("status", "body", "code", "exit_code"),
    [
        (401, {"detail": "Authorization header is missing", "code": "unauthenticated"}, "LT-E501", 5),
        (401, {"detail": "Invalid token: Signature", "code": "unauthenticated"}, "LT-E504", 5),
        (401, {"detail": "Token has expired", "code": "token_expired"}, "LT-E502", 5),
        (403, {"detail": "Admin access required"}, "LT-E503", 5),
        (404, {"detail": "Graph #x not found."}, "LT-E600", 6),
        (409, {"detail": "another body", "code": "conflict"}, "LT-E700", 7),
        (422, {"detail": [{"loc": ["body", "inputs"], "msg": "wrong"}], "code": "invalid_request"}, "LT-E203", 2),
        (429, {"detail": "slow down"}, "LT-E711", 7),
        (500, {"detail": "see the log", "code": "internal"}, "LT-E404", 4),
        (503, {"detail": "The database cannot be reached.", "code": "store_unavailable"}, "LT-E405", 4),
        (502, None, "LT-E404", 4),
    ],
)
def test_answers_become_codes(
    on: Call, server: FakeServer, status: int, body: object, code: str, exit_code: int
) -> None:
    server.fail_with = (status, body)
    result = on("graphs", "list")
    assert result.code == exit_code
    assert result.err.startswith(f"error[{code}]: ")


def test_something_that_is_no_livetape_server(on: Call, server: FakeServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LIVETAPE_URL", server.url + "/nothing")
    assert on("graphs", "list").code == 6
    monkeypatch.setenv("LIVETAPE_URL", "ftp://x")
    assert on("graphs", "list").code == 2


def test_a_server_that_is_not_there(call: Call, free_port: int) -> None:
    for arguments in (["graphs", "list"], ["tail", "x"], ["run", "x", "--detach"]):
        result = call(*arguments, "--url", f"http://127.0.0.1:{free_port}")
        assert result.code == 4
        assert "error[LT-E400]" in result.err
        assert "  set by    --url" in result.err
    result = call("tail", "x")
    assert result.code == 4
    assert "error[LT-E401]: no server is running" in result.err
    assert "livetape up" in result.err


def test_the_server_is_found_by_the_data_folder(call: Call, server: FakeServer, tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    file = tmp_path / "d" / "server.json"
    file.write_text(json.dumps({"url": server.url, "pid": os.getpid()}))
    assert call("graphs", "list", "--data-dir", "d").code == 0
    file.write_text(json.dumps({"url": server.url, "pid": 2**22 + 1}))
    assert call("graphs", "list", "--data-dir", "d").code == 4
    file.write_text("{")
    assert call("graphs", "list", "--data-dir", "d").code == 4


def test_the_token_goes_with_every_request(on: Call, server: FakeServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LIVETAPE_TOKEN", "from.env")
    assert on("run", GRAPH_ID).code == 0
    assert {headers["authorization"] for headers in server.headers} == {"Bearer from.env"}
    assert server.protocols == [["livetape.v1", "bearer.from.env"]]
    assert on("graphs", "list", "--token", "from.flag").code == 0
    assert server.headers[-1]["authorization"] == "Bearer from.flag"


def test_tail_prints_the_tape(on: Call, server: FakeServer) -> None:
    result = on("tail", EXECUTION_ID)
    assert (result.code, result.out) == (0, PLAIN_LINES)
    assert server.subscriptions[0]["data"] == {
        "graph_exec_id": EXECUTION_ID,
        "outputs": "each",
        "strict": True,
        "since": "earliest",
    }
    result = on("tail", EXECUTION_ID, "--since", f"{EPOCH}-8", "--output", "jsonl")
    event = json.loads(result.out)
    assert (event["offset"], event["epoch"], event["final"]) == (9, EPOCH, True)
    assert event["data"]["status"] == "COMPLETED"


def test_tail_connects_again_from_its_own_position(
    on: Call, server: FakeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(follow, "FIRST_WAIT", 0.01)
    server.drop_after = [(3, 1012), (0, 1011), (4, 1013)]
    result = on("tail", EXECUTION_ID)
    assert (result.code, result.out) == (0, PLAIN_LINES)
    assert [request["data"]["since"] for request in server.subscriptions] == [
        "earliest",
        {"epoch": EPOCH, "offset": 3},
        {"epoch": EPOCH, "offset": 3},
        {"epoch": EPOCH, "offset": 7},
    ]
    assert "connection lost (closed 1012" in result.err
    assert "connected again" in result.err


def test_tail_gives_up_after_a_while(on: Call, server: FakeServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(follow, "FIRST_WAIT", 0.01)
    monkeypatch.setattr(follow, "GIVE_UP_AFTER", 0.2)
    monkeypatch.setattr(follow, "_open", dropping(follow._open))
    server.ends = False
    server.drop_after = [(2, 1012)]
    result = on("tail", EXECUTION_ID)
    assert result.code == 4
    assert "error[LT-E402]" in result.err


def dropping(real: Callable[..., object]) -> Callable[..., object]:
    calls = []

    def open_once(server: object) -> object:
        calls.append(1)
        if len(calls) > 1:
            raise ConnectionRefusedError("refused")
        return real(server)

    return open_once


@pytest.mark.parametrize(("code", "exit_code"), [(4001, 5), (4002, 5), (4003, 5)])
def test_tail_stops_when_the_token_is_refused(on: Call, server: FakeServer, code: int, exit_code: int) -> None:
    server.drop_after = [(1, code)]
    assert on("tail", EXECUTION_ID).code == exit_code


def test_tail_of_something_that_is_not_there(on: Call, server: FakeServer) -> None:
    server.refuse_subscribe = "Not found"
    result = on("tail", "nope")
    assert result.code == 6
    assert "there is no execution nope" in result.err


def test_tail_of_a_graph_and_of_a_job(on: Call, server: FakeServer) -> None:
    server.tape = [graph_event("RUNNING"), graph_event("COMPLETED")]
    assert on("tail", "--graph", "count words", "--since", "earliest").code == 0
    assert server.subscriptions[-1]["data"] == {"graph_id": GRAPH_ID, "strict": True, "since": "earliest"}
    server.job_tape = [
        {"event_type": "task_started", "data": {"total": 3}},
        {"event_type": "task_completed", "data": {"ok": "\x1b[2Jé"}},
    ]
    result = on("tail", "--job", "j/1", "--since", "5m")
    assert server.subscriptions[-1]["data"] == {"job_id": "j/1", "strict": True, "since": {"seconds": 300.0}}
    assert result.out == '    1 task_started {"total":3}\n    2 task_completed {"ok":"\\u001b[2Jé"}\n'


def test_tail_for_a_time(on: Call, server: FakeServer) -> None:
    server.ends = False
    assert on("tail", EXECUTION_ID, "--timeout", "0.3").code == 124


@pytest.mark.parametrize("since", ["yesterday", "abc-x", "-5"])
def test_tail_refuses_other_places(on: Call, since: str) -> None:
    assert on("tail", EXECUTION_ID, f"--since={since}").code == 2


def test_replay_prints_all_pages(on: Call, server: FakeServer) -> None:
    result = on("replay", EXECUTION_ID[:8], "--speed", "max")
    assert (result.code, result.out, result.err) == (0, PLAIN_LINES, "")
    server.ends = False
    result = on("replay", EXECUTION_ID, "--speed", "10x", "--output", "jsonl")
    assert [json.loads(text)["offset"] for text in result.out.splitlines()] == list(range(1, 10))
    assert "it goes on" in result.err


def test_replay_keeps_the_pace(on: Call) -> None:
    begin = time.monotonic()
    assert on("replay", EXECUTION_ID, "--speed", "0.1x").code == 0
    assert time.monotonic() - begin >= 0.8  # 9 events, 10 ms apart, ten times slower


def test_replay_takes_the_time_of_the_data_when_the_page_has_none() -> None:
    from livetape.cli.commands.replay import _push

    entry = {"offset": 1, "event_type": "node_execution_update", "data": {"add_time": "2026-01-01T00:00:00Z"}}
    assert str(_push(entry, "e").time) == "2026-01-01 00:00:00+00:00"
    entry["data"] = {"add_time": "2026-01-01T00:00:00Z", "end_time": "2026-01-01T00:00:02"}
    assert str(_push(entry, "e").time) == "2026-01-01 00:00:02+00:00"
    assert _push({"offset": 1, "event_type": "t", "data": {"timestamp": "yesterday"}}, "e").time is None


def test_replay_of_a_job(on: Call, server: FakeServer) -> None:
    server.job_tape = [{"event_type": "task_started", "data": 1}]
    assert on("replay", "--job", "a/b").out == "    1 task_started 1\n"
    server.job_tape = []
    assert on("replay", "--job", "a/b").err == "no events yet\n"
    assert on("replay", "--speed", "0").code == 2
    assert on("replay", EXECUTION_ID, "--speed", "fast").code == 2


def test_publish_prints_the_position(
    on: Call, server: FakeServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    result = on("publish", "j 1/x", "task_progress", "--data", '{"done": 1}', "--idempotency-key", "k")
    assert (result.code, result.out) == (0, f"{EPOCH}-7\n")
    assert server.requests[-1] == (
        "POST",
        "/api/jobs/j 1/x/events",
        {"event_type": "task_progress", "data": {"done": 1}, "idempotency_key": "k"},
    )
    (tmp_path / "e.json").write_text("[1]")
    on("publish", "j", "t", "--data", "@e.json", "--timestamp", "2026-01-01T00:00:00Z")
    assert server.requests[-1][2] == {"event_type": "t", "data": [1], "timestamp": "2026-01-01T00:00:00Z"}
    monkeypatch.setattr("sys.stdin", io.StringIO('"x"'))
    on("publish", "j", "t", "--data", "-")
    assert server.requests[-1][2] == {"event_type": "t", "data": "x"}
    assert on("publish", "j", "t", "--data", "plain").code == 2


def test_graphs(on: Call, server: FakeServer, tmp_path: Path) -> None:
    result = on("graphs", "list")
    assert result.out.splitlines()[1].split(None, 2) == [GRAPH_ID, "3", "Count words  Counts the words of a text."]
    assert json.loads(on("graphs", "list", "--output", "json").out)[0]["id"] == GRAPH_ID
    shown = on("graphs", "show", "Count words").out
    assert "  input   text  (string, required)" in shown
    assert "  output  words" in shown
    assert "            result -> count.text" in shown
    assert json.loads(on("graphs", "show", GRAPH_ID, "--output", "json").out)["name"] == "Count words"
    (tmp_path / "g.json").write_text(json.dumps({"graph": {"name": "G", "nodes": [], "links": []}}))
    assert on("graphs", "import", "g.json").out == "new-1\n"
    (tmp_path / "no.json").write_text("[]")
    result = on("graphs", "import", "no.json")
    assert result.code == 2
    assert "holds no graph" in result.err


def test_executions(on: Call, server: FakeServer) -> None:
    listed = on("executions", "list").out
    assert listed.splitlines()[1] == f"{EXECUTION_ID}  COMPLETED  2026-01-01 00:00:00  1.50 s  Count words"
    assert (
        json.loads(on("executions", "list", "--graph", "Count words", "--output", "json").out)[0]["id"] == EXECUTION_ID
    )
    result = on("executions", "show", EXECUTION_ID[:6])
    assert (result.out, result.code) == ("words: 2\n", 0)
    result = on("executions", "stop", EXECUTION_ID)
    assert result.out == "TERMINATED\n"
    assert server.requests[-1][1].endswith("/stop")
    assert on("executions", "show", "zzz").code == 6
