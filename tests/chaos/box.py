"""Kill -9 at random instants, start again, and judge from outside: `scripts/chaos --runs N --seed S`.

One server on one data folder goes through all runs. Each run starts one execution of a graph with fan-out and a
streaming block, kills the process at instants that are uniform over the length of an undisturbed run (counted from
the sending of the start request, or from the moment when the server is ready again), sometimes once more while it
starts, and starts it again. A client follows the execution from its first event to its last and comes back with its
position whenever it lost the server.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import platform
import random
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import httpx2

from acceptance.api import Api, Started, graph, link, node, refs
from acceptance.server import Server
from acceptance.watch import Watcher
from chaos.checker import (
    Line,
    check_graph_tape,
    check_numbers,
    check_replay,
    check_side_effects,
    check_statuses,
    check_transcript,
    check_work,
)
from support import ROOT

STREAM = "c4a05001-0000-4000-8000-000000000001"
WRITE = "c4a05001-0000-4000-8000-000000000002"
STORE = "1ff065e9-88e8-4358-9d82-8dc91f622ba9"

VALUES = 24
PAUSE = 0.05
KILLS_OF_SOME = 3
KILLED_STARTING = 0.2
END_TIMEOUT = 60.0
# A restart voids the leases of the process before it, so nobody waits 15 s for them to expire. Room for the back-off
# of a third recovery without progress (5 s).
LATE = 10.0

T = TypeVar("T")


def chaos_graph() -> dict[str, Any]:
    """A stream of values, each done by two writers, one of which leads to a third; beside it a fan-out of four."""
    nodes = [
        node("stream", STREAM, count=VALUES, pause=PAUSE),
        node("left", WRITE, pause=0.01),
        node("right", WRITE, pause=0.03),
        node("after", WRITE, pause=0.01),
        node("source", STORE, input=100),
        *(node(f"fan{n}", WRITE, pause=0.3 * n) for n in range(4)),
        node("last", WRITE, pause=0.05),
    ]
    links = [
        link("stream.value", "left.value"),
        link("stream.value", "right.value"),
        link("left.done", "after.value"),
        *(link("source.output", f"fan{n}.value") for n in range(4)),
        link("fan3.done", "last.value"),
    ]
    return graph(nodes, links, "chaos")


EXPECTED: dict[str, Sequence[int]] = {
    "left": range(VALUES),
    "right": range(VALUES),
    "after": range(VALUES),
    **{f"fan{n}": [100] for n in range(4)},
    "last": [100],
}


async def keep_asking(call: Callable[[], T], what: str, timeout: float = END_TIMEOUT) -> T:
    """Ask a server that may be dead at the moment until it answers."""
    deadline = time.monotonic() + timeout
    while True:
        try:
            return await asyncio.to_thread(call)
        except httpx2.TransportError:
            if time.monotonic() > deadline:
                raise
            await asyncio.sleep(0.02)  # another process, and it is down


class Box:
    def __init__(self, folder: Path, *, seed: int, say: Callable[[str], None] = lambda _: None) -> None:
        self.side_effects = folder / "side-effects.txt"
        self.side_effects.touch()
        self.server = Server(folder / "data", blocks=True, env={"CHAOS_SIDE_EFFECTS": str(self.side_effects)})
        self.rng = random.Random(seed)
        self.seed = seed
        self.say = say
        self.length = 5.0  # until it is measured
        self.faults: Counter[str] = Counter()
        self.checks: Counter[str] = Counter()
        self.problems: list[str] = []
        self.runs: list[dict[str, Any]] = []
        self.known: set[str] = set()

    def lines(self) -> list[Line]:
        return [Line.parse(text) for text in self.side_effects.read_text().splitlines()]

    def check(self, name: str, run: int, complaints: list[str]) -> None:
        self.checks[name] += 1
        for complaint in complaints:
            self.problems.append(f"run {run}, {name}: {complaint}")
            self.say(f"  PROBLEM {self.problems[-1]}")

    async def measure(self) -> None:
        """How long a run takes that nobody disturbs: the shorter of two, after one to warm up."""
        lengths = []
        for n in range(3):
            took = await self.run(-1, kills=0)
            if n:
                lengths.append(took)
        self.length = min(lengths)
        self.say(f"an undisturbed run takes {self.length:.2f} s")

    async def run(self, number: int, kills: int) -> float:
        """One execution, killed so many times, and judged; returns the seconds from its start to its last event."""
        server = self.server
        with Api(server.url) as api:
            created = await keep_asking(lambda: api.create(chaos_graph()), "create")
            watcher: Watcher | None = None

            async def start_and_watch() -> tuple[Started, Watcher]:
                nonlocal watcher
                key = f"chaos-{self.seed}-{number}-{created['id']}"
                answer = await keep_asking(lambda: api.ok(api.start_raw(created, key=key)), "start")
                started = Started(created, answer)
                watcher = Watcher(server.ws_url, started.id)
                await watcher.run()
                return started, watcher

            began = time.monotonic()
            client = asyncio.create_task(start_and_watch())
            overview = Watcher(server.ws_url, graph_id=created["id"])
            second = asyncio.create_task(overview.run())
            instants = []
            done = 0
            try:
                for _ in range(kills):
                    instants.append(self.rng.uniform(0, self.length))
                    await asyncio.sleep(instants[-1])  # the fault comes at this instant, whatever happens then
                    if watcher is None:
                        self.faults["kill before the start was answered"] += 1
                    elif watcher.final:
                        self.faults["kill after the end"] += 1
                    else:
                        self.faults["kill while it ran"] += 1
                    await asyncio.to_thread(server.kill)
                    done += 1
                    if self.rng.random() < KILLED_STARTING:
                        # Once more while it starts: between migrations, lock, recovery and the first request.
                        await asyncio.to_thread(server.spawn)
                        await asyncio.sleep(self.rng.uniform(0, server.ready_seconds))
                        await asyncio.to_thread(server.kill)
                        self.faults["kill while it started"] += 1
                        done += 1
                    await asyncio.to_thread(server.start)
                ready = time.monotonic()
                async with asyncio.timeout(END_TIMEOUT):
                    started, watcher = await client
                    await second
                ended = time.monotonic()
            except TimeoutError:
                seen = watcher.items[-1].data[:300] if watcher and watcher.items else "nothing"
                other = watcher.other[-3:] if watcher else []
                raise AssertionError(
                    f"run {number}: no end within {END_TIMEOUT:g} s after {len(instants)} kills at {instants};"
                    f" last seen: {seen}; {other}\n{server.output()}"
                ) from None
            finally:
                client.cancel()
                second.cancel()
                await asyncio.gather(client, second, return_exceptions=True)
            took = ended - ready
            late = [f"ended {took:.1f} s after the last start"] if took > self.length + LATE else []
            self.check("goes on at once", number, late)
            self.judge(number, done, api, started, watcher, overview, instants)
            return ended - began

    def judge(
        self,
        number: int,
        kills: int,
        api: Api,
        started: Started,
        watcher: Watcher,
        overview: Watcher,
        instants: list[float],
    ) -> None:
        """Look at one finished run from every side."""
        log = api.events(started)
        state = api.execution(started)
        listed = api.ok(api.http.get(f"/api/graphs/{started.graph_id}/executions"))["executions"]
        ref = refs(started.graph)
        expected = {node_id: EXPECTED[name] for node_id, name in ref.items() if name in EXPECTED}
        mine = {one["node_exec_id"] for one in state["node_executions"]}
        self.known |= mine
        lines = [line for line in self.lines() if line.node_exec_id in mine]
        status = [] if state["status"] == "COMPLETED" else [f"ended {state['status']} ({state.get('status_reason')})"]
        self.check("ends COMPLETED", number, status)
        self.check("one start, one execution", number, [] if len(listed) == 1 else [f"{len(listed)} executions"])
        self.check("log has 1..n", number, check_numbers(log, "log"))
        self.check("client saw the log", number, check_transcript(watcher.items, log))
        self.check("client was never misled", number, watcher.complaints() + overview.complaints())
        self.check("graph tape", number, check_graph_tape(overview.items, {started.id: log}))
        self.check("completed once", number, check_statuses(log))
        self.check("replay gives the row", number, check_replay(log, state))
        self.check("side effects", number, check_side_effects(lines, state, kills))
        self.check("work done", number, check_work(lines, state, expected))
        runs = Counter(line.node_exec_id for line in lines)
        self.runs.append(
            {
                "run": number,
                "kills": kills,
                "instants": [round(instant, 4) for instant in instants],
                "events": len(log),
                "node_executions": len(state["node_executions"]),
                "run_again": sum(n - 1 for n in runs.values()),
                "connections": watcher.connections,
            }
        )
        self.say(f"run {number}: {json.dumps(self.runs[-1])}")

    async def all(self, runs: int, killed_more: int) -> None:
        await asyncio.to_thread(self.server.start)
        try:
            await self.measure()
            more = set(self.rng.sample(range(runs), min(killed_more, runs)))
            for number in range(runs):
                await self.run(number, KILLS_OF_SOME if number in more else 1)
            unknown = {line.node_exec_id for line in self.lines()} - self.known
            self.check(
                "no work of nobody", -1, [f"side effects of unknown node executions: {unknown}"] if unknown else []
            )
        finally:
            if self.server.running:
                await asyncio.to_thread(self.server.stop)

    def report(self) -> dict[str, Any]:
        commit = subprocess.run(
            ["git", "rev-parse", "--verify", "-q", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False
        ).stdout.strip()
        return {
            "commit": commit or None,
            "seed": self.seed,
            "python": platform.python_version(),
            "sqlite": sqlite3.sqlite_version,
            "run_seconds": round(self.length, 3),
            "faults": dict(self.faults),
            "checks": dict(self.checks),
            "problems": self.problems,
            "runs": self.runs,
        }


def run_box(
    folder: Path, *, runs: int, seed: int, killed_more: int = 3, say: Callable[[str], None] = lambda _: None
) -> dict[str, Any]:
    """All runs; the report says what was injected, what was checked and what was wrong."""
    box = Box(folder, seed=seed, say=say)
    asyncio.run(box.all(runs, killed_more))
    return box.report()


def main() -> int:
    parser = argparse.ArgumentParser(prog="scripts/chaos", description=__doc__.partition("\n\n")[0] if __doc__ else "")
    parser.add_argument("--runs", type=int, default=100)
    parser.add_argument("--seed", type=int, default=None, help="default: a new one, which is printed")
    parser.add_argument("--out", type=Path, default=None, help="JSON file (default: chaos-<seed>.json)")
    args = parser.parse_args()
    seed = args.seed if args.seed is not None else random.SystemRandom().randrange(2**32)
    print(f"seed {seed}", flush=True)
    with tempfile.TemporaryDirectory(prefix="livetape-chaos-") as folder:
        report = run_box(
            Path(folder),
            runs=args.runs,
            seed=seed,
            killed_more=max(1, args.runs // 7),
            say=lambda t: print(t, flush=True),
        )
    out = args.out or Path(f"chaos-{seed}.json")
    out.write_text(json.dumps(report, indent=1) + "\n")
    print(f"{len(report['problems'])} problems, {report['faults']}, written to {out}")
    return 1 if report["problems"] else 0


if __name__ == "__main__":
    sys.exit(main())
