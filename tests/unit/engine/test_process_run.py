"""Blocks in processes of their own: whatever they do, the worker goes on and nothing of them is left."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

import hostile_blocks as hostile
from livetape.clock import SystemClock
from livetape.engine.block import Block, BlockContext, BlockSchema, PinValue
from livetape.engine.runner import Attempt, Outcome, run_to_end

pytestmark = [
    pytest.mark.slow,  # each starts a process
    pytest.mark.skipif(not hasattr(os, "fork"), reason="processes are killed by groups here"),
]


class Kept:
    """An outlet that keeps what it is given."""

    def __init__(self) -> None:
        self.outputs: list[PinValue] = []
        self.first = asyncio.Event()

    def give(self, name: str, value: Any, size: int = 0) -> None:
        self.outputs.append((name, value))
        self.first.set()

    async def room(self) -> None:
        await asyncio.sleep(0)


def context(files: Path) -> BlockContext:
    return BlockContext(
        user_id="u", graph_id="g", graph_version=1, graph_exec_id="e", node_id="n", node_exec_id="ne",
        files=files, clock=SystemClock(), sleep=asyncio.sleep,
    )  # fmt: skip


async def run(block: Block[Any], files: Path, kept: Kept | None = None, /, **pins: Any) -> tuple[Outcome, Kept]:
    kept = kept or Kept()
    with ThreadPoolExecutor(1) as threads:
        return await run_to_end(block, pins, context(files), kept, threads), kept


def failure(outcome: Outcome) -> str:
    assert outcome.failure is not None
    return outcome.failure.message


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    # A zombie that its new parent has not yet asked for is not alive.
    return b"\nState:\tZ" not in Path(f"/proc/{pid}/status").read_bytes() if Path("/proc").exists() else True


async def gone(*pids: int) -> None:
    async with asyncio.timeout(5):
        while any(alive(pid) for pid in pids):
            await asyncio.sleep(0.01)


async def test_it_runs_elsewhere_and_gives_its_outputs(tmp_path: Path) -> None:
    value = {"a": [1, None, "é", 2.5], "b": "\ud800"}
    outcome, kept = await run(hostile.Echo(), tmp_path, value=value)
    assert outcome.failure is None
    given = dict(kept.outputs)
    assert given["value"] == {"a": [1, None, "é", 2.5], "b": "\\ud800"}
    assert given["pid"] != os.getpid()
    assert given["key"] == "ne"
    assert outcome.stats.usage == {"things": 2}
    assert outcome.stats.outputs == 3


async def test_it_gets_the_variables_on_the_list_and_no_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    named = {"AWS_REGION": "eu-central-1", "MODEL_CACHE": "/models"}
    common = {"TZ": "UTC", "LC_ALL": "C.UTF-8", "PYTHONUTF8": "1"}
    secret = ("PGPASSWORD", "AWS_SECRET_ACCESS_KEY", "LIVETAPE_JWT_VERIFY_KEY", "HTTPS_PROXY", "PYTHON_KEY", "lang")
    for name, value in {**named, **common, **dict.fromkeys(secret, "secret")}.items():
        monkeypatch.setenv(name, value)

    async def environment(*variables: str) -> dict[str, str]:
        kept = Kept()
        with ThreadPoolExecutor(1) as threads:
            block, ctx = hostile.Environment(), context(tmp_path)
            outcome = await run_to_end(block, {}, ctx, kept, threads, variables=variables)
        assert outcome.failure is None
        found: dict[str, str] = dict(kept.outputs)["value"]
        return found

    found = await environment()
    assert not {*named, *secret} & found.keys()
    assert "secret" not in found.values()
    assert found.items() >= common.items()
    assert found["PATH"] == os.environ["PATH"]
    found = await environment("MODEL_CACHE", "AWS_REGION", "NOT_THERE")
    assert found.items() >= {**named, **common}.items()
    assert not {*secret, "NOT_THERE"} & found.keys()


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ("meant", "as meant"),
        ("unexpected", "KeyError: 'nobody thought of it'"),
        ("exit", "SystemExit: 3"),
        ("interrupt", "KeyboardInterrupt: KeyboardInterrupt"),
        ("base", "BaseException: the lowest"),
    ],
)
async def test_whatever_it_raises_is_its_failure(how: str, said: str, tmp_path: Path) -> None:
    outcome, kept = await run(hostile.Fails(), tmp_path, value=how)
    assert failure(outcome) == said
    assert kept.outputs == [("value", 1)]


@pytest.mark.parametrize(("how", "said"), [("exit", "exit code 7"), ("signal", "SIGSEGV")])
async def test_a_process_that_dies_is_a_failure_that_says_how(how: str, said: str, tmp_path: Path) -> None:
    outcome, kept = await run(hostile.Dies(), tmp_path, value=how)
    assert said in failure(outcome)
    assert kept.outputs == [("value", 1)]


async def test_a_block_that_never_returns_is_killed_at_its_limit(tmp_path: Path) -> None:
    started = time.monotonic()
    outcome, _ = await run(hostile.Endless(), tmp_path, _timeout=1.5)
    assert failure(outcome) == "Endless took longer than 1.5 s"
    assert time.monotonic() - started < 10
    if (tmp_path / "pid").exists():
        await gone(int((tmp_path / "pid").read_text()))


async def test_a_block_that_never_returns_is_killed_when_it_is_cancelled(tmp_path: Path) -> None:
    kept = Kept()
    running = asyncio.create_task(run(hostile.Endless(), tmp_path, kept))
    async with asyncio.timeout(20):
        await kept.first.wait()
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    await gone(int((tmp_path / "pid").read_text()))


async def test_a_block_that_takes_all_memory_is_stopped_by_its_limit(tmp_path: Path) -> None:
    outcome, kept = await run(hostile.Leaks(), tmp_path)
    assert failure(outcome) == "needed more than 200 MiB of memory"
    assert 1 < len(kept.outputs) < 20


async def test_copies_that_a_block_makes_end_with_it_and_give_nothing(tmp_path: Path) -> None:
    outcome, kept = await run(hostile.Forks(), tmp_path)
    assert outcome.failure is None
    assert kept.outputs == [("value", "parent")]
    await gone(*map(int, (tmp_path / "children").read_text().split()))


async def test_what_it_prints_goes_nowhere_near_its_outputs(tmp_path: Path) -> None:
    outcome, kept = await run(hostile.Prints(), tmp_path)
    assert outcome.failure is None
    assert kept.outputs == [("value", "printed")]


async def test_a_block_that_writes_into_its_channel_fails(tmp_path: Path) -> None:
    outcome, kept = await run(hostile.Forges(), tmp_path)
    assert failure(outcome) == "something else than this block wrote into its channel"
    assert kept.outputs == []


async def test_outputs_and_inputs_have_a_largest_size(tmp_path: Path) -> None:
    outcome, _ = await run(hostile.Large(), tmp_path, value=51 * 1024 * 1024)
    assert failure(outcome) == "an output is larger than 50 MiB"
    outcome, _ = await run(hostile.Echo(), tmp_path, value="x" * (51 * 1024 * 1024))
    assert failure(outcome) == "input: must be JSON of at most 50 MiB for a process"
    outcome, kept = await run(hostile.Large(), tmp_path, value=8 * 1024 * 1024)
    assert outcome.failure is None
    assert len(kept.outputs[0][1]) == 8 * 1024 * 1024


async def test_many_outputs_come_in_order(tmp_path: Path) -> None:
    outcome, kept = await run(hostile.Streams(), tmp_path, value=3000)
    assert outcome.failure is None
    assert kept.outputs == [("value", number) for number in range(3000)]


async def test_it_is_tried_again_in_a_new_process_and_repeats_nothing(tmp_path: Path) -> None:
    kept, tries = Kept(), list[Attempt]()
    with ThreadPoolExecutor(1) as threads:
        outcome = await run_to_end(hostile.Retried(), {}, context(tmp_path), kept, threads, tried=tries.append)
    assert outcome.failure is None
    assert outcome.stats.attempts == 3
    assert kept.outputs == [("value", "same"), ("value", "new")]
    assert [(attempt.number, attempt.failure.message) for attempt in tries] == [
        (1, "ConnectionResetError: lost"),
        (2, "ConnectionResetError: lost"),
    ]


async def test_a_class_that_cannot_be_imported_is_refused(tmp_path: Path) -> None:
    class Local(hostile.Echo):
        pass

    outcome, _ = await run(Local(), tmp_path)
    assert failure(outcome) == "Local cannot run in a process: its class cannot be imported"


def test_code_for_the_loop_cannot_be_isolated() -> None:
    with pytest.raises(TypeError, match="only a plain `def run`"):

        class OnLoop(Block[BlockSchema]):
            isolation = "process"

            async def run(self, data: BlockSchema, ctx: BlockContext) -> Any:
                yield "x", 1

    class Elsewhere(Block[BlockSchema]):
        isolation = "process"

        def run(self, data: BlockSchema, ctx: BlockContext) -> Iterator[PinValue]:
            yield "x", 1

    assert Elsewhere().isolated(BlockSchema())
