"""The loop from the queue to executors: claims what a doorbell names, keeps its leases, sweeps for lost ones."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Coroutine
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, Final

from pydantic_core import to_json

from livetape.clock import Clock, IdFactory
from livetape.engine.block import BlockRegistry
from livetape.engine.block_ports import Memory
from livetape.engine.block_threads import BlockThreads
from livetape.engine.children import MAX_DEPTH, ChildMaker
from livetape.engine.executor import Executor, ExecutorOptions
from livetape.engine.graph import Graph
from livetape.engine.graph_plan import GraphPlan
from livetape.engine.hooks import Hooks
from livetape.engine.large_values import Keeping
from livetape.engine.leases import Leases, LeaseTimes, Renewer
from livetape.engine.queue import Delivery, Queue
from livetape.errors import LivetapeError, NotFoundError, StoreUnavailableError
from livetape.events.executions import ExecutionStats, ExecutionStatus
from livetape.observability import Metrics, get_logger
from livetape.store.execution_events import graph_event
from livetape.store.executions import ClaimLimits, ExecutionChange, ExecutionRow, ExecutionStore, Step
from livetape.store.graphs import GraphStore

logger = get_logger(__name__)

KEPT_PLANS: Final = 64
RETRY_S: Final = 0.5
TICK_S: Final = 0.5


@dataclass(frozen=True, slots=True)
class WorkerOptions:
    """`concurrency` executions at once; times in seconds. A renewal is due several times per lease.

    `silence_s`: nothing is renewed when the event loop has not ticked for so long, so that a worker that hangs loses
    its leases instead of keeping them for ever. `limits` hold for all workers together.
    """

    concurrency: int = 10
    lease_s: float = 15.0
    renew_s: float = 5.0
    sweep_s: float = 2.5
    silence_s: float = 10.0
    threads: int = 16
    max_depth: int = MAX_DEPTH
    limits: ClaimLimits = field(default_factory=ClaimLimits)
    executor: ExecutorOptions = field(default_factory=ExecutorOptions)


class Worker:
    """Runs executions until cancelled; then hands back what it holds.

    `sole`: no other process can be using this store (an OS lock says so), so leases found at the start are void.
    """

    def __init__(
        self,
        *,
        name: str,
        queue: Queue,
        store: ExecutionStore,
        graphs: GraphStore,
        blocks: BlockRegistry,
        clock: Clock,
        new_id: IdFactory,
        metrics: Metrics,
        options: WorkerOptions,
        sole: bool = False,
        hooks: Hooks | None = None,
        memory: Memory | None = None,
        keeping: Keeping | None = None,
    ) -> None:
        self.name = name
        self._queue = queue
        self._store = store
        self._graphs = graphs
        self._blocks = blocks
        self._clock = clock
        self._new_id = new_id
        self._metrics = metrics
        self._options = options
        self._sole = sole
        self._hooks = hooks or Hooks()
        self._memory = memory
        self._keeping = keeping
        self._make_child = ChildMaker(graphs, blocks, clock=clock, max_depth=options.max_depth, keeping=keeping)
        self._plans: OrderedDict[tuple[str, int], GraphPlan] = OrderedDict()
        self._times = LeaseTimes(options.lease_s, options.renew_s, options.silence_s)
        self._leases = Leases(self._times, clock, lambda held: store.renew(name, held, options.lease_s))
        self._free = options.concurrency
        self._freed = asyncio.Event()
        self._looks: set[asyncio.Task[None]] = set()
        self._paused = False
        self._pause_asked = self._pause_known = 0
        self._threads = BlockThreads(options.threads)
        self.ready = asyncio.Event()

    async def run(self) -> None:
        """Work for ever. Cancelling it hands back what runs, within the grace time of blocks."""
        if self._sole:
            for execution_id in await self._store.recover(expired_before=None):
                logger.info("execution %s was interrupted: queued again", execution_id, extra={"action": "recovered"})
        self._leases.tick()
        renewer = Renewer(self._leases, self._times, asyncio.get_running_loop(), metrics=self._metrics)
        renewer.start()
        runs: set[asyncio.Task[None]] = set()
        beside = [
            asyncio.create_task(self._sweep_forever(), name="lease sweep"),
            asyncio.create_task(self._tick_forever(), name="lease watch"),
        ]
        self._show_load()
        self.ready.set()
        try:
            while True:
                await self._slot()
                for delivery in await self._take():
                    self._free -= 1
                    task = asyncio.create_task(self._look(delivery), name=f"run {delivery.doorbell.graph_exec_id}")
                    runs.add(task)
                    task.add_done_callback(runs.discard)
        finally:
            beside[0].cancel()
            for executor in self._leases.executors():
                executor.hand_back()
            if runs:
                await asyncio.wait(runs, timeout=self._options.executor.cancel_grace_s + 5)
            for task in (*runs, *beside, *self._looks):
                task.cancel()
            renewer.stop()
            self._threads.shutdown(wait=False, cancel_futures=True)

    def cancel(self, execution_id: str) -> None:
        """This execution shall stop; nothing happens if it does not run here."""
        executor = self._leases.get(execution_id)
        if executor is not None:
            executor.cancel()

    def hint(self, execution_id: str) -> None:
        """Something may have happened to this execution: look, if it runs here. What its row says counts."""
        if self._leases.get(execution_id) is not None:
            task = asyncio.get_running_loop().create_task(self._look_at_row(execution_id), name="hint")
            self._looks.add(task)
            task.add_done_callback(self._looks.discard)

    async def _look_at_row(self, execution_id: str) -> None:
        try:
            row = await self._store.get(execution_id)
        except LivetapeError as error:
            logger.info("a hint is not followed: %s", error, extra={"action": "hint_lost"})
            return
        executor = self._leases.get(execution_id)
        if executor is not None:
            executor.look(row)

    @property
    def running(self) -> int:
        """How many executions it holds."""
        return len(self._leases)

    async def _slot(self) -> None:
        """Wait until something may be taken."""
        while self._free < 1 or self._paused:
            self._freed.clear()
            await self._freed.wait()

    def _let_go(self) -> None:
        self._free += 1
        self._freed.set()

    async def _take(self) -> list[Delivery]:
        while True:
            try:
                return await self._queue.take(self._free)
            except LivetapeError as error:
                if not error.retryable:
                    raise
                logger.warning("the queue cannot be read: %s", error, extra={"action": "queue_retry"})
                await asyncio.sleep(RETRY_S)

    async def _look(self, delivery: Delivery) -> None:
        execution_id = delivery.doorbell.graph_exec_id
        try:
            asked_at = self._clock.monotonic()
            row = await self._claim(delivery)
            if row is None:
                return
            # The claim is committed: should the doorbell come again, nothing is due. So nobody waits for this.
            acknowledged = asyncio.create_task(self._settle(self._queue.ack(delivery)), name=f"ack {execution_id}")
            try:
                await self._execute(row, asked_at)
            finally:
                await acknowledged
        except Exception as error:  # the boundary of the task: one execution takes no other with it
            if isinstance(error, LivetapeError) and error.retryable:
                # The doorbell comes again, or the lease runs out: nothing is lost, only late.
                logger.warning("execution %s waits: %s", execution_id, error, extra={"action": "execution_retry"})
            else:
                logger.exception("execution %s failed in the engine", execution_id, extra={"action": "engine_failed"})
                self._metrics.count("engine_failures_total")
        finally:
            self._let_go()

    async def _claim(self, delivery: Delivery) -> ExecutionRow | None:
        """What it names, claimed; to be acknowledged. None: there is nothing to run, and the queue knows."""
        execution_id = delivery.doorbell.graph_exec_id
        options = self._options
        try:
            row = await self._store.claim(
                execution_id, owner=self.name, lease_seconds=options.lease_s, limits=options.limits
            )
            if row is None and await self._look_for_pause():
                await self._settle(self._queue.nack(delivery, delay_s=options.sweep_s))
                return None
            if row is None and await self._is_due(execution_id):
                await self._settle(self._queue.nack(delivery, delay_s=options.sweep_s))
                return None
        except LivetapeError as error:
            if error.retryable:
                await self._settle(self._queue.nack(delivery, delay_s=RETRY_S))
            raise
        if row is None:
            await self._settle(self._queue.ack(delivery))
        return row

    async def _is_due(self, execution_id: str) -> bool:
        """Whether it could be claimed now and not a moment ago: the pause that the claim met is over."""
        try:
            row = await self._store.get(execution_id)
        except NotFoundError:
            return False
        due = row.due_at is None or row.due_at <= self._clock.now()
        return row.status is ExecutionStatus.QUEUED and row.held is None and due

    async def _settle(self, telling: Coroutine[Any, Any, None]) -> None:
        """A queue that cannot be told brings the doorbell again, and nothing is due then."""
        try:
            await telling
        except LivetapeError as error:
            logger.info("a doorbell comes again: %s", error, extra={"action": "ack_lost"})

    async def _look_for_pause(self) -> bool:
        """Whether the queue is paused. Several ask at once: what one read before another counts no more after it."""
        self._pause_asked += 1
        asked = self._pause_asked
        paused = await self._store.paused() is not None
        if asked > self._pause_known:
            self._pause_known = asked
            if paused != self._paused:
                logger.info("the queue is paused" if paused else "the queue goes on", extra={"action": "queue_pause"})
            self._paused = paused
            self._freed.set()
        return paused

    async def _execute(self, row: ExecutionRow, asked_at: float) -> None:
        try:
            plan = await self._plan(row)
        except LivetapeError as error:
            if isinstance(error, StoreUnavailableError):
                raise
            await self._refuse(row, str(error))
            return
        executor = Executor(
            row,
            plan,
            store=self._store,
            blocks=self._blocks,
            threads=self._threads,
            clock=self._clock,
            new_id=self._new_id,
            metrics=self._metrics,
            options=self._options.executor,
            make_child=self._make_child,
            hooks=self._hooks,
            memory=self._memory,
            values=None if self._keeping is None else self._keeping.of(row.user_id, row.id),
            seconds_left=self._seconds_left(row),
            database_ahead=self._database_ahead(row),
        )
        held = self._leases.add(executor, asked_at)
        self._show_load()
        try:
            await executor.run()
        finally:
            self._leases.remove(held)
            self._show_load()

    def _database_ahead(self, row: ExecutionRow) -> timedelta:
        """The lease was given a moment ago, by the database's clock."""
        if row.lease_until is None:
            return timedelta(0)
        return row.lease_until - timedelta(seconds=self._options.lease_s) - self._clock.now()

    def _seconds_left(self, row: ExecutionRow) -> float | None:
        """How long it may run. The lease tells what the database's clock was at the claim."""
        if row.deadline_at is None or row.lease_until is None:
            return None
        return (row.deadline_at - row.lease_until).total_seconds() + self._options.lease_s

    def _show_load(self) -> None:
        running, slots = len(self._leases), self._options.concurrency
        self._metrics.gauge("execution_manager_active_runs", running)
        self._metrics.gauge("execution_manager_pool_size", slots)
        self._metrics.gauge("execution_manager_utilization_ratio", running / slots)

    async def _plan(self, row: ExecutionRow) -> GraphPlan:
        key = (row.graph_id, row.graph_version)
        plan = self._plans.get(key)
        if plan is None:
            stored = await self._graphs.get(row.user_id, *key)
            plan = GraphPlan(Graph.model_validate_json(stored.body), self._blocks)
            self._plans[key] = plan
            while len(self._plans) > KEPT_PLANS:
                self._plans.popitem(last=False)
        else:
            self._plans.move_to_end(key)
        return plan

    async def _refuse(self, row: ExecutionRow, error: str) -> None:
        now = self._clock.now()
        stats = to_json(ExecutionStats(error=error))
        row.status, row.status_reason, row.stats, row.ended_at = ExecutionStatus.FAILED, "graph_unusable", stats, now
        change = ExecutionChange(ExecutionStatus.FAILED, "graph_unusable", stats, ended_at=now)
        step = Step(row.id, row.lease_no, change=change, events=[graph_event(row)])
        await self._store.commit(step, row)

    async def _tick_forever(self) -> None:
        pause_s = min(TICK_S, self._options.lease_s / 10)
        while True:
            try:
                self._leases.tick()
            except Exception:  # without it no lease is given up in time
                logger.exception("leases cannot be watched", extra={"action": "lease_watch_failed"})
                self._metrics.count("internal_errors_total", part="leases")
            await asyncio.sleep(pause_s)

    async def _sweep_forever(self) -> None:
        while True:
            await asyncio.sleep(self._options.sweep_s)
            try:
                await self._sweep()
            except LivetapeError as error:
                logger.warning("executions cannot be swept: %s", error, extra={"action": "sweep_retry"})
            except Exception:  # a sweep that ends for good would leave everything to lie
                logger.exception("executions cannot be swept", extra={"action": "sweep_failed"})
                self._metrics.count("internal_errors_total", part="sweep")

    async def _sweep(self) -> None:
        swept = await self._store.sweep(grace_seconds=self._options.executor.cancel_grace_s + self._options.lease_s)
        for execution_id in swept.recovered:
            logger.warning("execution %s lost its worker", execution_id, extra={"action": "recovered"})
            self._metrics.count("executions_recovered_total")
        for execution_id in swept.rung:
            logger.warning("execution %s is rung again", execution_id, extra={"action": "rung_again"})
            self._metrics.count("executions_rung_again_total")
        for execution_id in swept.timed_out:
            logger.warning("execution %s took too long", execution_id, extra={"action": "timed_out"})
            self._metrics.count("executions_timed_out_total")
        await self._look_for_pause()
        figures = await self._store.figures()
        self._metrics.gauge("execution_queue_depth", figures.depth)
        self._metrics.gauge("execution_queue_oldest_seconds", figures.oldest_s)
