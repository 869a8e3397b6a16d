"""The port of a supervisor shows every worker, and none that is not there."""

from __future__ import annotations

import asyncio
import json
import socket
import urllib.error
import urllib.request
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from livetape.adapters.prometheus.merge import merged
from livetape.adapters.prometheus.metrics import PrometheusMetrics
from livetape.runtime.worker_port import WorkerPort
from livetape.runtime.worker_status import status_path, told_status


def samples(text: str) -> dict[tuple[str, str], float]:
    """Values by name and label `worker`."""
    families = list(text_string_to_metric_families(text))
    assert len({family.name for family in families}) == len(families), "each metric once"
    return {(one.name, one.labels.get("worker", "")): one.value for family in families for one in family.samples}


def test_metrics_of_several_processes_are_one_text_that_can_be_read() -> None:
    texts = []
    for number in ("0", "1"):
        metrics = PrometheusMetrics("lt", worker=number)
        metrics.count("graph_executions_total", 3, status="COMPLETED")
        metrics.gauge("execution_manager_active_runs", int(number))
        metrics.observe("block_duration_seconds", 0.2, block_type="B")
        texts.append(metrics.render()[0])
    text = merged([*texts, b"", b"own 1\n"]).decode()
    found = samples(text)
    assert found["lt_graph_executions_total", "0"] == found["lt_graph_executions_total", "1"] == 3
    assert (found["execution_manager_active_runs", "0"], found["execution_manager_active_runs", "1"]) == (0, 1)
    assert found["lt_block_duration_seconds_count", "1"] == 1
    assert found["own", ""] == 1
    assert text.count("# TYPE lt_graph_executions_total counter") == 1


class Site:
    """A supervisor's port over two places for workers."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.port = WorkerPort("127.0.0.1", 0, folder, 2, namespace="lt")
        self.missing: dict[int, list[str]] = {0: [], 1: []}
        self.hangs = False

    async def worker(self, stack: AsyncExitStack, number: int) -> None:
        metrics = PrometheusMetrics("lt", worker=str(number))
        metrics.gauge("execution_manager_pool_size", 10 + number)

        async def missing() -> list[str]:
            if self.hangs:
                await asyncio.get_running_loop().create_future()
            return self.missing[number]

        path = status_path(self.folder, number)
        await stack.enter_async_context(told_status(path, missing, lambda: metrics.render()[0]))

    async def ask(self, path: str, method: str = "GET") -> tuple[int, str]:
        return await asyncio.to_thread(self._ask, path, method)

    def _ask(self, path: str, method: str) -> tuple[int, str]:
        request = urllib.request.Request(f"{self.port.url}{path}", method=method)
        try:
            with urllib.request.urlopen(request, timeout=10) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as refused:
            with refused:
                return refused.code, refused.read().decode()


@pytest.fixture
def site(tmp_path: Path) -> Any:
    made = Site(tmp_path)
    yield made
    made.port.close()


async def test_it_is_ready_when_all_of_them_are(site: Site) -> None:
    async with AsyncExitStack() as stack:
        assert await site.ask("/livez") == (200, '{"status":"alive"}')
        assert (await site.ask("/readyz"))[0] == 503
        await site.worker(stack, 0)
        status, body = await site.ask("/readyz")
        assert (status, json.loads(body)["missing"]) == (503, ["an answer of worker 1"])
        await site.worker(stack, 1)
        assert await site.ask("/readyz") == (200, '{"status":"ready"}')
        site.missing[1] = ["database"]
        status, body = await site.ask("/health")
        assert (status, json.loads(body)["title"]) == (503, "Not ready: database of worker 1 missing")
        site.missing[1], site.hangs = [], True
        status, body = await site.ask("/readyz")
        assert "an answer to the readiness check of worker 0" in json.loads(body)["missing"]
        site.hangs = False
        site.port.stopping()
        assert json.loads((await site.ask("/readyz"))[1])["missing"] == ["running"]
    assert (await site.ask("/livez"))[0] == 200
    assert await site.ask("/metrics", "HEAD") == (200, "")
    assert (await site.ask("/else"))[0] == 404


async def test_each_worker_is_seen_and_who_does_not_answer_is_said_not_to(site: Site) -> None:
    async with AsyncExitStack() as stack:
        await site.worker(stack, 1)
        found = samples((await site.ask("/metrics"))[1])
        assert (found["lt_worker_up", "0"], found["lt_worker_up", "1"]) == (0, 1)
        assert found["execution_manager_pool_size", "1"] == 11
        assert ("execution_manager_pool_size", "0") not in found
        await site.worker(stack, 0)
        found = samples((await site.ask("/metrics?x=1"))[1])
        assert (found["lt_worker_up", "0"], found["execution_manager_pool_size", "0"]) == (1, 10)


async def test_a_worker_that_was_killed_leaves_its_place_to_the_next(site: Site) -> None:
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(status_path(site.folder, 0)))  # nobody listens there
    async with AsyncExitStack() as stack:
        assert 'lt_worker_up{worker="0"} 0.0' in (await site.ask("/metrics"))[1]
        await site.worker(stack, 0)
        assert 'lt_worker_up{worker="0"} 1.0' in (await site.ask("/metrics"))[1]


def test_who_goes_before_the_answer_harms_nobody(site: Site) -> None:
    host, port = site.port.url.removeprefix("http://").split(":")
    for sent in (b"", b"GET", b"nonsense\r\n\r\n", b"GET /metrics HTTP/1.1\r\n\r\n"):
        with socket.create_connection((host, int(port))) as rude:
            rude.sendall(sent)
    assert site._ask("/livez", "GET")[0] == 200


def test_a_port_that_is_taken_is_refused(site: Site, tmp_path: Path) -> None:
    taken = int(site.port.url.rpartition(":")[2])
    with pytest.raises(OSError, match="in use"):
        WorkerPort("127.0.0.1", taken, tmp_path, 1, namespace="lt")
