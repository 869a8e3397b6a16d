"""API and workers in processes of their own, on one PostgreSQL, RabbitMQ and Redis."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from acceptance.api import Api
from acceptance.deployment import Deployment
from acceptance.server import cli
from livetape_process import LivetapeProcess, ServerError, poll

pytestmark = [pytest.mark.needs("postgres", "rabbitmq", "redis"), pytest.mark.slow, pytest.mark.timeout(180)]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    made = Deployment(tmp_path_factory.mktemp("site"), processes=2).start()
    yield made
    made.stop()


@pytest.fixture
def api(site: Deployment) -> Iterator[Api]:
    with Api(site.url) as client:
        yield client


def run_alice(api: Api) -> tuple[str, str]:
    graphs = api.ok(api.http.get("/api/graphs"))
    graph = next(one["id"] for one in graphs if one["name"].lower().startswith("alice"))
    return graph, api.ok(api.http.post(f"/api/graphs/{graph}/execute/1", json={"inputs": {}}))["id"]


def execution(api: Api, graph: str, number: str) -> dict[str, object]:
    found: dict[str, object] = api.ok(api.http.get(f"/api/graphs/{graph}/executions/{number}"))
    return found


def test_what_a_killed_process_ran_goes_on_at_once(site: Deployment, api: Api) -> None:
    before = site.wait_workers(2)
    graph, number = run_alice(api)
    poll("it runs", lambda: execution(api, graph, number)["status"] == "RUNNING")
    time.sleep(0.5)  # so that there is something to go on with
    for pid in before:
        os.kill(pid, signal.SIGKILL)
    poll("it is over", lambda: execution(api, graph, number)["status"] == "COMPLETED", timeout=60)
    assert not site.wait_workers(2) & before
    assert "go on elsewhere" in site.worker.output(), "the leases were released, not waited for"


def test_workers_that_are_stopped_hand_back_what_they_run(site: Deployment, api: Api) -> None:
    other = site.more_workers(1)
    graph, number = run_alice(api)
    poll("it runs", lambda: execution(api, graph, number)["status"] == "RUNNING")
    try:
        assert site.worker.stop() == 0
        other.start()
        poll("it is over", lambda: execution(api, graph, number)["status"] == "COMPLETED", timeout=60)
        assert other.stop() == 0
    finally:
        other.end()
        site.worker.start()


@pytest.mark.parametrize("words", [("serve", "worker"), ("serve", "api")])
def test_without_a_shared_database_they_say_what_is_missing(tmp_path: Path, words: tuple[str, ...]) -> None:
    answer = cli(*words, env={"LIVETAPE_DATA_DIR": str(tmp_path)}, cwd=tmp_path)
    assert answer.returncode == 3
    assert "LIVETAPE_DATABASE=postgresql://" in answer.stderr


def test_a_worker_whose_supervisor_dies_ends_too(site: Deployment) -> None:
    other = site.more_workers(1).start()
    assert isinstance(other, LivetapeProcess)
    (child,) = other.workers()
    try:
        os.kill(other.pid, signal.SIGKILL)

        def gone() -> bool:
            try:
                os.kill(child, 0)
            except ProcessLookupError:
                return True
            return Path(f"/proc/{child}/stat").read_text().split()[2] == "Z"

        poll("the worker ends", gone)
    except ServerError:
        os.kill(child, signal.SIGKILL)
        raise
    finally:
        other.end()
