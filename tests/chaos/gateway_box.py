"""Faults at random, for minutes: `scripts/gateway-chaos --minutes N --seed S`, and the short form of it in CI.

Publishers and watchers never stop while one fault after the other is injected: deaths and pauses of Redis and of the
gateways, cut connections, clients that send rubbish, do not read, hold handshakes open, or come and go. Then the chain
test: the hash of what each watcher saw is the hash of the log.

There are two runs. In the first Redis loses nothing (`appendonly yes, appendfsync always`), so nobody may ever be told
of a loss. In the second it keeps nothing and comes back empty now and then: whoever misses something is told.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import platform
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from chaos.faults import DURABLE_FAULTS, LOSING_FAULTS
from chaos.site import Site, many_files
from support import ROOT

BETWEEN_S = (0.2, 2.0)
OPTIONS = {"outbox_max_bytes": 1024 * 1024, "slow_seconds": 5, "close_seconds": 2}


async def run_box(
    folder: Path,
    *,
    seconds: float,
    seed: int,
    durable: bool = True,
    gateways: int = 2,
    sockets: int = 200,
    say: Callable[[str], None] = lambda _: None,
) -> dict[str, Any]:
    """One run; the report says what was injected, what was checked and what was wrong."""
    rng = random.Random(seed)
    table = DURABLE_FAULTS if durable else LOSING_FAULTS
    injected: Counter[str] = Counter()
    begun = time.monotonic()
    async with Site(folder, gateways=gateways, durable=durable, **OPTIONS) as site:
        await site.publish(jobs=3, executions=3, pause_s=0.04)
        await site.watch(sockets)
        await site.some_are_acknowledged(10)
        deck: list[str] = []
        while time.monotonic() - begun < seconds or len(injected) < min(len(table), seconds / 4):
            if not deck:  # each kind comes, in another order each time
                deck = sorted(table)
                rng.shuffle(deck)
            name = deck.pop()
            async with site.fault(name) as window:
                await table[name](site, rng)
            injected[name] += 1
            say(f"{time.monotonic() - begun:6.1f} s  {name}: {window.begun} published, took {window.seconds:.1f} s")
            if name.startswith("redis"):
                await site.some_are_acknowledged(1)
            await asyncio.sleep(rng.uniform(*BETWEEN_S))
        await site.some_are_acknowledged(5)
        await site.settle(within_s=60)
        problems = site.judge(may_lose=not durable)
        chains = [watcher.chain for watcher in site.watchers]
        events = sum(stretch.count for chain in chains for stretch in chain.stretches)
        report = {
            "seed": seed,
            "persistence": "appendfsync always" if durable else "none",
            "seconds": round(time.monotonic() - begun, 1),
            "faults": dict(injected),
            "checks": {
                "watchers": len(chains),
                "hashes": sum(len(chain.stretches) for chain in chains),
                "events": events,
                "windows with events": sum(window.begun + window.acknowledged > 0 for window in site.windows),
                "losses told": sum(len(chain.losses) for chain in chains),
            },
            "closes": {
                str(code): number
                for code, number in sum((watcher.closes for watcher in site.watchers), Counter[Any]()).items()
            },
            **site.facts(),
            "problems": problems[:100],
            "all_problems": len(problems),
        }
    return report


async def run_both(minutes: float, seed: int, say: Callable[[str], None]) -> dict[str, Any]:
    """Both runs, one after the other."""
    runs = []
    for durable in (True, False):
        say("Redis keeps everything" if durable else "Redis keeps nothing")
        with tempfile.TemporaryDirectory(prefix="livetape-gateway-chaos-") as folder:
            seconds = minutes * 60 / 2
            runs.append(await run_box(Path(folder), seconds=seconds, seed=seed, durable=durable, say=say))
    commit = subprocess.run(
        ["git", "rev-parse", "--verify", "-q", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False
    ).stdout.strip()
    changed = subprocess.run(
        ["git", "status", "--porcelain", "--", "src"], cwd=ROOT, capture_output=True, text=True, check=False
    ).stdout
    return {
        "commit": commit or None,
        "changed_since": bool(changed.strip()),
        "seed": seed,
        "python": platform.python_version(),
        "runs": runs,
    }


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="scripts/gateway-chaos", description=__doc__.partition("\n\n")[0] if __doc__ else ""
    )
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--seed", type=int, default=None, help="default: a new one, which is printed")
    parser.add_argument("--out", type=Path, default=None, help="JSON file (default: gateway-chaos-<seed>.json)")
    args = parser.parse_args()
    seed = args.seed if args.seed is not None else random.SystemRandom().randrange(2**32)
    print(f"seed {seed}", flush=True)
    with many_files():
        report = asyncio.run(run_both(args.minutes, seed, lambda text: print(text, flush=True)))
    out = args.out or Path(f"gateway-chaos-{seed}.json")
    out.write_text(json.dumps(report, indent=1) + "\n")
    problems = sum(run["all_problems"] for run in report["runs"])
    injected = sum(sum(run["faults"].values()) for run in report["runs"])
    print(f"{problems} problems, {injected} faults, written to {out}")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
