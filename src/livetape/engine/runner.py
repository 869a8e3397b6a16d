"""Runs one block: where it belongs, with its time limit and its retries, its outputs made JSON.

Whatever a block does, a run ends in an Outcome: what it raises never leaves this module, `BaseException`s included;
what it gives after its end goes nowhere; a thread that does not stop is left behind, a process is killed.
"""

from __future__ import annotations

import asyncio
import hashlib
import math
import threading
from collections.abc import Awaitable, Callable, Collection, Iterator, Mapping
from concurrent.futures import Executor, Future
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any, Final, Protocol, cast

from pydantic_core import to_json

from livetape.engine.block import TIMEOUT_PIN, Block, BlockContext, PinValue
from livetape.engine.block_ports import Suspended, Wait
from livetape.engine.block_threads import Abandoning
from livetape.engine.coerce import coerce_input
from livetape.engine.output_values import as_json, error_text, sized_output
from livetape.engine.process_run import ProcessFailedError, run_in_process
from livetape.errors import BlockError, BlockInputError
from livetape.observability import get_logger

__all__ = ["Attempt", "Failure", "Outcome", "Outlet", "RunStats", "as_json", "run_block", "run_to_end"]

logger = get_logger(__name__)

PAUSE_EVERY: Final = 64
PAUSE_BYTES: Final = 1024 * 1024
"""After so many outputs, or so many bytes of JSON, a block in a thread waits until there is room for more."""

MAX_TIMEOUT: Final = 366 * 86_400.0

STOP_S: Final = 1.0
"""A block on the loop that took too long has so long to end before it is left behind."""


class Outlet(Protocol):
    """Where the outputs of one run go, in the loop. `room` waits while too many of them are unwritten."""

    def give(self, name: str, value: Any, size: int = 0) -> None: ...

    async def room(self) -> None: ...


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a block failed, as its `error` output tells it."""

    message: str
    reason: str = "block_error"


@dataclass(frozen=True, slots=True)
class Attempt:
    """An attempt that failed and is followed by another: its number from 1, why, and the pause in seconds."""

    number: int
    failure: Failure
    pause_s: float


@dataclass(frozen=True, slots=True)
class RunStats:
    """What a run took: seconds from first to last attempt, and what the block counted (`ctx.usage`)."""

    seconds: float
    attempts: int
    outputs: int
    usage: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a run ended: failed, waiting (`waits` are all its open ones), or completed."""

    stats: RunStats
    failure: Failure | None = None
    waits: tuple[Wait, ...] = ()


def _untold(_: Attempt) -> None:
    pass


async def run_block(
    block: Block[Any], inputs: Mapping[str, Any], ctx: BlockContext, outlet: Outlet, threads: Executor
) -> Failure | None:
    """`run_to_end` where nothing can be waited for: None when the block completed."""
    outcome = await run_to_end(block, inputs, ctx, outlet, threads)
    return Failure("this engine cannot keep a wait") if outcome.waits else outcome.failure


async def run_to_end(
    block: Block[Any],
    inputs: Mapping[str, Any],
    ctx: BlockContext,
    outlet: Outlet,
    threads: Executor,
    *,
    tried: Callable[[Attempt], None] = _untold,
    variables: Collection[str] = (),
) -> Outcome:
    """Run it, again where its `retries` say so, until it completes, fails for good or waits.

    The outlet is given every output in order, those that a further attempt repeats once. `tried` hears of each failed
    attempt that is not the last, before the pause. A ValueError or a BlockError is a failure that the block's author
    meant; anything else is logged with its stack and told by its text. Cancellation goes through. `variables`: names
    of the environment that a process of its own gets beside what every process needs.
    """
    started, number = ctx.clock.monotonic(), 0
    counted = _Counted(outlet, remember=block.retries is not None)
    failure: Failure | None = None
    waits: tuple[Wait, ...] = ()
    while True:
        number += 1
        try:
            error = await _attempt(block, inputs, ctx, counted, threads, variables)
        except Suspended as suspended:
            waits = suspended.waits
            break
        if error is None:
            break
        failure = error.failure
        pause = None if error.cause is None else _pause(block, error.cause, number, ctx.idempotency_key)
        if pause is None:
            break
        tried(Attempt(number, failure, pause))
        failure = None
        counted.again()
        await ctx.sleep(pause)
    stats = RunStats(ctx.clock.monotonic() - started, number, counted.count, dict(ctx.usage.amounts))
    return Outcome(stats, failure, waits)


# -- one attempt ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Error:
    """`cause`: what its retries are decided by; None: it is never tried again."""

    failure: Failure
    cause: BaseException | None = None


async def _attempt(
    block: Block[Any],
    inputs: Mapping[str, Any],
    ctx: BlockContext,
    outlet: Outlet,
    threads: Executor,
    variables: Collection[str],
) -> _Error | None:
    gate = _Gate(outlet)
    limit: float | None = None
    try:
        limit = _limit(block, inputs)
        data = coerce_input(block.Input, block.prepare(inputs))
        await _in_time(_placed(block, data, inputs, ctx, gate, threads, variables), limit)
    except _TooLongError:
        return _Error(Failure(f"{block.name} took longer than {limit:g} s", "timeout"), TimeoutError())
    except ProcessFailedError as error:
        return _Error(Failure(str(error)), error)
    except (BlockError, ValueError) as error:
        return _Error(Failure(error_text(error)), error)
    except asyncio.CancelledError as error:
        task = asyncio.current_task()
        if task is None or task.cancelling():
            raise
        return _Error(_unexpected(block, error))  # nobody cancelled: the block raised it itself
    except Suspended:
        raise
    except _EscapedError as error:
        return _Error(_unexpected(block, error.error))
    except Exception as error:  # any code may stand in a block
        return _Error(_unexpected(block, error), error)
    finally:
        gate.close()
    return None


def _placed(
    block: Block[Any],
    data: Any,
    inputs: Mapping[str, Any],
    ctx: BlockContext,
    gate: _Gate,
    threads: Executor,
    variables: Collection[str],
) -> Awaitable[None]:
    if block.is_async:
        return _on_loop(block, data, ctx, gate)
    if block.isolated(data):
        return run_in_process(block, inputs, ctx, gate, variables=variables)
    return _in_thread(block, data, ctx, gate, threads)


def _limit(block: Block[Any], inputs: Mapping[str, Any]) -> float | None:
    own = inputs.get(TIMEOUT_PIN)
    if own is None:
        return block.timeout
    if isinstance(own, bool) or not isinstance(own, int | float) or not math.isfinite(own) or not own > 0:
        raise BlockInputError(f"{TIMEOUT_PIN}: not a number of seconds above 0")
    return min(float(own), MAX_TIMEOUT)


class _TooLongError(Exception):
    """The time limit has passed."""


class _EscapedError(Exception):
    """A block raised what is no Exception: kept from the loop, which it would end."""

    def __init__(self, error: BaseException) -> None:
        self.error = error


async def _in_time(running: Awaitable[None], limit: float | None) -> None:
    """At the limit it is cancelled; what does not end then is left behind, its outputs go nowhere."""
    if limit is None:
        await running
        return
    task = asyncio.ensure_future(running)
    task.add_done_callback(_heard)
    try:
        await asyncio.wait({task}, timeout=limit)
    except asyncio.CancelledError:
        task.cancel()
        await asyncio.wait({task})  # as without a limit: it is over when the block is
        raise
    if task.done():
        await task
        return
    task.cancel()
    await asyncio.wait({task}, timeout=STOP_S)
    raise _TooLongError


def _heard(task: asyncio.Future[None]) -> None:
    """An error after the end is nobody's any more."""
    if not task.cancelled():
        task.exception()


async def _on_loop(block: Block[Any], data: Any, ctx: BlockContext, gate: _Gate) -> None:
    try:
        outputs = block.run(data, ctx)
        async with aclosing(cast("Any", outputs)):
            async for name, value in cast("Any", outputs):
                gate.give(*sized_output(name, value))
                await gate.room()
    except (KeyboardInterrupt, SystemExit, GeneratorExit) as error:
        raise _EscapedError(error) from error


async def _in_thread(block: Block[Any], data: Any, ctx: BlockContext, gate: _Gate, threads: Executor) -> None:
    loop = asyncio.get_running_loop()
    stopped = threading.Event()

    def drive() -> None:
        try:
            count = size = 0
            for name, value in cast("Iterator[PinValue]", block.run(data, ctx)):
                if stopped.is_set():
                    return
                output = sized_output(name, value)
                loop.call_soon_threadsafe(gate.give, *output)
                count, size = count + 1, size + output[2]
                if count >= PAUSE_EVERY or size >= PAUSE_BYTES:
                    gate.wait_from(loop)
                    count = size = 0
        except Exception:
            raise
        except BaseException as error:
            raise _EscapedError(error) from error

    call = threads.submit(drive)
    try:
        await asyncio.wrap_future(call)
    finally:
        # A thread cannot be ended from outside: it stops at its next output.
        stopped.set()
        if not call.done() and isinstance(threads, Abandoning):
            threads.abandon(call)


class _Gate:
    """The way to the outlet while the attempt lasts; after that, outputs go nowhere and nobody waits for room."""

    def __init__(self, outlet: Outlet) -> None:
        self._outlet = outlet
        self._open = True
        self._waiting: set[Future[None]] = set()

    def give(self, name: str, value: Any, size: int = 0) -> None:
        if self._open:
            self._outlet.give(name, value, size)

    async def room(self) -> None:
        if self._open:
            await self._outlet.room()

    def wait_from(self, loop: asyncio.AbstractEventLoop) -> None:
        """`room` for a thread."""
        waiting = asyncio.run_coroutine_threadsafe(self.room(), loop)
        self._waiting.add(waiting)
        try:
            if self._open:
                waiting.result()
        finally:
            self._waiting.discard(waiting)

    def close(self) -> None:
        self._open = False
        for waiting in list(self._waiting):
            waiting.cancel()


class _Counted:
    """Counts outputs; with `remember`, leaves out those that a further attempt gives again.

    Compared in order, as after a recovery: from the first difference on, everything is new.
    """

    def __init__(self, outlet: Outlet, *, remember: bool) -> None:
        self._outlet = outlet
        self._remember = remember
        self._before: list[bytes] = []
        self._now: list[bytes] = []
        self._same = False
        self.count = 0

    def again(self) -> None:
        """Another attempt begins."""
        if len(self._now) > len(self._before) or not self._same:
            self._before = self._now
        self._now, self._same = [], True

    def give(self, name: str, value: Any, size: int = 0) -> None:
        if self._remember:
            place, mark = len(self._now), _mark(name, value)
            self._now.append(mark)
            if self._same and place < len(self._before) and self._before[place] == mark:
                return
            self._same = self._same and place >= len(self._before)
        self.count += 1
        self._outlet.give(name, value, size)

    async def room(self) -> None:
        await self._outlet.room()


def _mark(name: str, value: Any) -> bytes:
    return hashlib.blake2b(to_json([name, value]), digest_size=16).digest()


# -- after it ------------------------------------------------------------------------------------------------------


def _pause(block: Block[Any], error: BaseException, number: int, key: str) -> float | None:
    """Seconds until the next attempt; None: there is none."""
    retries = block.retries
    if retries is None or number >= retries.attempts:
        return None
    if not (error.retryable if isinstance(error, ProcessFailedError) else isinstance(error, retries.on)):
        return None
    step = min(retries.cap_s, retries.base_s * 2.0 ** min(number - 1, 60))
    # Different for every node execution and attempt, and the same when it is looked at again.
    share = hashlib.blake2b(f"{key}:{number}".encode(), digest_size=4).digest()
    pause = step * (0.5 + int.from_bytes(share) / 2**33)
    asked = getattr(error, "retry_after", None)
    if isinstance(asked, int | float) and math.isfinite(asked):
        pause = max(pause, min(float(asked), retries.cap_s))
    return pause


def _unexpected(block: Block[Any], error: BaseException) -> Failure:
    logger.error("block %s failed unexpectedly", block.name, exc_info=error, extra={"action": "block_failed"})
    return Failure(f"{type(error).__name__}: {error_text(error)}")
