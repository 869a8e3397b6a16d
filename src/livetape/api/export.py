"""A graph as it may be given away: without secrets and without its owner. Pure."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, Final

from livetape.engine.block import BlockRegistry
from livetape.engine.graph import GraphModel

SECRET_WORDS: Final = ("credentials", "api_key", "password", "token", "secret")


def without_secrets(graph: GraphModel, blocks: BlockRegistry) -> GraphModel:
    """A copy without the values that are secret by name or by the schema of their block."""
    nodes = []
    for node in graph.nodes:
        block = blocks.get(node.block_id)
        marked = () if block is None else _marked_secret(block.Input.model_json_schema())
        values = _cleaned(node.input_default, marked)
        if values.get("secret") is True:  # an INPUT block whose value is asked for as a secret
            values.pop("value", None)
        metadata = {name: value for name, value in node.metadata.items() if "webhook" not in name.lower()}
        nodes.append(node.model_copy(update={"input_default": values, "metadata": metadata}))
    return graph.model_copy(update={"nodes": nodes, "user_id": ""})


def _marked_secret(schema: dict[str, Any]) -> set[str]:
    properties: dict[str, Any] = schema.get("properties", {})
    return {
        name
        for name, field in properties.items()
        if isinstance(field, dict) and (field.get("secret") is True or field.get("format") == "password")
    }


def _cleaned(values: dict[str, Any], marked: Collection[str] = ()) -> dict[str, Any]:
    return {
        name: _inside(value)
        for name, value in values.items()
        if name not in marked and (isinstance(value, bool) or not _sounds_secret(name))
    }


def _inside(value: Any) -> Any:
    if isinstance(value, dict):
        return _cleaned(value)
    if isinstance(value, list):
        return [_inside(item) for item in value]
    return value


def _sounds_secret(name: str) -> bool:
    return any(word in name.lower() for word in SECRET_WORDS)
