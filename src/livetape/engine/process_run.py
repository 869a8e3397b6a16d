"""Runs a block in a process of its own, which nothing of it outlives.

Nothing is pickled: the request is JSON, and so is everything that comes back. The process is killed with all that it
started when the run is cancelled, when it takes too long, and when it is over.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sys
from asyncio.subprocess import PIPE, Process, SubprocessStreamProtocol
from collections.abc import Collection, Mapping
from typing import Any, Final, Protocol

from pydantic_core import from_json, to_json

from livetape.engine.block import Block, BlockContext
from livetape.engine.output_values import MAX_OUTPUT, as_json
from livetape.engine.process_environment import process_environment
from livetape.errors import BlockExecutionError
from livetape.observability import get_logger

logger = get_logger(__name__)

KEPT_ERROR_BYTES: Final = 4_000
LAST_LINES_S: Final = 0.5
"""What a process that has ended had still written is read for so long; a copy of it may hold the line open."""

# Python finds the project as the worker found it, wherever that was installed.
_START: Final = (
    "import json,sys;sys.path[:]=json.loads(sys.argv[1]);from livetape.engine.process_child import main;main()"
)


class Outputs(Protocol):
    def give(self, name: str, value: Any, size: int = 0) -> None: ...

    async def room(self) -> None: ...


class ProcessFailedError(Exception):
    """A block in its own process failed. `meant`: it said so itself; otherwise its author did not foresee it."""

    def __init__(self, message: str, *, meant: bool, retryable: bool = False, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.meant = meant
        self.retryable = retryable
        self.retry_after = retry_after


async def run_in_process(
    block: Block[Any],
    inputs: Mapping[str, Any],
    ctx: BlockContext,
    outputs: Outputs,
    *,
    variables: Collection[str] = (),
) -> None:
    """Run it to its end. `inputs` are the pin values as they came. Of the environment it gets what every process
    needs, and these `variables`.

    Raises:
        ProcessFailedError
    """
    request = to_json(_request(block, inputs, ctx)) + b"\n"
    loop = asyncio.get_running_loop()
    # As `create_subprocess_exec` does it, but with the transport in hand: what a copy of the process holds open on
    # the other side is closed here all the same.
    transport, protocol = await loop.subprocess_exec(
        lambda: SubprocessStreamProtocol(limit=MAX_OUTPUT + 1024, loop=loop),
        sys.executable,
        "-c",
        _START,
        json.dumps(sys.path),
        stdin=PIPE,
        stdout=PIPE,
        stderr=PIPE,
        env=process_environment(os.environ, variables),
        start_new_session=True,
    )
    process = Process(transport, protocol, loop)
    said = asyncio.create_task(_tail(process), name="stderr of a block")
    try:
        await _send(process, request)
        await _follow(process, ctx, outputs)
    except ProcessFailedError as error:
        if not error.meant:
            _kill(process)
            await asyncio.wait({said}, timeout=LAST_LINES_S)
            logger.warning(
                "block %s failed in its process: %s",
                block.name,
                error,
                extra={"action": "block_failed", "stderr": said.result() if said.done() else ""},
            )
        raise
    finally:
        _kill(process)
        said.cancel()
        # Killed: it cannot take long, unless the kernel itself does not answer.
        await asyncio.shield(process.wait())
        transport.close()


def _request(block: Block[Any], inputs: Mapping[str, Any], ctx: BlockContext) -> dict[str, Any]:
    kind = type(block)
    if "<" in kind.__qualname__ or kind.__module__ == "__main__":
        raise ProcessFailedError(f"{block.name} cannot run in a process: its class cannot be imported", meant=True)
    try:
        given = as_json(dict(inputs))
    except BlockExecutionError:
        limit = f"{MAX_OUTPUT // (1024 * 1024)} MiB"
        raise ProcessFailedError(f"input: must be JSON of at most {limit} for a process", meant=True) from None
    return {
        "module": kind.__module__,
        "name": kind.__qualname__,
        "input": given,
        "files": str(ctx.files),
        "parent": os.getpid(),
        "memory_limit_mb": block.memory_limit_mb,
        "context": {
            "user_id": ctx.user_id,
            "graph_id": ctx.graph_id,
            "graph_version": ctx.graph_version,
            "graph_exec_id": ctx.graph_exec_id,
            "node_id": ctx.node_id,
            "node_exec_id": ctx.node_exec_id,
        },
    }


async def _send(process: Process, request: bytes) -> None:
    assert process.stdin is not None
    process.stdin.write(request)
    # A process that dies at once is found by what it does not answer.
    with contextlib.suppress(ConnectionError, BrokenPipeError):
        await process.stdin.drain()


async def _follow(process: Process, ctx: BlockContext, outputs: Outputs) -> None:
    assert process.stdout is not None
    ended = asyncio.create_task(process.wait(), name="end of a block's process")
    try:
        while True:
            message, size = await _next(process.stdout, ended)
            match message:
                case None:
                    raise ProcessFailedError(_without_a_word(await ended), meant=False)
                case ["output", str(name), value]:
                    outputs.give(name, value, size)
                    await outputs.room()
                case ["usage", dict(amounts)]:
                    for name, amount in amounts.items():
                        ctx.usage.add(name, float(amount))
                case ["end"]:
                    return
                case ["failed", str(text), bool(meant), bool(retryable), after]:
                    raise ProcessFailedError(text, meant=meant, retryable=retryable, retry_after=after)
                case _:
                    raise ProcessFailedError("something else than this block wrote into its channel", meant=False)
    finally:
        ended.cancel()


async def _next(lines: asyncio.StreamReader, ended: asyncio.Task[int]) -> tuple[Any, int]:
    """The next message and its bytes; None: the process has ended and said nothing more."""
    reading = asyncio.ensure_future(lines.readline())
    try:
        await asyncio.wait({reading, ended}, return_when=asyncio.FIRST_COMPLETED)
        if not reading.done():
            await asyncio.wait({reading}, timeout=LAST_LINES_S)
        if not reading.done():
            return None, 0
        line = reading.result()
        return (from_json(line), len(line)) if line.endswith(b"\n") else (None, 0)
    except ValueError:  # longer than any output, or no JSON
        return [], 0
    finally:
        reading.cancel()


async def _tail(process: Process) -> str:
    """The last that it printed; read all the time, so that it never waits for a reader."""
    assert process.stderr is not None
    kept = b""
    while part := await process.stderr.read(65_536):
        kept = (kept + part)[-KEPT_ERROR_BYTES:]
    return kept.decode(errors="backslashreplace")


def _kill(process: Process) -> None:
    """End it and everything that it started and left in its group."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        if sys.platform != "win32":
            os.killpg(process.pid, signal.SIGKILL)
        elif process.returncode is None:
            process.kill()


def _without_a_word(code: int) -> str:
    if code < 0:
        try:
            return f"its process was ended by {signal.Signals(-code).name}"
        except ValueError:
            return f"its process was ended by signal {-code}"
    return f"its process ended without a word (exit code {code})"
