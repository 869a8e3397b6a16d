"""The engine in pieces, broken at random while it works: `scripts/engine-chaos --minutes N --executions N --seed S`.

Clients start executions of several shapes at a steady pace, some twice with one Idempotency-Key, some to be stopped;
faults are injected one after the other. When both are over, everything is judged from outside (`engine_checker`).
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import json
import os
import platform
import random
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

from acceptance.api import Started, refs
from chaos.checker import GRAPH
from chaos.engine_checker import (
    Evidence,
    Fault,
    Patience,
    Probe,
    Run,
    Violation,
    Watched,
    acts_of,
    judge,
    recoveries,
    together,
)
from chaos.engine_faults import FAULTS, GONE_S, LONG, inject
from chaos.engine_load import Clients, Order
from chaos.engine_shapes import CHILD, EFFECTS, PROBE, PROBE_S, SHAPES, Shape
from chaos.engine_site import CONCURRENCY, GRACE_S, LEASE_S, PROCESSES, SWEEP_S, EngineSite
from chaos.starvation import Starvation
from support import ROOT

STARVED: Final = "worker without a processor"

Say = Callable[[str], None]

BETWEEN_S: Final = (0.3, 1.5)
SETTLE_S: Final = 160.0
"""Longer than the longest back-off."""

MEASURED: Final = "worker killed"
ENDED: Final = re.compile(r"livetape\.runtime\.service: (the .* ended)")
"""What a process says when a part of it ended by itself; it ends then, too, and another takes its place."""

NOTICED_S: Final = 10.0
SEEN_GRAPHS: Final = ("chain", "child", "parent")
BUSY_S: Final = 5.0
"""Room for a machine that does something else, too."""

# An interrupted block is begun again when its lease is over, it was swept, and there is a place for it.
PATIENCE: Final = Patience(
    lease_s=LEASE_S,
    stop_s=GRACE_S + LEASE_S + SWEEP_S + BUSY_S,
    recover_s=LEASE_S + SWEEP_S + 2 * BUSY_S,
)


class Box:
    """One run. `kinds` of faults come in turns, in an order that the seed shuffles, for `seconds`."""

    def __init__(
        self,
        folder: Path,
        *,
        seconds: float,
        executions: int,
        seed: int,
        kinds: Sequence[str],
        shapes: Sequence[Shape],
        settle_s: float,
        probes: bool,
        say: Say,
    ) -> None:
        self._folder = folder
        self._seconds = seconds
        self._count = executions
        self._faults_rng = random.Random(f"{seed} faults")
        self._load_rng = random.Random(f"{seed} load")
        self._kinds = list(kinds)
        self._shapes = list(shapes)
        self._settle_s = settle_s
        self._probes = probes
        self._say = say
        self.faults: list[Fault] = []
        self.outputs: dict[str, str] = {}
        self.standing_still: list[dict[str, Any]] = []
        """What `livetape doctor executions` finds when all is over."""

        self._workers: set[int] = set()
        self.starvation = Starvation(lambda: self._workers)

    async def run(self, workers_env: Mapping[str, str] | None = None) -> tuple[Evidence, Clients]:
        """Everything that was seen."""
        async with EngineSite(self._folder, workers_env=workers_env) as site:
            self._workers = site.seen_workers
            clients = Clients(site.url, site.api.ws_url, rng=self._load_rng)
            try:
                await clients.store(PROBE)
                clients.watch_graphs(*SEEN_GRAPHS)
                begun = time.monotonic()
                looking = asyncio.create_task(self.starvation.run())
                async with asyncio.TaskGroup() as both:
                    both.create_task(self._order_all(clients))
                    both.create_task(self._break(site))
                self._say(f"{time.monotonic() - begun:6.1f} s  no more faults, {len(clients.open_orders())} go on")
                await clients.settle(self._settle_s)
                probe = await self._probe(site, clients) if self._probes else None
                looking.cancel()
                seen = await self._look(site, clients, probe)
                self.standing_still = await site.doctor()
                self.outputs = site.outputs()
                return seen, clients
            except BaseException:
                for name, text in site.outputs().items():
                    self._say(f"---- {name}\n{text[-6000:]}")
                raise
            finally:
                await clients.close()

    async def _order_all(self, clients: Clients) -> None:
        deck: list[Shape] = []
        for _ in range(self._count):
            if not deck:  # each shape comes, in another order each time
                deck = list(self._shapes)
                self._load_rng.shuffle(deck)
            clients.order(deck.pop())
            await asyncio.sleep(self._seconds / self._count)

    async def _break(self, site: EngineSite) -> None:
        begun = time.monotonic()
        deck: list[str] = []
        missing = set(self._kinds)
        while self._kinds and (time.monotonic() - begun < self._seconds or missing):
            await asyncio.sleep(self._faults_rng.uniform(*BETWEEN_S))
            if not deck:
                # What is measured comes more often.
                deck = self._kinds + [kind for kind in self._kinds if kind == MEASURED]
                self._faults_rng.shuffle(deck)
            kind = deck.pop()
            fault = await inject(kind, site, self._faults_rng)
            missing.discard(kind)
            self.faults.append(fault)
            self._say(f"{time.monotonic() - begun:6.1f} s  {kind}: {json.dumps(dict(fault.detail))}")

    async def _probe(self, site: EngineSite, clients: Clients) -> Probe:
        """One execution for each slot at once: if one had not been given back, it would have to wait."""
        slots = PROCESSES * CONCURRENCY
        orders = [clients.order(PROBE, plain=True) for _ in range(slots)]
        await clients.settle(PROBE_S * 3 + BUSY_S, orders)
        values = {order.value for order in orders}
        acts = [act for act in acts_of(site.side_effects.read_text().splitlines()) if act.value in values]
        return Probe(slots, together(acts))

    async def _look(self, site: EngineSite, clients: Clients, probe: Probe | None) -> Evidence:
        listed = {name: await clients.listed(str(graph["id"])) for name, graph in clients.graphs.items()}
        runs = [await self._run(clients, order) for order in clients.orders if order.answers]
        children: dict[str, list[str]] = {}
        by_value = {run_value(run): run for run in runs if run.shape == "parent"}
        for meta in listed[CHILD.name]:
            started = Started(clients.graphs[CHILD.name], meta)
            row = await clients.row(started)
            value = row["inputs"]["value"]
            parent = by_value.get(value - 1)
            children.setdefault(parent.id if parent else f"nobody ({value})", []).append(started.id)
            stopped_at = None if parent is None else parent.stopped_at
            runs.append(await self._look_at(clients, started, CHILD, row, value=value, stopped_at=stopped_at))
        members: dict[str, list[str]] = {str(graph["id"]): [] for graph in clients.graphs.values()}
        for order in clients.orders:
            members[str(order.graph["id"])] += order.answers[:1]
        members[str(clients.graphs[CHILD.name]["id"])] = [one for ids in children.values() for one in ids]
        graphs = {str(clients.graphs[name]["id"]): seen.items for name, seen in clients.overviews.items()}
        return Evidence(
            runs=runs,
            acts=acts_of(site.side_effects.read_text().splitlines()),
            faults=[
                *self.faults,
                # A worker that gets no processor cannot renew: not its fault, and no fault of ours either.
                *(Fault(STARVED, one.begun, one.ended, (one.pid,), interrupts=True) for one in self.starvation.spans),
            ],
            patience=PATIENCE,
            listed={str(clients.graphs[name]["id"]): [one["id"] for one in ones] for name, ones in listed.items()},
            members=members,
            graphs=graphs,
            children=children,
            probe=probe,
            gave_up=clients.gave_up,
        )

    async def _run(self, clients: Clients, order: Order) -> Run:
        row = await clients.row(order.started)
        watched = []
        if order.watcher is not None:
            watched = [Watched(order.watcher.items, order.watcher.complaints())]
        return await self._look_at(
            clients,
            order.started,
            order.shape,
            row,
            value=order.value,
            stopped_at=order.stopped_at,
            row_then=order.row_then,
            starts=order.answers,
            watched=watched,
        )

    async def _look_at(
        self, clients: Clients, started: Started, shape: Shape, row: dict[str, Any], *, value: int, **seen: Any
    ) -> Run:
        log = await asyncio.to_thread(clients.api.events, started)
        names = {name: node_id for node_id, name in refs(started.graph).items()}
        return Run(
            id=started.id,
            shape=shape.name,
            log=log,
            row=row,
            results={names[name]: sorted(values) for name, values in shape.results(value).items()},
            acting=frozenset(node["id"] for node in started.graph["nodes"] if node["block_id"] in EFFECTS),
            **seen,
        )


def run_value(run: Run) -> int:
    """What its node `before` was given: a parent gives its child one more."""
    value: int = run.row["inputs"]["value"]
    return value


async def run_box(
    folder: Path,
    *,
    seconds: float,
    executions: int,
    seed: int,
    kinds: Sequence[str] = tuple(FAULTS),
    shapes: Sequence[Shape] = SHAPES,
    settle_s: float = SETTLE_S,
    probes: bool = True,
    workers_env: Mapping[str, str] | None = None,
    say: Say = lambda _: None,
) -> dict[str, Any]:
    """One run; the report says what was injected, what was checked and what was wrong."""
    begun = time.monotonic()
    box = Box(
        folder,
        seconds=seconds,
        executions=executions,
        seed=seed,
        kinds=kinds,
        shapes=shapes,
        settle_s=settle_s,
        probes=probes,
        say=say,
    )
    seen, clients = await box.run(workers_env)
    found = judge(seen)
    found += [Violation(5, one["execution_id"], f"the doctor says: {one['why']}") for one in box.standing_still]
    found += [
        Violation(5, "-", f"in {name}, {what}") for name, text in box.outputs.items() for what in ENDED.findall(text)
    ]
    for violation in found:
        say(f"  VIOLATION {violation}")
    if found:
        for name, text in box.outputs.items():
            say(f"---- {name}\n{text}")
    return report(seen, clients, found) | {
        "doctor": box.standing_still,
        "seed": seed,
        "seconds": round(time.monotonic() - begun, 1),
    }


def report(seen: Evidence, clients: Clients, found: Sequence[Violation]) -> dict[str, Any]:
    """The facts of a run as JSON."""
    acts_again = len(seen.acts) - len({act.key for act in seen.acts})
    statuses: dict[str, Counter[str]] = {}
    for run in seen.runs:
        statuses.setdefault(run.shape, Counter())[run.row["status"]] += 1
    return {
        "faults": dict(Counter(fault.kind for fault in seen.faults if fault.kind != STARVED)),
        "starved_seconds": round(sum(fault.ended - fault.begun for fault in seen.faults if fault.kind == STARVED), 1),
        "executions": dict(sum(statuses.values(), Counter[str]())),
        "by_shape": {shape: dict(counts) for shape, counts in statuses.items()},
        "recovery_seconds": {
            kind: summary(took)
            for kind in (MEASURED, "supervisor killed", "worker paused")
            if (took := recoveries(seen, kind))
        },
        "noticed_seconds": summary(noticed(seen, clients)),
        "checks": {
            "events": sum(len(run.log) for run in seen.runs),
            "events_watched": sum(len(one.items) for run in seen.runs for one in run.watched),
            "graph_events_watched": sum(len(items) for items in seen.graphs.values()),
            "blocks_that_acted": len({act.key for act in seen.acts}),
            "acted_again": acts_again,
            "stopped": sum(run.stopped_at is not None for run in seen.runs),
            "started_twice": sum(len(run.starts) > 1 for run in seen.runs),
            "connections": sum(order.watcher.connections for order in clients.orders if order.watcher),
            "asked_again": clients.retried,
            "told_to_come_again": dict(
                sum((order.watcher.retries for order in clients.orders if order.watcher), Counter[str]())
            ),
            "slots": None if seen.probe is None else asdict(seen.probe),
        },
        "injected": [
            {
                "kind": fault.kind,
                "begun": round(fault.begun, 3),
                "seconds": round(fault.ended - fault.begun, 3),
                "pids": fault.pids,
                **fault.detail,
            }
            for fault in seen.faults
            if fault.kind != STARVED
        ],
        "violations": [asdict(violation) for violation in found[:200]],
        "all_violations": len(found),
    }


def noticed(seen: Evidence, clients: Clients) -> list[float]:
    """For each execution of a worker process that was killed: when a watcher was told of it, after the kill."""
    took = []
    for fault in seen.faults:
        if fault.kind != MEASURED:
            continue
        following = [other.begun for other in seen.faults if other.interrupts and other.begun > fault.begun]
        until = min([fault.begun + NOTICED_S, *following])
        for order in clients.orders:
            told = zip(order.watcher.items, order.watcher.times, strict=True) if order.watcher else ()
            for item, at in told:
                event = item.value if fault.begun < at < until else {}
                if event.get("event_type") == GRAPH and event.get("status_reason") == "worker_lost":
                    took.append(at - fault.begun)
    return took


def summary(seconds: Sequence[float]) -> dict[str, float]:
    """How many, p50, p95 and max in seconds; empty without any."""
    ordered = sorted(seconds)
    if not ordered:
        return {}
    return {
        "count": len(ordered),
        "p50": round(statistics.median(ordered), 3),
        "p95": round(ordered[min(len(ordered) - 1, round(0.95 * (len(ordered) - 1)))], 3),
        "max": round(ordered[-1], 3),
    }


def machine() -> dict[str, Any]:
    """What this ran on."""
    words = Path("/proc/cpuinfo").read_text().splitlines()
    model = next((line.partition(":")[2].strip() for line in words if line.startswith("model name")), "unknown")
    return {
        "processors": os.cpu_count(),
        "model": model,
        "memory_mb": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2**20,
        "system": platform.platform(),
        "load_before": os.getloadavg()[0],
    }


def commit() -> dict[str, Any]:
    def git(*words: str) -> str:
        return subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, check=False).stdout.strip()

    head = git("rev-parse", "--verify", "-q", "HEAD")
    source = hashlib.sha256()
    for path in sorted((ROOT / "src").rglob("*.py")):
        source.update(path.read_bytes())
    changed = bool(git("status", "--porcelain", "--", "src"))
    return {"commit": head or None, "changed_since": changed, "source_sha256": source.hexdigest()}


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="scripts/engine-chaos", description=__doc__.partition("\n\n")[0] if __doc__ else ""
    )
    parser.add_argument("--minutes", type=float, default=5)
    parser.add_argument("--executions", type=int, default=None, help="default: one a second")
    parser.add_argument("--seed", type=int, default=None, help="default: a new one, which is printed")
    parser.add_argument("--faults", default=",".join(FAULTS), help="some of the kinds (default: all): %(default)s")
    parser.add_argument("--long", action="store_true", help=f"those of {GONE_S:g} s instead: {','.join(LONG)}")
    parser.add_argument("--settle", type=float, default=SETTLE_S, help="seconds for what goes on after the faults")
    parser.add_argument("--out", type=Path, default=None, help="JSON file (default: engine-chaos-<seed>.json)")
    args = parser.parse_args()
    seed = args.seed if args.seed is not None else random.SystemRandom().randrange(2**32)
    print(f"seed {seed}", flush=True)
    facts = {**commit(), "python": platform.python_version(), "machine": machine()}
    with tempfile.TemporaryDirectory(prefix="livetape-engine-chaos-") as folder:
        done = asyncio.run(
            run_box(
                Path(folder),
                seconds=args.minutes * 60,
                executions=args.executions or max(1, round(args.minutes * 60)),
                seed=seed,
                kinds=tuple(LONG) if args.long else args.faults.split(","),
                settle_s=args.settle,
                say=lambda text: print(text, flush=True),
            )
        )
    out = args.out or Path(f"engine-chaos-{seed}.json")
    out.write_text(json.dumps(facts | done, indent=1) + "\n")
    injected = sum(done["faults"].values())
    print(f"{done['all_violations']} violations, {injected} faults, {done['executions']}, written to {out}")
    return 1 if done["all_violations"] else 0


if __name__ == "__main__":
    sys.exit(main())
