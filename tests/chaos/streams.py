"""Kill Redis while job streams are written and followed: `scripts/stream-chaos --events N --kills N --seed S`.

Several publishers, each with connections of its own, write onto a few jobs and repeat with an idempotency key what was
not acknowledged. Several readers follow each job, one of them coming and going with its position. Meanwhile the
server is killed with SIGKILL again and again, at instants drawn from the seed, and started after a while.

With `appendonly yes, appendfsync always` nothing that was acknowledged may be missing: every reader sees the numbers
1..n of one epoch, each once. Without persistence each death loses the tapes: every reader is told of each new epoch
before it sees an event of it, and within an epoch misses nothing. What readers saw is judged against what publishers
were told, not against the server.
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
from contextlib import aclosing
from pathlib import Path
from typing import Any

from livetape.errors import LogUnavailableError
from livetape.events.channel import job_channel, job_tape
from livetape.events.follow import follow
from livetape.events.log import Position
from livetape.events.open import open_backend
from livetape.events.recovery import Gap, Item
from livetape.events.streams import RedisStreamPublisher
from servers import RedisServer, running
from support import ROOT
from unit.events.transcripts import Truth, check

JOBS = ("one", "two")
PUBLISHERS = 4
TOGETHER = 25
"""So many events a publisher has on their way at once."""

QUIET_TIMEOUT_S = 60.0
DURABLE = {"appendonly": "yes", "appendfsync": "always"}


class Follower:
    """One who follows a job to its end. A restless one goes away now and then, and comes back with its position."""

    def __init__(self, url: str, job_id: str, rng: random.Random | None) -> None:
        self._url = url
        self._job_id = job_id
        self._rng = rng
        self.seen: list[Item] = []
        self.visits = 0
        self.is_done = False

    async def run(self) -> None:
        position = Position("", 0)
        while not self.is_done:
            self.visits += 1
            stays = self._rng.randrange(1, 2000) if self._rng else sys.maxsize
            position = await self._visit(position, stays)

    async def _visit(self, position: Position, stays: int) -> Position:
        backend = open_backend(self._url)
        assert backend.log is not None
        try:
            items = follow(backend.log, backend.bus, job_tape(self._job_id), job_channel(self._job_id), after=position)
            async with aclosing(items):
                async for item in items:
                    self.seen.append(item)
                    if isinstance(item, Gap):
                        position = Position(item.epoch or "", item.last or 0)
                    else:
                        position = Position(item.epoch or "", item.offset or 0)
                        self.is_done = item.final
                    stays -= 1
                    if self.is_done or stays <= 0:
                        break
        finally:
            await backend.close()
        return position


class StreamBox:
    """One run."""

    def __init__(
        self, folder: Path, *, events: int, kills: int, seed: int, durable: bool, say: Callable[[str], None]
    ) -> None:
        self.rng = random.Random(seed)
        self.seed = seed
        self.events = events
        self.durable = durable
        self.say = say
        self.server = RedisServer("redis", folder / "redis", **(DURABLE if durable else {}))
        shares = sorted(self.rng.uniform(0.05, 0.9) for _ in range(kills))
        self.kill_at = [int(events * share) for share in shares]
        self.kills: list[dict[str, float]] = []
        self.acknowledged = 0
        self.repeated = 0
        self.told: dict[str, dict[Position, bytes]] = {job: {} for job in JOBS}
        self.problems: list[str] = []
        self.checks: Counter[str] = Counter()
        self.new_epochs = 0
        self.visits = 0

    async def run(self) -> None:
        url = self.server.url()
        followers = [
            (job, Follower(url, job, random.Random(self.rng.random()) if restless else None))
            for job in JOBS
            for restless in (False, False, True)
        ]
        tasks = [asyncio.create_task(follower.run()) for _, follower in followers]
        killer = asyncio.create_task(self._kill())
        await asyncio.gather(*(self._publish(url, number) for number in range(PUBLISHERS)))
        await killer
        await self._finish(url)
        _, late = await asyncio.wait(tasks, timeout=QUIET_TIMEOUT_S)
        self.fault_if(bool(late), f"{len(late)} followers never saw the end")
        for task in late:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for job, follower in followers:
            self.judge(job, follower)

    async def _publish(self, url: str, number: int) -> None:
        job = JOBS[number % len(JOBS)]
        async with RedisStreamPublisher(url=url) as publisher:
            mine = range(number, self.events, PUBLISHERS)
            for first in range(0, len(mine), TOGETHER):
                await asyncio.gather(*(self._one(publisher, job, n) for n in mine[first : first + TOGETHER]))

    async def _one(self, publisher: RedisStreamPublisher, job: str, number: int) -> None:
        event = {"event_type": "task_progress", "timestamp": "", "n": number}
        while True:
            try:
                recorded = await publisher.record(job, event, idempotency_key=f"n{number}")
            except LogUnavailableError:
                self.repeated += 1
                continue
            break
        body = b'{"event_type":"task_progress","job_id":"%b","timestamp":"","data":%b}' % (
            job.encode(),
            json.dumps(event, separators=(",", ":")).encode(),
        )
        before = self.told[job].setdefault(recorded.position, body)
        self.fault_if(before != body, f"{job}: two events were told that they are {recorded.position}")
        self.acknowledged += 1

    async def _kill(self) -> None:
        for number, wanted in enumerate(self.kill_at):
            while self.acknowledged < wanted:
                await asyncio.sleep(0.002)
            down = self.rng.uniform(0, 1.0)
            self.kills.append({"after_events": self.acknowledged, "down_s": round(down, 3)})
            await asyncio.to_thread(self.server.kill)
            await asyncio.sleep(down)
            await asyncio.to_thread(self.server.start)
            self.say(f"kill {number + 1} of {len(self.kill_at)} after {self.acknowledged} events")

    async def _finish(self, url: str) -> None:
        async with RedisStreamPublisher(url=url) as publisher:
            for job in JOBS:
                recorded = await publisher.record(
                    job, {"event_type": "task_completed", "timestamp": ""}, idempotency_key="end"
                )
                self.told[job][recorded.position] = (
                    b'{"event_type":"task_completed","job_id":"%b","timestamp":"",'
                    b'"data":{"event_type":"task_completed","timestamp":""}}' % job.encode()
                )

    def judge(self, job: str, follower: Follower) -> None:
        """Hold what a follower saw against what the publishers were told."""
        self.visits += follower.visits
        events = [item for item in follower.seen if not isinstance(item, Gap)]
        gaps = [item for item in follower.seen if isinstance(item, Gap)]
        self.new_epochs += len(gaps)
        told = self.told[job]
        truth = Truth(may_lose_end=not self.durable)
        for item in events:
            position = Position(item.epoch or "", item.offset or 0)
            # Of an event that was written, pushed and lost before the publisher heard of it nobody can be told more.
            known = told.get(position, None if self.durable else item.payload)
            self.fault_if(known is None, f"{job}: {position} was never acknowledged")
            line = truth.events.setdefault(position.epoch, [])
            while len(line) < position.offset:
                line.append(told.get(Position(position.epoch, len(line) + 1), b""))
            line[position.offset - 1] = known or b""
            truth.epoch = position.epoch
            self.checks["events"] += 1
        for gap in gaps:
            truth.events.setdefault(gap.epoch or "", [])
        try:
            reached = check(follower.seen, Position("", 0), truth)
        except AssertionError as error:
            self.problems.append(f"{job}: {error}")
            return
        self.checks["transcripts"] += 1
        newest = max((p for p in told if p.epoch == reached.epoch), key=lambda p: p.offset)
        self.fault_if(not follower.is_done or reached != newest, f"{job}: ended at {reached}, not at {newest}")
        if self.durable:
            self.fault_if(bool(gaps), f"{job}: told of a loss that was none: {gaps[:3]}")
            self.fault_if({*told} != {Position(e.epoch or "", e.offset or 0) for e in events}, f"{job}: lost some")
        else:
            self.fault_if(len({p.epoch for p in told}) < 2, f"{job}: nothing was lost, so nothing was shown")

    def fault_if(self, wrong: bool, text: str) -> None:
        """Take it down."""
        self.checks["statements"] += 1
        if wrong:
            self.problems.append(text)


def run_box(
    folder: Path,
    *,
    events: int,
    kills: int,
    seed: int,
    durable: bool = True,
    say: Callable[[str], None] = lambda _: None,
) -> dict[str, Any]:
    """One run; the report says what was injected, what was checked and what was wrong."""
    box = StreamBox(folder, events=events, kills=kills, seed=seed, durable=durable, say=say)
    begun = time.monotonic()
    with running(box.server):
        asyncio.run(box.run())
    commit = subprocess.run(
        ["git", "rev-parse", "--verify", "-q", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False
    ).stdout.strip()
    return {
        "commit": commit or None,
        "seed": seed,
        "python": platform.python_version(),
        "persistence": box.server.options["appendonly"],
        "events": events,
        "acknowledged": box.acknowledged,
        "repeated_by_publishers": box.repeated,
        "seconds": round(time.monotonic() - begun, 1),
        "kills": box.kills,
        "visits_of_followers": box.visits,
        "new_epochs_told": box.new_epochs,
        "checks": dict(box.checks),
        "problems": box.problems,
    }


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="scripts/stream-chaos", description=__doc__.partition("\n\n")[0] if __doc__ else ""
    )
    parser.add_argument("--events", type=int, default=100_000)
    parser.add_argument("--kills", type=int, default=5)
    parser.add_argument("--seed", type=int, default=None, help="default: a new one, which is printed")
    parser.add_argument("--out", type=Path, default=None, help="JSON file (default: stream-chaos-<seed>.json)")
    args = parser.parse_args()
    seed = args.seed if args.seed is not None else random.SystemRandom().randrange(2**32)
    print(f"seed {seed}", flush=True)
    runs = []
    for durable in (True, False):
        with tempfile.TemporaryDirectory(prefix="livetape-stream-chaos-") as folder:
            runs.append(
                run_box(
                    Path(folder),
                    events=args.events,
                    kills=args.kills,
                    seed=seed,
                    durable=durable,
                    say=lambda t: print(t, flush=True),
                )
            )
    out = args.out or Path(f"stream-chaos-{seed}.json")
    out.write_text(json.dumps({"seed": seed, "runs": runs}, indent=1) + "\n")
    problems = sum(len(run["problems"]) for run in runs)
    print(f"{problems} problems, {sum(len(run['kills']) for run in runs)} kills, written to {out}")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
