"""The engine on a real data folder: store, relay, worker and blocks together, through its use cases."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from pydantic_core import from_json

from hostile_blocks import Environment
from livetape.engine.block import Block, BlockContext, BlockSchema, PinValue
from livetape.engine.graph import Graph, Link, Node
from livetape.engine.submit import Snapshot
from livetape.errors import (
    BlockExecutionError,
    ConfigError,
    GraphValidationError,
    LimitError,
    NotFoundError,
    StoreError,
)
from livetape.events.channel import execution_tape, graph_tape
from livetape.events.codec import split
from livetape.events.executions import ExecutionStatus
from livetape.events.log import Entry
from livetape.runtime import Engine, open_engine
from livetape.settings import EngineSettings, Settings

STORE_VALUE = "1ff065e9-88e8-4358-9d82-8dc91f622ba9"
CALCULATOR = "b1ab9b19-67a6-406d-abf5-2dba76d00c79"
OUTPUT = "363ae599-353e-4804-937e-b2ee3cef3da4"


class AnyIn(BlockSchema):
    value: Any = None
    count: int = 0


class AnyOut(BlockSchema):
    out: Any


class Many(Block[AnyIn]):
    """Yields `count` numbers."""

    id = "many"
    Input, Output = AnyIn, AnyOut

    async def run(self, data: AnyIn, ctx: BlockContext) -> AsyncIterator[PinValue]:
        for number in range(data.count):
            yield "out", number


class Threaded(Many):
    """The same in a thread."""

    id = "threaded"

    def run(self, data: AnyIn, ctx: BlockContext) -> Iterator[PinValue]:  # type: ignore[override]
        for number in range(data.count):
            yield "out", number


class Gate(Block[AnyIn]):
    """Gives its value, then waits until it is let through."""

    id = "gate"
    Input, Output = AnyIn, AnyOut

    def __init__(self) -> None:
        self.opened = asyncio.Event()
        self.runs = 0

    async def run(self, data: AnyIn, ctx: BlockContext) -> AsyncIterator[PinValue]:
        self.runs += 1
        yield "out", "before"
        await self.opened.wait()
        yield "out", "after"


class Fragile(Gate):
    """Must not run twice."""

    id = "fragile"
    on_interrupt = "fail"


class Broken(Block[AnyIn]):
    """Fails in the way that its value names."""

    id = "broken"
    Input, Output = AnyIn, AnyOut

    async def run(self, data: AnyIn, ctx: BlockContext) -> AsyncIterator[PinValue]:
        yield "out", 1
        match data.value:
            case "said":
                raise BlockExecutionError("as its author meant")
            case "yielded":
                yield "error", "told as an output"
            case "surprise":
                raise KeyError("nobody thought of this")
            case "not json":
                yield "out", object()


class Slow(Block[AnyIn]):
    """Takes longer than it may."""

    id = "slow"
    timeout = 0.05
    Input, Output = AnyIn, AnyOut

    async def run(self, data: AnyIn, ctx: BlockContext) -> AsyncIterator[PinValue]:
        await asyncio.Event().wait()
        yield "out", 1


@asynccontextmanager
async def engine_on(
    folder: Path, *extra: Block[Any], database: str | None = None, **engine: Any
) -> AsyncIterator[Engine]:
    blocks = (Many(), Threaded(), Broken(), Slow(), *extra)
    settings = Settings(
        data_dir=folder, database=database, engine=EngineSettings(**({"cancel_grace_seconds": 1} | engine))
    )
    async with open_engine(settings, extra_blocks=blocks) as engine_:
        yield engine_


@pytest.fixture(params=["sqlite", pytest.param("postgres", marks=pytest.mark.needs("postgres"))])
async def engine(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Engine]:
    database = request.getfixturevalue("postgres_url") if request.param == "postgres" else None
    async with engine_on(tmp_path, database=database) as engine:
        yield engine


def chain(*nodes: tuple[str, dict[str, Any]], pin: str = "value") -> Graph:
    """Each node's `out` (or `output`) feeds the next one's `value`."""
    made = [Node(id=f"n{i}", block_id=block, input_default=given) for i, (block, given) in enumerate(nodes)]
    links = [
        Link(source_id=f"n{i}", source_name="out", sink_id=f"n{i + 1}", sink_name=pin) for i in range(len(nodes) - 1)
    ]
    return Graph(name="chain", nodes=made, links=links)


async def start(engine: Engine, graph: Graph, **inputs: Any) -> str:
    stored = await engine.graphs.create("u", graph)
    return (await engine.executions.start("u", stored.id, None, inputs)).execution.id


async def ended(engine: Engine, execution_id: str) -> Snapshot:
    """The execution when its last event was published."""
    async with asyncio.timeout(20):
        async with await engine.bus.subscribe("execution_event/*") as events:
            if not (await engine.store.get(execution_id)).status.is_terminal:
                async for message in events:
                    if message.channel.endswith(execution_id) and split(message.data).final:
                        break
    return await engine.executions.get("u", execution_id)


async def tape(engine: Engine, execution_id: str) -> list[Entry]:
    entries: list[Entry] = []
    while page := await engine.log.read(execution_tape(execution_id), len(entries)):
        entries.extend(page)
    return entries


async def run(engine: Engine, graph: Graph, **inputs: Any) -> Snapshot:
    snapshot = await ended(engine, await start(engine, graph, **inputs))
    await replay_gives_the_state(engine, snapshot)
    return snapshot


async def replay_gives_the_state(engine: Engine, snapshot: Snapshot) -> None:
    """Numbers without gap; the last event of each node execution and of the graph are the rows."""
    entries = await tape(engine, snapshot.execution.id)
    assert [entry.offset for entry in entries] == list(range(1, len(entries) + 1))
    nodes: dict[str, Any] = {}
    outputs: dict[str, dict[str, list[Any]]] = {}
    last: Any = None
    for entry in entries:
        told = from_json(entry.payload)
        assert told["event_type"] == entry.event_type
        if entry.event_type == "node_execution_update":
            nodes[told["node_exec_id"]] = told
        elif entry.event_type == "node_output_update":
            pins = outputs.setdefault(told["node_exec_id"], {})
            assert told["index"] == sum(len(values) for values in pins.values())
            pins.setdefault(told["name"], []).append(told["value"])
        else:
            last = told
    for result in snapshot.node_executions:
        if result.status is not ExecutionStatus.INCOMPLETE:
            expected = result.model_dump(mode="json")
            assert {key: nodes[result.node_exec_id][key] for key in expected} == expected
            assert outputs.get(result.node_exec_id, {}) == result.output_data
    expected = snapshot.execution.model_dump(mode="json", exclude={"stats"})
    assert {key: last[key] for key in expected} == expected
    assert [entry.final for entry in entries] == [False] * (len(entries) - 1) + [True]


def vector(values: list[Any], static: Any) -> Graph:
    sources = [Node(id=f"x{i}", block_id=STORE_VALUE, input_default={"input": v}) for i, v in enumerate(values)]
    nodes = [
        *sources,
        Node(id="s1", block_id=STORE_VALUE, input_default={"input": static}),
        Node(id="s2", block_id=STORE_VALUE),
        Node(id="calc", block_id=CALCULATOR, input_default={"operation": "Add"}),
    ]
    links = [Link(source_id=node.id, source_name="output", sink_id="calc", sink_name="a") for node in sources]
    links.append(Link(source_id="s1", source_name="output", sink_id="s2", sink_name="input"))
    links.append(Link(source_id="s2", source_name="output", sink_id="calc", sink_name="b", is_static=True))
    return Graph(name="vector", nodes=nodes, links=links)


@pytest.mark.parametrize(("values", "static"), [([4, 4, 4], 5), ([1, 1, 1], -3), ([4, 4], 5), ([2.5] * 5, 0.5)])
async def test_the_upstream_vector(engine: Engine, values: list[Any], static: Any) -> None:
    snapshot = await run(engine, vector(values, static))
    assert snapshot.execution.status is ExecutionStatus.COMPLETED
    assert len(snapshot.node_executions) == 2 * len(values) + 2
    results = [r.output_data["result"] for r in snapshot.node_executions if r.block_id == CALCULATOR]
    assert results == [[values[0] + static]] * len(values)


@pytest.mark.parametrize("block", ["many", "threaded"])
async def test_many_outputs_are_recorded_in_order_and_cost_linear_bytes(engine: Engine, block: str) -> None:
    snapshot = await run(engine, chain((block, {"count": 1500})))
    assert snapshot.node_executions[0].output_data == {"out": list(range(1500))}
    entries = await tape(engine, snapshot.execution.id)
    small = sum(len(e.payload) for e in entries if e.event_type == "node_output_update")
    assert sum(len(e.payload) for e in entries) < 12 * small


async def test_outputs_fan_out_while_the_producer_runs(tmp_path: Path) -> None:
    gate = Gate()
    async with engine_on(tmp_path, gate) as engine:
        execution_id = await start(engine, chain(("gate", {}), ("many", {"count": 1})))
        async with asyncio.timeout(10):
            while not any(
                n.block_id == "many" and n.status is ExecutionStatus.COMPLETED
                for n in await engine.store.nodes(execution_id)
            ):
                await asyncio.sleep(0.01)
        assert not gate.opened.is_set()
        gate.opened.set()
        assert len((await ended(engine, execution_id)).node_executions) == 3


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("said", "as its author meant"),
        ("yielded", "told as an output"),
        ("surprise", "KeyError: 'nobody thought of this'"),
        ("not json", "an output of type object is not JSON"),
    ],
)
async def test_a_failing_block_fails_the_execution_and_names_the_node(engine: Engine, how: str, message: str) -> None:
    snapshot = await run(engine, chain(("broken", {"value": how})))
    (node,) = snapshot.node_executions
    assert (node.status, node.output_data) == (ExecutionStatus.FAILED, {"out": [1], "error": [message]})
    assert (snapshot.execution.status, snapshot.execution.status_reason) == (ExecutionStatus.FAILED, "block_error")
    assert snapshot.execution.stats is not None
    assert snapshot.execution.stats.error == f"node {node.node_id}: {message}"
    assert snapshot.execution.stats.node_error_count == 1


async def test_a_handled_error_completes(engine: Engine) -> None:
    graph = chain(("broken", {"value": "said"}), ("many", {"count": 1}))
    graph.links[0].source_name = "error"
    snapshot = await run(engine, graph)
    assert snapshot.execution.status is ExecutionStatus.COMPLETED
    assert snapshot.execution.stats is not None
    assert snapshot.execution.stats.node_error_count == 1


async def test_an_input_of_the_wrong_type_fails_the_node_and_says_which(engine: Engine) -> None:
    graph = chain(("many", {"count": 1}), (CALCULATOR, {"operation": "Add", "b": 1}), pin="a")
    graph.nodes[0].block_id = "broken"
    graph.nodes[0].input_default = {"value": "none"}
    graph.links[0].source_name = "error"
    graph.links.append(Link(source_id="n0", source_name="out", sink_id="n1", sink_name="operation"))
    graph.nodes[0].input_default = {"value": "said"}
    snapshot = await run(engine, graph)
    (bad,) = [node for node in snapshot.node_executions if node.block_id == CALCULATOR]
    assert bad.status is ExecutionStatus.FAILED
    assert "a" in bad.output_data["error"][0]


async def test_a_block_that_takes_too_long_is_ended(engine: Engine) -> None:
    snapshot = await run(engine, chain(("slow", {})))
    assert snapshot.node_executions[0].status_reason == "timeout"
    assert snapshot.execution.status is ExecutionStatus.FAILED


@pytest.mark.slow  # starts a process
async def test_a_process_of_a_block_gets_the_variables_that_the_settings_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("PGPASSWORD", "AWS_REGION", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "x")
    async with engine_on(tmp_path, Environment(), process_environment=("AWS_REGION",)) as engine:
        found = await run(engine, chain((Environment.id, {})))
    (told,) = found.node_executions[0].output_data["value"]
    assert {name for name in told if name.startswith(("PG", "AWS"))} == {"AWS_REGION"}


async def test_a_loop_without_an_end_is_ended(tmp_path: Path) -> None:
    async with engine_on(tmp_path, step_limit=40) as engine:
        graph = chain(("many", {"count": 1}), ("many", {"count": 1}))
        graph.links.append(Link(source_id="n1", source_name="out", sink_id="n1", sink_name="value"))
        snapshot = await run(engine, graph)
        assert (snapshot.execution.status, snapshot.execution.status_reason) == (ExecutionStatus.FAILED, "step_limit")


async def test_outputs_of_the_graph_are_those_of_its_output_blocks(engine: Engine) -> None:
    graph = chain(("many", {"count": 3}), (OUTPUT, {"name": "numbers"}))
    snapshot = await run(engine, graph)
    assert snapshot.execution.outputs == {"numbers": [0, 1, 2]}


# ---- stopping ------------------------------------------------------------------------------------------------------


async def test_stop_ends_a_running_execution(tmp_path: Path) -> None:
    gate = Gate()
    async with engine_on(tmp_path, gate) as engine:
        execution_id = await start(engine, chain(("gate", {}), ("gate", {})))
        async with asyncio.timeout(10):
            while gate.runs < 2:
                await asyncio.sleep(0.01)
        meta = await engine.executions.stop("u", execution_id, wait=10)
        assert (meta.status, meta.status_reason) == (ExecutionStatus.TERMINATED, "cancelled_by_user")
        snapshot = await ended(engine, execution_id)
        await replay_gives_the_state(engine, snapshot)
        assert {n.status for n in snapshot.node_executions} == {ExecutionStatus.TERMINATED}
        assert engine.worker.running == 0


async def test_stop_ends_what_is_still_queued(tmp_path: Path) -> None:
    gate = Gate()
    async with engine_on(tmp_path, gate, concurrency=1) as engine:
        first = await start(engine, chain(("gate", {})))
        async with asyncio.timeout(10):
            while gate.runs < 1:
                await asyncio.sleep(0.01)
        second = await start(engine, chain(("gate", {})))
        meta = await engine.executions.stop("u", second)
        assert meta.status is ExecutionStatus.TERMINATED
        gate.opened.set()
        assert (await ended(engine, first)).execution.status is ExecutionStatus.COMPLETED
        assert gate.runs == 1, "the stopped one never ran"
        third = await start(engine, chain(("gate", {})))
        assert (await ended(engine, third)).execution.status is ExecutionStatus.COMPLETED, "no slot leaked"


# ---- going on after the process ------------------------------------------------------------------------------------


async def test_an_interrupted_execution_goes_on_in_the_next_process(tmp_path: Path) -> None:
    gate = Gate()
    async with engine_on(tmp_path, gate) as engine:
        execution_id = await start(engine, chain(("gate", {}), ("many", {"count": 2})))
        async with asyncio.timeout(10):
            while len(await engine.store.nodes(execution_id)) < 2:
                await asyncio.sleep(0.01)
    gate.opened.set()
    async with engine_on(tmp_path, gate) as engine:
        snapshot = await ended(engine, execution_id)
        assert snapshot.execution.status is ExecutionStatus.COMPLETED
        await replay_gives_the_state(engine, snapshot)
        assert gate.runs == 2
        (gated,) = [n for n in snapshot.node_executions if n.block_id == "gate"]
        assert gated.output_data == {"out": ["before", "after"]}, "the repeated output is not recorded twice"
        assert len(snapshot.node_executions) == 3
        graph_events = await engine.log.read(graph_tape(snapshot.execution.graph_id))
        assert [from_json(e.payload)["status"] for e in graph_events][-1] == "COMPLETED"
        of_execution = [e for e in await tape(engine, execution_id) if e.event_type == "graph_execution_update"]
        assert [e.payload for e in graph_events] == [e.payload for e in of_execution], "each once, in order"


async def test_a_block_that_must_not_run_twice_is_failed(tmp_path: Path) -> None:
    fragile = Fragile()
    async with engine_on(tmp_path, fragile) as engine:
        execution_id = await start(engine, chain(("fragile", {})))
        async with asyncio.timeout(10):
            while fragile.runs < 1:
                await asyncio.sleep(0.01)
    async with engine_on(tmp_path, fragile) as engine:
        snapshot = await ended(engine, execution_id)
        assert snapshot.node_executions[0].status_reason == "worker_lost"
        assert snapshot.execution.status is ExecutionStatus.FAILED
        assert fragile.runs == 1


async def test_the_folder_has_one_owner(tmp_path: Path) -> None:
    async with engine_on(tmp_path):
        with pytest.raises(ConfigError, match="another livetape"):
            async with engine_on(tmp_path):
                pass


async def test_a_damaged_database_is_refused(tmp_path: Path) -> None:
    async with engine_on(tmp_path) as engine:
        await run(engine, chain(("many", {"count": 500})))
    database = tmp_path / "livetape.db"
    whole = database.read_bytes()
    for damaged in (whole[: len(whole) // 2], b"not a database" * 1000, whole[:50]):
        database.write_bytes(damaged)
        with pytest.raises(StoreError, match=r"livetape\.db"):
            async with engine_on(tmp_path):
                pass
        assert database.read_bytes() == damaged, "left as it was found"


# ---- refusals ------------------------------------------------------------------------------------------------------


async def test_what_cannot_run_is_refused_before_anything_is_written(engine: Engine) -> None:
    unknown = await engine.graphs.create("u", chain(("no-such-block", {"kept": 1})))
    assert unknown.nodes[0].input_default == {"kept": 1}, "it is kept as it is"
    with pytest.raises(GraphValidationError) as refused:
        await engine.executions.start("u", unknown.id, None, {})
    assert list(refused.value.node_errors) == [unknown.nodes[0].id]
    missing = await engine.graphs.create("u", chain((CALCULATOR, {"operation": "Add", "a": "x"})))
    with pytest.raises(GraphValidationError) as refused:
        await engine.executions.start("u", missing.id, None, {})
    assert set(refused.value.node_errors[missing.nodes[0].id]) == {"a", "b"}
    endless = chain(("many", {}))
    endless.links.append(Link(source_id="n0", source_name="out", sink_id="n0", sink_name="value"))
    stored = await engine.graphs.create("u", endless)
    with pytest.raises(GraphValidationError, match="1 issue"):
        await engine.executions.start("u", stored.id, None, {})
    fine = await engine.graphs.create("u", chain(("many", {})))
    with pytest.raises(LimitError):
        await engine.executions.start("u", fine.id, None, {"x": "y" * 2_000_000})
    with pytest.raises(NotFoundError):
        await engine.executions.start("v", fine.id, None, {})
    assert (await engine.executions.list("u"))[1] == 0


async def test_a_broken_link_is_refused_when_saving(engine: Engine) -> None:
    for broken in (
        {"source_id": "nobody"},
        {"sink_id": "nobody"},
        {"source_name": "no such pin"},
        {"sink_name": "no such pin"},
    ):
        graph = chain(("many", {}), ("many", {}))
        graph.links[0] = graph.links[0].model_copy(update=broken)
        with pytest.raises(GraphValidationError):
            await engine.graphs.create("u", graph)
    assert await engine.graphs.list("u") == []
