"""Runs one claimed execution: what the planner says, one commit per round.

A round takes everything that happened since the last one, asks the planner what follows, writes it with its events
in one commit, and only then starts what may start. Blocks that are `pure` may start before: what follows from them at
once is in the same commit (decision 0022). The state in memory is disposable: whatever goes wrong with a commit, the
truth is in the store, and another claim builds it anew.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor as ThreadPool
from dataclasses import dataclass, field
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any, Final

from pydantic_core import from_json

from livetape.clock import Clock, IdFactory
from livetape.engine.block import Block, BlockRegistry
from livetape.engine.block_cost import BlockCosts
from livetape.engine.block_ports import Memory
from livetape.engine.changes import WAITING, CancelRequested, Changes, Ended, Happening, NodeRun, Suspended, Yielded
from livetape.engine.graph_plan import GraphPlan
from livetape.engine.hooks import Hooks
from livetape.engine.large_values import LargeValues
from livetape.engine.moderating import refusal
from livetape.engine.node_task import NodeTask, NodeTools
from livetape.engine.pins import select_output
from livetape.engine.planner import Planner, Rules
from livetape.engine.recording import Recorder, run_of
from livetape.engine.waiting import MakeChild, Waiting, no_children
from livetape.errors import CommitUnknownError, LeaseLostError
from livetape.events.executions import ExecutionStatus
from livetape.observability import Metrics, get_logger
from livetape.store.executions import ExecutionRow, ExecutionStore, NodeRow

logger = get_logger(__name__)

UNWRITTEN_OUTPUTS: Final = 256
"""How many outputs of one node execution may wait for their commit before the block has to wait."""

UNWRITTEN_BYTES: Final = 16 * 1024 * 1024
"""And of how much JSON, the last of them left aside."""

AHEAD_ROUNDS: Final = 32
AHEAD_S: Final = 0.005
AHEAD_BYTES: Final = 64 * 1024
"""How much of what follows at once goes into one commit: rounds, seconds, bytes of events."""

AHEAD_TURNS: Final = 3
"""Turns of the loop in which a block may end at once."""

SOON_S: Final = 1.0
"""An execution does not leave its worker for a timer that is due so soon."""


@dataclass(frozen=True, slots=True)
class ExecutorOptions:
    """Limits of one execution. `cancel_grace_s`: how long a cancelled block may take to stop. `safe_mode`: people are
    asked; without it reviews approve themselves. `variables`: names of the environment that blocks in processes of
    their own get beside what every process needs."""

    rules: Rules = field(default_factory=Rules)
    cancel_grace_s: float = 10.0
    files: Path = Path("files")
    safe_mode: bool = True
    variables: tuple[str, ...] = ()


class Executor:
    """One execution in the hands of one lease. `run` returns when it is over, parked, handed back or lost.

    `seconds_left`: so long it may run. `database_ahead`: by so much the database's clock is ahead of this one. What
    else is optional is refused to blocks where it is not given.
    """

    def __init__(
        self,
        row: ExecutionRow,
        plan: GraphPlan,
        *,
        store: ExecutionStore,
        blocks: BlockRegistry,
        threads: ThreadPool,
        clock: Clock,
        new_id: IdFactory,
        metrics: Metrics,
        options: ExecutorOptions,
        sleep: Callable[[float], Any] = asyncio.sleep,
        make_child: MakeChild = no_children,
        hooks: Hooks | None = None,
        memory: Memory | None = None,
        values: LargeValues | None = None,
        seconds_left: float | None = None,
        database_ahead: timedelta = timedelta(0),
    ) -> None:
        self.row = row
        self._store = store
        self._blocks = blocks
        self._clock = clock
        self._metrics = metrics
        self._options = options
        self._hooks = hooks or Hooks()
        self._values = values
        masks: Mapping[str, Any] | None = None if row.masks is None else from_json(row.masks)
        select = select_output if values is None else values.select
        self._planner = Planner(plan, options.rules, new_id, masks=masks, select=select)
        self._waiting = Waiting(row, store, clock, make_child, ahead=database_ahead, values=values)
        self._recorder = Recorder(row, self._waiting, ended=self._forget)
        self._tools = NodeTools(
            row=row,
            store=store,
            blocks=blocks,
            threads=threads,
            clock=clock,
            metrics=metrics,
            hooks=self._hooks,
            waiting=self._waiting,
            files=options.files,
            sleep=sleep,
            memory=memory,
            values=values,
            safe_mode=options.safe_mode,
            variables=options.variables,
        )
        self._inbox: deque[Happening] = deque()
        self._wake = asyncio.Event()
        self._tasks: dict[int, asyncio.Task[None]] = {}
        self._outlets: dict[int, _Outlet] = {}
        self._ends_at = None if seconds_left is None else clock.monotonic() + seconds_left
        self._stopping = False
        self._fenced = False
        self._poked = False
        self._handing_back: str | None = None
        self._light: dict[str, bool] = {}

    # -- from outside, in the loop of `run` ------------------------------------------------------------------

    def cancel(self, reason: str = "cancelled_by_user") -> None:
        """Stop: nothing new starts, running blocks are cancelled, the execution ends TERMINATED."""
        self._happened(CancelRequested(reason))

    def fence(self) -> None:
        """Somebody else owns it, or nobody can know: stop at once and write nothing more."""
        self._fenced = True
        self._wake.set()

    def hand_back(self, reason: str = "worker_stopping") -> None:
        """Stop at once and give it to the next worker; unfinished nodes run again there."""
        self._handing_back = reason
        self._wake.set()

    def look(self, row: ExecutionRow) -> None:
        """What its row says now: whether it shall stop, whether something that it waits for has happened."""
        if row.lease_no != self.row.lease_no or row.status is not ExecutionStatus.RUNNING:
            self.fence()
            return
        if row.cancel_requested:
            self.cancel()
        elif row.wakes > self._waiting.wakes:
            self._poked = True
            self._wake.set()

    # -- the loop --------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Drive it to its end. Raises what the store raises, except that a lost lease is a quiet end."""
        try:
            if await self._refused():
                return
            changes = await self._first()
            while True:
                if changes.parked and await self._parked(changes):
                    return
                changes, following = await self._write(changes)
                if changes.over is not None or self._is_fenced():
                    return
                for run in changes.start:
                    self._start(run)
                if changes.stop:
                    self._stop_running()
                if following is None:
                    await self._wait()
                    if self._fenced:
                        return
                    if self._handing_back is not None:
                        await self._give_back(self._handing_back)
                        return
                    following = self._planner.advance(await self._taken())
                changes = following
        except LeaseLostError:
            logger.warning("lease of %s lost", self.row.id, extra={"action": "lease_lost"})
        except CommitUnknownError:
            await self._unsure()
        finally:
            await self._end_tasks()

    def _is_fenced(self) -> bool:
        return self._fenced

    def _leaves(self) -> bool:
        """Whether it was told to stop and let go."""
        return self._fenced or self._handing_back is not None

    async def _give_back(self, reason: str) -> None:
        await self._end_tasks()
        await self._store.hand_back(self.row.id, lease_no=self.row.lease_no, reason=reason)

    async def _unsure(self) -> None:
        """Nobody knows whether a step was written. Whoever claims it next reads what is true, and need not wait for
        the end of this lease; should the step still be on its way, it finds the lease gone."""
        logger.warning("a step of %s may be lost: it is begun anew", self.row.id, extra={"action": "commit_unknown"})
        try:
            await self._give_back("commit_unknown")
        except LeaseLostError:
            logger.info("execution %s needs nobody", self.row.id, extra={"action": "commit_unknown"})

    async def _refused(self) -> bool:
        """Ask the moderation, before the first node ever."""
        why = await refusal(self._hooks.moderation, self.row, self._store, self._values)
        if why is None:
            return False
        step = self._recorder.refuse(ExecutionStatus.FAILED, "moderation", why, self._clock.now())
        await self._store.commit(step, self.row)
        self._metrics.count("graph_executions_total", status=ExecutionStatus.FAILED.value)
        return True

    async def _first(self) -> Changes:
        known = self.row.lease_no > 1 or self.row.forked_from is not None
        nodes = await self._store.nodes(self.row.id) if known else ()
        inputs = from_json(self.row.inputs)
        if self._values is not None:
            masks = {} if self.row.masks is None else from_json(self.row.masks)
            self._planner.mask(await self._values.defaults(self._planner.plan, inputs, masks))
        if self.row.cancel_requested:
            self.cancel()
        if not nodes:
            return self._planner.begin(inputs)
        return self._resume(nodes)

    def _resume(self, nodes: Sequence[NodeRow]) -> Changes:
        plan = self._planner.plan
        runs: list[NodeRun] = []
        statics: dict[str, Mapping[str, Any]] = {}
        failed: dict[int, str] = {}
        asked: list[int] = []
        queued = sorted((n for n in nodes if n.queue_time is not None), key=lambda n: (n.queue_time, n.seq))
        for node in queued:
            pins = plan.nodes[node.node_id].static_pins
            if pins:
                values = from_json(node.inputs)
                statics[node.node_id] = {pin: values[pin] for pin in pins if pin in values}
        for node in nodes:
            where = plan.nodes[node.node_id]
            if node.status.is_terminal:
                if node.status is ExecutionStatus.FAILED and not where.handles_error:
                    said = [value for name, value in node.outputs if name == "error"]
                    self._planner.failed_before(node.node_id, str(from_json(said[-1])) if said else "failed")
                continue
            run = run_of(node, NodeRun(node.seq, node.id, where, node.status, from_json(node.inputs)))
            if node.waits is not None:
                self._waiting.restore(run, node.waits)
            runs.append(run)
            if node.status is ExecutionStatus.RUNNING and run.status_reason != WAITING:
                self._interrupted(run, failed, asked)
        self._recorder.restore(nodes)
        return self._planner.resume(runs, statics=statics, failed=failed, last_seq=nodes[-1].seq, asked=asked)

    def _interrupted(self, run: NodeRun, failed: dict[int, str], asked: list[int]) -> None:
        """A node execution that was running when its worker was lost."""
        block = self._blocks.get(run.node.block_id)
        policy = "rerun" if block is None else block.on_interrupt
        if policy == "fail":
            failed[run.seq] = "its worker was lost while it ran"
        elif policy == "ask":
            run.status, run.status_reason = ExecutionStatus.REVIEW, WAITING
            self._waiting.ask_again(run)
            asked.append(run.seq)

    def _happened(self, happening: Happening) -> None:
        self._inbox.append(happening)
        self._wake.set()

    async def _wait(self) -> None:
        due = self._next_due()
        if due is None:
            await self._wake.wait()
        else:
            try:
                async with asyncio.timeout(max(0.0, due - self._clock.monotonic())):
                    await self._wake.wait()
            except TimeoutError:
                pass
        self._wake.clear()

    def _next_due(self) -> float | None:
        """The next moment at which something is due by itself, in monotonic seconds."""
        dues = [self._recorder.next_snapshot(), None if self._stopping else self._ends_at]
        timer = self._waiting.next_due(self._planner.suspended)
        if timer is not None:
            dues.append(self._clock.monotonic() + (timer - self._waiting.now()).total_seconds())
        return min((due for due in dues if due is not None), default=None)

    async def _taken(self) -> list[Happening]:
        """Everything that has happened, in order."""
        if self._poked:
            self._poked = False
            self._inbox.extend(await self._waiting.collect(self._planner.suspended))
        self._inbox.extend(self._waiting.due(self._planner.suspended))
        if self._ends_at is not None and not self._stopping and self._clock.monotonic() >= self._ends_at:
            self._ends_at = None
            said = "it ran longer than it may"
            self._inbox.append(CancelRequested("timeout", ExecutionStatus.FAILED, said))
        self._waiting.follow()
        taken = list(self._inbox)
        self._inbox.clear()
        for happening in taken:
            if isinstance(happening, Yielded):
                outlet = self._outlets.get(happening.seq)
                if outlet is not None:
                    outlet.taken()
            elif isinstance(happening, Suspended):
                self._poked = True  # what it waits for may have happened while it still ran
                self._wake.set()
        if self._hooks.moderation is not None:
            taken = await self._tools.moderated(taken, self._planner.open)
        return taken if self._values is None else await self._values.taken(taken, self._planner.open)

    # -- waits -----------------------------------------------------------------------------------------------

    async def _parked(self, changes: Changes) -> bool:
        """Leave the worker while everything waits. False when something has happened already."""
        for happening in await self._waiting.collect(self._planner.suspended):
            self._happened(happening)
        due = self._waiting.next_due(self._planner.suspended)
        soon = due is not None and (due - self._waiting.now()).total_seconds() <= SOON_S
        if soon or self._inbox or self._fenced or self._handing_back is not None:
            return False
        step = self._recorder.step(changes, self._clock.now(), self._clock.monotonic())
        asks = any(self._waiting.asks(run) for run in self._planner.suspended.values())
        self._recorder.park(step, asks=asks, due=due)
        await self._store.commit(step, self.row)
        return True

    # -- blocks ----------------------------------------------------------------------------------------------

    def _start(self, run: NodeRun) -> asyncio.Task[None]:
        outlet = self._outlets[run.seq] = _Outlet(run.seq, self._happened)
        work = NodeTask(run, outlet, self._tools, self._happened)
        task = self._tasks[run.seq] = asyncio.create_task(work.run(), name=f"node {run.id}")
        task.add_done_callback(partial(self._left, run.seq))
        return task

    def _left(self, seq: int, task: asyncio.Task[None]) -> None:
        """A node that was cancelled cannot say so itself: it may not have had its first turn."""
        if task.cancelled():
            self._happened(Ended(seq, ExecutionStatus.TERMINATED, None, "cancelled"))
        elif (error := task.exception()) is not None:
            logger.error(
                "node of %s failed in the engine", self.row.id, exc_info=error, extra={"action": "node_failed"}
            )
            said = f"{type(error).__name__}: {error}"
            self._happened(Ended(seq, ExecutionStatus.FAILED, said, "engine_error"))

    def _forget(self, seq: int) -> None:
        task = self._tasks.pop(seq, None)
        if task is not None:
            task.cancel()  # it may still run: its output was refused
        self._outlets.pop(seq, None)

    def _stop_running(self) -> None:
        """Cancel what runs. A block that does not stop in time cannot hold the status."""
        if self._stopping:
            return
        self._stopping = True
        stubborn = [seq for seq, task in self._tasks.items() if not task.done()]
        for seq in stubborn:
            self._tasks[seq].cancel()
        if stubborn:
            asyncio.get_running_loop().call_later(self._options.cancel_grace_s, self._give_up, stubborn)

    def _give_up(self, seqs: Sequence[int]) -> None:
        for seq in seqs:
            if seq in self._planner.running:
                self._happened(Ended(seq, ExecutionStatus.TERMINATED, None, "cancelled"))

    async def _end_tasks(self) -> None:
        tasks = [task for task in self._tasks.values() if not task.done()]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks, timeout=self._options.cancel_grace_s)

    # -- writing ---------------------------------------------------------------------------------------------

    async def _write(self, changes: Changes) -> tuple[Changes, Changes | None]:
        """Commit it with what follows from it at once. Returns what is to be acted upon, and what else has followed
        and is not written."""
        began = self._clock.monotonic()
        step = self._recorder.step(changes, self._clock.now(), began)
        ended, size = changes.completed + changes.failed, 0
        following: Changes | None = None
        for _ in range(AHEAD_ROUNDS):
            size += sum(len(event.payload) for event in step.events)
            if size > AHEAD_BYTES or self._clock.monotonic() > began + AHEAD_S:
                break
            following = await self._ahead(changes)
            if following is None or following.parked:
                break
            changes, following = following, None
            step.follow(self._recorder.step(changes, self._clock.now(), self._clock.monotonic()))
            ended += changes.completed + changes.failed
        if self._fenced:
            return changes, None
        writing = self._clock.monotonic()
        if step:
            await self._store.commit(step, self.row)
        over = changes.over
        if over is not None:
            self._metrics.count("graph_executions_total", status=over.status.value)
        if ended:
            self._metrics.observe("node_overhead_seconds", (self._clock.monotonic() - writing) / ended)
        return changes, following

    async def _ahead(self, changes: Changes) -> Changes | None:
        """Run what may start before it is written, and say what follows when it ends at once.

        Only blocks of which a second run is no matter: after a loss they run again. Not beside anything that waits.
        """
        if not changes.start or changes.over is not None or changes.stop or changes.parked or self._planner.suspended:
            return None
        if self._poked or self._leaves() or not all(self._is_light(run) for run in changes.start):
            return None
        tasks = [self._start(run) for run in changes.start]
        changes.start = []
        for _ in range(AHEAD_TURNS):
            await asyncio.sleep(0)
            if all(task.done() for task in tasks):
                break
        if not self._inbox or self._leaves():
            return None
        self._wake.clear()
        return self._planner.advance(await self._taken())

    def _is_light(self, run: NodeRun) -> bool:
        """Whether it may run before the commit that tells of it."""
        block_id = run.node.block_id
        known = self._light.get(block_id)
        if known is None:
            block = self._blocks.get(block_id)
            costs = self._hooks.costs
            free = costs is None or (isinstance(costs, BlockCosts) and not costs.has_payer)
            known = free and self._hooks.moderation is None and block is not None and _may_run_twice(block)
            self._light[block_id] = known
        return known


def _may_run_twice(block: Block[Any]) -> bool:
    """Whether nobody can tell a second run from the first. On the loop only: others seldom end at once."""
    return block.pure and block.is_async and block.on_interrupt == "rerun" and not block.costs


class _Outlet:
    """The outputs of one run on their way to the planner."""

    def __init__(self, seq: int, happened: Callable[[Happening], None]) -> None:
        self._seq = seq
        self._happened = happened
        self._sizes: deque[int] = deque()
        self._bytes = 0
        self._eased = asyncio.Event()

    def give(self, name: str, value: Any, size: int = 0) -> None:
        self._sizes.append(size)
        self._bytes += size
        self._happened(Yielded(self._seq, name, value))

    async def room(self) -> None:
        while len(self._sizes) >= UNWRITTEN_OUTPUTS or self._bytes >= UNWRITTEN_BYTES:
            self._eased.clear()
            await self._eased.wait()

    def taken(self) -> None:
        if self._sizes:
            self._bytes -= self._sizes.popleft()
        self._eased.set()
