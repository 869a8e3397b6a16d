"""Blocks of an installed distribution, found by its entry points: a real one, in a folder of its own."""

from __future__ import annotations

import asyncio
import importlib
import logging
import sys
import zipfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from livetape.clock import SystemClock
from livetape.engine.block import Block, BlockContext, BlockRegistry, Vector
from livetape.engine.blocks import builtin_blocks, installed_blocks
from livetape.engine.graph import Graph, Link, Node
from livetape.engine.runner import run_to_end
from livetape.engine.validation import check_runnable, check_structure
from livetape.errors import BlockExecutionError, GraphValidationError
from livetape.testing.blocks import check_vector, check_vectors

CODE = """
import os
from livetape.engine.block import Block, BlockSchema, Vector

class Word(BlockSchema):
    word: str

class HelloBlock(Block[Word]):
    id = "hello"
    Input = Word
    Output = Word
    vectors = (Vector({"word": "x"}, [("word", "hello x")]),)

    async def run(self, data, ctx):
        yield "word", "hello " + data.word

class ElsewhereBlock(HelloBlock):
    id = "elsewhere"
    isolation = "process"

    def run(self, data, ctx):
        yield "word", f"{data.word} {os.getpid()}"

def blocks():
    return [HelloBlock(), ElsewhereBlock()]
"""

ENTRY_POINTS = """
[livetape.blocks]
a-broken = acme_blocks.missing:blocks
b-raises = acme_blocks:no_such_function
c-nonsense = builtins:int
d-good = acme_blocks:blocks
"""


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A wheel, unpacked into a folder of the path as an installer does it."""
    wheel, site = tmp_path / "acme_blocks-1.0-py3-none-any.whl", tmp_path / "site"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("acme_blocks/__init__.py", CODE)
        info = "acme_blocks-1.0.dist-info"
        archive.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: acme-blocks\nVersion: 1.0\n")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/entry_points.txt", ENTRY_POINTS)
        archive.writestr(f"{info}/RECORD", "")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    monkeypatch.syspath_prepend(site)
    importlib.invalidate_caches()
    yield
    for name in [name for name in sys.modules if name.partition(".")[0] == "acme_blocks"]:
        del sys.modules[name]


class Kept:
    def __init__(self) -> None:
        self.outputs: list[tuple[str, object]] = []

    def give(self, name: str, value: object, size: int = 0) -> None:
        self.outputs.append((name, value))

    async def room(self) -> None:
        pass


@pytest.mark.usefixtures("installed")
async def test_an_installed_package_brings_its_blocks(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.ERROR, logger="livetape"):
        found = installed_blocks()
    assert [block.name for block in found] == ["HelloBlock", "ElsewhereBlock"]
    assert [getattr(record, "plugin", None) for record in caplog.records] == ["a-broken", "b-raises", "c-nonsense"]
    assert len(BlockRegistry([*builtin_blocks(), *found])) == len(builtin_blocks()) + 2
    hello, elsewhere = found
    assert await check_vectors(hello, tmp_path) == 1
    with pytest.raises(AssertionError, match="gives"):
        await check_vectors(elsewhere, tmp_path)
    ctx = BlockContext(
        user_id="u", graph_id="g", graph_version=1, graph_exec_id="e", node_id="n", node_exec_id="ne",
        files=tmp_path, clock=SystemClock(), sleep=asyncio.sleep,
    )  # fmt: skip
    kept = Kept()
    with ThreadPoolExecutor(1) as threads:
        outcome = await run_to_end(elsewhere, {"word": "pid"}, ctx, kept, threads)
    assert outcome.failure is None  # its process found the package, too
    assert kept.outputs[0][1] != f"pid {sys.modules['os'].getpid()}"


def test_a_graph_with_a_block_that_is_not_there_is_kept_and_refuses_to_run() -> None:
    blocks = BlockRegistry(builtin_blocks())
    store = next(block.id for block in blocks if block.name == "StoreValueBlock")
    graph = Graph(
        name="g",
        nodes=[
            Node(id="a", block_id="from-elsewhere", input_default={"any": {"thing": 1}}, metadata={"x": 1}),
            Node(id="b", block_id=store),
        ],
        links=[Link(source_id="a", sink_id="b", source_name="whatever_#_x", sink_name="input")],
    )
    check_structure(graph, blocks)
    assert Graph.model_validate_json(graph.model_dump_json()) == graph
    with pytest.raises(GraphValidationError) as caught:
        check_runnable(graph, blocks, {})
    assert caught.value.node_errors["a"]["block_id"] == "no block with the id 'from-elsewhere' is installed"


def test_the_pins_of_another_graph_are_those_that_the_node_says() -> None:
    blocks = BlockRegistry(builtin_blocks())
    ids = {block.name: block.id for block in blocks}

    def graph(source: str, sink: str) -> Graph:
        agent = {
            "user_id": "u",
            "graph_id": "other",
            "graph_version": 1,
            "input_schema": {"properties": {"topic": {}}},
            "output_schema": {"properties": {"summary": {}}},
        }
        return Graph(
            name="g",
            nodes=[
                Node(id="v", block_id=ids["StoreValueBlock"], input_default={"input": "x"}),
                Node(id="a", block_id=ids["AgentExecutorBlock"], input_default=agent),
                Node(id="s", block_id=ids["StoreValueBlock"]),
            ],
            links=[
                Link(source_id="v", sink_id="a", source_name="output", sink_name=sink),
                Link(source_id="a", sink_id="s", source_name=source, sink_name="input"),
            ],
        )

    check_runnable(graph("summary", "topic"), blocks, {})
    check_runnable(graph("error", "inputs"), blocks, {})
    for source, sink in (("other", "topic"), ("summary", "other")):
        with pytest.raises(GraphValidationError):
            check_structure(graph(source, sink), blocks)


async def test_vectors_say_what_is_different(tmp_path: Path) -> None:
    block: Block[object] = next(block for block in builtin_blocks() if block.name == "TextReplaceBlock")
    pins = {"text": "a", "old": "a", "new": "b"}
    await check_vector(block, Vector(pins, [("output", "b")]), tmp_path)
    for vector, said in (
        (Vector(pins, [("output", "c")]), "expected is"),
        (Vector(pins, raises=BlockExecutionError), "BlockExecutionError is expected"),
        (Vector({}, raises=BlockExecutionError), "required"),
        (Vector({}, raises=Exception, matching="other words"), "not 'other words'"),
    ):
        with pytest.raises(Exception, match=said):
            await check_vector(block, vector, tmp_path)
