"""One history: from a seed to its violations."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from typing import Any, Final

from sqlalchemy import insert

from livetape.adapters.sql.tables import graph as graph_table
from livetape.engine.block import Block, BlockContext
from livetape.engine.queue import Doorbell
from livetape.engine.submit import Started
from livetape.errors import LivetapeError
from livetape.store.executions import ClaimLimits
from livetape.testing.fakes import FakeLog
from simulation.database import Commit, Shelf
from simulation.ending import judge_rows
from simulation.faults import NOT_EMBEDDED, Faults
from simulation.history import History
from simulation.host import Host
from simulation.invariants import Judge, Violation, fork_key
from simulation.processes import CONCURRENCY, OPTIONS, Classes, Client, Engine, Operator, Shared, Watcher, is_alive
from simulation.servers import Air, Broker, RemoteLog
from simulation.surroundings import RECOVERY_DELAYS_S, times_of_histories, without_collections
from simulation.threads import Town
from simulation.workload import ASKING, GRAPHS, USER, Ledger, Wish, draw
from simulation.world import SimClock, State, World

TROUBLE_S: Final = (6.0, 20.0)
"""Faults strike until a moment in between; afterwards everything is healthy."""

PROGRESS_S: Final = 15.0 + OPTIONS.sweep_s + 15.0 + 25.0
"""Lease, sweep, the time that a taken doorbell is hidden, and the longest block with its grace."""

BACK_OFF_S: Final = max(RECOVERY_DELAYS_S)
STOP_S: Final = 10.0 + 15.0 + OPTIONS.sweep_s + 15.0
"""Grace, lease, sweep, and a hidden doorbell."""

WORTH_WAITING_FOR: Final = frozenset({"black_hole", "pause", "loop_hang"})
"""Kinds that show something only where something runs: they wait a little for that."""

LIMIT_S: Final = 420.0
LOOK_S: Final = 5.0


@dataclass(slots=True)
class Outcome:
    """What came of a seed."""

    seed: int
    mode: str
    violations: list[Violation]
    faults: Counter[str]
    seconds: float
    statuses: Counter[str]
    history: History
    complaints: list[str] = field(default_factory=list)

    @property
    def digest(self) -> str:
        """The same whenever the seed is repeated."""
        return self.history.digest


class Simulation:
    """One history of one seed, on a database that is used again for the next."""

    def __init__(self, seed: int, shelf: Shelf, classes: Classes | None = None) -> None:
        self.seed = seed
        rng = random.Random(seed)
        self.world = World(rng)
        self.mode = rng.choice(["embedded", "table", "table", "broker", "broker"])
        self.faults = Faults(rng, without=NOT_EMBEDDED if self.mode == "embedded" else frozenset())
        self.history = History()
        self._limits = _limits(rng)
        self.judge = Judge(alive=self._is_alive, bells_are_safe=self.mode != "broker", limits=self._limits)
        self._shelf = shelf
        self._town = Town(self.world)
        self._hosts: list[Host] = []
        self._engines: dict[str, Engine] = {}
        self._watchers: list[Watcher] = []
        self._wishes: list[Wish] = []
        self._waiting_for = 0
        self._started: dict[str, str] = {}
        self._healed_at = 0.0
        self._probes = False
        self._seen = 0
        self._trouble_s = rng.uniform(*TROUBLE_S)
        broker = None
        if self.mode == "broker":
            broker = Broker(self.world, self.faults, self._bell_acknowledged, self._bell_taken)
        self._shared = Shared(
            shelf,
            self._town,
            Air(self.world, self.faults),
            broker,
            FakeLog(SimClock(self.world), epochs=lambda: "graphs"),
            Ledger(began=self._began, acted=self._acted),
            classes or Classes(),
            self._committed,
            self._hint,
            self._ring,
            self._limits,
            rng.choice([None, rng.uniform(1.0, 12.0)]),
        )

    # ---- the course of it ------------------------------------------------------------------------------------------

    def run(self) -> Outcome:
        """From the beginning to the end; everything that it started is over when it returns."""
        self._shelf.clear()
        self._store_graphs()
        with self._town.instead_of_threading(), times_of_histories(), without_collections():
            try:
                self._begin()
                self.world.run(lambda: False, self._trouble_s)
                self._heal()
                self.world.run(self._is_quiet, LIMIT_S)
                if not self.judge.violations and self._may_probe():
                    self._probe()
                self._judge_the_end()
            finally:
                self._close()
        return Outcome(
            self.seed,
            self.mode,
            self.judge.violations,
            self.faults.counts + self.judge.bounds.seen,
            self.world.now,
            Counter(known.status for known in self.judge.executions.values()),
            self.history,
            self.world.complaints,
        )

    def _begin(self) -> None:
        rng = self.world.rng
        if self.mode == "embedded":
            self._open("e", 0)
        else:
            for number in range(rng.choice([2, 2, 3])):
                self._open(f"w{number}", 0)
            for number in range(rng.randint(1, 2)):
                self._open(f"a{number}", 0)
        self._wishes = draw(rng, self._trouble_s / 2, self._shared.ledger, self.faults.counts)
        caller = self._outsider("client")
        client = Client(caller, self, self._note)
        if any(wish.graph in ASKING for wish in self._wishes):
            caller.start(client.decide_forever, "decide")
        for wish in self._wishes:
            self._waiting_for += 1
            caller.start(partial(self._grant, client, wish), f"wish {wish.key}")
        for at, kind in self.faults.moments(self._trouble_s - 1.0):
            self.world.at(at, None, partial(self._strike, kind))

    async def _grant(self, client: Client, wish: Wish) -> None:
        await asyncio.sleep(wish.at)
        started = await client.start(wish.graph, wish.key)
        execution_id = started.execution.id
        self._started[wish.key] = execution_id
        self._have_watched(started, wish)
        if wish.stop_after is not None:
            await asyncio.sleep(wish.stop_after)
            await client.stop(execution_id)
        if wish.again:
            again = await client.retry(execution_id, fork_key(execution_id))
            if again is not None:
                self._have_watched(again, wish)
        self._waiting_for -= 1
        self._note("granted", wish.key)

    def _have_watched(self, started: Started, wish: Wish) -> None:
        outside, execution_id = self._outsider(f"watcher-{wish.key}"), started.execution.id
        log = RemoteLog(self._shared.log, outside)
        watcher = Watcher(outside, self._shared.air, log, execution_id, wish.graph, started.stream)
        self._watchers.append(watcher)
        outside.start(partial(self._watch, watcher), "watch")

    async def _watch(self, watcher: Watcher) -> None:
        await watcher.run()
        self._note("watched", watcher.execution_id)

    def _heal(self) -> None:
        self.faults.active = False
        self._healed_at = self.world.now
        self._note("heal")
        self._look()

    def _look(self) -> None:
        if self.world.now > self._healed_at:
            backing_off = BACK_OFF_S if self._anything_backs_off() else 0.0
            self.judge.patience(self.world.now, self._healed_at, PROGRESS_S + backing_off, STOP_S + backing_off)
        self.world.after(LOOK_S, self._look)

    def _anything_backs_off(self) -> bool:
        return bool(self._shelf.rows("SELECT 1 FROM execution WHERE recoveries > 1 AND status = 'QUEUED' LIMIT 1"))

    def _is_quiet(self) -> bool:
        if self._seen == len(self.history.lines):
            return False
        self._seen = len(self.history.lines)
        return bool(self.judge.violations) or (
            not self._waiting_for
            and not any(True for _ in self.judge.live())
            and all(watcher.finished for watcher in self._watchers)
        )

    def _may_probe(self) -> bool:
        """Probes take their time, and nothing may end them."""
        return self.seed % 3 == 0 and self._shared.queue_seconds is None and self._limits.run_seconds is None

    def _probe(self) -> None:
        """Fill all slots at once, to see whether all are there."""
        caller = self._outsider("prober")
        client = Client(caller, self, lambda *_: None)
        workers = sum(1 for engine in self._engines.values() if engine.worker is not None and is_alive(engine.host))
        slots = workers * CONCURRENCY
        may = [limit for limit in (self._limits.per_user, self._limits.per_graph) if limit is not None]
        slots = min(slots, *may) if may else slots
        for number in range(slots):
            caller.start(partial(client.start, "probe", f"probe{number}"), "probe")
        self._probes = True
        ledger = self._shared.ledger
        self.world.run(lambda: ledger.most >= slots, self.world.now + 80.0)
        self.judge.slots(self.world.now, ledger.most, slots)

    def _close(self) -> None:
        self.faults.active = False
        for host in self._hosts:
            host.loop.kill()
        self._town.close()
        for host in self._hosts:
            host.loop.bury()

    # ---- processes -------------------------------------------------------------------------------------------------

    def _open(self, name: str, incarnation: int) -> None:
        skew = 0.0
        if self.mode != "embedded" and self.world.rng.random() < 0.3:
            skew = self.world.rng.uniform(-150.0, 150.0)
            self.faults.counts["clock_skew"] += 1
        host = Host(
            self.world,
            self.faults,
            f"{name}.{incarnation:02}",
            note=self._note,
            died=partial(self._died, name, incarnation),
            skew_s=skew,
        )
        self._hosts.append(host)
        self._note("start", host.name, round(skew, 3))
        engine = Engine(host, self._shared, works=not name.startswith("a"), sole=self.mode == "embedded")
        self._engines[name] = engine
        host.start(partial(self._main, engine), "main")

    async def _main(self, engine: Engine) -> None:
        """A process ends with any of its parts, and is started again."""
        try:
            await engine.run()
        except Exception as error:
            engine.host.crash(f"it ended: {_root(error)!r}")

    def _died(self, name: str, incarnation: int, host: Host) -> None:
        if self._shared.broker is not None:
            self._shared.broker.lost_taker(host)
        self.faults.counts["restart"] += 1
        self.world.after(self.world.rng.uniform(0.2, 8.0), partial(self._open, name, incarnation + 1))
        engine = self.anybody() if self.world.rng.random() < 0.5 else None
        if engine is not None:
            self.faults.counts["supervisor_releases"] += 1
            engine.host.start(partial(self._release, engine, host.name), "supervisor")

    async def _release(self, engine: Engine, owner: str) -> None:
        """What a supervisor does for a child that exited, if it can."""
        try:
            await engine.store.release_owner(owner)
        except LivetapeError:
            return

    def _outsider(self, name: str) -> Host:
        host = Host(self.world, self.faults, name, note=self._note, mortal=False)
        self._hosts.append(host)
        return host

    def anybody(self) -> Engine | None:
        """A process that answers callers, if there is one."""
        up = [
            engine
            for name, engine in self._engines.items()
            if is_alive(engine.host) and (name.startswith("a") or self.mode == "embedded")
        ]
        return self.world.rng.choice(up) if up else None

    def _is_alive(self, name: str) -> bool:
        return any(host.name == name and is_alive(host) for host in self._hosts)

    # ---- faults ----------------------------------------------------------------------------------------------------

    def _strike(self, kind: str, tries: int = 20) -> None:
        rng = self.world.rng
        if kind == "queue_pause":
            self.faults.counts[kind] += 1
            self._waiting_for += 1
            operator = self._outsider("operator")
            operator.start(partial(self._pause, operator, rng.uniform(1.0, 10.0)), "pause")
            return
        up = [engine for engine in self._engines.values() if engine.host.state is State.RUNNING]
        if kind in WORTH_WAITING_FOR:
            owners = {known.owner for known in self.judge.live()}
            busy = [engine for engine in up if engine.host.name in owners]
            if not busy and tries and self.faults.active:
                self.world.after(0.5, partial(self._strike, kind, tries - 1))
                return
            up = busy or up
        if not up:
            return
        engine = rng.choice(up)
        host = engine.host
        self.faults.counts[kind] += 1
        length = rng.choice([rng.uniform(0.1, 3.0), rng.uniform(3.0, 25.0)])
        match kind:
            case "crash_any_time":
                host.crash("at any time")
            case "pause":
                host.pause(length, rng.choice([0.0, 0.0, rng.uniform(-5.0, 5.0)]))
            case "loop_hang":
                host.freeze(length)
            case "partition_database" | "partition_queue" | "partition_bus":
                server = kind.removeprefix("partition_")
                host.part(server, length)
                if server == "bus":
                    host.part("log", length)
            case "black_hole":
                host.swallow("database", rng.uniform(15.0, 30.0))
            case "database_down":
                for other in self._hosts:
                    if is_alive(other):
                        other.part("database", min(length, 8.0))
            case "graceful_stop":
                self._note("graceful_stop", host.name)
                host.start(partial(self._stop, engine), "graceful stop")

    async def _pause(self, operator: Host, seconds: float) -> None:
        await Operator(operator, self._shared).pause(seconds)
        self._waiting_for -= 1
        self._note("resumed")

    async def _stop(self, engine: Engine) -> None:
        await engine.stop_working()
        engine.host.crash("stopped gracefully")

    def _hint(self, execution_id: str) -> None:
        for engine in self._engines.values():
            worker, host = engine.worker, engine.host
            if worker is None or not is_alive(host) or self.faults.strikes("hint_lost"):
                continue
            later = self.world.now + host.latency()
            self.world.at(later, host.loop, _handle(partial(worker.hint, execution_id), host))

    def _ring(self, ringing: Engine) -> None:
        """The database tells the other processes of a new doorbell, if nothing is in the way."""
        for engine in self._engines.values():
            host = engine.host
            if (
                engine is not ringing
                and is_alive(host)
                and not host.cut["database"]
                and not self.faults.strikes("hint_lost")
            ):
                self.world.at(self.world.now + host.latency(), host.loop, _handle(engine.table.ring, host))

    # ---- what is seen ----------------------------------------------------------------------------------------------

    def _note(self, kind: str, *what: Any) -> None:
        self.history.note(self.world.now, kind, *what)
        if kind == "accepted_start":
            self.judge.start_accepted(self.world.now, *what)
        elif kind == "accepted_stop":
            self.judge.stop_accepted(self.world.now, *what)

    def _committed(self, commit: Commit) -> None:
        self.history.commit(commit)
        seen = len(self.judge.violations)
        self.judge.committed(commit)
        for violation in self.judge.violations[seen:]:
            self._note("violation", str(violation))

    def _began(self, host: Host, ctx: BlockContext, block: Block[Any]) -> None:
        self._note("block", host.name, ctx.node_exec_id)
        now = self.world.now
        self.judge.block_began(now, host.name, ctx.graph_exec_id, ctx.node_exec_id, block.on_interrupt)

    def _acted(self, host: Host, ctx: BlockContext, block: Block[Any]) -> None:
        self._note("acted", host.name, ctx.node_exec_id)
        now = self.world.now
        awake = now - host.awake_since if block.is_async else 0.0  # nobody can stop a thread
        self.judge.block_acted(now, host.name, ctx.graph_exec_id, ctx.node_exec_id, awake, block.timeout)

    def _bell_taken(self, doorbell: Doorbell, tag: int) -> None:
        self.judge.bell_taken(self.world.now, doorbell.graph_exec_id, tag)

    def _bell_acknowledged(self, doorbell: Doorbell, tag: int) -> None:
        self._note("bell_ack", doorbell.graph_exec_id, tag)
        self.judge.bell_acknowledged(self.world.now, doorbell.graph_exec_id, tag)

    # ---- the end ---------------------------------------------------------------------------------------------------

    def _judge_the_end(self) -> None:
        now = self.world.now
        if not self._probes:
            if not self.judge.violations:
                self.judge.over(now)
            for key in self._unanswered():
                self.judge.violations.append(Violation(10, now, key, "nobody accepted it"))
            for watcher in self._watchers:
                last = self.judge.executions[watcher.execution_id].last_number
                offsets = [event.offset or 0 for event in watcher.seen]
                if watcher.finished or not self.judge.violations:
                    self.judge.watched(now, watcher.execution_id, offsets, len(watcher.gaps), last)
        judge_rows(self.judge, self._shelf, now)

    def _unanswered(self) -> list[str]:
        return [wish.key for wish in self._wishes if wish.key not in self._started]

    def _store_graphs(self) -> None:
        at = datetime(2029, 1, 1, tzinfo=UTC)
        rows = [
            {
                "id": name,
                "version": 1,
                "user_id": USER,
                "name": name,
                "description": "",
                "is_active": True,
                "body": graph.model_dump_json().encode(),
                "created_at": at,
            }
            for name, graph in GRAPHS.items()
        ]
        self._shelf.transact(lambda db: db.execute(insert(graph_table), rows))


def _handle(work: Callable[[], Any], host: Host) -> Any:
    return asyncio.Handle(work, (), host.loop)


def _limits(rng: random.Random) -> ClaimLimits:
    """Most histories have one or two, so that each is also seen without the others."""
    return ClaimLimits(
        per_user=rng.choice([None, None, None, 1, 2]),
        per_graph=rng.choice([None, None, 1]),
        run_seconds=rng.choice([None, None, rng.uniform(8.0, 30.0)]),
    )


def _root(error: BaseException) -> BaseException:
    return _root(error.exceptions[0]) if isinstance(error, BaseExceptionGroup) else error
