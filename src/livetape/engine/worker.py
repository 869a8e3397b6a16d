"""The loop from the queue to executors: claims what a doorbell names, renews leases, sweeps for lost ones."""

from __future__ import annotations

import asyncio
import threading
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Final

from pydantic_core import to_json

from livetape.clock import Clock, IdFactory
from livetape.engine.block import BlockRegistry
from livetape.engine.executor import Executor, ExecutorOptions
from livetape.engine.graph import Graph
from livetape.engine.planner import GraphPlan
from livetape.engine.queue import Delivery, Queue
from livetape.errors import LivetapeError, StoreUnavailableError
from livetape.events.executions import ExecutionStats, ExecutionStatus
from livetape.observability import Metrics, get_logger
from livetape.store.execution_events import graph_event
from livetape.store.executions import ExecutionChange, ExecutionRow, ExecutionStore, Step
from livetape.store.graphs import GraphStore

logger = get_logger(__name__)

KEPT_PLANS: Final = 64
RETRY_S: Final = 0.5


@dataclass(frozen=True, slots=True)
class WorkerOptions:
    """`concurrency` executions at once; times in seconds. A renewal is due several times per lease.

    `silence_s`: the renewer stops renewing when the event loop has not ticked for so long, so that a worker that
    hangs loses its leases instead of keeping them for ever.
    """

    concurrency: int = 10
    lease_s: float = 15.0
    renew_s: float = 5.0
    sweep_s: float = 2.5
    silence_s: float = 10.0
    threads: int = 16
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
        self._plans: OrderedDict[tuple[str, int], GraphPlan] = OrderedDict()
        self._held: dict[str, Executor] = {}
        self._slots = asyncio.Semaphore(options.concurrency)
        self._threads = ThreadPoolExecutor(options.threads, thread_name_prefix="livetape-block")
        self.ready = asyncio.Event()

    async def run(self) -> None:
        """Work for ever. Cancelling it hands back what runs, within the grace time of blocks."""
        if self._sole:
            for execution_id in await self._store.recover(expired_before=None):
                logger.info("execution %s was interrupted: queued again", execution_id, extra={"action": "recovered"})
        renewer = _Renewer(self._options, self._clock, self._renew, self._fence_all, asyncio.get_running_loop())
        renewer.start()
        runs: set[asyncio.Task[None]] = set()
        sweep = asyncio.create_task(self._sweep_forever(), name="lease sweep")
        self._show_load()
        self.ready.set()
        try:
            while True:
                await self._slots.acquire()
                self._slots.release()
                for delivery in await self._take():
                    await self._slots.acquire()
                    task = asyncio.create_task(self._look(delivery), name=f"run {delivery.doorbell.graph_exec_id}")
                    runs.add(task)
                    task.add_done_callback(runs.discard)
        finally:
            sweep.cancel()
            for executor in self._held.values():
                executor.hand_back()
            if runs:
                await asyncio.wait(runs, timeout=self._options.executor.cancel_grace_s + 5)
            for task in runs:
                task.cancel()
            renewer.stop()
            self._threads.shutdown(wait=False, cancel_futures=True)

    def cancel(self, execution_id: str) -> None:
        """A hint that this execution shall stop; nothing happens if it does not run here."""
        executor = self._held.get(execution_id)
        if executor is not None:
            executor.cancel()

    @property
    def running(self) -> int:
        """How many executions it holds."""
        return len(self._held)

    async def _take(self) -> list[Delivery]:
        free = max(1, self._options.concurrency - len(self._held))
        while True:
            try:
                return await self._queue.take(free)
            except StoreUnavailableError as error:
                logger.warning("the queue cannot be read: %s", error, extra={"action": "queue_retry"})
                await asyncio.sleep(RETRY_S)

    async def _look(self, delivery: Delivery) -> None:
        execution_id = delivery.doorbell.graph_exec_id
        try:
            row = await self._store.claim(execution_id, owner=self.name, lease_seconds=self._options.lease_s)
            await self._queue.ack(delivery)
            if row is not None:
                await self._execute(row)
        except StoreUnavailableError as error:
            # The doorbell comes again, or the lease runs out: nothing is lost, only late.
            logger.warning("execution %s waits: %s", execution_id, error, extra={"action": "execution_retry"})
        except Exception:  # the boundary of the task: one execution takes no other with it
            logger.exception("execution %s failed in the engine", execution_id, extra={"action": "engine_failed"})
            self._metrics.count("engine_failures_total")
        finally:
            self._slots.release()

    async def _execute(self, row: ExecutionRow) -> None:
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
        )
        self._held[row.id] = executor
        self._show_load()
        try:
            await executor.run()
        finally:
            del self._held[row.id]
            self._show_load()

    def _show_load(self) -> None:
        running, slots = len(self._held), self._options.concurrency
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

    async def _sweep_forever(self) -> None:
        while True:
            await asyncio.sleep(self._options.sweep_s)
            try:
                lost = await self._store.recover(expired_before=self._clock.now())
            except StoreUnavailableError as error:
                logger.warning("leases cannot be swept: %s", error, extra={"action": "sweep_retry"})
                continue
            for execution_id in lost:
                logger.warning("execution %s lost its worker", execution_id, extra={"action": "recovered"})
                self._metrics.count("executions_recovered_total")

    # -- leases ----------------------------------------------------------------------------------------------

    def _renew(self, loop: asyncio.AbstractEventLoop) -> None:
        """Prolong what is held; called from the renewer's thread. Raises what the store raises."""
        held = list(self._held)
        if not held:
            return
        renewal = self._store.renew(self.name, held, self._options.lease_s)
        for execution_id in held:
            if execution_id not in renewal.held:
                loop.call_soon_threadsafe(self._lost, execution_id)
            elif execution_id in renewal.cancelled:
                loop.call_soon_threadsafe(self.cancel, execution_id)

    def _lost(self, execution_id: str) -> None:
        executor = self._held.get(execution_id)
        if executor is not None:
            executor.fence()

    def _fence_all(self) -> None:
        for executor in self._held.values():
            executor.fence()


class _Renewer:
    """A thread beside the event loop, so that a busy loop loses no lease and a dead one keeps none.

    When renewals have failed for so long that the leases are about to end, the blocks are stopped before that, by
    this process's own monotonic clock.
    """

    def __init__(
        self,
        options: WorkerOptions,
        clock: Clock,
        renew: Callable[[asyncio.AbstractEventLoop], None],
        fence_all: Callable[[], None],
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        self._options = options
        self._clock = clock
        self._renew = renew
        self._fence_all = fence_all
        self._loop = loop
        self._stopped = threading.Event()
        self._ticked = threading.Event()
        self._thread = threading.Thread(target=self._work, name="livetape-lease-renewer", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stopped.set()

    def _work(self) -> None:
        renewed = self._clock.monotonic()
        while not self._stopped.wait(self._options.renew_s):
            try:
                if self._loop_ticks():
                    self._renew(self._loop)
                    renewed = self._clock.monotonic()
                    continue
            except RuntimeError:
                return  # the loop is closed
            except LivetapeError as error:
                logger.warning("leases cannot be renewed: %s", error, extra={"action": "renew_retry"})
            if self._clock.monotonic() - renewed > self._options.lease_s - self._options.renew_s:
                self._loop.call_soon_threadsafe(self._fence_all)

    def _loop_ticks(self) -> bool:
        self._ticked.clear()
        self._loop.call_soon_threadsafe(self._ticked.set)
        if self._ticked.wait(self._options.silence_s):
            return True
        logger.error("the event loop hangs: leases are not renewed", extra={"action": "loop_hangs"})
        return False
