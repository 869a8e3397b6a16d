"""Figures of the engine: scripts/bench-engine [--quick] [--only NAMES] [--out FILE].

PostgreSQL waits for the disk (fsync). Other engines are measured in the same run, in turns with ours. Medians.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from datetime import datetime
from pathlib import Path
from typing import Any

import machine
import peers
import site_figures as site
from inside import EFFECT, PURE

from postgres_server import PostgresServer
from postgres_server import running as running_postgres
from servers import RedisServer
from servers import running as running_redis

INSIDE = Path(__file__).with_name("inside.py")


def inside(scenario: str, **arguments: Any) -> Any:
    """Measure in a process of its own."""
    words = [sys.executable, str(INSIDE), scenario, json.dumps(arguments)]
    done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=300)
    if done.returncode:
        raise SystemExit(f"{scenario} {arguments}: {done.stderr[-3000:]}")
    return json.loads(done.stdout)


def percentile(values: list[float], percent: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, round(percent / 100 * (len(ordered) - 1)))]


def spread(values: list[float]) -> dict[str, Any]:
    figures = {"median": statistics.median(values), "p95": percentile(values, 95), "p99": percentile(values, 99)}
    figures |= {"min": min(values), "max": max(values)}
    return {name: round(value, 4) for name, value in figures.items()} | {"count": len(values)}


class Bench:
    """`row` prints what was measured as soon as it is known."""

    def __init__(self, folder: Path, stack: ExitStack, *, quick: bool) -> None:
        self.quick = quick
        self.folder = folder
        self._stack = stack
        self._postgres: PostgresServer | None = None
        self._redis: RedisServer | None = None
        self.skipped: dict[str, str] = {}

    def times(self, usual: int, quick: int) -> int:
        return quick if self.quick else usual

    def postgres(self) -> str:
        """The URL of a new database."""
        if self._postgres is None:
            self._postgres = self._stack.enter_context(running_postgres(PostgresServer(**site.DISK)))
        return self._postgres.new_database()

    def redis(self) -> str:
        if self._redis is None:
            self._redis = self._stack.enter_context(running_redis(RedisServer("redis", self.folder / "redis")))
        return self._redis.url()

    def peer(self, name: str, scenario: str, **arguments: Any) -> Any:
        """None: it is skipped."""
        try:
            return peers.measure(name, scenario, **arguments)
        except peers.UnavailableError as reason:
            self.skipped[f"{name} {scenario}"] = str(reason)
            print(f"{name} {scenario} is skipped: {reason}", flush=True)
            return None

    def row(self, what: str, value: float | None, unit: str, aim: str = "") -> None:
        if value is not None:
            print(f"{what:<66}{value:>10,.3f} {unit:<6} {aim}".rstrip(), flush=True)


def chain(bench: Bench) -> dict[str, Any]:
    """Sequential nodes that do nothing, a watcher connected."""
    results: dict[str, list[float]] = {}
    runs, times = bench.times(3, 1), 2
    for _ in range(runs):
        for name, new, nodes in (
            ("sqlite", lambda: None, bench.times(1000, 200)),
            ("postgres", bench.postgres, bench.times(300, 100)),
        ):
            for kind, block in (("effect", EFFECT), ("pure", PURE)):
                found = inside("chain", url=new(), nodes=nodes, times=times, block=block)
                results.setdefault(f"{name}_{kind}", []).extend(found)
        for name, arguments in (
            ("langgraph", {"nodes": bench.times(200, 50)}),
            ("dbos", {"nodes": bench.times(200, 50), "url": bench.postgres()}),
        ):
            found = bench.peer(name, "chain", times=times, **arguments)
            if found is not None:
                results.setdefault(name, []).extend(found)
    figures = {name: spread(values) for name, values in results.items()}
    for name, what, aim in (
        ("sqlite_effect", "a node of a chain, SQLite", "<= 0.5"),
        ("sqlite_pure", "  the same, blocks that are pure", "<= 0.5"),
        ("postgres_effect", "a node of a chain, PostgreSQL", "<= 2"),
        ("postgres_pure", "  the same, blocks that are pure", "<= 2"),
        ("langgraph", "  LangGraph, SQLite, a node", ""),
        ("dbos", "  DBOS, PostgreSQL, a step", ""),
    ):
        bench.row(what, figures.get(name, {}).get("median"), "ms", aim)
    return figures


def start(bench: Bench) -> dict[str, Any]:
    """From the start to the first block, one after the other on an idle engine."""
    figures = {"embedded": spread(inside("start", url=None, times=bench.times(200, 30)))}
    figures["postgres_alone"] = spread(inside("start", url=bench.postgres(), times=bench.times(200, 30)))
    apart = site.measure_start(_new(bench, "start"), bench.times(100, 10))
    figures |= {f"distributed_{name}": spread(values) for name, values in apart.items()}
    bench.row("start to first block, embedded, p50", figures["embedded"]["median"], "ms", "<= 3")
    bench.row("start to first block, one process on PostgreSQL, p50", figures["postgres_alone"]["median"], "ms")
    committed, sent = figures["distributed_committed_to_started"], figures["distributed_sent_to_started"]
    bench.row("commit of the start to running, API and worker apart, p50", committed["median"], "ms", "<= 10")
    bench.row("  the same, p99", committed["p99"], "ms")
    bench.row("HTTP request to running, API and worker apart, p50", sent["median"], "ms", "<= 10")
    for name, what, url in (("dbos", "DBOS, queued", bench.postgres()), ("celery", "Celery, Redis", bench.redis())):
        found = bench.peer(name, "start", url=url, times=bench.times(30, 5))
        if found is not None:
            figures[name] = spread(found)
            bench.row(f"  {what}, p50", figures[name]["median"], "ms")
    return figures


def throughput(bench: Bench) -> dict[str, Any]:
    """Executions of one node, from the first start to the last end."""
    results: dict[str, list[float]] = {}
    count = bench.times(600, 100)
    for _ in range(bench.times(3, 1)):
        for name, new in (("sqlite", lambda: None), ("postgres", bench.postgres)):
            for kind, block in (("effect", EFFECT), ("pure", PURE)):
                rate = inside("throughput", url=new(), executions=count, block=block)
                results.setdefault(f"{name}_{kind}", []).append(rate)
        for name, url in (("dbos", bench.postgres()), ("celery", bench.redis())):
            found = bench.peer(name, "throughput", url=url, executions=count)
            for way, rate in (found or {}).items():
                results.setdefault(f"{name}_{way}", []).append(rate)
    figures: dict[str, Any] = {name: spread(values) for name, values in results.items()}
    for name, what in (
        ("sqlite_effect", "executions of one node, SQLite"),
        ("sqlite_pure", "  the same, a pure block"),
        ("postgres_effect", "executions of one node, PostgreSQL"),
        ("postgres_pure", "  the same, a pure block"),
        ("dbos_queued", "  DBOS, queued"),
        ("dbos_direct", "  DBOS, started in the process that runs them"),
        ("celery_queued", "  Celery, Redis, nothing durable"),
    ):
        bench.row(what, figures.get(name, {}).get("median"), "/s")
    for way in ("queued", "direct"):
        if f"dbos_{way}" in results:
            pairs = zip(results["postgres_effect"], results[f"dbos_{way}"], strict=False)
            figures[f"of_dbos_{way}"] = round(statistics.median(ours / theirs for ours, theirs in pairs), 2)
            bench.row(f"  ours on PostgreSQL to DBOS, {way}", figures[f"of_dbos_{way}"], "times", ">= 2")
    return figures


def flat(bench: Bench) -> dict[str, Any]:
    """What a further node costs in long loops, and an output of many: beyond a start and an end."""
    figures: dict[str, Any] = {}
    lengths = (10, 100, 1000) if bench.quick else (10, 100, 1000, 10_000)
    for name, new in (("sqlite", lambda: None), ("postgres", bench.postgres)):
        whole = {}
        for runs in (2, *lengths):
            times = max(1, min(bench.times(100, 20), 3000 // runs))
            whole[runs] = statistics.median(inside("loop", url=new(), runs=runs, times=times)) * runs
        costs = {runs: (whole[runs] - whole[2]) / (runs - 2) for runs in lengths}
        bench.row(f"an execution of 2 nodes, {name}", whole[2], "ms")
        for runs, cost in costs.items():
            bench.row(f"each further node execution of {runs:,}, {name}", cost, "ms")
        figures[f"{name}_ms_of_nodes"] = {str(runs): round(cost, 4) for runs, cost in whole.items()}
        figures[f"{name}_ms_per_node"] = {str(runs): round(cost, 4) for runs, cost in costs.items()}
        figures[f"{name}_longest_to_100"] = round(costs[lengths[-1]] / costs[100], 2)
        bench.row(f"  the longest to that of 100, {name}", figures[f"{name}_longest_to_100"], "times", "flat: 1")
        outputs = {}
        for count in (1, 10, 100, 1000):
            outputs[count] = statistics.median(inside("outputs", url=new(), outputs=count, times=9))
        figures[f"{name}_ms_of_outputs"] = {str(count): round(cost, 4) for count, cost in outputs.items()}
        each = {count: (outputs[count] - outputs[1]) / (count - 1) for count in (10, 100, 1000)}
        for count, cost in each.items():
            bench.row(f"each further output of {count:,}, {name}", cost, "ms")
        figures[f"{name}_ms_per_output"] = {str(count): round(cost, 4) for count, cost in each.items()}
    return figures


def stop(bench: Bench) -> dict[str, Any]:
    """All stopped at once, half of them running and half of them queued, leases renewed every 30 s."""
    found = site.measure_stop(_new(bench, "stop"), bench.times(200, 40))
    figures = found | {"seconds": spread(found["seconds"]), "seconds_of_running": spread(found["seconds_of_running"])}
    what = f"stop of {found['executions']}, {found['running']} running: request to end"
    bench.row(f"{what}, p50", figures["seconds"]["median"], "s")
    bench.row(f"{what}, p95", figures["seconds"]["p95"], "s", "<= 1")
    bench.row(f"{what}, longest", figures["seconds"]["max"], "s", "< 5, no renewal")
    bench.row("  first request to last end", found["all_over_s"], "s")
    return figures


def killed(bench: Bench) -> dict[str, Any]:
    """SIGKILL of one of two worker processes under their supervisor."""
    figures = spread(site.measure_killed(_new(bench, "killed"), bench.times(5, 1)))
    bench.row("killed worker: its executions run again, median", figures["median"], "s", "<= 1")
    bench.row("  the longest", figures["max"], "s")
    return figures


def _new(bench: Bench, name: str) -> Path:
    folder = bench.folder / name
    folder.mkdir()
    return folder


SCENARIOS: dict[str, Callable[[Bench], dict[str, Any]]] = {
    "chain": chain,
    "start": start,
    "throughput": throughput,
    "flat": flat,
    "stop": stop,
    "killed": killed,
}


def main() -> int:
    parser = argparse.ArgumentParser(prog="scripts/bench-engine", description=(__doc__ or "").partition("\n\n")[0])
    parser.add_argument("--quick", action="store_true", help="few runs of little: to see that it works")
    parser.add_argument("--only", default=",".join(SCENARIOS), help=f"of {', '.join(SCENARIOS)}")
    parser.add_argument("--out", type=Path, default=None, help="write the figures as JSON to this file")
    args = parser.parse_args()
    before = machine.cpu_times()
    results: dict[str, Any] = {"measured_at": datetime.now().astimezone().isoformat(), "machine": machine.facts()}
    results["packages"] = peers.PACKAGES
    with tempfile.TemporaryDirectory(prefix="livetape-bench-") as name, ExitStack() as stack:
        bench = Bench(Path(name), stack, quick=args.quick)
        try:
            peers.install()
        except peers.UnavailableError as reason:
            print(f"no peers: {reason}", flush=True)
        for scenario in args.only.split(","):
            began = machine.cpu_times()
            results[scenario] = SCENARIOS[scenario](bench)
            results[scenario]["steal_percent"] = round(machine.steal_percent(began, machine.cpu_times()), 2)
        results["skipped"] = bench.skipped
    results["steal_percent_in_all"] = round(machine.steal_percent(before, machine.cpu_times()), 2)
    text = json.dumps(results, indent=1)
    if args.out:
        args.out.write_text(text + "\n")
    else:
        print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
