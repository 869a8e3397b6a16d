"""One run of one node: its block with everything that it is given, its time, its price and its end."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from concurrent.futures import Executor as ThreadPool
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from livetape.clock import Clock
from livetape.engine.block import Block, BlockContext, BlockRegistry
from livetape.engine.block_ports import Memory, Wait
from livetape.engine.block_services import ABSENT
from livetape.engine.changes import CancelRequested, Ended, Happening, NodeRun, Suspended, Yielded
from livetape.engine.cpu_time import CpuTime
from livetape.engine.durable_waits import DurableWaits
from livetape.engine.figures import add_run
from livetape.engine.hooks import Hooks, NodeIdentity
from livetape.engine.large_values import LargeValues
from livetape.engine.moderating import answer_of
from livetape.engine.runner import Attempt, Failure, Outcome, Outlet, run_to_end
from livetape.engine.waiting import Waiting
from livetape.errors import LimitError, LivetapeError, StoreUnavailableError
from livetape.events.executions import ExecutionStatus
from livetape.observability import Metrics
from livetape.store.executions import ExecutionRow, ExecutionStore

EFFECT_PAUSES_S: Final = (0.1, 0.5, 2.0)
"""Pauses before a transaction of a block is tried again when the database cannot be reached."""

AWAY_S: Final = 1.0


@dataclass(frozen=True, slots=True)
class NodeTools:
    """What the runs of one execution share."""

    row: ExecutionRow
    store: ExecutionStore
    blocks: BlockRegistry
    threads: ThreadPool
    clock: Clock
    metrics: Metrics
    hooks: Hooks
    waiting: Waiting
    files: Path
    sleep: Callable[[float], Awaitable[None]]
    memory: Memory | None
    values: LargeValues | None
    safe_mode: bool
    variables: Collection[str]
    """Names of the environment that blocks in processes of their own get as well."""

    def identity(self, run: NodeRun) -> NodeIdentity:
        block = self.blocks.get(run.node.block_id)
        return NodeIdentity(
            user_id=self.row.user_id,
            graph_id=self.row.graph_id,
            graph_exec_id=self.row.id,
            node_id=run.node.id,
            node_exec_id=run.id,
            block_id=run.node.block_id,
            block="unknown" if block is None else block.name,
        )

    async def moderated(self, happenings: Sequence[Happening], runs: Mapping[int, NodeRun]) -> list[Happening]:
        """The same without what the moderation refuses; who gave it has failed."""
        judge = self.hooks.moderation
        passed: list[Happening] = []
        refused: set[int] = set()
        for happening in happenings:
            if isinstance(happening, CancelRequested) or judge is None:
                passed.append(happening)
                continue
            if happening.seq in refused:
                continue
            run = runs.get(happening.seq)
            if not isinstance(happening, Yielded) or run is None or happening.name == "error":
                passed.append(happening)
                continue
            why = await answer_of(judge.output(self.identity(run), happening.name, happening.value))
            if why is None:
                passed.append(happening)
            else:
                refused.add(happening.seq)
                passed.append(Ended(happening.seq, ExecutionStatus.FAILED, why, "moderation"))
        return passed


class NodeTask:
    """One run of a node; `happened` is told how it ended."""

    def __init__(self, run: NodeRun, outlet: Outlet, tools: NodeTools, happened: Callable[[Happening], None]) -> None:
        self._run = run
        self._outlet = outlet
        self._tools = tools
        self._happened = happened

    async def run(self) -> None:
        """Run the block to its end or its next wait. Only a cancellation leaves it."""
        run, tools = self._run, self._tools
        block = tools.blocks.get(run.node.block_id)
        if block is None:
            self._failed(Failure(f"no block with the id {run.node.block_id!r} is installed"))
            return
        if tools.row.dry_run and not (block.pure or block.read_only):
            self._happened(Ended(run.seq, ExecutionStatus.TERMINATED, None, "dry_run"))
            return
        who = tools.identity(run)
        with tools.hooks.reporter.scope(who.tags()):
            try:
                await self._run_block(block, who)
            except LivetapeError as error:
                # what it asked to wait for cannot be had
                self._failed(Failure(error.message, "block_error"))

    async def _run_block(self, block: Block[Any], who: NodeIdentity) -> None:
        run, tools = self._run, self._tools
        inputs: dict[str, Any] = run.inputs if tools.values is None else await tools.values.whole(run.inputs)
        kept = tools.waiting.of_block(run)
        if tools.values is not None:
            kept = await tools.values.answers(kept)
        costs = tools.hooks.costs
        if costs is not None:
            try:
                await costs.before(who, block, inputs)
            except LimitError as error:
                self._failed(Failure(error.message, "insufficient_credits"))
                said = CancelRequested("insufficient_credits", ExecutionStatus.FAILED, error.message)
                self._happened(said)
                return
        cpu = CpuTime()
        threads = cpu.pool(tools.threads)
        working = run_to_end(
            block,
            inputs,
            self._context(kept),
            self._outlet,
            threads,
            tried=self._tried,
            variables=tools.variables,
        )
        outcome = await cpu.of(working)
        cost = 0
        if costs is not None and outcome.failure is None and not outcome.waits:
            cost = await costs.after(who, block, inputs, outcome.stats)
        run.attempt = max(run.attempt, outcome.stats.attempts)
        add_run(run, outcome.stats, cpu_s=cpu.seconds, cost=cost)
        await self._ended(block, outcome)

    async def _ended(self, block: Block[Any], outcome: Outcome) -> None:
        run, metrics = self._run, self._tools.metrics
        metrics.observe("block_duration_seconds", outcome.stats.seconds, block_type=block.name)
        if outcome.waits:
            await self._patiently(lambda: self._tools.waiting.ask(run, outcome.waits))
            self._happened(Suspended(run.seq, asks=self._tools.waiting.asks(run)))
            return
        said = "success" if outcome.failure is None else "error"
        metrics.count("block_executions_total", block_type=block.name, status=said)
        if outcome.failure is None:
            self._happened(Ended(run.seq, ExecutionStatus.COMPLETED))
        else:
            self._failed(outcome.failure)

    async def _patiently(self, ask: Callable[[], Awaitable[None]]) -> None:
        """A database that is away fails no node: the lease says how long there is hope."""
        while True:
            try:
                return await ask()
            except StoreUnavailableError:
                await self._tools.sleep(AWAY_S)

    def _failed(self, failure: Failure) -> None:
        self._happened(Ended(self._run.seq, ExecutionStatus.FAILED, failure.message, failure.reason))

    def _tried(self, attempt: Attempt) -> None:
        self._run.attempt = attempt.number + 1

    def _context(self, kept: Sequence[Wait]) -> BlockContext:
        run, tools = self._run, self._tools
        waits = DurableWaits(kept, clock=tools.clock, sleep=tools.sleep, auto_approve=not tools.safe_mode)
        return BlockContext(
            user_id=tools.row.user_id,
            graph_id=tools.row.graph_id,
            graph_version=tools.row.graph_version,
            graph_exec_id=tools.row.id,
            node_id=run.node.id,
            node_exec_id=run.id,
            files=tools.files,
            clock=tools.clock,
            sleep=tools.sleep,
            timers=waits,
            children=waits,
            review=waits,
            memory=tools.memory or ABSENT,
            transaction=_Transactions(run, tools),
        )


class _Transactions:
    """`ctx.transaction` of one run. The effects of a node execution are numbered in the order of the calls."""

    def __init__(self, run: NodeRun, tools: NodeTools) -> None:
        self._run = run
        self._tools = tools
        self._next = 0

    async def __call__(self, unit: Callable[[Any], Any]) -> Any:
        place = self._next
        self._next += 1
        tools = self._tools
        for pause_s in EFFECT_PAUSES_S:
            try:
                return await tools.store.effect(tools.row, self._run.seq, place, unit)
            except StoreUnavailableError:
                await tools.sleep(pause_s)  # whether it was written or not: what is recorded is not done again
        return await tools.store.effect(tools.row, self._run.seq, place, unit)
