"""livetape in pieces, as a larger site runs it: API, workers, PostgreSQL, RabbitMQ and Redis, each a process."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Self

from acceptance.server import PATH
from livetape_process import LivetapeProcess, poll
from postgres_server import PostgresServer
from postgres_server import running as running_postgres
from rabbit import RabbitServer
from rabbit import running as running_rabbit
from servers import RedisServer


class WorkerProcesses(LivetapeProcess):
    """`livetape serve worker`. It listens on no port: it is ready when it says so."""

    def arguments(self) -> list[str]:
        return [*self.words]

    def is_ready(self) -> bool:
        return "Stop       Ctrl-C" in self.output().rpartition("--- start")[2]


class Deployment:
    """A database and servers of its own, one API and `processes` worker processes. Ends all that it started."""

    def __init__(self, folder: Path, *, processes: int = 2, env: Mapping[str, str] | None = None) -> None:
        self.folder = folder
        self.postgres = PostgresServer()
        self.rabbit = RabbitServer(folder / "rabbitmq")
        self.redis = RedisServer("redis", folder / "redis")
        self._processes = processes
        self._env = {**PATH, "LIVETAPE_BLOCKS": "chaosblocks:blocks", **(env or {})}
        self._stack = ExitStack()
        self.environment: dict[str, str] = {}
        self.api: LivetapeProcess
        self.worker: WorkerProcesses

    @property
    def url(self) -> str:
        return self.api.url

    def start(self) -> Self:
        with ExitStack() as stack:
            stack.enter_context(running_rabbit(self.rabbit))
            stack.enter_context(running_postgres(self.postgres))
            self.redis.start()
            stack.callback(self.redis.forget)
            stack.callback(self.redis.stop)
            self.environment = {
                **self._env,
                "LIVETAPE_DATABASE": self.postgres.new_database(),
                "LIVETAPE_QUEUE": self.rabbit.url,
                "LIVETAPE_BUS": self.redis.url(),
                "LIVETAPE_DATA_DIR": str(self.folder / "data"),
            }
            self.api = self.new_api()
            self.worker = self.more_workers(self._processes)
            stack.callback(self.api.end)
            stack.callback(self.worker.end)
            self.api.start()
            self.worker.start()
            self._stack = stack.pop_all()
        return self

    def new_api(self) -> LivetapeProcess:
        """Not started yet."""
        return LivetapeProcess(self.folder, "serve", "api", environment=self.environment)

    def more_workers(self, processes: int, *, metrics_port: int | None = None) -> WorkerProcesses:
        """Not started yet."""
        words = ["serve", "worker", "--processes", str(processes)]
        if metrics_port is not None:
            words += ["--metrics-port", str(metrics_port)]
        return WorkerProcesses(self.folder, *words, environment=self.environment, port=metrics_port)

    def wait_workers(self, count: int) -> set[int]:
        """The numbers of the processes that work, when there are so many."""
        poll(f"{count} workers", lambda: len(self.worker.workers()) == count)
        return self.worker.workers()

    def stop(self) -> None:
        with self._stack:
            self.worker.stop()
            self.api.stop()
