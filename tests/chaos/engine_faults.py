"""What is done to a site of the engine. Each fault returns when it is over and says what it really did."""

from __future__ import annotations

import asyncio
import random
import signal
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, Final, TypeAlias

from chaos.engine_checker import Fault
from chaos.engine_site import LEASE_S, EngineSite, lives, send
from chaos.proxy import Proxy


@dataclass
class Done:
    """What a fault did; `EngineSite` processes by their number."""

    pids: tuple[int, ...] = ()
    interrupts: bool = False
    zombies: tuple[int, ...] | None = ()
    delays: bool = False
    detail: dict[str, Any] = field(default_factory=dict)


Injection: TypeAlias = Callable[[EngineSite, random.Random], Awaitable[Done]]

ORPHANED_S: Final = 15.0
GONE_S: Final = 30.0
"""What the long faults last: longer than leases, back-offs of links, and the time-outs of single calls."""


async def worker_killed(site: EngineSite, rng: random.Random) -> Done:
    """SIGKILL to one process; its supervisor starts another."""
    pid = rng.choice(await site.workers())
    existed = send(pid, signal.SIGKILL)
    killed = time.monotonic()
    after = await site.workers(without=frozenset({pid}))
    return Done((pid,), True, detail={"existed": existed, "replaced_s": time.monotonic() - killed, "now": after})


async def worker_paused(site: EngineSite, rng: random.Random) -> Done:
    """SIGSTOP for longer than its leases, then SIGCONT: it wakes up and everything has gone on without it."""
    pid = rng.choice(await site.workers())
    seconds = LEASE_S + rng.uniform(1.0, 2.5)
    existed = send(pid, signal.SIGSTOP)
    await asyncio.sleep(seconds)
    woke = send(pid, signal.SIGCONT)
    return Done((pid,), True, (pid,), detail={"existed": existed, "woke": woke, "stopped_s": seconds})


async def worker_stopped(site: EngineSite, rng: random.Random) -> Done:
    """SIGTERM to one process: it hands back what it runs."""
    pid = rng.choice(await site.workers())
    existed = send(pid, signal.SIGTERM)
    told = time.monotonic()
    await site.workers(without=frozenset({pid}))
    return Done((pid,), True, detail={"existed": existed, "replaced_s": time.monotonic() - told})


async def supervisor_killed(site: EngineSite, rng: random.Random) -> Done:
    """SIGKILL to the process that looks after the workers; a new one starts at once. The orphans end by themselves."""
    orphans = await site.workers()
    await asyncio.to_thread(site.supervisor.kill)
    killed = time.monotonic()
    await asyncio.to_thread(site.supervisor.start)
    ready_s = time.monotonic() - killed
    await site.workers()
    while any(map(lives, orphans)) and time.monotonic() - killed < ORPHANED_S:
        await asyncio.sleep(0.05)  # other processes
    left = [pid for pid in orphans if lives(pid)]
    detail = {"ready_s": ready_s, "orphans_ended_s": time.monotonic() - killed, "orphans_left": left}
    return Done(tuple(orphans), True, detail=detail)


async def postgres_restarted(site: EngineSite, rng: random.Random) -> Done:
    """An immediate shutdown, as before a crash recovery; away for a moment."""
    away = rng.uniform(0.1, 1.5)
    stopped = time.monotonic()
    await asyncio.to_thread(site.postgres.stop, immediate=True)
    await asyncio.sleep(away)
    await asyncio.to_thread(site.postgres.start)
    return Done((), True, detail={"away_s": time.monotonic() - stopped})


async def rabbit_restarted(site: EngineSite, rng: random.Random) -> Done:
    """SIGKILL to the broker; it comes back with its durable messages."""
    killed = time.monotonic()
    await asyncio.to_thread(site.rabbit.kill)
    await asyncio.to_thread(site.rabbit.start)
    return Done(detail={"away_s": time.monotonic() - killed})


async def redis_restarted(site: EngineSite, rng: random.Random) -> Done:
    """SIGKILL; it comes back with its data."""
    killed = time.monotonic()
    await asyncio.to_thread(site.redis.kill)
    await asyncio.sleep(rng.uniform(0.1, 1.5))
    await asyncio.to_thread(site.redis.start)
    return Done(detail={"away_s": time.monotonic() - killed})


async def database_cut(site: EngineSite, rng: random.Random) -> Done:
    """Between workers and database nothing passes, for longer than a lease; then connections break."""
    seconds = LEASE_S + rng.uniform(0.5, 1.5)
    site.database_network.silent = True
    await asyncio.sleep(seconds)
    site.database_network.cut()
    site.database_network.silent = False
    return Done((), True, detail={"silent_s": seconds})


async def database_dropped(site: EngineSite, rng: random.Random) -> Done:
    """Every connection of a worker to the database breaks; new ones are let through."""
    site.database_network.cut()
    return Done((), True, ())


async def broker_cut(site: EngineSite, rng: random.Random) -> Done:
    """Between workers and broker nothing passes for a while; then connections break."""
    seconds = rng.uniform(1.0, 5.0)
    site.broker_network.silent = True
    await asyncio.sleep(seconds)
    site.broker_network.cut()
    site.broker_network.silent = False
    return Done(detail={"silent_s": seconds})


async def api_killed(site: EngineSite, rng: random.Random) -> Done:
    """SIGKILL; it comes back on its port."""
    killed = time.monotonic()
    await asyncio.to_thread(site.api.kill)
    await asyncio.sleep(rng.uniform(0.0, 0.5))
    await asyncio.to_thread(site.api.start)
    return Done(detail={"away_s": time.monotonic() - killed})


async def postgres_gone(site: EngineSite, rng: random.Random) -> Done:
    """Shut down at once, and away for long: nothing can be started, claimed, renewed or recorded."""
    stopped = time.monotonic()
    await asyncio.to_thread(site.postgres.stop, immediate=True)
    await asyncio.sleep(GONE_S)
    await asyncio.to_thread(site.postgres.start)
    return Done((), True, detail={"away_s": time.monotonic() - stopped})


async def rabbit_gone(site: EngineSite, rng: random.Random) -> Done:
    """SIGKILL, and away for long: what is started then waits in the database."""
    killed = time.monotonic()
    await asyncio.to_thread(site.rabbit.kill)
    await asyncio.sleep(GONE_S)
    await asyncio.to_thread(site.rabbit.start)
    return Done(delays=True, detail={"away_s": time.monotonic() - killed})


async def database_gone(site: EngineSite, rng: random.Random) -> Done:
    """Between workers and database nothing passes for long, and nobody is told."""
    return Done((), True, detail=await _silence(site.database_network))


async def broker_gone_from_workers(site: EngineSite, rng: random.Random) -> Done:
    """No doorbell comes to a worker, and no acknowledgement to the broker, for long: what was taken comes again."""
    return Done(delays=True, detail=await _silence(site.broker_network))


async def broker_gone_from_api(site: EngineSite, rng: random.Random) -> Done:
    """What the API publishes is swallowed for long, and so are the confirms of what has got through."""
    return Done(detail=await _silence(site.publishing_network))


async def _silence(network: Proxy) -> dict[str, Any]:
    network.silent = True
    await asyncio.sleep(GONE_S)
    network.cut()
    network.silent = False
    return {"silent_s": GONE_S}


FAULTS: Final[dict[str, Injection]] = {
    "worker killed": worker_killed,
    "worker paused": worker_paused,
    "worker stopped": worker_stopped,
    "supervisor killed": supervisor_killed,
    "PostgreSQL restarted": postgres_restarted,
    "RabbitMQ restarted": rabbit_restarted,
    "Redis restarted": redis_restarted,
    "database cut": database_cut,
    "database connections dropped": database_dropped,
    "broker cut": broker_cut,
    "API killed": api_killed,
}


LONG: Final[dict[str, Injection]] = {
    "PostgreSQL gone": postgres_gone,
    "RabbitMQ gone": rabbit_gone,
    "database gone from workers": database_gone,
    "broker gone from workers": broker_gone_from_workers,
    "broker gone from API": broker_gone_from_api,
}
"""Each `GONE_S` long."""


async def inject(kind: str, site: EngineSite, rng: random.Random) -> Fault:
    """Do it, and say what was done."""
    begun = time.time()
    done = await (FAULTS | LONG)[kind](site, rng)
    return Fault(kind, begun, time.time(), done.pids, done.interrupts, done.zombies, done.delays, done.detail)
