"""DBOS on a PostgreSQL of the run: dbos_peer.py SCENARIO '{"url": …}'. Prints JSON."""

import json
import sys
import time

from dbos import DBOS

begun: dict[str, float] = {}


@DBOS.step()
def step(value: int) -> int:
    return value


@DBOS.workflow()
def chain(length: int) -> int:
    value = 1
    for _ in range(length):
        value = step(value)
    return value


@DBOS.workflow()
def one(value: int) -> int:
    begun[str(DBOS.workflow_id)] = time.perf_counter()
    return step(value)


def measure_chain(nodes: int, times: int) -> list[float]:
    chain(10)
    found = []
    for _ in range(times):
        began = time.perf_counter()
        chain(nodes)
        found.append((time.perf_counter() - began) * 1000 / nodes)
    return found


def measure_start(times: int) -> list[float]:
    queue, found = DBOS.register_queue("bench"), []
    for n in range(times + 2):
        began = time.perf_counter()
        handle = queue.enqueue(one, n)
        handle.get_result()
        found.append((begun[handle.workflow_id] - began) * 1000)
    return found[2:]


def measure_throughput(executions: int) -> dict[str, float]:
    """`queued`: as ours, through the queue. `direct`: in the process that starts them, from one thread."""
    for handle in [DBOS.start_workflow(one, n) for n in range(20)]:
        handle.get_result()
    began = time.perf_counter()
    for handle in [DBOS.start_workflow(one, n) for n in range(executions)]:
        handle.get_result()
    direct = executions / (time.perf_counter() - began)
    queue = DBOS.register_queue("bench")
    queue.enqueue(one, 0).get_result()
    began = time.perf_counter()
    for handle in [queue.enqueue(one, n) for n in range(executions)]:
        handle.get_result()
    return {"direct": direct, "queued": executions / (time.perf_counter() - began)}


if __name__ == "__main__":
    scenario, arguments = sys.argv[1], json.loads(sys.argv[2])
    DBOS(config={"name": "bench", "system_database_url": arguments.pop("url"), "log_level": "ERROR"})
    DBOS.launch()
    measures = {"chain": measure_chain, "start": measure_start, "throughput": measure_throughput}
    print("RESULT " + json.dumps(measures[scenario](**arguments)), flush=True)
    DBOS.destroy()
