"""Figures of `livetape up`, measured from outside on a real server process: scripts/bench [--quick] [--out FILE].

Medians of five runs; a run during which the host stole more than 3 % of the processors' time does not count. Beside
the cost of a node stands a floor measured in the same run: SQLite alone committing the same rows and bytes.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
from datetime import datetime
from pathlib import Path
from typing import Any

import httpx2
from machine import cpu_times, facts, sample, steal_percent

from acceptance.api import Api, Item, Started, graph, link, node
from acceptance.server import Server
from acceptance.watch import Watcher
from livetape_process import COMMAND

STORE = "1ff065e9-88e8-4358-9d82-8dc91f622ba9"
STEP = "f66a3543-28d3-4ab5-8945-9b336371e2ce"
COUNTDOWN = "d67a9c52-5e4e-11e2-bcfd-0800200c9a71"
METRICS = ("livetape_graph_executions_total", "livetape_websocket_connections_total")


def percentile(values: list[float], percent: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, round(percent / 100 * (len(ordered) - 1)))]


def spread(values: list[float], digits: int = 3) -> dict[str, float]:
    return {
        "median": round(statistics.median(values), digits),
        "min": round(min(values), digits),
        "max": round(max(values), digits),
    }


def require_everything_on(api: Api) -> list[str]:
    """A figure of a server with its safety off is worth nothing.

    Raises:
        SystemExit: metrics are off, or a caller whose Host is not ours is served.
    """
    api.wait(api.run(graph([node("one", STORE, input=1)], [], "warm")))  # names appear when they are first counted
    answer = api.http.get("/metrics")
    if answer.status_code != 200 or "livetape_" not in answer.text:
        raise SystemExit("refusing to measure: GET /metrics has no livetape_ names")
    if api.http.get("/api/graphs", headers={"Host": "elsewhere.example"}).status_code == 200:
        raise SystemExit("refusing to measure: authentication is off")
    return [f"/metrics has no {name}" for name in METRICS if name not in answer.text]


def watch(server: Server, started: Started) -> Watcher:
    """Follow an execution to its end from another process, noting when each event came."""
    watcher = Watcher(server.ws_url, started.id)
    watcher.wall = time.time

    async def follow() -> None:
        async with asyncio.timeout(120):
            await watcher.run()

    asyncio.run(follow())
    return watcher


# ---- (a) from spawn to ready -----------------------------------------------------------------------------------------


def readiness(folder: Path, runs: int) -> dict[str, Any]:
    count = 0

    def fresh() -> float:
        nonlocal count
        count += 1
        server = Server(folder / f"fresh-{count}").start()
        server.stop()
        return server.ready_seconds

    again = Server(folder / "again").start()
    again.stop()

    def existing() -> float:
        again.start()
        again.stop()
        return again.ready_seconds

    def interpreter() -> float:
        began = time.monotonic()
        subprocess.run([sys.executable, "-c", "import fastapi, uvicorn, sqlalchemy, pydantic"], check=True)
        return time.monotonic() - began

    def help_() -> float:
        began = time.monotonic()
        subprocess.run([COMMAND, "--help"], check=True, capture_output=True)
        return time.monotonic() - began

    new, old = sample(fresh, runs=runs), sample(existing, runs=runs)
    floor, words = sample(interpreter, runs=runs), sample(help_, runs=runs)
    return {
        "new_folder_seconds": spread(new.values),
        "existing_folder_seconds": spread(old.values),
        "python_importing_the_libraries_seconds": spread(floor.values),
        "help_seconds": spread(words.values),
        **new.facts(),
    }


# ---- (b) from the event to the watcher -------------------------------------------------------------------------------


def latency(server: Server, api: Api, runs: int) -> dict[str, Any]:
    """From `end_time`, which a node execution gets just before its commit, to the watcher: the commit is included."""
    chain = 40
    nodes = [node("wait", COUNTDOWN, seconds=1, input_message=1)]
    nodes += [node(f"n{n}", STORE) for n in range(chain)]
    links = [link("wait.output_message", "n0.input")]
    links += [link(f"n{n}.output", f"n{n + 1}.input") for n in range(chain - 1)]
    shape = graph(nodes, links, "latency")

    def once() -> list[float]:
        watcher = watch(server, api.run(shape))
        found = []
        for item, at in zip(watcher.items, watcher.times, strict=True):
            event = item.value
            if event["event_type"] == "node_execution_update" and event["status"] == "COMPLETED":
                made = datetime.fromisoformat(event["end_time"].replace("Z", "+00:00")).timestamp()
                found.append((at - made) * 1000)
        return found

    once()
    samples = sample(once, runs=runs)
    return {
        "p50_ms": spread([percentile(values, 50) for values in samples.values], 2),
        "p99_ms": spread([percentile(values, 99) for values in samples.values], 2),
        "events": sum(len(values) for values in samples.values),
        **samples.facts(),
    }


# ---- (c) the engine's own cost per node ------------------------------------------------------------------------------


def floor_ms_per_node(folder: Path, nodes: int, log: list[Item]) -> float:
    """SQLite alone, WAL and NORMAL: one transaction a node with as many event rows and bytes as the log has, one
    insert and one update of a row of state."""
    path = folder / f"floor-{time.monotonic_ns()}.db"
    rows = max(1, round(len(log) / nodes))
    payload = b"x" * (sum(len(item.data.encode()) for item in log) // len(log))
    db = sqlite3.connect(path, isolation_level=None)
    try:
        db.execute("PRAGMA journal_mode=WAL")
        db.execute("PRAGMA synchronous=NORMAL")
        db.execute(
            "CREATE TABLE event (tape TEXT, offset INTEGER, data BLOB, PRIMARY KEY (tape, offset)) WITHOUT ROWID"
        )
        db.execute("CREATE TABLE node (id INTEGER PRIMARY KEY, status TEXT, data BLOB)")
        began = time.perf_counter()
        offset = 0
        for n in range(nodes):
            db.execute("BEGIN IMMEDIATE")
            for _ in range(rows):
                offset += 1
                db.execute("INSERT INTO event VALUES (?, ?, ?)", ("t", offset, payload))
            db.execute("INSERT INTO node VALUES (?, 'QUEUED', ?)", (n, payload[:200]))
            db.execute("UPDATE node SET status = 'COMPLETED' WHERE id = ?", (n - 1,))
            db.execute("COMMIT")
        return (time.perf_counter() - began) * 1000 / nodes
    finally:
        db.close()


def per_node(server: Server, api: Api, folder: Path, runs: int, nodes: int) -> dict[str, Any]:
    """A chain of nodes that do nothing, watched: from sending the start to the watcher's last event."""
    chain = [node("n0", STORE, input=1), *(node(f"n{n}", STORE) for n in range(1, nodes))]
    shape = graph(chain, [link(f"n{n}.output", f"n{n + 1}.input") for n in range(nodes - 1)], "chain")
    created = api.create(shape)

    def once() -> tuple[float, float, float]:
        began = time.time()
        started = Started(created, api.ok(api.start_raw(created)))
        watcher = watch(server, started)
        wall = (watcher.times[-1] - began) * 1000 / nodes
        last = watcher.items[-1].value
        if last["status"] != "COMPLETED":
            raise SystemExit(f"the chain ended {last['status']}: {json.dumps(last)[:500]}")
        if [i.offset for i in watcher.items] != list(range(1, len(watcher.items) + 1)):
            raise SystemExit("the watcher did not see every number once and in order")
        times = [datetime.fromisoformat(last[name].replace("Z", "+00:00")) for name in ("started_at", "ended_at")]
        inside = (times[1] - times[0]).total_seconds() * 1000 / nodes
        return wall, inside, floor_ms_per_node(folder, nodes, watcher.items)

    once()
    samples = sample(once, runs=runs)
    walls, insides, floors = (list(column) for column in zip(*samples.values, strict=True))
    return {
        "nodes": nodes,
        "ms_per_node_seen_by_watcher": spread(walls),
        "ms_per_node_started_to_ended": spread(insides),
        "floor_ms_per_node": spread(floors),
        "times_the_floor": round(statistics.median(w / f for w, f in zip(walls, floors, strict=True)), 2),
        **samples.facts(),
    }


# ---- (d) replay ------------------------------------------------------------------------------------------------------


def replay(server: Server, api: Api, runs: int) -> dict[str, Any]:
    """All events of a long execution from the first, after a restart of the process."""
    started = api.run(graph([node("step", STEP, items=list(range(5000)))], [], "long"))
    api.wait(started, 120)
    server.stop()
    server.start()

    def once() -> tuple[float, int, int]:
        began = time.time()
        watcher = watch(server, started)
        return watcher.times[-1] - began, len(watcher.items), sum(len(i.data) for i in watcher.items)

    samples = sample(once, runs=runs)
    _, events, size = samples.values[0]
    return {
        "events": events,
        "mebibytes": round(size / 2**20, 2),
        "seconds": spread([seconds for seconds, _, _ in samples.values]),
        "events_per_second": spread([events / seconds for seconds, _, _ in samples.values], 0),
        **samples.facts(),
    }


# ---- (e) the shortest run --------------------------------------------------------------------------------------------


def smallest(api: Api, runs: int) -> dict[str, Any]:
    """A graph of one node: from sending the start to `started_at` and `ended_at`, one after the other."""
    created = api.create(graph([node("one", STORE, input=1)], [], "one"))

    def once() -> tuple[float, float]:
        begun, ended = [], []
        for _ in range(50):
            sent = time.time()
            execution = api.wait(Started(created, api.ok(api.start_raw(created))))
            times = [
                datetime.fromisoformat(execution[name].replace("Z", "+00:00")).timestamp()
                for name in ("started_at", "ended_at")
            ]
            begun.append((times[0] - sent) * 1000)
            ended.append((times[1] - sent) * 1000)
        return statistics.median(begun), statistics.median(ended)

    once()
    samples = sample(once, runs=runs)
    return {
        "sent_to_started_ms": spread([a for a, _ in samples.values], 2),
        "sent_to_ended_ms": spread([b for _, b in samples.values], 2),
        **samples.facts(),
    }


def table(results: dict[str, Any]) -> str:
    a, b, c, d, e = (results[name] for name in ("readiness", "latency", "per_node", "replay", "smallest"))
    rows = [
        ("from spawn to ready, existing data folder", f"{a['existing_folder_seconds']['median']:.2f} s", "<= 1.5 s"),
        ("from spawn to ready, new data folder", f"{a['new_folder_seconds']['median']:.2f} s", "<= 1.5 s"),
        (
            "  Python importing the libraries alone",
            f"{a['python_importing_the_libraries_seconds']['median']:.2f} s",
            "",
        ),
        ("livetape --help", f"{a['help_seconds']['median'] * 1000:.0f} ms", "<= 200 ms"),
        ("node end to watcher, commit included, p50", f"{b['p50_ms']['median']:.1f} ms", "<= 20 ms"),
        ("node end to watcher, commit included, p99", f"{b['p99_ms']['median']:.1f} ms", ""),
        ("per node of a chain, to the watcher's last", f"{c['ms_per_node_seen_by_watcher']['median']:.3f} ms", ""),
        ("per node of a chain, started to ended", f"{c['ms_per_node_started_to_ended']['median']:.3f} ms", "<= 0.5 ms"),
        ("  SQLite alone, same rows and bytes", f"{c['floor_ms_per_node']['median']:.3f} ms", ""),
        ("  times that floor", f"{c['times_the_floor']:.1f}", ""),
        (f"replay of {d['events']} events", f"{d['events_per_second']['median']:.0f} /s", ""),
        ("start sent to started, p50", f"{e['sent_to_started_ms']['median']:.1f} ms", "<= 3 ms"),
    ]
    width = max(len(row[0]) for row in rows)
    return "\n".join(f"{what:<{width}}  {value:>12}  {aim}".rstrip() for what, value, aim in rows)


def main() -> int:
    parser = argparse.ArgumentParser(prog="scripts/bench", description=(__doc__ or "").partition("\n\n")[0])
    parser.add_argument("--quick", action="store_true", help="two runs and a chain of 200: to see that it works")
    parser.add_argument("--out", type=Path, default=None, help="write the figures as JSON to this file")
    args = parser.parse_args()
    runs, nodes = (2, 200) if args.quick else (5, 1000)
    before = cpu_times()
    results: dict[str, Any] = {"measured_at": datetime.now().astimezone().isoformat(), "machine": facts()}
    with tempfile.TemporaryDirectory(prefix="livetape-bench-") as name:
        folder = Path(name)
        server = Server(folder / "data").start()
        try:
            with Api(server.url, timeout=120) as api:
                results["warnings"] = require_everything_on(api)
                for title, measure in {
                    "per_node": lambda: per_node(server, api, folder, runs, nodes),
                    "latency": lambda: latency(server, api, runs),
                    "smallest": lambda: smallest(api, runs),
                    "replay": lambda: replay(server, api, runs),
                }.items():
                    print(f"measuring {title} ...", file=sys.stderr, flush=True)
                    results[title] = measure()
        except httpx2.HTTPError as error:
            raise SystemExit(f"{type(error).__name__}: {error}\n{server.output()}") from None
        finally:
            if server.running:
                server.stop()
        print("measuring readiness ...", file=sys.stderr, flush=True)
        results["readiness"] = readiness(folder, runs)
    results["steal_percent_in_all"] = round(steal_percent(before, cpu_times()), 2)
    print(table(results))
    noisy = [name for name, value in results.items() if isinstance(value, dict) and value.get("noisy")]
    if noisy:
        print(f"noisy (the host was busy): {', '.join(noisy)}")
    for warning in results["warnings"]:
        print(f"warning: {warning}")
    text = json.dumps(results, indent=1)
    if args.out:
        args.out.write_text(text + "\n")
    else:
        print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
