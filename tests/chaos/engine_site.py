"""The engine in pieces, which reach each other over networks that can be cut: the workers the database and the broker,
the API the broker."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
from collections.abc import Mapping
from contextlib import AsyncExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from acceptance.deployment import Deployment, WorkerProcesses
from chaos.proxy import Proxy
from livetape_process import COMMAND, LivetapeProcess, clean_environment
from servers import RedisServer

PROCESSES: Final = 2
CONCURRENCY: Final = 12
LEASE_S: Final = 6.0
RENEW_S: Final = 1.0
SWEEP_S: Final = 0.5
GRACE_S: Final = 2.0
DOCTOR_S: Final = 60.0

ENGINE: Final = {
    "LIVETAPE_ENGINE__CONCURRENCY": str(CONCURRENCY),
    "LIVETAPE_ENGINE__LEASE_SECONDS": str(LEASE_S),
    "LIVETAPE_ENGINE__RENEW_SECONDS": str(RENEW_S),
    "LIVETAPE_ENGINE__SWEEP_SECONDS": str(SWEEP_S),
    "LIVETAPE_ENGINE__CANCEL_GRACE_SECONDS": str(GRACE_S),
    "LIVETAPE_GATEWAY__MAX_SOCKETS_PER_USER": "5000",  # all watchers are one user here
}


class _Pieces(Deployment):
    """Its processes are told the ports of proxies, its workers also what `workers_env` says."""

    def __init__(self, folder: Path, *, env: Mapping[str, str], workers_env: Mapping[str, str]) -> None:
        super().__init__(folder, processes=PROCESSES, env=env)
        # What it has answered for is on its disk.
        self.redis = RedisServer("redis", folder / "redis", appendonly="yes", appendfsync="always")
        self.ports: dict[int, int] = {}
        self.publishing_port = 0
        self._workers_env = dict(workers_env)

    def new_api(self) -> LivetapeProcess:
        made = super().new_api()
        _tell(made, "LIVETAPE_QUEUE", self.rabbit.port, self.publishing_port)
        return made

    def more_workers(self, processes: int) -> WorkerProcesses:
        made = super().more_workers(processes)
        for name in ("LIVETAPE_DATABASE", "LIVETAPE_QUEUE"):
            for real, proxied in self.ports.items():
                _tell(made, name, real, proxied)
        made.environment |= self._workers_env
        return made


def _tell(process: LivetapeProcess, name: str, real: int, proxied: int) -> None:
    process.environment[name] = process.environment[name].replace(f":{real}/", f":{proxied}/")


class EngineSite:
    """`async with EngineSite(folder) as site:`; everything that it started ends with it.

    `side_effects`: the file that blocks write to. `gone`: processes of workers that were seen once.
    """

    def __init__(
        self, folder: Path, *, env: Mapping[str, str] | None = None, workers_env: Mapping[str, str] | None = None
    ) -> None:
        self.side_effects = folder / "side-effects.txt"
        self.side_effects.touch()
        told = {**ENGINE, "CHAOS_SIDE_EFFECTS": str(self.side_effects), **(env or {})}
        self._pieces = _Pieces(folder, env=told, workers_env=workers_env or {})
        self.postgres, self.rabbit, self.redis = self._pieces.postgres, self._pieces.rabbit, self._pieces.redis
        self.database_network = Proxy(self.postgres.port)
        self.broker_network = Proxy(self.rabbit.port)
        self.publishing_network = Proxy(self.rabbit.port)
        self.seen_workers: set[int] = set()
        self._stack = AsyncExitStack()

    @property
    def url(self) -> str:
        return self._pieces.url

    @property
    def api(self) -> LivetapeProcess:
        return self._pieces.api

    @property
    def supervisor(self) -> LivetapeProcess:
        return self._pieces.worker

    async def __aenter__(self) -> Self:
        async with AsyncExitStack() as stack:
            for server, network in ((self.postgres, self.database_network), (self.rabbit, self.broker_network)):
                await stack.enter_async_context(network)
                self._pieces.ports[server.port] = network.port
            await stack.enter_async_context(self.publishing_network)
            self._pieces.publishing_port = self.publishing_network.port
            await asyncio.to_thread(self._pieces.start)
            stack.push_async_callback(self._end)
            await self.workers()
            self._stack = stack.pop_all()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._stack.aclose()

    async def _end(self) -> None:
        for pid in self.seen_workers:
            send(pid, signal.SIGCONT)
        try:
            await asyncio.to_thread(self._pieces.stop)
        finally:
            for pid in self.seen_workers:
                send(pid, signal.SIGKILL)

    async def workers(self, *, without: frozenset[int] = frozenset(), within_s: float = 30.0) -> list[int]:
        """The processes that work, when there are as many as there should be and none of `without`."""
        async with asyncio.timeout(within_s):
            while True:
                found = self.supervisor.workers() if self.supervisor.running else set()
                if len(found) == PROCESSES and not found & without:
                    self.seen_workers |= found
                    return sorted(found)
                await asyncio.sleep(0.02)  # other processes, which cannot wake us

    async def doctor(self) -> list[dict[str, Any]]:
        """What `livetape doctor executions` finds: executions that do not move, and why."""
        done = await asyncio.to_thread(
            subprocess.run,
            [COMMAND, "doctor", "executions", "--json"],
            env=clean_environment() | self._pieces.environment,
            capture_output=True,
            text=True,
            timeout=DOCTOR_S,
            check=False,
        )
        assert done.stdout.strip(), f"exit {done.returncode}: {done.stderr}"
        found: list[dict[str, Any]] = json.loads(done.stdout)
        return found

    def outputs(self) -> dict[str, str]:
        """What each piece has printed."""
        return {"api": self.api.output(), "workers": self.supervisor.output()}


def send(pid: int, number: signal.Signals) -> bool:
    """Whether there was still such a process of a worker. A number may have been given to somebody else since."""
    try:
        if b"livetape" not in Path(f"/proc/{pid}/cmdline").read_bytes():
            return False
        os.kill(pid, number)
    except (FileNotFoundError, ProcessLookupError):
        return False
    return True


def lives(pid: int) -> bool:
    """Whether it runs, or is stopped; one that has ended and was not looked after does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False
