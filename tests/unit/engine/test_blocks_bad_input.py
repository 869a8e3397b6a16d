"""Every block with every pin fed what it did not expect: it answers, soon, and never with an error nobody foresaw."""

from __future__ import annotations

import asyncio
import itertools
import json
import logging
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from block_services import Services
from livetape.engine.block import Block, BlockContext, PinValue
from livetape.engine.block_threads import BlockThreads
from livetape.engine.blocks import builtin_blocks
from livetape.engine.output_values import MAX_OUTPUT
from livetape.engine.runner import run_to_end

BLOCKS = {block.name: block for block in builtin_blocks()}

PATTERNS = ("MatchTextPatternBlock", "ExtractTextInformationBlock")

LONG_S = 5.0
"""No single value may keep a block busy for so long, on a machine that has other work, too."""


class Kept:
    def __init__(self) -> None:
        self.outputs: list[PinValue] = []

    def give(self, name: str, value: Any, size: int = 0) -> None:
        self.outputs.append((name, value))

    async def room(self) -> None:
        pass


class Clock:
    def now(self) -> datetime:
        return datetime(2026, 1, 1, tzinfo=UTC)

    def monotonic(self) -> float:
        return time.monotonic()


async def no_time(_: float) -> None:
    await asyncio.sleep(0)


@pytest.fixture(scope="module")
def threads() -> Iterator[BlockThreads]:
    threads = BlockThreads(2)
    yield threads
    threads.shutdown()


def usual(block: Block[Any]) -> dict[str, Any]:
    """Input that works, from the block's own examples."""
    vectors = [vector for vector in block.vectors if vector.raises is None] or list(block.vectors)
    return dict(vectors[0].input)


def deep_list(levels: int) -> Any:
    value: Any = 1
    for _ in range(levels):
        value = [value]
    return value


def deep_dict(levels: int) -> Any:
    value: Any = 1
    for _ in range(levels):
        value = {"a": value}
    return value


STRANGE: dict[str, Any] = {
    "none": None,
    "nan": float("nan"),
    "infinity": float("-inf"),
    "huge number": 10**400,
    "negative": -1,
    "truth": True,
    "empty text": "",
    "surrogate": "a\ud800b",
    "zero character": "a\0b",
    "text of braces": "{" * 5_000,
    "text of json": "[" * 5_000 + "]" * 5_000,
    "template bomb": "{{ 'x' * 999999999 }}{% for i in range(10**9) %}x{% endfor %}",
    "regex bomb": "(a+)+$",
    "digits": "9" * 5_000,
    "empty list": [],
    "empty dictionary": {},
    "deep list": deep_list(190),
    "deeper list": deep_list(5_000),
    "deep dictionary": deep_dict(5_000),
    "surrogate keys": {"\ud800": "\udfff"},
    "mixed": [None, 1, "a", 1.5, float("nan"), [], {}, {"a": [float("inf")]}],
    "number keys": {2: 2, None: 3, True: 4},
    "bytes": b"\xff\xfe",
    "moment": datetime(2026, 1, 1, tzinfo=UTC),
}

LARGE: dict[str, Callable[[], Any]] = {
    "text": lambda: "x" * 2_000_000,
    "backslashes": lambda: "\\" * 2_000_000,
    "list": lambda: list(range(100_000)),
    "dictionary": lambda: {str(number): number for number in range(20_001)},
    "lists": lambda: [[number] * 10 for number in range(10_000)],
}

HUGE: dict[str, Callable[[], Any]] = {
    "50 MB of text": lambda: "x" * 50_000_000,
    "50 MB of JSON": lambda: f"[{'0,' * 25_000_000}0]",
    "50 MB list": lambda: ["x" * 1_000] * 50_000,
    "a list of a million": lambda: list(range(1_000_000)),
    "one item of 50 MB": lambda: {"a": "x" * 50_000_000},
}

# One pin of each kind: any value, text, lists, dictionaries, numbers, what goes to a process or another machine.
HUGE_PINS = (
    ("StoreValueBlock", "data"),
    ("TextDecoderBlock", "text"),
    ("StepThroughItemsBlock", "items"),
    ("CombineTextsBlock", "input"),
    ("FindInDictionaryBlock", "input"),
    ("FillTextTemplateBlock", "values"),
    ("AgentTableInputBlock", "value"),
    ("CalculatorBlock", "a"),
    ("DataSamplingBlock", "data"),
    ("AgentGoogleDriveFileInputBlock", "allowed_views"),
    ("MatchTextPatternBlock", "text"),
    ("SendWebRequestBlock", "body"),
)


async def check(block: Block[Any], pin: str, value: Any, files: Path, threads: BlockThreads) -> None:
    """One run. What it says must be words for people, its outputs JSON of a bounded size."""
    services = Services()
    ctx = BlockContext(
        user_id="u", graph_id="g", graph_version=1, graph_exec_id="e", node_id="n", node_exec_id="ne",
        files=files, clock=Clock(), sleep=no_time, children=services, review=services, memory=services,
    )  # fmt: skip
    kept = Kept()
    started = time.monotonic()
    async with asyncio.timeout(60):
        outcome = await run_to_end(block, {**usual(block), pin: value}, ctx, kept, threads)
    assert time.monotonic() - started < LONG_S
    if outcome.failure is not None:
        assert outcome.failure.reason in {"block_error", "timeout"}
        assert len(outcome.failure.message) <= 1_000
        json.dumps(outcome.failure.message).encode()
        outcome.failure.message.encode()
    for _, given in kept.outputs:
        assert len(json.dumps(given, allow_nan=False).encode()) <= 2 * MAX_OUTPUT


@pytest.fixture(autouse=True)
def nothing_unforeseen(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    with caplog.at_level(logging.WARNING, logger="livetape"):
        yield
    assert [record.getMessage() for record in caplog.records] == []


@pytest.mark.parametrize("block", BLOCKS.values(), ids=list(BLOCKS))
async def test_strange_values_on_every_pin(block: Block[Any], tmp_path: Path, threads: BlockThreads) -> None:
    pins = itertools.product([*sorted(block.input_pins()), "no_such_pin"], STRANGE.items())
    for pin, (_, value) in pins:
        if block.name in PATTERNS and pin in {"match", "pattern", "text"} and isinstance(value, str | list | dict):
            continue  # a process for each: below
        await check(block, pin, value, tmp_path, threads)


@pytest.mark.slow
@pytest.mark.parametrize("large", LARGE.values(), ids=list(LARGE))
async def test_large_values_on_every_pin(large: Callable[[], Any], tmp_path: Path, threads: BlockThreads) -> None:
    value = large()
    for block in BLOCKS.values():
        for pin in sorted(block.input_pins()):
            await check(block, pin, value, tmp_path, threads)


@pytest.mark.slow
@pytest.mark.parametrize("huge", HUGE.values(), ids=list(HUGE))
async def test_huge_values_on_a_pin_of_each_kind(
    huge: Callable[[], Any], tmp_path: Path, threads: BlockThreads
) -> None:
    value = huge()
    for name, pin in HUGE_PINS:
        await check(BLOCKS[name], pin, value, tmp_path, threads)


@pytest.mark.slow
@pytest.mark.parametrize("name", PATTERNS)
async def test_a_pattern_without_end_is_ended_by_its_limit(name: str, tmp_path: Path, threads: BlockThreads) -> None:
    block = BLOCKS[name]
    pin = "match" if name.startswith("Match") else "pattern"
    services = Services()
    ctx = BlockContext(
        user_id="u", graph_id="g", graph_version=1, graph_exec_id="e", node_id="n", node_exec_id="ne",
        files=tmp_path, clock=Clock(), sleep=no_time, children=services, review=services, memory=services,
    )  # fmt: skip
    turns = 0

    async def others() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0.01)

    beside = asyncio.create_task(others())
    pins = {"text": "a" * 60 + "!", pin: "(a+)+$", "data": 1, "_timeout": 2}
    outcome = await run_to_end(block, pins, ctx, Kept(), threads)
    beside.cancel()
    assert outcome.failure is not None
    assert outcome.failure.message == f"{name} took longer than 2 s"
    assert turns > 50  # everybody else had their turn
    outcome = await run_to_end(block, {"text": "x" * 500_000, pin: "y+$", "data": 1}, ctx, Kept(), threads)
    assert outcome.failure is None
