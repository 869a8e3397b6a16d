"""Celery on a Redis of the run, one worker of two processes: celery_peer.py SCENARIO '{"url": …}'. Prints JSON.

Nothing of it is durable: Redis keeps it in memory.
"""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

from celery import Celery, group

URL = os.environ.get("BENCH_REDIS", "redis://127.0.0.1:1/0")
app = Celery("celery_peer", broker=URL, backend=URL)
app.conf.update(worker_prefetch_multiplier=16, task_ignore_result=False, broker_connection_retry_on_startup=True)


@app.task(name="bench.begun")
def begun(value: int) -> float:
    return time.time()


def measure_start(times: int) -> list[float]:
    found = []
    for n in range(times + 5):
        began = time.time()
        found.append((begun.delay(n).get(timeout=30) - began) * 1000)
    return found[5:]


def measure_throughput(executions: int) -> dict[str, float]:
    group(begun.s(n) for n in range(50))().get(timeout=60)
    began = time.perf_counter()
    answers = [begun.delay(n) for n in range(executions)]
    for answer in answers:
        answer.get(timeout=60)
    return {"queued": executions / (time.perf_counter() - began)}


if __name__ == "__main__":
    scenario, arguments = sys.argv[1], json.loads(sys.argv[2])
    url = arguments.pop("url")
    if url != URL:
        os.execve(sys.executable, [sys.executable, *sys.argv], os.environ | {"BENCH_REDIS": url})
    words = [sys.executable, "-m", "celery", "-A", "celery_peer", "worker", "-c", "2", "-l", "ERROR"]
    words += ["--without-gossip", "--without-mingle", "--without-heartbeat"]
    worker = subprocess.Popen(words, cwd=Path(__file__).parent, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        begun.delay(0).get(timeout=60)
        measures = {"start": measure_start, "throughput": measure_throughput}
        print("RESULT " + json.dumps(measures[scenario](**arguments)), flush=True)
    finally:
        worker.terminate()
        worker.wait(30)
