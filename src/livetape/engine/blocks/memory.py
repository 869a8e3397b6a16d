"""Blocks that keep a value beyond the execution, and that read it again."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import Field

from livetape.engine.block import Block, BlockCategory, BlockContext, BlockSchema, PinValue, Vector
from livetape.engine.output_values import as_json
from livetape.errors import BlockInputError

StorageScope: TypeAlias = Literal["within_agent", "across_agents"]
Key = Annotated[str, Field(min_length=1, max_length=500)]


def storage_key(key: str, scope: StorageScope, graph_id: str) -> str:
    """Where it is kept: per graph, or for all graphs of the user."""
    return f"global#{key}" if scope == "across_agents" else f"agent#{graph_id}#{key}"


class PersistInformationInput(BlockSchema):
    key: Key
    value: Any
    scope: StorageScope = "within_agent"


class KeptValue(BlockSchema):
    value: Any


class PersistInformationBlock(Block[PersistInformationInput]):
    id = "1d055e55-a2b9-4547-8311-907d05b0304d"
    description = "Keeps a value under a key for later runs, of this graph or of all graphs of the user."
    categories = (BlockCategory.DATA,)
    Input = PersistInformationInput
    Output = KeptValue
    vectors = (
        Vector({"key": "tea", "value": {"sugar": True}}, [("value", {"sugar": True})]),
        Vector({"key": "tea", "value": None, "scope": "across_agents"}, [("value", None)]),
        Vector({"key": "", "value": 1}, raises=BlockInputError, matching="key: "),
        Vector({"key": "tea", "value": 1, "scope": "everywhere"}, raises=BlockInputError, matching="scope: "),
    )

    async def run(self, data: PersistInformationInput, ctx: BlockContext) -> AsyncIterator[PinValue]:
        value = as_json(data.value)
        await ctx.memory.set(ctx.user_id, storage_key(data.key, data.scope, ctx.graph_id), value)
        yield "value", value


class RetrieveInformationInput(BlockSchema):
    key: Key
    scope: StorageScope = "within_agent"
    default_value: Any = None


class RetrieveInformationBlock(Block[RetrieveInformationInput]):
    """A kept None counts as nothing, as in the seed's system."""

    id = "d8710fc9-6e29-481e-a7d5-165eb16f8471"
    description = "Reads a value that an earlier run kept under a key; a default if there is none."
    categories = (BlockCategory.DATA,)
    read_only = True
    static_output = True
    Input = RetrieveInformationInput
    Output = KeptValue
    vectors = (
        Vector({"key": "tea", "default_value": "none yet"}, [("value", "none yet")]),
        Vector({"key": "tea"}, [("value", None)]),
        Vector({"default_value": 1}, raises=BlockInputError, matching="key: this field is required"),
    )

    async def run(self, data: RetrieveInformationInput, ctx: BlockContext) -> AsyncIterator[PinValue]:
        _, value = await ctx.memory.get(ctx.user_id, storage_key(data.key, data.scope, ctx.graph_id))
        yield "value", data.default_value if value is None else value


BLOCKS = (PersistInformationBlock, RetrieveInformationBlock)
