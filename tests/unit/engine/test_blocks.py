"""Every block runs the examples that it carries; the rest of the file is what one example cannot show."""

from __future__ import annotations

import asyncio
import json
import math
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from datetime import datetime
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any, cast
from uuid import UUID

import pytest

from block_services import Services
from livetape.engine import blocks
from livetape.engine.block import (
    VECTOR_TIME,
    Block,
    BlockContext,
    BlockRegistry,
    BlockSchema,
    BlockType,
    PinValue,
    Vector,
)
from livetape.engine.blocks import builtin_blocks, installed_blocks
from livetape.engine.coerce import coerce_input
from livetape.engine.graph import Graph
from livetape.engine.pins import base_name
from livetape.errors import BlockExecutionError, BlockInputError, ConfigError
from livetape.examples import example_files, example_graphs
from seed_blocks import PINS

BLOCKS = {block.name: block for block in builtin_blocks()}

# The ids of the seed's system: graphs made there must find their blocks here.
IDS = {
    "AddToDictionaryBlock": "31d1064e-7446-4693-a7d4-65e5ca1180d1",
    "AddToListBlock": "aeb08fc1-2fc1-4141-bc8e-f758f183a822",
    "AgentDateInputBlock": "7e198b09-4994-47db-8b4d-952d98241817",
    "AgentDropdownInputBlock": "655d6fdf-a334-421c-b733-520549c07cd1",
    "AgentExecutorBlock": "e189baac-8c20-45a1-94a7-55177ea42565",
    "AgentFileInputBlock": "95ead23f-8283-4654-aef3-10c053b74a31",
    "AgentGoogleDriveFileInputBlock": "d3b32f15-6fd7-40e3-be52-e083f51b19a2",
    "AgentInputBlock": "c0a8e994-ebf1-4a9c-a4d8-89d09c86741b",
    "AgentLongTextInputBlock": "90a56ffb-7024-4b2b-ab50-e26c5e5ab8ba",
    "AgentNumberInputBlock": "96dae2bb-97a2-41c2-bd2f-13a3b5a8ea98",
    "AgentOutputBlock": "363ae599-353e-4804-937e-b2ee3cef3da4",
    "AgentShortTextInputBlock": "7fcd3bcb-8e1b-4e69-903d-32d3d4a92158",
    "AgentTableInputBlock": "5603b273-f41e-4020-af7d-fbc9c6a8d928",
    "AgentTimeInputBlock": "2a1c757e-86cf-4c7e-aacf-060dc382e434",
    "AgentToggleInputBlock": "cbf36ab5-df4a-43b6-8a7f-f7ed8652116e",
    "CalculatorBlock": "b1ab9b19-67a6-406d-abf5-2dba76d00c79",
    "CodeExtractionBlock": "d3a7d896-3b78-4f44-8b4b-48fbf4f0bcd8",
    "CombineTextsBlock": "e30a4d42-7b7d-4e6a-b36e-1f9b8e3b7d85",
    "ConcatenateListsBlock": "3cf9298b-5817-4141-9d80-7c2cc5199c8e",
    "ConditionBlock": "715696a0-e1da-45c8-b209-c2fa9c3b0be6",
    "CountItemsBlock": "3c9c2f42-b0c3-435f-ba35-05f7a25c772a",
    "CountdownTimerBlock": "d67a9c52-5e4e-11e2-bcfd-0800200c9a71",
    "CreateDictionaryBlock": "b924ddf4-de4f-4b56-9a85-358930dcbc91",
    "CreateListBlock": "a912d5c7-6e00-4542-b2a9-8034136930e4",
    "DataSamplingBlock": "4a448883-71fa-49cf-91cf-70d793bd7d87",
    "DelayBlock": "2219d078-831b-4245-aaf9-66e7a85d4faf",
    "DictionaryIsEmptyBlock": "a3cf3f64-6bb9-4cc6-9900-608a0b3359b0",
    "ExtractTextInformationBlock": "3146e4fe-2cdd-4f29-bd12-0c9d5bb4deb0",
    "FileReadBlock": "3735a31f-7e18-4aca-9e90-08a7120674bc",
    "FileStoreBlock": "cbb50872-625b-42f0-8203-a2ae78242d8a",
    "FillTextTemplateBlock": "db7d8f02-2f44-4c55-ab7a-eae0941f0c30",
    "FindInDictionaryBlock": "0e50422c-6dee-4145-83d6-3a5a392f65de",
    "FindInListBlock": "5e2c6d0a-1e37-489f-b1d0-8e1812b23333",
    "FlattenListBlock": "cc45bb0f-d035-4756-96a7-fe3e36254b4d",
    "GenericWebhookTriggerBlock": "8fa8c167-2002-47ce-aba8-97572fc5d387",
    "GetCurrentDateAndTimeBlock": "716a67b3-6760-42e7-86dc-18645c6e00fc",
    "GetCurrentDateBlock": "b29c1b50-5d0e-4d9f-8f9d-1b0e6fcbf0b1",
    "GetCurrentTimeBlock": "a892b8d9-3e4e-4e9c-9c1e-75f8efcf1bfa",
    "GetListItemBlock": "262ca24c-1025-43cf-a578-534e23234e97",
    "HumanInTheLoopBlock": "8b2a7b3c-6e9d-4a5f-8c1b-2e3f4a5b6c7d",
    "IfInputMatchesBlock": "6dbbc4b3-ca6c-42b6-b508-da52d23e13f2",
    "InterleaveListsBlock": "9f616084-1d9f-4f8e-bc00-5b9d2a75cd75",
    "LanguageModelBlock": "c5bc98d9-e7dc-49d8-b49c-ac8630b2885b",
    "ListDifferenceBlock": "05309873-9d61-447e-96b5-b804e2511829",
    "ListIntersectionBlock": "b6eb08b6-dbe3-411b-b9b4-2508cb311a1f",
    "ListIsEmptyBlock": "896ed73b-27d0-41be-813c-c1c1dc856c03",
    "MapGraphBlock": "fc0285e9-cb1e-4b5c-8507-300f2a6e56a1",
    "MatchTextPatternBlock": "3060088f-6ed9-4928-9ba7-9c92823a7ccd",
    "NoteBlock": "cc10ff7b-7753-4ff2-9af6-9399b1a7eddc",
    "PersistInformationBlock": "1d055e55-a2b9-4547-8311-907d05b0304d",
    "PrintToConsoleBlock": "f3b1c1b2-4c4f-4f0d-8d2f-4c4f0d8d2f4c",
    "ReadSpreadsheetBlock": "acf7625e-d2cb-4941-bfeb-2819fc6fc015",
    "RemoveFromDictionaryBlock": "46afe2ea-c613-43f8-95ff-6692c3ef6876",
    "RemoveFromListBlock": "d93c5a93-ac7e-41c1-ae5c-ef67e6e9b826",
    "ReplaceDictionaryValueBlock": "27e31876-18b6-44f3-ab97-f6226d8b3889",
    "ReplaceListItemBlock": "fbf62922-bea1-4a3d-8bac-23587f810b38",
    "RetrieveInformationBlock": "d8710fc9-6e29-481e-a7d5-165eb16f8471",
    "ReverseListOrderBlock": "422cb708-3109-4277-bfe3-bc2ae5812777",
    "SendWebRequestBlock": "6595ae1f-b924-42cb-9a41-551a0611c4b4",
    "StepThroughItemsBlock": "f66a3543-28d3-4ab5-8945-9b336371e2ce",
    "StoreValueBlock": "1ff065e9-88e8-4358-9d82-8dc91f622ba9",
    "StreamTextBlock": "6a1d5b5e-63f8-4f0e-9d0c-5c2f7be0a9f1",
    "TextDecoderBlock": "2570e8fe-8447-43ed-84c7-70d657923231",
    "TextEncoderBlock": "5185f32e-4b65-4ecf-8fbb-873f003f09d6",
    "TextReplaceBlock": "7e7c87ab-3469-4bcc-9abe-67705091b713",
    "TextSplitBlock": "d5ea33c8-a575-477a-b42f-2fe3be5055ec",
    "UniversalTypeConverterBlock": "95d1b990-ce13-4d88-9737-ba5c2070c97b",
    "WordCharacterCountBlock": "ab2a782d-22cf-4587-8a70-55b59b3f9f90",
    "XMLParserBlock": "286380af-9529-4b55-8be0-1d7c854abdb5",
    "ZipListsBlock": "0d0e684f-5cb9-4c4b-b8d1-47a0860e0c07",
}

# What they do well needs another machine: tests of their own.
NETWORK = {"SendWebRequestBlock", "LanguageModelBlock"}

STATIC = {"StoreValueBlock", "AgentOutputBlock", "FileStoreBlock", "RetrieveInformationBlock"} | {
    name for name in IDS if name.endswith("InputBlock")
}


class StoppedClock:
    def now(self) -> datetime:
        return VECTOR_TIME

    def monotonic(self) -> float:
        return 0.0


@dataclass
class Sleeps:
    """Waiting that takes no time, and remembers for how long it was asked."""

    asked: list[float] = field(default_factory=list)

    async def __call__(self, seconds: float) -> None:
        self.asked.append(seconds)
        await asyncio.sleep(0)


def context(files: Path, sleep: Callable[[float], Awaitable[None]] | None = None) -> BlockContext:
    services = Services()
    return BlockContext(
        user_id="u",
        graph_id="g",
        graph_version=1,
        graph_exec_id="e",
        node_id="n",
        node_exec_id="ne",
        files=files,
        clock=StoppedClock(),
        sleep=sleep or Sleeps(),
        children=services,
        review=services,
        memory=services,
    )


async def outputs(block: Block[Any], pins: Any, ctx: BlockContext) -> list[PinValue]:
    run = block.run(coerce_input(block.Input, block.prepare(pins)), ctx)
    if block.is_async:
        return [output async for output in cast(AsyncIterator[PinValue], run)]
    return list(cast(Iterator[PinValue], run))


def comparable(value: Any) -> Any:
    """Not-a-number equals nothing, not even itself: its text does. True is not 1 here, nor 1.0."""
    if isinstance(value, dict):
        return {key: comparable(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [comparable(item) for item in value]
    return ("nan",) if isinstance(value, float) and math.isnan(value) else (type(value).__name__, value)


VECTORS = [
    pytest.param(block, vector, id=f"{name}-{number}")
    for name, block in BLOCKS.items()
    for number, vector in enumerate(block.vectors)
]


@pytest.mark.parametrize(("block", "vector"), VECTORS)
async def test_every_block_does_what_its_vectors_say(block: Block[Any], vector: Vector, tmp_path: Path) -> None:
    files = tmp_path / "files"
    files.mkdir()
    for name, content in vector.files.items():
        (files / name).parent.mkdir(parents=True, exist_ok=True)
        (files / name).write_bytes(content)
    if vector.raises is not None:
        with pytest.raises(vector.raises) as caught:
            await outputs(block, vector.input, context(files))
        assert vector.matching in str(caught.value)
        assert "\n" not in str(caught.value)
        return
    got = await outputs(block, vector.input, context(files))
    assert comparable(got) == comparable(list(vector.outputs))
    assert {name for name, _ in got} <= block.output_pins() or block.block_type is BlockType.AGENT
    json.dumps(got)  # values on links are JSON


def test_the_ids_are_those_of_the_seed() -> None:
    assert {name: block.id for name, block in BLOCKS.items()} == IDS
    assert all(str(UUID(block_id)) == block_id for block_id in IDS.values())
    assert len(set(IDS.values())) == len(IDS)


@pytest.mark.parametrize("block", BLOCKS.values(), ids=list(BLOCKS))
def test_every_block_says_what_it_is(block: Block[Any]) -> None:
    assert block.description.strip().endswith(".")
    assert block.categories
    assert len(block.vectors) >= 2
    assert any(vector.raises is None for vector in block.vectors) or block.name in NETWORK
    assert not (block.pure and block.read_only)
    assert block.static_output == (block.name in STATIC)
    assert (block.block_type == BlockType.INPUT) == (
        block.name.startswith("Agent") and block.name.endswith("InputBlock")
    )
    described = block.describe()
    assert json.loads(json.dumps(described)) == described
    for key, model in (("inputSchema", block.Input), ("outputSchema", block.Output)):
        check_schema(described[key])
        assert set(described[key]["properties"]) == set(model.model_fields)


def check_schema(schema: Any) -> None:
    """A JSON Schema as far as it goes without a validator: known types, no references left, required ones exist."""
    if isinstance(schema, list):
        for part in schema:
            check_schema(part)
    elif isinstance(schema, dict):
        assert not {"$ref", "$defs"} & set(schema)
        if isinstance(schema.get("type"), str):
            assert schema["type"] in {"string", "number", "integer", "boolean", "array", "object", "null"}
        if isinstance(schema.get("properties"), dict):
            assert set(schema.get("required", [])) <= set(schema["properties"])
            for part in schema["properties"].values():
                check_schema(part)
        for key in ("items", "anyOf", "oneOf", "allOf", "additionalProperties"):
            check_schema(schema.get(key))


def test_all_pins_have_the_names_of_the_seed() -> None:
    ours = IDS.keys() - PINS.keys()
    assert ours == {"DelayBlock", "LanguageModelBlock", "MapGraphBlock", "SendWebRequestBlock", "StreamTextBlock"}
    for name, pins in PINS.items():
        inputs, outputs = (set(part.split()) for part in pins.split("->"))
        assert BLOCKS[name].input_pins() == inputs, name
        assert BLOCKS[name].output_pins() - {"error"} == outputs, name
        assert BLOCKS[name].required_pins() <= inputs


def test_pins_are_those_of_the_seed() -> None:
    def required(name: str) -> set[str]:
        return set(BLOCKS[name].required_pins())

    assert required("CalculatorBlock") == {"operation", "a", "b"}
    assert required("AgentOutputBlock") == {"name"}
    assert required("StoreValueBlock") == {"input"}
    assert required("FillTextTemplateBlock") == {"values", "format"}
    assert BLOCKS["AgentDropdownInputBlock"].input_pins() == {
        *("name", "value", "title", "description", "advanced", "secret", "options")
    }
    assert BLOCKS["FileReadBlock"].input_pins() == {
        *("file_input", "delimiter", "size_limit", "row_limit", "skip_size", "skip_rows")
    }
    assert BLOCKS["StepThroughItemsBlock"].output_pins() == {"item", "key", "error"}


def test_a_registry_takes_all_blocks_once() -> None:
    assert len(BlockRegistry(builtin_blocks())) == len(IDS)
    with pytest.raises(ConfigError, match="two blocks have the id"):
        BlockRegistry([*builtin_blocks(), *builtin_blocks()])


# --- streams and waiting -----------------------------------------------------------------------------------------


async def test_streaming_gives_thousands_of_outputs_and_others_their_turn(tmp_path: Path) -> None:
    turns = 0

    async def other() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    task = asyncio.create_task(other())
    got = await outputs(BLOCKS["StreamTextBlock"], {"text": "word " * 12_000, "chunk_by": "word"}, context(tmp_path))
    task.cancel()
    assert got[-1] == ("count", 12_000)
    assert got[:-1:2] == [("chunk", "word")] * 12_000
    assert got[1:-1:2] == [("index", number) for number in range(12_000)]
    assert turns >= 11_000


async def test_streaming_waits_between_chunks_only(tmp_path: Path) -> None:
    sleeps = Sleeps()
    pins = {"text": "a b c", "chunk_by": "word", "interval_ms": 250}
    await outputs(BLOCKS["StreamTextBlock"], pins, context(tmp_path, sleeps))
    assert sleeps.asked == [0.25, 0.25]


async def test_streaming_twice_gives_the_same(tmp_path: Path) -> None:
    text = example_files()["alice.txt"].decode()
    for chunk_by in ("paragraph", "line", "sentence", "word"):
        pins = {"text": text, "chunk_by": chunk_by, "chunk_size": 3}
        first = await outputs(BLOCKS["StreamTextBlock"], pins, context(tmp_path))
        assert first == await outputs(BLOCKS["StreamTextBlock"], pins, context(tmp_path))
        assert " ".join(" ".join(value for name, value in first if name == "chunk").split()) == " ".join(text.split())


async def test_a_countdown_waits_in_the_time_of_the_engine(tmp_path: Path) -> None:
    sleeps = Sleeps()
    pins = {"days": 1, "hours": "1", "minutes": 1, "seconds": 1, "repeat": 2}
    await outputs(BLOCKS["CountdownTimerBlock"], pins, context(tmp_path, sleeps))
    assert sleeps.asked == [86_400 + 3600 + 60 + 1] * 2


# --- files -------------------------------------------------------------------------------------------------------


async def read(files: Path, name: str, **pins: Any) -> list[PinValue]:
    return await outputs(BLOCKS["FileReadBlock"], {"file_input": name, **pins}, context(files))


async def test_links_are_followed_inside_and_refused_when_they_lead_out(tmp_path: Path) -> None:
    files, secret = tmp_path / "files", tmp_path / "secret"
    files.mkdir()
    secret.mkdir()
    (secret / "key.txt").write_text("secret")
    (files / "real.txt").write_text("real")
    (files / "inside.txt").symlink_to("real.txt")
    (files / "outside.txt").symlink_to(secret / "key.txt")
    (files / "folder").symlink_to(secret)
    (files / "dangling.txt").symlink_to(secret / "none.txt")
    (files / "loop.txt").symlink_to("loop.txt")
    assert await read(files, "inside.txt") == [("content", "real")]
    for name in (
        "outside.txt",
        "folder/key.txt",
        "folder/none.txt",
        "dangling.txt",
        "../secret/key.txt",
        "../secret/none.txt",
        str(secret / "key.txt"),
        str(files / "real.txt"),
        "sub/../../secret/key.txt",
        "..",
        "",
    ):
        # One answer for all: it does not tell what exists outside.
        with pytest.raises(BlockExecutionError, match="not in the files folder"):
            await read(files, name)
    for name in ("loop.txt", "n" * 5000, "real.txt/x", "~/key.txt", "..\\secret\\key.txt"):
        with pytest.raises(BlockExecutionError):
            await read(files, name)


async def test_the_folder_may_be_reached_through_a_link(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "a.txt").write_text("a")
    (tmp_path / "files").symlink_to("real")
    assert await read(tmp_path / "files", "a.txt") == [("content", "a")]
    with pytest.raises(BlockExecutionError, match="no such file"):
        await read(tmp_path / "never made", "a.txt")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes in the file system here")
async def test_a_pipe_is_no_file_and_does_not_block(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(BlockExecutionError, match="not a file"):
        await read(tmp_path, "pipe")


async def test_large_files_come_in_pieces_or_not_at_all(tmp_path: Path) -> None:
    (tmp_path / "large.txt").write_bytes(b"line\n" * 300_000)
    (tmp_path / "huge.txt").write_bytes(b"x" * (16 * 1024 * 1024 + 1))
    with pytest.raises(BlockExecutionError, match="set a delimiter or a size limit"):
        await read(tmp_path, "large.txt")
    assert [len(value) for _, value in await read(tmp_path, "large.txt", size_limit=1_000_000)] == [1_000_000, 500_000]
    rows = await read(tmp_path, "large.txt", delimiter="\n", skip_rows=299_999)
    assert rows == [("content", "line"), ("content", "")]
    with pytest.raises(BlockExecutionError, match="larger than"):
        await read(tmp_path, "huge.txt", size_limit=10)


# --- plugins -----------------------------------------------------------------------------------------------------


class PluginBlock(Block[BlockSchema]):
    id = "plugin"
    Input = BlockSchema
    Output = BlockSchema

    async def run(self, data: BlockSchema, ctx: BlockContext) -> AsyncIterator[PinValue]:
        yield "x", 1


def several() -> list[Block[Any]]:
    return [PluginBlock(), PluginBlock()]


def nonsense() -> list[int]:
    return [1]


def test_plugins_bring_blocks_and_a_broken_one_is_named_and_left_out(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def points(*, group: str) -> list[EntryPoint]:
        assert group == "livetape.blocks"
        return [
            EntryPoint("one", f"{__name__}:PluginBlock", group),
            EntryPoint("several", f"{__name__}:several", group),
            EntryPoint("broken", "no_such_module:thing", group),
            EntryPoint("nonsense", f"{__name__}:nonsense", group),
        ]

    monkeypatch.setattr(blocks, "entry_points", points)
    with caplog.at_level("ERROR", logger="livetape"):
        found = installed_blocks()
    assert [block.name for block in found] == ["PluginBlock"] * 3
    assert [getattr(record, "plugin", None) for record in caplog.records] == ["broken", "nonsense"]


# --- examples ----------------------------------------------------------------------------------------------------


def test_the_examples_are_graphs_of_blocks_and_pins_that_exist() -> None:
    by_id = {block.id: block for block in BLOCKS.values()}
    graphs = [Graph.model_validate(graph) for graph in example_graphs()]
    assert [graph.name for graph in graphs] == ["Alice in Wonderland", "Fan-out", "Hello"]
    ids: list[str] = []
    for raw, graph in zip(example_graphs(), graphs, strict=True):
        assert set(raw) <= set(Graph.model_fields)
        nodes = {node.id: by_id[node.block_id] for node in graph.nodes}
        ids += [graph.id, *nodes, *(link.id for link in graph.links)]
        linked: dict[str, set[str]] = {}
        for link in graph.links:
            source, sink = nodes[link.source_id], nodes[link.sink_id]
            assert base_name(link.source_name) in source.output_pins()
            assert base_name(link.sink_name) in sink.input_pins()
            assert link.is_static == source.static_output
            linked.setdefault(link.sink_id, set()).add(base_name(link.sink_name))
        for node in graph.nodes:
            block = nodes[node.id]
            assert set(node.input_default) <= block.input_pins()
            assert block.required_pins() <= set(node.input_default) | linked.get(node.id, set())
            assert set(node.metadata["position"]) == {"x", "y"}
    assert len(set(ids)) == len(ids)
    assert all(str(UUID(some_id)) == some_id for some_id in ids)


async def test_the_alice_example_reads_its_file_for_eight_seconds(tmp_path: Path) -> None:
    for name, content in example_files().items():
        (tmp_path / name).write_bytes(content)
    [(_, text)] = await read(tmp_path, "alice.txt")
    sleeps = Sleeps()
    pins = {"text": text, "interval_ms": 50, "limit": 160}
    got = await outputs(BLOCKS["StreamTextBlock"], pins, context(tmp_path, sleeps))
    assert got[0] == ("chunk", "ALICE'S ADVENTURES IN WONDERLAND")
    assert got[-1] == ("count", 160)
    assert sum(sleeps.asked) == pytest.approx(8, abs=0.1)
    values = {"values_#_chunk": got[8][1], "values_#_index": got[9][1]}
    template = next(
        node.input_default["format"]
        for node in Graph.model_validate(example_graphs()[0]).nodes
        if node.block_id == IDS["FillTextTemplateBlock"]
    )
    line = await outputs(BLOCKS["FillTextTemplateBlock"], {**values, "format": template}, context(tmp_path))
    assert line == [("output", "paragraph 5: 3 words")]


def test_example_files_are_whole() -> None:
    text = example_files()["alice.txt"]
    assert len(text) == 152_088
    assert text.rstrip().endswith(b"THE END")


def test_input_errors_are_input_errors() -> None:
    for block in BLOCKS.values():
        if block.required_pins():
            with pytest.raises(BlockInputError, match="required"):
                coerce_input(block.Input, {})
