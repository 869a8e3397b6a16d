"""The engine beside a Redis: tapes are there before the creator is answered, and no position is told too early."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from livetape.engine.graph import Graph
from livetape.events.channel import execution_tape, graph_tape
from livetape.examples import example_graphs
from livetape.runtime import open_engine
from livetape.settings import Settings
from servers import RedisServer

pytestmark = pytest.mark.needs("redis")


def hello() -> Graph:
    return next(graph for graph in map(Graph.model_validate, example_graphs()) if graph.name == "Hello")


async def test_the_owner_is_known_before_the_creator_is_answered(own_redis: RedisServer, tmp_path: Path) -> None:
    async with open_engine(Settings(data_dir=tmp_path / "data", bus=own_redis.url())) as engine:
        assert engine.shared_log is not None
        graph = await engine.graphs.create("u", hello())
        tape = await engine.shared_log.describe(graph_tape(graph.id))
        assert tape is not None
        assert (tape.owner, tape.graph_id) == ("u", graph.id)
        started = await engine.executions.start("u", graph.id, None, {})
        tape = await engine.shared_log.describe(execution_tape(started.execution.id))
        assert tape is not None
        assert (tape.owner, tape.graph_id, tape.epoch) == ("u", graph.id, started.stream.epoch)


@pytest.mark.slow
async def test_positions_are_those_that_others_know(own_redis: RedisServer, tmp_path: Path) -> None:
    own_redis.stop()
    async with open_engine(Settings(data_dir=tmp_path / "data", bus=own_redis.url())) as engine:
        assert engine.shared_log is not None
        graph = await engine.graphs.create("u", hello())
        execution = (await engine.executions.start("u", graph.id, None, {})).execution.id
        async with asyncio.timeout(20):
            while not (await engine.store.get(execution)).status.is_terminal:
                await asyncio.sleep(0.01)
        whole = await engine.log.describe(execution_tape(execution))
        assert whole is not None
        assert whole.final
        assert (await engine.executions.get("u", execution)).stream.offset == 0
        ((_, position),), _ = await engine.executions.list("u")
        assert (position.epoch, position.offset) == (whole.epoch, 0)
        own_redis.start()
        async with asyncio.timeout(20):
            while (copy := await engine.shared_log.describe(execution_tape(execution))) is None or not copy.final:
                await asyncio.sleep(0.05)
        assert (copy.epoch, copy.offset, copy.owner) == (whole.epoch, whole.offset, "u")
        async with asyncio.timeout(20):
            while (await engine.executions.get("u", execution)).stream != whole.position:
                await asyncio.sleep(0.01)
