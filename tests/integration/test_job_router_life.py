"""The job events of an application: opened and closed with it."""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
import sys
from pathlib import Path

import httpx2
import pytest

import support
from integration.job_site import PATIENCE_S, SSE, Site, served
from livetape.errors import ClosedError, ConfigError
from livetape.events.channel import job_tape
from livetape.gateway.fastapi import JobEvents
from servers import RedisServer


async def test_the_dependency(site: Site) -> None:
    assert (await site.http.post("/reports/R")).json() == "R"
    assert (await site.get(job="R")).json()["offset"] == 1


async def test_an_id_may_have_a_slash(site: Site) -> None:
    await site.publish("task_started", job="a/b")
    assert (await site.get(job="a/b")).json()["offset"] == 1
    assert (await site.get(job="a%2Fb")).json()["offset"] == 1
    assert (await site.get(job="a*")).status_code == 400


async def test_opened_by_several_closed_by_the_last(url: str) -> None:
    events = JobEvents(url)
    with pytest.raises(ClosedError):
        await events()
    for _ in range(2):
        async with events:
            async with events.lifespan():
                await events.publisher.publish_event("J", {"event_type": "x"})
            assert (await events.log.describe(job_tape("J"))) is not None
        with pytest.raises(ClosedError):
            _ = events.reader


def test_nothing_durable_is_refused() -> None:
    async def opened() -> None:
        async with JobEvents("memory://"):
            pass

    with pytest.raises(ConfigError, match="durable"):
        asyncio.run(opened())
    for wrong in ({}, {"url": "redis://h", "client": object()}):
        with pytest.raises(ConfigError):
            JobEvents(**wrong)


async def test_both_routes_are_described(site: Site) -> None:
    found = (await site.http.get("/openapi.json")).json()["paths"]["/api/jobs/{job_id}/events"]
    assert {parameter["name"] for parameter in found["get"]["parameters"]} >= {"job_id", "after", "since", "limit"}
    assert "event_type" in json.dumps(found["post"]["requestBody"])


@pytest.mark.slow
@pytest.mark.needs("redis")
async def test_a_log_that_is_away_is_told(own_redis: RedisServer) -> None:
    async with served(own_redis.url()) as site:
        await site.publish("task_started")
        own_redis.kill()
        for answer in (await site.get(), await site.get(headers=SSE), await site.post({"event_type": "x"})):
            assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
            assert str(own_redis.port) not in answer.text
        own_redis.start()
        assert (await site.post({"event_type": "x"})).status_code == 201


APP = """
import os
from fastapi import FastAPI
from livetape.gateway.fastapi import JobEvents, create_job_router
job_events = JobEvents(os.environ["TAPES"])
app = FastAPI()
app.include_router(create_job_router(job_events, authenticate=lambda: "U"))
"""


@pytest.mark.slow
async def test_streams_let_the_server_stop(tmp_path: Path) -> None:
    (tmp_path / "site_app.py").write_text(APP)
    port = support.free_port()
    words = [sys.executable, "-m", "uvicorn", "site_app:app", "--port", str(port), "--no-access-log"]
    environment = {"TAPES": f"sqlite:///{tmp_path}/tapes.db", "PYTHONPATH": str(tmp_path), "PATH": ""}
    process = subprocess.Popen(words, cwd=tmp_path, env=environment, stderr=subprocess.PIPE)
    try:
        async with httpx2.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=PATIENCE_S, trust_env=False) as http:
            async with asyncio.timeout(PATIENCE_S):
                while True:
                    try:
                        assert (await http.post("/jobs/J/events", json={"event_type": "x"})).status_code == 201
                    except httpx2.TransportError:
                        await asyncio.sleep(0.1)
                    else:
                        break
            async with http.stream("GET", "/jobs/J/events", headers=SSE) as answer:
                lines = answer.aiter_lines()
                assert (await anext(lines)).startswith("retry:")
                process.send_signal(signal.SIGTERM)
                async with asyncio.timeout(5):
                    async for _ in lines:
                        pass
        assert process.wait(5) in {0, -signal.SIGTERM}
    finally:
        process.kill()
        _, output = process.communicate()
    assert b"Traceback" not in output, output.decode()
