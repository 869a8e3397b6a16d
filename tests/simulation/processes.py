"""What runs in the simulated processes: the production engine, its callers, and those who watch."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Final, Protocol, TypeVar

from livetape.adapters.sql.executions import SqlExecutionStore
from livetape.adapters.sql.graphs import SqlGraphStore
from livetape.adapters.sql.queue import SqlQueue
from livetape.adapters.sql.relay import SqlTapeRelayStore
from livetape.engine.executor import ExecutorOptions
from livetape.engine.forwarder import Forwarder
from livetape.engine.outlets import CopyOutlet
from livetape.engine.planner import Rules
from livetape.engine.queue import Queue
from livetape.engine.relay import Relay
from livetape.engine.submit import Executions, Started
from livetape.engine.worker import Worker, WorkerOptions
from livetape.errors import ConflictError, LivetapeError, LogUnavailableError
from livetape.events.backoff import Backoff
from livetape.events.channel import execution_channel, execution_tape
from livetape.events.codec import Envelope, split
from livetape.events.copier import LogCopier
from livetape.events.executions import ExecutionStatus
from livetape.events.log import Position
from livetape.events.recovery import Gap, Tail, from_log, merge
from livetape.events.tape_event import TapeEvent
from livetape.observability import NoMetrics
from livetape.store.executions import ClaimLimits, ExecutionRow, Step
from livetape.store.reviews import Decision, ReviewRow
from livetape.testing.fakes import FakeLog
from simulation.database import Commit, Shelf, SimDatabase, saying
from simulation.host import Host
from simulation.servers import Air, AirBus, Broker, BrokerQueue, RemoteLog, TableLog
from simulation.threads import Town
from simulation.workload import USER, Ledger, blocks_of
from simulation.world import State

T = TypeVar("T")

CONCURRENCY: Final = 3
OPTIONS: Final = WorkerOptions(
    concurrency=CONCURRENCY, sweep_s=7.5, executor=ExecutorOptions(rules=Rules(step_limit=200))
)
POLL_S: Final = 10.0
"""A process looks for doorbells so often when it is not told of any: it is told, mostly."""

LOOKED_S: Final = 25.0
"""A watcher that hears nothing looks into the log so often."""

PATIENCE_S: Final = 3.0
"""So long a caller waits for an answer before it asks again."""


class WitnessedStore(SqlExecutionStore):
    """The production store, saying to the database what it is called for and under which lease a step is written."""

    def __init__(self, database: SimDatabase, **options: Any) -> None:
        super().__init__(database, **options)
        self.sim = database

    async def start(self, *args: Any, **options: Any) -> Any:
        with saying("start"):
            return await super().start(*args, **options)

    async def claim(self, *args: Any, **options: Any) -> Any:
        with saying("claim"):
            return await super().claim(*args, **options)

    async def commit(self, step: Step, row: ExecutionRow) -> None:
        with saying("commit", step.execution_id, step.lease_no):
            await super().commit(step, row)

    async def hand_back(self, execution_id: str, *, lease_no: int, **options: Any) -> Any:
        with saying("hand_back", execution_id, lease_no):
            return await super().hand_back(execution_id, lease_no=lease_no, **options)

    async def request_cancel(self, *args: Any, **options: Any) -> Any:
        with saying("request_cancel"):
            return await super().request_cancel(*args, **options)

    async def recover(self, *args: Any, **options: Any) -> Any:
        with saying("recover"):
            return await super().recover(*args, **options)

    async def release_owner(self, *args: Any, **options: Any) -> Any:
        with saying("release_owner"):
            return await super().release_owner(*args, **options)

    async def sweep(self, *args: Any, **options: Any) -> Any:
        with saying("sweep"):
            return await super().sweep(*args, **options)

    def renew(self, *args: Any, **options: Any) -> Any:
        with saying("renew"):
            return super().renew(*args, **options)


@dataclass(slots=True)
class Classes:
    """The parts that a planted bug replaces."""

    store: type[WitnessedStore] = WitnessedStore
    table_queue: type[SqlQueue] = SqlQueue
    worker: type[Worker] = Worker


@dataclass(slots=True)
class Shared:
    """What all processes of a history reach."""

    shelf: Shelf
    town: Town
    air: Air
    broker: Broker | None
    log: FakeLog
    ledger: Ledger
    classes: Classes
    witness: Callable[[Commit], None]
    hint: Callable[[str], None]
    ring: Callable[[Engine], None]
    limits: ClaimLimits = field(default_factory=ClaimLimits)
    queue_seconds: float | None = None


class Engine:
    """The engine in one process: relay and use cases, and a worker unless it only answers callers."""

    def __init__(self, host: Host, shared: Shared, *, works: bool, sole: bool) -> None:
        self.host = host
        self.sole = sole
        self._ring_others = shared.ring
        database = SimDatabase(shared.shelf, host, shared.town, shared.witness)
        table = shared.classes.table_queue(database, poll_s=POLL_S)
        self.table = table
        self.queue: Queue = table if shared.broker is None else BrokerQueue(shared.broker, host)
        log, bus = RemoteLog(shared.log, host), AirBus(shared.air, host)
        tapes = TableLog(database)
        outlet = CopyOutlet(LogCopier(log, bus), log, tapes, bus, clock=host.clock)
        self.relay = Relay(
            outlet,
            log=tapes,
            store=SqlTapeRelayStore(database, owner=None if sole else host.name),
            metrics=NoMetrics(),
            shared=not sole,
        )
        store = shared.classes.store(
            database, on_commit=self.relay.offer, ring=self._ring, clock=host.clock, hint=shared.hint
        )
        self.store = store
        graphs = SqlGraphStore(database)
        blocks = blocks_of(shared.ledger, host, shared.town.sleep)
        self.worker: Worker | None = None
        if works:
            self.worker = shared.classes.worker(
                name=host.name,
                queue=self.queue,
                store=store,
                graphs=graphs,
                blocks=blocks,
                clock=host.clock,
                new_id=host.new_id,
                metrics=NoMetrics(),
                options=replace(OPTIONS, limits=shared.limits),
                sole=sole,
            )
        self.executions = Executions(
            store,
            graphs,
            tapes,
            blocks,
            clock=host.clock,
            new_id=host.new_id,
            hint=shared.hint,
            queue_seconds=shared.queue_seconds,
        )
        self._forwards = shared.broker is not None
        self._working: asyncio.Task[None] | None = None

    def _ring(self) -> None:
        self.table.ring()
        self._ring_others(self)

    async def run(self) -> None:
        """As the process does, until it is cancelled."""
        if self.sole:
            await self._insist(self.table.void_takes)
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self.relay.run(), name="relay")
            if self._forwards:
                forwarder = Forwarder(
                    self.table, self.queue, backoff=Backoff(longest=2.0, jitter=self.host.world.rng.random)
                )
                tasks.create_task(forwarder.run(), name="forward doorbells")
            if self.worker is not None:
                self._working = tasks.create_task(self._work(self.worker), name="worker")

    async def _work(self, worker: Worker) -> None:
        while True:
            try:
                await worker.run()
            except LivetapeError:  # a start that cannot reach the database: the supervisor tries again
                await asyncio.sleep(0.5)

    async def stop_working(self) -> None:
        """As a graceful stop does: the worker hands back what it holds."""
        if self._working is not None:
            self._working.cancel()
            await asyncio.wait([self._working])

    async def _insist(self, work: Callable[[], Awaitable[T]]) -> T:
        while True:
            try:
                return await work()
            except LivetapeError:
                await asyncio.sleep(0.5)


async def ask(caller: Host, engine: Engine, work: Callable[[Engine], Awaitable[T]]) -> T:
    """A call to another process: its answer, or TimeoutError when there is none, whatever happened there."""
    world = caller.world
    answered: asyncio.Future[T] = caller.loop.create_future()

    async def serve() -> None:
        try:
            result = await work(engine)
        except LivetapeError as error:
            reply = partial(_give, answered, None, error)
        else:
            reply = partial(_give, answered, result, None)
        world.at(world.now + 0.001, caller.loop, asyncio.Handle(reply, (), caller.loop))

    engine.host.start(serve, "request")
    async with asyncio.timeout(PATIENCE_S):
        return await answered


async def _decide(review_id: str, decision: Decision, engine: Engine) -> ReviewRow:
    return await engine.store.decide(review_id, decision, user_id=USER)


@dataclass(frozen=True, slots=True)
class _Answer:
    """To a retry; without an execution when nothing was left of it to run."""

    started: Started | None


async def _retry(execution_id: str, key: str, engine: Engine) -> _Answer:
    try:
        return _Answer(
            await engine.executions.retry(USER, execution_id, idempotency_key=key, request_hash=execution_id)
        )
    except ConflictError:
        return _Answer(None)


def _give(future: asyncio.Future[Any], result: Any, error: Exception | None) -> None:
    if not future.done():
        if error is None:
            future.set_result(result)
        else:
            future.set_exception(error)


class Directory(Protocol):
    """Where callers find a process that answers."""

    def anybody(self) -> Engine | None: ...


class Client:
    """Wants things, and asks again until somebody has said yes."""

    def __init__(self, host: Host, directory: Directory, note: Callable[..., None]) -> None:
        self._host = host
        self._directory = directory
        self._note = note

    async def start(self, graph: str, key: str) -> Started:
        """The execution of this key, however often it has to be asked for."""
        value = {"key": key, "n": 1}
        again = self._host.faults.active and self._host.world.rng.random() < 0.2
        while True:
            started = await self._asked(
                lambda engine: engine.executions.start(
                    USER, graph, None, {"value": value}, idempotency_key=key, request_hash=key
                )
            )
            if started is not None:
                self._note("accepted_start", key, started.execution.id)
                if not again:
                    return started
                self._host.faults.counts["start_repeated"] += 1
                again = False

    async def stop(self, execution_id: str) -> None:
        """Asks for the stop until it is accepted."""
        self._host.faults.counts["cancel"] += 1
        while await self._asked(lambda engine: engine.executions.stop(USER, execution_id)) is None:
            pass
        self._note("accepted_stop", execution_id)

    async def retry(self, execution_id: str, key: str) -> Started | None:
        """Waits until this execution is over, and has it tried again if it came to nothing. None: nothing to try."""
        while True:
            row = await self._asked(lambda engine: engine.store.get(execution_id, user_id=USER))
            if row is not None and row.status is ExecutionStatus.COMPLETED:
                return None
            if row is not None and row.status.is_terminal:
                break
            await asyncio.sleep(5.0)
        self._host.faults.counts["retry"] += 1
        while (answer := await self._asked(partial(_retry, execution_id, key))) is None:
            pass
        if answer.started is not None:
            self._note("accepted_start", key, answer.started.execution.id)
        return answer.started

    async def decide_forever(self) -> None:
        """Decides what people are asked, some seconds after they are asked."""
        rng = self._host.world.rng
        while True:
            await asyncio.sleep(rng.uniform(1.0, 6.0))
            for review in await self._asked(lambda engine: engine.store.reviews(USER)) or ():
                decision = Decision(approved=rng.random() < 0.8)
                decided = await self._asked(partial(_decide, review.id, decision))
                if decided is not None:
                    self._note("decided", review.execution_id, decided.status.value)

    async def _asked(self, work: Callable[[Engine], Awaitable[T]]) -> T | None:
        engine = self._directory.anybody()
        try:
            if engine is not None:
                return await ask(self._host, engine, work)
        except (TimeoutError, LivetapeError):
            self._host.faults.counts["start_repeated"] += 1
        await asyncio.sleep(0.3)
        return None


class Operator:
    """Somebody with a shell and the address of the database."""

    def __init__(self, host: Host, shared: Shared) -> None:
        database = SimDatabase(shared.shelf, host, shared.town, shared.witness)
        self._store = SqlExecutionStore(database, on_commit=lambda _: None, ring=lambda: None, clock=host.clock)

    async def pause(self, seconds: float) -> None:
        """Keeps everybody from claiming anything for a while."""
        await self._insist(lambda: self._store.pause("maintenance"))
        await asyncio.sleep(seconds)
        await self._insist(self._store.resume)

    async def _insist(self, work: Callable[[], Awaitable[None]]) -> None:
        while True:
            try:
                return await work()
            except LivetapeError:
                await asyncio.sleep(0.3)


@dataclass(slots=True)
class Watcher:
    """Watches one execution from its first event, over the bus and the log; goes away and comes back now and then."""

    host: Host
    air: Air
    log: RemoteLog
    execution_id: str
    graph: str
    position: Position
    seen: list[TapeEvent] = field(default_factory=list)
    gaps: list[Gap] = field(default_factory=list)
    finished: bool = False

    async def run(self) -> None:
        rng, faults = self.host.world.rng, self.host.faults
        while not self.finished:
            stays = rng.uniform(1.0, 10.0) if faults.active else 1_000.0
            try:
                async with asyncio.timeout(stays):
                    await self._watch()
            except TimeoutError:
                faults.counts["watcher_reconnects"] += 1
                await asyncio.sleep(rng.uniform(0.1, 3.0))

    async def _watch(self) -> None:
        tape = execution_tape(self.execution_id)
        channel = execution_channel(USER, self.graph, self.execution_id)
        tail, wake = Tail(16, 1 << 20), asyncio.Event()

        def hear(data: bytes) -> None:
            envelope: Envelope = split(data)
            tail.add(TapeEvent(envelope.event_type, envelope.payload, envelope.offset, envelope.epoch, envelope.final))
            wake.set()

        listener = (self.host, hear)
        self.air.listeners.setdefault(channel, []).append(listener)
        try:
            while not self.finished:
                try:
                    entries = await self.log.read(tape, self.position.offset, limit=20)
                except LogUnavailableError:
                    await asyncio.sleep(0.5)
                    continue
                read = [from_log(entry, self.position.epoch) for entry in entries]
                merged = merge(self.position, read, tail)
                for item in merged.items:
                    if isinstance(item, Gap):
                        self.gaps.append(item)
                    else:
                        self.seen.append(item)
                        self.finished = self.finished or item.final
                self.position = merged.position
                if merged.behind:
                    await asyncio.sleep(0.2)
                elif not entries and not self.finished:
                    wake.clear()
                    try:
                        async with asyncio.timeout(LOOKED_S if self.host.faults.active else 5.0):
                            await wake.wait()
                    except TimeoutError:
                        pass
        finally:
            self.air.listeners[channel].remove(listener)


def is_alive(host: Host) -> bool:
    return host.state is not State.DEAD
