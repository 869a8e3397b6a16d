"""`livetape executions retry|rerun` and `livetape queue` on a real server."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from acceptance.server import Server, cli
from livetape_process import poll

pytestmark = pytest.mark.slow

Say = Callable[..., str]

FORMAT = {"id": "format", "block_id": "db7d8f02-2f44-4c55-ab7a-eae0941f0c30"}
GRAPH = {
    "name": "Strict",
    "nodes": [{**FORMAT, "input_default": {"format": "{{ 1 // 0 }}", "values": {}}}],
    "links": [],
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("control")
    server = Server(folder / "data").start()
    yield folder
    server.end()


@pytest.fixture
def say(folder: Path) -> Say:
    """The output of a command that must end with this exit code."""

    def say(*words: str, code: int = 0) -> str:
        done = cli(*words, "--data-dir", str(folder / "data"), cwd=folder)
        assert done.returncode == code, done.stderr
        return done.stdout.strip()

    return say


def status(say: Say, execution: str) -> str:
    return str(json.loads(say("executions", "show", execution, "--output", "json"))["status"])


def test_a_retry_and_a_rerun_are_new_executions(say: Say, folder: Path) -> None:
    (folder / "strict.json").write_text(json.dumps(GRAPH))
    failed = say("run", "strict.json", "--detach")
    poll("it fails", lambda: status(say, failed) == "FAILED", every=0.2)
    again = say("executions", "retry", failed)
    poll("it fails again", lambda: status(say, again) == "FAILED", every=0.2)
    third = say("executions", "retry", failed, "--idempotency-key", "k")
    assert say("executions", "retry", failed, "--idempotency-key", "k") == third
    say("executions", "retry", failed, "--from", "nowhere", code=6)
    good = say("run", "Hello", "--detach")
    poll("it completes", lambda: status(say, good) == "COMPLETED", every=0.2)
    say("executions", "retry", good, code=7)
    rerun = say("executions", "rerun", good)
    assert len({failed, again, third, good, rerun}) == 5
    poll("it completes", lambda: status(say, rerun) == "COMPLETED", every=0.2)


def test_a_paused_queue_begins_nothing(say: Say) -> None:
    assert say("queue", "show").startswith("open")
    assert say("queue", "pause", "a new version").startswith("paused: a new version")
    waiting = say("run", "Hello", "--detach")
    state = json.loads(say("queue", "show", "--output", "json"))
    assert (state["paused"], state["depth"]) == ("a new version", 1)
    assert status(say, waiting) == "QUEUED"
    assert say("queue", "resume").startswith("open")
    poll("it completes", lambda: status(say, waiting) == "COMPLETED", every=0.2)
