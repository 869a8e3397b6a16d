"""What the settings add to the running of nodes is checked at the start, and used."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydantic_core import from_json

from livetape.adapters.prometheus.metrics import PrometheusMetrics
from livetape.engine.block import Block, BlockContext, BlockCost, BlockSchema
from livetape.engine.hooks import NodeIdentity
from livetape.engine.runner import RunStats
from livetape.errors import ConfigError, LimitError
from livetape.observability import NoReporter
from livetape.runtime import open_engine
from livetape.runtime.error_hook import error_hook
from livetape.runtime.hooks import open_hooks
from livetape.settings import Settings
from stage import on_stage

HERE = __name__


class Judge:
    async def start(self, user_id: str, graph_id: str, inputs: dict[str, Any]) -> str | None:
        return "not for you" if user_id == "mallory" else None

    async def output(self, who: NodeIdentity, name: str, value: Any) -> str | None:
        return None


class Purse:
    def __init__(self) -> None:
        self.cents = 8

    async def before(self, who: NodeIdentity, block: Block[Any], inputs: dict[str, Any]) -> None:
        if self.cents < 5:
            raise LimitError(f"only {self.cents} cents are left")

    async def after(self, who: NodeIdentity, block: Block[Any], inputs: dict[str, Any], stats: RunStats) -> int:
        self.cents -= 5
        return 5


class HalfAJudge:
    async def start(self, user_id: str, graph_id: str, inputs: dict[str, Any]) -> str | None:
        return None

    def output(self, who: NodeIdentity, name: str, value: Any) -> str | None:
        return None


def broken() -> Judge:
    raise RuntimeError("no connection")


def needs(what: object) -> Judge:
    return Judge()


nothing = 3


class AnyIn(BlockSchema):
    value: int = 0


class AnyOut(BlockSchema):
    out: int


class Priced(Block[AnyIn]):
    id = "priced"
    costs = (BlockCost(7, {"value": 1}), BlockCost(2))
    Input, Output = AnyIn, AnyOut

    async def run(self, data: AnyIn, ctx: BlockContext) -> Any:
        if data.value == 9:
            raise ValueError("nine")
        yield "out", data.value


@pytest.mark.parametrize("setting", ["moderation", "costs"])
@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("no_such_module:judge", "No module named"),
        (f"{HERE}:nobody", "nobody"),
        (f"{HERE}:nothing", "it is no function"),
        (f"{HERE}:broken", "RuntimeError: no connection"),
        (f"{HERE}:needs", "TypeError"),
        (f"{HERE}:HalfAJudge", "HalfAJudge has no async def"),
    ],
)
async def test_what_cannot_be_had_is_told_at_the_start(tmp_path: Path, setting: str, name: str, told: str) -> None:
    settings = Settings(data_dir=tmp_path, **{setting: name})
    with pytest.raises(ConfigError) as refused:
        async with open_engine(settings):
            raise AssertionError
    assert (refused.value.set_by, told in str(refused.value.because)) == (setting, True)
    assert name in f"{refused.value} {refused.value.fix}"


async def test_the_moderation_of_the_settings_is_asked(tmp_path: Path) -> None:
    async with on_stage(tmp_path, Priced()) as stage:
        stage.hooks = open_hooks(Settings(moderation=f"{HERE}:Judge"), PrometheusMetrics("lt"), NoReporter())
        graph = await stage.graph("g", {"a": "priced"}, user="mallory")
        refused = await stage.start(graph, user="mallory")
        await stage.work()
        assert await stage.status(refused) == ("FAILED", "moderation")


async def test_what_blocks_say_that_they_cost_is_kept_account_of(tmp_path: Path) -> None:
    metrics = PrometheusMetrics("lt")
    async with on_stage(tmp_path, Priced()) as stage:
        stage.hooks = open_hooks(Settings(), metrics, NoReporter())
        nodes = {name: ("priced", {"value": value}) for name, value in (("a", 1), ("b", 2), ("c", 9))}
        execution_id = await stage.start(await stage.graph("g", nodes))
        await stage.work()
        assert from_json((await stage.row(execution_id)).stats)["cost"] == 9, "what failed costs nothing"
        costs = [from_json((await stage.node(execution_id, name)).stats or b"{}")["cost"] for name in nodes]
        assert costs == [7, 2, 0]
    assert b'lt_block_cost_cents_total{block_type="Priced"} 9.0' in metrics.render()[0]


async def test_who_pays_is_asked_before_and_says_what_was_taken(tmp_path: Path) -> None:
    metrics = PrometheusMetrics("lt")
    async with on_stage(tmp_path, Priced()) as stage:
        stage.hooks = open_hooks(Settings(costs=f"{HERE}:Purse"), metrics, NoReporter())
        chain = {"a": ("priced", {"value": 1}), "b": "priced"}
        execution_id = await stage.start(await stage.graph("g", chain, "a.out>b.value"))
        await stage.work()
        assert await stage.status(execution_id) == ("FAILED", "insufficient_credits")
        stats = from_json((await stage.row(execution_id)).stats)
        assert (stats["cost"], stats["error"]) == (5, "only 3 cents are left")
    assert b'lt_block_cost_cents_total{block_type="Priced"} 5.0' in metrics.render()[0]


heard: list[dict[str, Any]] = []


def hear(error: BaseException, context: dict[str, Any]) -> None:
    heard.append({"error": str(error), **context})


class Careless(Priced):
    id = "careless"

    async def run(self, data: AnyIn, ctx: BlockContext) -> Any:
        raise KeyError(data.value)
        yield "out", 0


async def test_an_error_hook_is_told_whose_node_it_was(tmp_path: Path) -> None:
    heard.clear()
    settings = Settings(error_hook=f"{HERE}:hear")
    with error_hook(settings) as reporter:
        async with on_stage(tmp_path, Careless()) as stage:
            stage.hooks = open_hooks(settings, PrometheusMetrics("lt"), reporter)
            nodes = {name: ("careless", {"value": value}) for name, value in (("a", 1), ("b", 2))}
            execution_id = await stage.start(await stage.graph("g", nodes))
            await stage.work()
    assert sorted((one["error"], one["node_id"], one["graph_exec_id"], one["user_id"]) for one in heard) == [
        ("1", "a", execution_id, "u"),
        ("2", "b", execution_id, "u"),
    ]
    assert all((one["block"], one["action"]) == ("Careless", "block_failed") for one in heard)
