"""Blocks that do what a block should not. In a module of their own, since a process of a block imports its class."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from livetape.engine.block import Block, BlockContext, BlockSchema, PinValue, Retries


class Anything(BlockSchema):
    value: Any = None


class Isolated(Block[Anything]):
    isolation = "process"
    Input = Anything
    Output = Anything


class Echo(Isolated):
    """Gives its input back, and what it knows of where it runs."""

    id = "echo"

    def run(self, data: Anything, ctx: BlockContext) -> Iterator[PinValue]:
        yield "value", data.value
        yield "pid", os.getpid()
        yield "key", ctx.idempotency_key
        ctx.usage.add("things", 2)


class Environment(Isolated):
    """Tells the environment that it runs in."""

    id = "environment"

    def run(self, data: Anything, ctx: BlockContext) -> Iterator[PinValue]:
        yield "value", dict(os.environ)


class Fails(Isolated):
    """Fails as its input says."""

    id = "fails"

    def run(self, data: Anything, ctx: BlockContext) -> Iterator[PinValue]:
        yield "value", 1
        kinds: dict[str, BaseException] = {
            "meant": ValueError("as meant"),
            "unexpected": KeyError("nobody thought of it"),
            "exit": SystemExit(3),
            "interrupt": KeyboardInterrupt(),
            "base": BaseException("the lowest"),
        }
        raise kinds[data.value]


class Dies(Isolated):
    """Ends its process without a word."""

    id = "dies"

    def run(self, data: Anything, ctx: BlockContext) -> Iterator[PinValue]:
        yield "value", 1
        if data.value == "exit":
            os._exit(7)
        os.kill(os.getpid(), signal.SIGSEGV)


class Endless(Isolated):
    """Never comes back, and tells in a file who it is."""

    id = "endless"

    def run(self, data: Anything, ctx: BlockContext) -> Iterator[PinValue]:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        (ctx.files / "pid").write_text(str(os.getpid()))
        yield "value", 1
        while True:
            time.sleep(60)


class Leaks(Isolated):
    """Takes memory until there is none."""

    id = "leaks"
    memory_limit_mb = 200

    def run(self, data: Anything, ctx: BlockContext) -> Iterator[PinValue]:
        kept = []
        while True:
            kept.append(b"x" * 10_000_000)
            yield "value", len(kept)


class Forks(Isolated):
    """Leaves copies of itself behind, which hold its line open and go on giving outputs."""

    id = "forks"

    def run(self, data: Anything, ctx: BlockContext) -> Iterator[PinValue]:
        for number in range(3):
            if os.fork() == 0:
                with Path(ctx.files / "children").open("a") as file:
                    file.write(f"{os.getpid()}\n")
                if number == 0:
                    yield "from the copy", number
                time.sleep(600)
        while len((ctx.files / "children").read_text().split()) < 3 if (ctx.files / "children").exists() else True:
            time.sleep(0.01)
        yield "value", "parent"


class Prints(Isolated):
    """Prints what is no text, a lot of it."""

    id = "prints"

    def run(self, data: Anything, ctx: BlockContext) -> Iterator[PinValue]:
        for _ in range(50):
            sys.stdout.buffer.write(bytes(range(256)) * 400)
            sys.stderr.buffer.write(bytes(range(256)) * 400)
        sys.stdout.flush()
        os.write(1, b'["output", "forged", 1]\n')
        yield "value", "printed"


class Forges(Isolated):
    """Writes into whatever it finds open."""

    id = "forges"

    def run(self, data: Anything, ctx: BlockContext) -> Iterator[PinValue]:
        for number in range(3, 40):
            try:
                os.write(number, b"no such message\n")
            except OSError:
                continue
        yield "value", 1


class Large(Isolated):
    """Gives one output that is too large."""

    id = "large"

    def run(self, data: Anything, ctx: BlockContext) -> Iterator[PinValue]:
        yield "value", "x" * data.value


class Streams(Isolated):
    """Gives many outputs."""

    id = "streams"

    def run(self, data: Anything, ctx: BlockContext) -> Iterator[PinValue]:
        for number in range(data.value):
            yield "value", number


class Retried(Isolated):
    """Fails with a connection twice."""

    id = "retried"
    retries = Retries(on=(ConnectionError,), attempts=3, base_s=0.01)

    def run(self, data: Anything, ctx: BlockContext) -> Iterator[PinValue]:
        tries = ctx.files / "tries"
        tries.write_text((tries.read_text() if tries.exists() else "") + "x")
        yield "value", "same"
        if len(tries.read_text()) < 3:
            raise ConnectionResetError("lost")
        yield "value", "new"
