"""A channel on which nothing happens for a long time still delivers: scripts/quiet-channel [--minutes 10] [--out FILE].

A real Redis, time-outs as short as people set them for redis-py, and listeners of every kind. Nothing is published
for the whole time; then one event, which each of them must have within a second, having lost no link meanwhile.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import tempfile
import time
from pathlib import Path

import redis.asyncio
from pydantic import BaseModel

from livetape.events.buses import AsyncRedisEventBus
from livetape.events.typed import EventBus
from servers import RedisServer, running

MUST_ARRIVE_S = 1.0


class Sign(BaseModel):
    """The one event."""

    text: str


class SignBus(AsyncRedisEventBus[Sign]):
    """The seed's way to say it."""

    Model = Sign
    event_bus_name = "signs"


async def stay_quiet(server: RedisServer, seconds: float) -> dict[str, object]:
    """Listen, wait, publish once; what came of it."""
    url = server.url() + "?socket_timeout=3&socket_connect_timeout=3"
    # A client with a read time-out, as in an application that has set one for everything.
    client = redis.asyncio.Redis.from_url(server.url(), socket_timeout=3)
    by_url, by_client = EventBus(Sign, name="signs", url=url), SignBus(client)
    durable = EventBus(Sign, name="kept", url=url, durable=True)
    arrived: dict[str, float] = {}

    async def wait_for(name: str, listener: object) -> None:
        event = await anext(listener)  # type: ignore[call-overload]
        assert event == Sign(text="now")
        arrived[name] = time.monotonic()

    listeners = {
        "exact": by_url.listen("a/b"),
        "pattern": by_url.listen("a/*"),
        "all": by_url.listen("*"),
        "durable": durable.listen("a/b"),
        "by client": by_client.listen_events("a/b"),
    }
    async with asyncio.TaskGroup() as tasks:
        for name, listener in listeners.items():
            tasks.create_task(wait_for(name, listener))
        await asyncio.sleep(seconds)
        connections = (await client.info("stats"))["total_connections_received"]
        begun = time.monotonic()
        async with EventBus(Sign, name="signs", url=url) as other:
            result = await other.publish(Sign(text="now"), "a/b")
        await durable.publish(Sign(text="now"), "a/b")
        async with asyncio.timeout(30):
            while len(arrived) < len(listeners):
                await asyncio.sleep(0.01)
    for bus in (by_url, durable):
        await bus.close()
    await by_client.close()
    await client.aclose()
    return {
        "quiet_s": seconds,
        "receivers": result.receivers,
        "late_ms": {name: round((at - begun) * 1000, 1) for name, at in arrived.items()},
        "connections_made": connections,
        "passed": all(at - begun < MUST_ARRIVE_S for at in arrived.values()),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, running(RedisServer("redis", Path(folder))) as server:
        report = asyncio.run(stay_quiet(server, options.minutes * 60))
    text = json.dumps(report, indent=2)
    print(text)
    if options.out:
        options.out.write_text(text + "\n")
    raise SystemExit(0 if report["passed"] else 1)


if __name__ == "__main__":
    main()
