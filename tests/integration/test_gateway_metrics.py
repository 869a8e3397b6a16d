"""What `/metrics` of a gateway says, and what it does with an error hook that is not there: as processes."""

from __future__ import annotations

import json
import re
from pathlib import Path

import httpx2
import pytest
from websockets.asyncio.client import connect

from livetape.figures import FIGURES
from livetape_process import LivetapeProcess, ending, poll
from servers import RedisServer

pytestmark = [pytest.mark.needs("redis"), pytest.mark.slow]

SAMPLE = re.compile(r"^(\w+)(?:\{[^}]*\})? (\S+)$", re.MULTILINE)


def gateway_at(folder: Path, redis: RedisServer, **environment: str) -> LivetapeProcess:
    told = {"LIVETAPE_BUS": redis.url(), "LIVETAPE_ENABLE_AUTH": "false", **environment}
    return LivetapeProcess(folder / "site", "serve", "gateway", environment=told)


def figures(gateway: LivetapeProcess) -> dict[str, float]:
    text = httpx2.get(f"{gateway.url}/metrics", trust_env=False).text
    return {name.removeprefix("livetape_"): float(value) for name, value in SAMPLE.findall(text)}


async def test_every_figure_is_a_known_one_and_the_age_of_the_link_rises(
    tmp_path: Path, own_redis: RedisServer
) -> None:
    gateway = gateway_at(tmp_path, own_redis)
    with ending(gateway):
        gateway.start()
        async with connect(gateway.ws_url, proxy=None) as ws:
            await ws.send(json.dumps({"method": "subscribe_job", "data": {"job_id": "J"}}))
            await ws.recv()
            job = {"event_type": "task_progress", "data": {}}
            assert httpx2.post(f"{gateway.url}/api/jobs/J/events", json=job, trust_env=False).status_code == 201
            assert json.loads(await ws.recv())["offset"] == 1
            poll("the subscription is counted", lambda: figures(gateway).get("gateway_subscriptions") == 1)
            told = figures(gateway)
        ours = {
            re.sub(r"_(bucket|sum|count|created)$", "", name)
            for name in told
            if not name.startswith(("python_", "process_"))
        }
        assert {name for name in ours if name not in FIGURES and f"{name}_total" not in FIGURES} == set()
        assert ours >= {
            "websocket_connections_total",
            "gateway_topics",
            "gateway_event_streams",
            "gateway_outbox_bytes",
            "gateway_outbox_largest_bytes",
            "gateway_events_total",
            "gateway_deliveries_total",
            "gateway_fan_out_seconds",
            "bus_link_age_seconds",
        }
        assert told["bus_link_age_seconds"] < 12
        own_redis.stop()
        poll("the age of the link rises", lambda: figures(gateway)["bus_link_age_seconds"] > 12, timeout=40)


def test_an_error_hook_that_is_not_there(tmp_path: Path, own_redis: RedisServer) -> None:
    gateway = gateway_at(tmp_path, own_redis, LIVETAPE_ERROR_HOOK="no_such_module:hook")
    with ending(gateway):
        gateway.spawn()
        assert gateway.wait() == 3
    assert "LIVETAPE_ERROR_HOOK" in gateway.output()
