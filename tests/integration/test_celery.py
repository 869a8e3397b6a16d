"""Tasks of Celery as jobs, run by real workers in the three pools."""

from __future__ import annotations

import importlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
import redis

from livetape.errors import ConfigError
from servers import RedisServer, running

pytestmark = [pytest.mark.slow, pytest.mark.timeout(90)]

HERE = Path(__file__).parent
PATIENCE_S = 20.0


@dataclass
class Worker:
    """A worker of one pool, its application as a client sees it, and the tapes it writes."""

    app: Any
    tasks: Any
    process: subprocess.Popen[bytes]
    tapes: redis.Redis
    log: Path
    headers: dict[str, str] = field(default_factory=dict)

    def send(self, task: str, *args: Any, job: str | None = None, **options: Any) -> tuple[str, Any]:
        """The job's id and the result to wait for."""
        job = job or f"job-{uuid4()}"
        headers = {"job": job, "user": "U", **options.pop("headers", {})}
        return job, getattr(self.tasks, task).apply_async(args, headers=headers, **options)

    def tape(self, job: str) -> list[tuple[str, dict[str, Any]]]:
        """What a plain client reads: types and data."""
        entries = self.tapes.xrange(f"job_events:{job}")
        assert [entry_id for entry_id, _ in entries] == [f"{number}-0" for number in range(1, len(entries) + 1)]
        return [(fields["event_type"], json.loads(fields["data"])) for _, fields in entries]

    def types(self, job: str) -> list[str]:
        return [event_type for event_type, _ in self.tape(job)]

    def wait(self, job: str, *last: str) -> list[tuple[str, dict[str, Any]]]:
        """The tape, once it ends with one of these."""
        self.until(lambda: self.types(job)[-1:] and self.types(job)[-1] in last, lambda: f"{self.types(job)}")
        return self.tape(job)

    def until(self, true: Callable[[], object], told: Callable[[], str] = str) -> None:
        deadline = time.monotonic() + PATIENCE_S
        while not true():
            if time.monotonic() > deadline or self.process.poll() is not None:
                raise AssertionError(f"{told()}\n{self.log.read_text()[-3000:]}")
            time.sleep(0.02)

    def owner(self, job: str) -> str | None:
        owner: str | None = self.tapes.hget(f"{{job_events:{job}}}:meta", "owner")
        return owner


@contextmanager
def working(
    pool: str, broker: str, tapes: str, folder: Path, *, timeout: float = 5, count: int = 2
) -> Iterator[Worker]:
    folder.mkdir(parents=True, exist_ok=True)
    given = {"BROKER": broker, "TAPES": tapes, "TIMEOUT": str(timeout), "PYTHONPATH": str(HERE)}
    environment = {**os.environ, **given}
    words = [
        sys.executable,
        "-m",
        "celery",
        "-A",
        "celery_tasks",
        "worker",
        "--pool",
        pool,
        "--concurrency",
        str(count),
    ]
    words += ["--without-gossip", "--without-mingle", "--without-heartbeat", "--loglevel", "INFO", "--hostname", "w@h"]
    log = folder / "worker.log"
    with log.open("wb") as output:
        process = subprocess.Popen(words, cwd=folder, env=environment, stdout=output, stderr=output)
    client: redis.Redis = redis.Redis.from_url(tapes, decode_responses=True)
    with pytest.MonkeyPatch.context() as patched:
        for name, value in given.items():
            patched.setenv(name, value)
        patched.syspath_prepend(str(HERE))
        sys.modules.pop("celery_tasks", None)
        tasks = importlib.import_module("celery_tasks")
    worker = Worker(tasks.app, tasks, process, client, log)
    try:
        worker.until(lambda: " ready." in log.read_text())
        yield worker
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
        try:
            process.wait(PATIENCE_S)
        finally:
            process.kill()
            process.wait()
            tasks.events.disconnect()
            tasks.app.close()
            client.close()
            client.connection_pool.disconnect()
            sys.modules.pop("celery_tasks", None)


def links_of(server: RedisServer, db: int) -> int:
    """Connections of livetape to this database."""
    return sum(f" db={db} " in line and " name=livetape" in line for line in server.cli("CLIENT", "LIST").splitlines())


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    with running(RedisServer("valkey", tmp_path_factory.mktemp("redis"))) as made:
        yield made


@pytest.fixture(scope="module", params=["prefork", "threads", "solo"])
def worker(
    request: pytest.FixtureRequest, server: RedisServer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Worker]:
    number = 1 + 2 * ["prefork", "threads", "solo"].index(request.param)
    folder = tmp_path_factory.mktemp(request.param)
    with working(request.param, server.url(number), server.url(number + 1), folder) as made:
        yield made


@pytest.fixture(scope="module")
def prefork(server: RedisServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Worker]:
    """For tests that kill processes: one process at a time."""
    with working("prefork", server.url(7), server.url(8), tmp_path_factory.mktemp("own"), count=1) as made:
        yield made


# ---- the life of a task ----------------------------------------------------------------------------------------------


def test_a_task_from_start_to_end(worker: Worker) -> None:
    job, result = worker.send("report", 2)
    answer = result.get(timeout=PATIENCE_S)
    assert answer == {"ids": ["2-0", "3-0", "4-0"], "job": job}
    tape = worker.wait(job, "task_completed")
    assert [event_type for event_type, _ in tape] == [
        "task_started",
        "task_progress",
        "task_progress",
        "outline_generated",
        "task_completed",
    ]
    assert {data["task_type"] for _, data in tape} == {"celery_tasks.report"}
    assert (tape[1][1]["progress"], tape[2][1]["step"]) == ("collecting", 1)
    assert tape[3][1]["outline"] == {"title": "目录"}
    assert tape[4][1]["result"] == answer
    assert worker.owner(job) == "U"


def test_any_task_without_ids(worker: Worker) -> None:
    result = worker.tasks.plain.delay(7)
    assert result.get(timeout=PATIENCE_S) == 7
    tape = worker.wait(result.id, "task_completed")
    assert [event_type for event_type, _ in tape] == ["task_started", "task_completed"]
    assert (tape[0][1]["attempt"], tape[1][1]["result"]) == (1, 7)
    assert not worker.owner(result.id)


def test_failure_tells_no_secrets(worker: Worker) -> None:
    job, result = worker.send("fail")
    with pytest.raises(ValueError, match="hunter2"):
        result.get(timeout=PATIENCE_S)
    tape = worker.wait(job, "task_failed")
    assert [event_type for event_type, _ in tape] == ["task_started", "task_failed"]
    assert tape[1][1]["error"] == "cannot reach redis://user:***@db:6379/0"
    assert tape[1][1]["error_type"] == "ValueError"
    assert "traceback" not in tape[1][1]


def test_retries_in_order(worker: Worker) -> None:
    job, result = worker.send("again")
    assert result.get(timeout=PATIENCE_S) == 2
    tape = worker.wait(job, "task_completed")
    assert [(event_type, data.get("attempt")) for event_type, data in tape] == [
        ("task_started", 1),
        ("task_retried", 1),
        ("task_started", 2),
        ("task_retried", 2),
        ("task_started", 3),
        ("task_completed", None),
    ]


def test_revoked_before_it_began(worker: Worker) -> None:
    job, result = worker.send("plain", 1, countdown=0.5)
    result.revoke()
    tape = worker.wait(job, "task_revoked")
    assert [(event_type, data["terminated"]) for event_type, data in tape] == [("task_revoked", False)]
    assert worker.owner(job) == "U"


def test_results_that_are_not_told(worker: Worker) -> None:
    large, _ = worker.send("large")
    odd, _ = worker.send("odd")
    assert worker.wait(large, "task_completed")[1][1]["result_omitted"] == "too large"
    assert worker.wait(odd, "task_completed")[1][1]["result_omitted"] == "not JSON"


def test_two_at_once(worker: Worker) -> None:
    sent = [worker.send("slowly", 10, 0.02) for _ in range(2)]
    for job, result in sent:
        assert result.get(timeout=PATIENCE_S) == [f"{number}-0" for number in range(2, 12)]
        tape = worker.wait(job, "task_completed")
        assert [data["number"] for event_type, data in tape if event_type == "task_progress"] == list(range(10))
        assert worker.types(job) == ["task_started", *["task_progress"] * 10, "task_completed"]


def test_a_loop_and_a_client_for_each_task(worker: Worker) -> None:
    jobs = [f"seed-{uuid4()}" for _ in range(6)]
    results = [worker.tasks.generate_outline_from_query_task.delay(job, "技术文档") for job in jobs]
    for job, result in zip(jobs, results, strict=True):
        result.get(timeout=PATIENCE_S)
        tape = worker.tape(job)
        assert [event_type for event_type, _ in tape] == ["task_started", "outline_generated", "task_completed"]
        assert tape[0][1]["task_prompt"] == "技术文档"
        assert tape[2][1]["result"] == {"outline": {"title": "技术文档", "nodes": []}}


# ---- processes that die ----------------------------------------------------------------------------------------------


def test_a_killed_process(prefork: Worker, server: RedisServer) -> None:
    before = prefork.send("look")[1].get(timeout=PATIENCE_S)
    links = links_of(server, 8)
    assert links >= 1
    job, _ = prefork.send("die")
    tape = prefork.wait(job, "task_failed")
    assert [event_type for event_type, _ in tape] == ["task_started", "task_failed"]
    assert tape[1][1]["error_type"] == "WorkerLostError"
    after = prefork.send("look")[1].get(timeout=PATIENCE_S)
    assert after["pid"] != before["pid"]
    assert (after["threads"], after["lost"]) == (1, 0)
    # What its parent had opened to tell of the death would still be there, if it had been inherited.
    assert links_of(server, 8) == links


def test_a_terminated_task(prefork: Worker) -> None:
    job, result = prefork.send("nap", 30)
    prefork.wait(job, "task_started")
    result.revoke(terminate=True)
    tape = prefork.wait(job, "task_revoked")
    assert [event_type for event_type, _ in tape] == ["task_started", "task_revoked"]
    assert tape[1][1]["terminated"] is True


def test_the_time_limit(prefork: Worker) -> None:
    job, _ = prefork.send("too_long")
    prefork.wait(job, "task_failed")
    prefork.send("plain", 1)[1].get(timeout=PATIENCE_S)
    tape = prefork.tape(job)
    assert [event_type for event_type, _ in tape] == ["task_started", "task_failed"]
    assert tape[1][1]["error_type"] == "TimeLimitExceeded"


# ---- tapes that are away ---------------------------------------------------------------------------------------------


def test_the_server_of_the_tapes_restarts(server: RedisServer, tmp_path: Path) -> None:
    with (
        running(RedisServer("valkey", tmp_path / "tapes", appendonly="yes", appendfsync="always")) as tapes,
        working("prefork", server.url(9), tapes.url(), tmp_path, timeout=2) as worker,
    ):
        job, result = worker.send("slowly", 40, 0.05)
        worker.wait(job, "task_progress")
        tapes.kill()
        time.sleep(0.5)
        tapes.start()
        found = result.get(timeout=PATIENCE_S)
        tape = worker.wait(job, "task_completed")
        told = {data["number"]: f"{offset}-0" for offset, (_, data) in enumerate(tape, 1) if "number" in data}
        acknowledged = {number: entry_id for number, entry_id in enumerate(found) if entry_id is not None}
        assert acknowledged.items() <= told.items()
        assert found[-1] is not None, "it did not come back"
        assert worker.types(job)[0] == "task_started"


def test_no_tapes_at_all(server: RedisServer, tmp_path: Path, free_port: int) -> None:
    away = f"redis://:hunter2@127.0.0.1:{free_port}/0"
    with working("threads", server.url(11), away, tmp_path, timeout=0.5) as worker:
        began = time.monotonic()
        assert worker.send("slowly", 3, 0)[1].get(timeout=PATIENCE_S) == [None, None, None]
        assert worker.send("plain", 1)[1].get(timeout=PATIENCE_S) == 1
        assert time.monotonic() - began < PATIENCE_S
    text = worker.log.read_text()
    assert text.count("cannot be published") == 1
    assert "hunter2" not in text


# ---- the end of a worker ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pool", ["prefork", "threads"])
def test_a_worker_that_stops_leaves_nothing(pool: str, server: RedisServer, tmp_path: Path) -> None:
    number = 12 + 2 * ["prefork", "threads"].index(pool)
    tapes = server.url(number + 1)
    with working(pool, server.url(number), tapes, tmp_path) as worker:
        job, result = worker.send("look")
        result.get(timeout=PATIENCE_S)
        worker.wait(job, "task_completed")
        assert links_of(server, number + 1)
        worker.tapes.connection_pool.disconnect()
    assert worker.process.returncode == 0
    deadline = time.monotonic() + PATIENCE_S
    while f" db={number + 1} " in server.cli("CLIENT", "LIST"):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    text = worker.log.read_text()
    assert "Traceback" not in text, text
    assert "ResourceWarning" not in text, text


def test_a_task_without_set_up_says_so() -> None:
    from celery import Celery

    from livetape.events.celery import EventTask

    app = Celery("bare")

    @app.task(bind=True, base=EventTask)
    def bare(self: Any) -> None:
        self.progress("x")

    with pytest.raises(ConfigError, match="publishes no events"):
        bare.apply(throw=True)
    app.close()
