"""`livetape executions retry|rerun` and `livetape queue`."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest

from unit.cli.fake import EXECUTION_ID, GRAPH_ID, FakeServer, Result

Call = Callable[..., Result]

PATH = f"/api/graphs/{GRAPH_ID}/executions/{EXECUTION_ID}"


def test_a_retry_prints_the_new_execution(on: Call, server: FakeServer) -> None:
    assert on("executions", "retry", EXECUTION_ID[:6]) == (0, "retried\n", "")
    assert server.requests[-1] == ("POST", f"{PATH}/retry", {"from_node": None})
    assert on("executions", "retry", EXECUTION_ID, "--from", "n2").code == 0
    assert server.requests[-1] == ("POST", f"{PATH}/retry", {"from_node": "n2"})


def test_a_rerun_prints_the_new_execution(on: Call, server: FakeServer) -> None:
    assert on("executions", "rerun", EXECUTION_ID) == (0, "rerun\n", "")
    assert server.requests[-1] == ("POST", f"{PATH}/rerun", None)


@pytest.mark.parametrize("how", ["retry", "rerun"])
def test_each_has_a_key_so_that_it_can_be_asked_again(on: Call, server: FakeServer, how: str) -> None:
    keys = []
    for more in ((), (), ("--idempotency-key", "mine"), ("--idempotency-key", "mine")):
        assert on("executions", how, EXECUTION_ID, *more).code == 0
        keys.append(server.headers[-1]["idempotency-key"])
    assert len(set(keys[:2])) == 2
    assert keys[2:] == ["mine", "mine"]


@pytest.mark.parametrize("how", ["retry", "rerun"])
def test_what_the_server_refuses_is_said(on: Call, server: FakeServer, how: str) -> None:
    assert on("executions", how, "zzz").code == 6
    server.fail_with = (409, {"code": "conflict", "title": "Conflict", "detail": "this execution is not over"})
    result = on("executions", how, EXECUTION_ID)
    assert (result.code, result.out) == (7, "")
    assert "this execution is not over" in result.err


def test_the_queue_is_shown_paused_and_let_go_on(on: Call, server: FakeServer) -> None:
    assert on("queue", "show") == (0, "open\n2 due and not begun, the oldest for 3.25 s\n", "")
    paused = on("queue", "pause", "a new \x1b[31mrelease")
    assert (paused.code, paused.out.splitlines()[0].startswith("paused: ")) == (0, True)
    assert "\x1b" not in paused.out
    assert server.requests[-1] == ("PUT", "/api/queue/pause", {"reason": "a new \x1b[31mrelease"})
    assert json.loads(on("queue", "show", "--output", "json").out) == {
        "depth": 2,
        "oldest_seconds": 3.25,
        "paused": "a new \x1b[31mrelease",
    }
    assert on("queue", "resume").out.startswith("open\n")
    assert server.requests[-1] == ("DELETE", "/api/queue/pause", None)


def test_only_administrators_may(on: Call, server: FakeServer) -> None:
    server.fail_with = (403, {"code": "not_authorized", "title": "Forbidden", "detail": "Admin access required"})
    for words in (("show",), ("pause", "x"), ("resume",)):
        result = on("queue", *words)
        assert (result.code, "Admin access required" in result.err) == (5, True)
    assert on("queue", "pause").code == 2
