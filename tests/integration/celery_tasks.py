"""The Celery application that `test_celery.py` has worked by real workers. `BROKER` and `TAPES` are Redis URLs."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
import time
from typing import Any

import redis.asyncio
from celery import Celery

from livetape.events.celery import EventTask, setup_events
from livetape.events.streams import RedisStreamPublisher

app = Celery("celery_tasks", broker=os.environ["BROKER"], backend=os.environ["BROKER"])
app.conf.update(broker_connection_retry_on_startup=True, worker_prefetch_multiplier=1, result_expires=600)
events = setup_events(app, os.environ["TAPES"], job_id="job", owner="user", timeout=float(os.environ["TIMEOUT"]))


@app.task(bind=True, base=EventTask)
def report(self: Any, pages: int) -> dict[str, Any]:
    """What a task of ours does; answers with the ids that it was given."""
    ids = [self.progress("collecting", step=number) for number in range(pages)]
    ids.append(self.publish("outline_generated", outline={"title": "目录"}))
    return {"ids": ids, "job": self.job_id}


@app.task
def plain(number: int) -> int:
    return number


@app.task
def fail() -> None:
    raise ValueError("cannot reach redis://user:hunter2@db:6379/0")


@app.task(bind=True, max_retries=2)
def again(self: Any) -> int:
    if self.request.retries < 2:
        raise self.retry(exc=ValueError("not yet"), countdown=0)
    return int(self.request.retries)


@app.task
def large() -> str:
    return "x" * 100_000


@app.task(ignore_result=True)
def odd() -> object:
    return object()


@app.task
def nap(seconds: float) -> None:
    time.sleep(seconds)


@app.task(time_limit=1)
def too_long() -> None:
    time.sleep(30)


@app.task
def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


@app.task(bind=True, base=EventTask)
def slowly(self: Any, times: int, pause: float) -> list[str | None]:
    found = []
    for number in range(times):
        found.append(self.progress("going on", number=number))
        time.sleep(pause)
    return found


@app.task(bind=True, base=EventTask)
def look(self: Any) -> dict[str, Any]:
    """What this process has open once it has published."""
    self.progress("looking")
    return {
        "pid": os.getpid(),
        "threads": sum(thread.name.startswith("livetape") for thread in threading.enumerate()),
        "lost": events.lost,
    }


# ---- as it is written without us: a loop and a client for each task --------------------------------------------------


async def get_redis_client() -> redis.asyncio.Redis:
    return redis.asyncio.from_url(os.environ["TAPES"], decode_responses=True)


@app.task
def generate_outline_from_query_task(job_id: str, task_prompt: str) -> None:
    async def _generate_outline() -> None:
        redis_client = await get_redis_client()
        publisher = RedisStreamPublisher(redis_client)

        try:
            await publisher.publish_task_started(job_id, "outline_generation", task_prompt=task_prompt)
            outline = {"title": task_prompt, "nodes": []}
            await publisher.publish_outline_generated(job_id, outline)
            await publisher.publish_task_completed(job_id, "outline_generation", result={"outline": outline})
        except Exception as e:
            await publisher.publish_task_failed(job_id, "outline_generation", error=str(e))
            raise

    asyncio.run(_generate_outline())
