"""Measures the engine in pieces, from outside: API, workers, PostgreSQL, RabbitMQ and Redis, each a process."""

from __future__ import annotations

import asyncio
import os
import signal
import statistics
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

import asyncpg
import httpx2

from acceptance.api import Api, Started, graph, node
from acceptance.deployment import Deployment

STORE = "1ff065e9-88e8-4358-9d82-8dc91f622ba9"
STREAM = "c4a05001-0000-4000-8000-000000000001"
DISK = {"fsync": "on", "full_page_writes": "on", "shared_buffers": "128MB"}
AT_ONCE = 16
SETTLED_S = 4.0
"""Until both workers, and the supervisor, have loaded what they need."""


@contextmanager
def site(folder: Path, *, processes: int, **engine: float) -> Iterator[Deployment]:
    """Its PostgreSQL waits for the disk. `engine`: settings of the engine."""
    env = {f"LIVETAPE_ENGINE__{name.upper()}": str(value) for name, value in engine.items()}
    deployment = Deployment(folder, processes=processes, env=env)
    deployment.postgres.options |= DISK
    deployment.start()
    try:
        deployment.wait_workers(processes)
        yield deployment
    finally:
        deployment.stop()


def seconds(text: str) -> float:
    return datetime.fromisoformat(text.replace("Z", "+00:00")).timestamp()


@asynccontextmanager
async def database(deployment: Deployment) -> AsyncIterator[Any]:
    connection = await asyncpg.connect(deployment.environment["LIVETAPE_DATABASE"])
    try:
        yield connection
    finally:
        await connection.close()


async def counted(connection: Any, status: str) -> int:
    return int(await connection.fetchval("SELECT count(*) FROM execution WHERE status = $1", status))


# ---- start -----------------------------------------------------------------------------------------------------------


def measure_start(folder: Path, times: int) -> dict[str, list[float]]:
    """Milliseconds from sending the request to `started_at`, and from the commit of the start to it."""
    sent_to_started, committed_to_started = [], []
    with site(folder, processes=1) as deployment, Api(deployment.url) as api:
        created = api.create(graph([node("one", STORE, input=1)], [], "one"))

        async def begun(execution: str) -> tuple[float, float]:
            async with database(deployment) as connection:
                row = await connection.fetchrow(
                    "SELECT (SELECT min(time) FROM event WHERE event.tape_id = execution.tape_id), started_at"
                    " FROM execution WHERE id = $1",
                    execution,
                )
            return row[0] / 1e6, row[1] / 1e6

        for n in range(times + 10):
            sent = time.time()
            started = Started(created, api.ok(api.start_raw(created)))
            api.wait(started)
            committed, at = asyncio.run(begun(started.id))
            if n >= 10:
                sent_to_started.append((at - sent) * 1000)
                committed_to_started.append((at - committed) * 1000)
    return {"sent_to_started": sent_to_started, "committed_to_started": committed_to_started}


# ---- stop ------------------------------------------------------------------------------------------------------------


def measure_stop(folder: Path, executions: int, renew_s: float = 30.0) -> dict[str, Any]:
    """Stop them all at once, half of them running and half of them queued: seconds from each request to `ended_at`.

    Leases are renewed every 30 s only: whoever waits for that is seen at once.
    """
    running = executions // 2
    limits = {"concurrency": running, "lease_seconds": 3 * renew_s, "renew_seconds": renew_s}
    with site(folder, processes=1, **limits) as deployment, Api(deployment.url) as api:
        created = api.create(graph([node("wait", STREAM, count=1, pause=600)], [], "wait"))
        return asyncio.run(_stop_all(deployment, created, executions, running))


async def _stop_all(deployment: Deployment, created: dict[str, Any], executions: int, running: int) -> dict[str, Any]:
    begin = f"/api/graphs/{created['id']}/execute/{created['version']}"
    sent: dict[str, float] = {}
    room = asyncio.Semaphore(AT_ONCE)

    async def post(http: httpx2.AsyncClient, path: str, body: Any = None) -> Any:
        async with room:
            at = time.time()
            answer = await http.post(path, json=body)
        answer.raise_for_status()
        return at, answer.json()

    async with (
        httpx2.AsyncClient(base_url=deployment.url, trust_env=False, timeout=60) as http,
        database(deployment) as connection,
    ):
        started = await asyncio.gather(*(post(http, begin, {"inputs": {}}) for _ in range(executions)))
        ids = [answer["id"] for _, answer in started]
        async with asyncio.timeout(60):
            while await counted(connection, "RUNNING") < running:
                await asyncio.sleep(0.05)
        began = time.time()

        async def stop(execution: str) -> None:
            at, _ = await post(http, f"/api/graphs/{created['id']}/executions/{execution}/stop")
            sent[execution] = at

        # The last first: were the running ones stopped first, the others would take their slots before their turn came.
        await asyncio.gather(*(stop(execution) for execution in reversed(ids)))
        answered = time.time()
        async with asyncio.timeout(120):
            while await counted(connection, "TERMINATED") < executions:
                await asyncio.sleep(0.02)
        rows = await connection.fetch("SELECT id, started_at, ended_at FROM execution")
    waits = {row["id"]: row["ended_at"] / 1e6 - sent[row["id"]] for row in rows}
    ran = [waits[row["id"]] for row in rows if row["started_at"] is not None]
    return {
        "executions": executions,
        "running": len(ran),
        "seconds": sorted(waits.values()),
        "seconds_of_running": sorted(ran),
        "all_asked_s": answered - began,
        "all_over_s": max(row["ended_at"] for row in rows) / 1e6 - began,
    }


# ---- killed ----------------------------------------------------------------------------------------------------------


def measure_killed(folder: Path, times: int, executions: int = 4) -> list[float]:
    """SIGKILL to one of two worker processes: seconds until all that it ran are running again.

    The other one has room for them.
    """
    found = []
    with site(folder, processes=2, concurrency=4 * executions) as deployment, Api(deployment.url) as api:
        created = api.create(graph([node("wait", STREAM, count=1, pause=600)], [], "wait"))
        for _ in range(times):
            # New ones each time: what is interrupted again and again waits longer each time.
            ids = [str(api.ok(api.start_raw(created))["id"]) for _ in range(2 * executions)]
            time.sleep(SETTLED_S)
            found.append(asyncio.run(_kill_one(deployment, len(ids))))
            deployment.wait_workers(2)
            for execution in ids:
                api.ok(api.http.post(f"/api/graphs/{created['id']}/executions/{execution}/stop"))
            for execution in ids:
                api.wait(Started(created, {"id": execution}))
    return found


async def _kill_one(deployment: Deployment, executions: int) -> float:
    async with database(deployment) as connection, asyncio.timeout(60):
        while await counted(connection, "RUNNING") < executions:
            await asyncio.sleep(0.02)
        rows = await connection.fetch("SELECT id, lease_owner, lease_no FROM execution WHERE status = 'RUNNING'")
        owners = [str(row["lease_owner"]) for row in rows]
        owner = statistics.mode(owners)
        victims = {row["id"]: row["lease_no"] for row in rows if row["lease_owner"] == owner}
        # Its supervisor told it the name of its leases.
        (pid,) = (pid for pid in deployment.worker.workers() if owner in Path(f"/proc/{pid}/environ").read_text())
        began = time.time()
        os.kill(pid, signal.SIGKILL)
        while True:
            now = await connection.fetch(
                "SELECT id, lease_no FROM execution WHERE status = 'RUNNING' AND id = ANY($1)", list(victims)
            )
            if sum(row["lease_no"] > victims[row["id"]] for row in now) == len(victims):
                return time.time() - began
            await asyncio.sleep(0.005)
