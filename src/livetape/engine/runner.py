"""Runs one block once: on the loop or in a thread, with its time limit, its outputs made JSON."""

from __future__ import annotations

import asyncio
import math
import threading
from collections.abc import Iterator, Mapping
from concurrent.futures import Executor
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, Final, Protocol, cast

from pydantic_core import PydanticSerializationError, from_json, to_json

from livetape.engine.block import Block, BlockContext, PinValue
from livetape.engine.coerce import coerce_input
from livetape.errors import BlockError, BlockExecutionError
from livetape.events.codec import encode_payload
from livetape.observability import get_logger

logger = get_logger(__name__)

PAUSE_EVERY: Final = 64
"""After so many outputs a block in a thread waits until there is room for more."""


class Outlet(Protocol):
    """Where the outputs of one run go, in the loop. `room` waits while too many of them are unwritten."""

    def give(self, name: str, value: Any) -> None: ...

    async def room(self) -> None: ...


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a block failed, as its `error` output tells it."""

    message: str
    reason: str = "block_error"


async def run_block(
    block: Block[Any], inputs: Mapping[str, Any], ctx: BlockContext, outlet: Outlet, threads: Executor
) -> Failure | None:
    """Run it to its end; None when it completed. Cancellation goes through to a block on the loop.

    The outlet is given every output in order. What the block raises never leaves this function: a ValueError or a
    BlockError is a failure that its author meant, anything else is logged with its stack and told by its text.
    """
    try:
        data = coerce_input(block.Input, inputs)
        running = (
            _on_loop(block, data, ctx, outlet) if block.is_async else _in_thread(block, data, ctx, outlet, threads)
        )
        if block.timeout is None:
            await running
        else:
            async with asyncio.timeout(block.timeout):
                await running
    except TimeoutError as error:
        if block.timeout is None:
            return _unexpected(block, error)
        return Failure(f"{block.name} took longer than {block.timeout:g} s", "timeout")
    except (BlockError, ValueError) as error:
        return Failure(_text(error))
    except asyncio.CancelledError:
        raise
    except Exception as error:  # any code may stand in a block
        return _unexpected(block, error)
    return None


async def _on_loop(block: Block[Any], data: Any, ctx: BlockContext, outlet: Outlet) -> None:
    outputs = block.run(data, ctx)
    async with aclosing(cast("Any", outputs)):
        async for name, value in cast("Any", outputs):
            outlet.give(*_checked(name, value))
            await outlet.room()


async def _in_thread(block: Block[Any], data: Any, ctx: BlockContext, outlet: Outlet, threads: Executor) -> None:
    loop = asyncio.get_running_loop()
    stopped = threading.Event()

    def drive() -> None:
        for count, (name, value) in enumerate(cast("Iterator[PinValue]", block.run(data, ctx)), 1):
            if stopped.is_set():
                return
            loop.call_soon_threadsafe(outlet.give, *_checked(name, value))
            if count % PAUSE_EVERY == 0:
                asyncio.run_coroutine_threadsafe(outlet.room(), loop).result()

    try:
        await loop.run_in_executor(threads, drive)
    finally:
        # A thread cannot be ended from outside: it stops at its next output.
        stopped.set()


def _checked(name: Any, value: Any) -> PinValue:
    if not isinstance(name, str) or not name:
        raise BlockExecutionError("an output needs a pin name")
    if name == "error":
        raise BlockExecutionError(str(value))
    return name, as_json(value)


def as_json(value: Any) -> Any:
    """The value as it will be read back: what goes on to other nodes is what the tape holds.

    Infinity and NaN become None, which JSON has no words for; lone surrogates become backslash text.
    """
    if value is None or isinstance(value, bool | int):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    try:
        return from_json(to_json(value))
    except (PydanticSerializationError, UnicodeError, ValueError):
        try:
            return from_json(encode_payload({"value": value})[0])["value"]
        except Exception as error:
            raise BlockExecutionError(f"an output of type {type(value).__name__} is not JSON") from error


def _unexpected(block: Block[Any], error: BaseException) -> Failure:
    logger.exception("block %s failed unexpectedly", block.name, exc_info=error, extra={"action": "block_failed"})
    return Failure(f"{type(error).__name__}: {_text(error)}")


def _text(error: BaseException) -> str:
    return (str(error) or type(error).__name__)[:10_000]
