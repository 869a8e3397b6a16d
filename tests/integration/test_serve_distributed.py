"""API and workers in processes of their own, on one PostgreSQL, RabbitMQ and Redis."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from acceptance.api import Api
from acceptance.deployment import Deployment
from acceptance.server import cli
from livetape_process import LivetapeProcess, ServerError, poll
from support import free_port

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


def nodes_over(api: Api, graph: str, number: str) -> int:
    """How many of its node executions are."""
    nodes = execution(api, graph, number)["node_executions"]
    assert isinstance(nodes, list)
    return sum(node["status"] == "COMPLETED" for node in nodes)


def test_what_a_killed_process_ran_goes_on_at_once(site: Deployment, api: Api) -> None:
    before = site.wait_workers(2)
    graph, number = run_alice(api)
    poll("there is something to go on with", lambda: nodes_over(api, graph, number) >= 3)
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


def up(workers: LivetapeProcess) -> list[str]:
    """What is said of the processes, whichever they are."""
    lines = workers.text("/metrics").splitlines()
    return sorted(line.split()[1] for line in lines if line.startswith("livetape_worker_up{"))


def test_one_port_shows_every_process(site: Deployment, api: Api) -> None:
    site.wait_workers(2)
    other = site.more_workers(2, metrics_port=free_port()).start()
    try:
        poll("both answer", lambda: other.status("/readyz") == 200)
        graph, number = run_alice(api)
        poll("it is over", lambda: execution(api, graph, number)["status"] == "COMPLETED", timeout=60)
        text = other.text("/metrics")
        for name in (
            "livetape_worker_up",
            "execution_manager_active_runs",
            "execution_manager_pool_size",
            "execution_manager_utilization_ratio",
        ):
            assert [f'{name}{{worker="{place}"}}' in text for place in (0, 1)] == [True, True]
        poll("the queue was looked at", lambda: other.text("/metrics").count("livetape_execution_queue_depth{") == 2)
        first = min(other.workers())
        os.kill(first, signal.SIGSTOP)
        poll("it is said not to answer", lambda: up(other) == ["0.0", "1.0"])
        assert other.status("/readyz") == 503
        assert other.status("/livez") == 200
        os.kill(first, signal.SIGCONT)
        poll("both answer", lambda: other.status("/readyz") == 200)
        assert "/metrics" in other.output()
        assert other.stop() == 0
    finally:
        other.end()


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
