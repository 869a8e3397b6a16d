"""What runs in the process of an isolated block: reads one request, runs the block, writes what it gives.

The request is one line of JSON on standard input; that input's end means that the worker is gone. Answers are lines
of JSON on what was standard output: `["output", name, value]`, then `["end"]` or `["failed", text, meant, retryable,
retry_after]`. Whatever the block itself prints goes to standard error.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from functools import reduce
from pathlib import Path
from typing import Any, cast

from pydantic_core import from_json, to_json

from livetape.clock import SystemClock
from livetape.engine.block import Block, BlockContext, PinValue
from livetape.engine.coerce import coerce_input
from livetape.engine.output_values import checked_output, error_text
from livetape.errors import BlockError

PR_SET_PDEATHSIG = 1


def main() -> None:
    """Never returns: the process and everything that it started are ended."""
    request = from_json(sys.stdin.buffer.readline())
    channel = _Channel()
    _die_with(request["parent"])
    _limit_memory(request["memory_limit_mb"])
    try:
        _run(request, channel)
        channel.write(["end"])
    except BaseException as error:  # nothing that a block raises ends this process without a word
        _tell(error, request, channel)
    _end_group()


def _run(request: dict[str, Any], channel: _Channel) -> None:
    block = load(request["module"], request["name"])
    data = coerce_input(block.Input, block.prepare(request["input"]))
    ctx = BlockContext(files=Path(request["files"]), clock=SystemClock(), sleep=_sleep, **request["context"])
    for name, value in cast("Iterator[PinValue]", block.run(data, ctx)):
        channel.write(["output", *checked_output(name, value)])
    if ctx.usage.amounts:
        channel.write(["usage", ctx.usage.amounts])


def load(module: str, name: str) -> Block[Any]:
    """A new instance of the block class that is found there."""
    made: Block[Any] = reduce(getattr, name.split("."), cast("Any", importlib.import_module(module)))()
    return made


async def _sleep(seconds: float) -> None:
    time.sleep(seconds)  # noqa: ASYNC251 (there is no loop here: the block has this process for itself)


def _tell(error: BaseException, request: dict[str, Any], channel: _Channel) -> None:
    meant, retryable, after = isinstance(error, BlockError | ValueError), False, None
    if isinstance(error, MemoryError):
        text, meant = f"needed more than {request['memory_limit_mb']} MiB of memory", True
    else:
        text = error_text(error)
    with contextlib.suppress(Exception):
        retries = load(request["module"], request["name"]).retries
        retryable = retries is not None and isinstance(error, retries.on)
        found = getattr(error, "retry_after", None)
        after = float(found) if isinstance(found, int | float) else None
    if not meant:
        text = f"{type(error).__name__}: {text}"
        with contextlib.suppress(BaseException):
            traceback.print_exception(error)
            sys.stderr.flush()
    channel.write(["failed", text, meant, retryable, after])


class _Channel:
    """The way back to the worker, out of reach of `print`: standard output now leads to standard error."""

    def __init__(self) -> None:
        self._file = os.dup(1)
        os.dup2(2, 1)
        self._process = os.getpid()

    def write(self, message: list[Any]) -> None:
        if os.getpid() != self._process:
            os._exit(0)  # a copy of this process that the block made: it has nothing to say
        line = memoryview(to_json(message) + b"\n")
        while line:
            line = line[os.write(self._file, line) :]


def _die_with(parent: int) -> None:
    """End with the worker, also when it is killed: by its end of the input, and by the kernel where it can."""

    def watch() -> None:
        with contextlib.suppress(OSError, ValueError):
            while sys.stdin.buffer.read(1024):
                pass
        _end_group()

    threading.Thread(target=watch, daemon=True).start()
    if sys.platform == "linux":
        import ctypes  # noqa: PLC0415 (not everywhere, and not in the worker)

        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:
            _end_group()


def _limit_memory(mebibytes: int | None) -> None:
    if mebibytes is None or sys.platform == "win32":
        return
    import resource  # noqa: PLC0415 (not on Windows)

    size = mebibytes * 1024 * 1024
    # Data counts what was really asked for; the address space would count libraries and thread stacks, too.
    which = resource.RLIMIT_DATA if sys.platform == "linux" else resource.RLIMIT_AS
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(which, (size, size))
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _end_group() -> None:
    """What the block has started and left behind ends with it."""
    if sys.platform != "win32" and os.getpgid(0) == os.getpid():
        os.killpg(os.getpid(), signal.SIGKILL)
    os._exit(0)
