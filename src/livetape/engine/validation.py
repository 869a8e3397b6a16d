"""Whether a graph can be stored, and whether it can run. Pure. Errors are per node and field."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeAlias

from pydantic import ValidationError

from livetape.engine.block import Block, BlockRegistry, BlockType
from livetape.engine.coerce import convert
from livetape.engine.graph import Graph, Node
from livetape.engine.pins import base_name, merge_inputs
from livetape.errors import BlockInputError, GraphValidationError

NodeErrors: TypeAlias = dict[str, dict[str, str]]

REQUIRED = "This field is required"
ERROR_PIN = "error"


def check_structure(graph: Graph, blocks: BlockRegistry) -> None:
    """Refuse a graph that could never be followed: for saving.

    A node with an unknown block is let through: the graph is kept and exported unchanged, and refuses to run.

    Raises:
        GraphValidationError
    """
    errors: NodeErrors = {}
    seen: set[str] = set()
    for node in graph.nodes:
        if node.id in seen:
            _add(errors, node.id, "id", f"two nodes have the id {node.id!r}")
        seen.add(node.id)
    nodes = {node.id: node for node in graph.nodes}
    for link in graph.links:
        said = f"Link ({link.source_id!r},{link.source_name!r}) <-> ({link.sink_id!r},{link.sink_name!r})"
        source, sink = nodes.get(link.source_id), nodes.get(link.sink_id)
        if source is None:
            _add(errors, link.source_id, link.source_name, f"{said}: the graph has no node {link.source_id!r}")
        elif not _has_pin(blocks.get(source.block_id), source, link.source_name, output=True):
            _add(errors, source.id, link.source_name, f"{said}: the block has no such output")
        if sink is None:
            _add(errors, link.sink_id, link.sink_name, f"{said}: the graph has no node {link.sink_id!r}")
        elif not _has_pin(blocks.get(sink.block_id), sink, link.sink_name, output=False):
            _add(errors, sink.id, link.sink_name, f"{said}: the block has no such input")
    _raise(errors)


def check_runnable(
    graph: Graph,
    blocks: BlockRegistry,
    inputs: Mapping[str, Any],
    masks: Mapping[str, Mapping[str, Any]] | None = None,
) -> None:
    """Refuse to start what cannot work with these inputs. `masks` are inputs by node, in place of what it has.

    Raises:
        GraphValidationError
    """
    check_structure(graph, blocks)
    errors: NodeErrors = {}
    masks = masks or {}
    for node_id in masks.keys() - {node.id for node in graph.nodes}:
        _add(errors, node_id, "id", f"the graph has no node {node_id!r}")
    linked: dict[str, set[str]] = {}
    for link in graph.links:
        linked.setdefault(link.sink_id, set()).add(base_name(link.sink_name))
    starting = False
    for node in graph.nodes:
        block = blocks.get(node.block_id)
        if block is None:
            _add(errors, node.id, "block_id", f"no block with the id {node.block_id!r} is installed")
            continue
        if block.block_type is BlockType.NOTE:
            continue
        if block.disabled:
            _add(errors, node.id, "block_id", f"the block {block.name} is disabled")
        pins = linked.get(node.id, set())
        starting |= not pins or block.block_type is BlockType.INPUT
        for pin, message in _input_errors(block, node, pins, inputs, masks.get(node.id, {})).items():
            _add(errors, node.id, pin, message)
    if not starting and not errors:
        first = graph.nodes[0].id if graph.nodes else graph.id
        _add(errors, first, "links", "the graph has no starting node: every node waits for another")
    _raise(errors)


def _input_errors(
    block: Block[Any], node: Node, linked: set[str], inputs: Mapping[str, Any], mask: Mapping[str, Any]
) -> dict[str, str]:
    values = {pin: value for pin, value in node.input_default.items() if base_name(pin) not in linked}
    if block.block_type is BlockType.INPUT:
        name = values.get("name")
        if isinstance(name, str) and name in inputs:
            values["value"] = inputs[name]
        if isinstance(name, str) and (name == "credentials" or name.endswith("_credentials")):
            reserved = "'credentials' and `*_credentials` are reserved"
            return {"name": f"{name!r} is a reserved input name: {reserved}"}
    values |= mask
    try:
        merged = merge_inputs(values)
        fields = block.Input.model_fields
        prepared = {pin: convert(value, fields[pin].annotation) for pin, value in merged.items() if pin in fields}
        block.Input.model_validate(prepared)
    except BlockInputError as error:
        return {"input_default": error.message}
    except ValidationError as error:
        found: dict[str, str] = {}
        for detail in error.errors(include_url=False, include_context=False, include_input=False):
            pin = str(detail["loc"][0]) if detail["loc"] else "input_default"
            if pin not in linked:
                found.setdefault(pin, REQUIRED if detail["type"] == "missing" else detail["msg"])
        return found
    return {}


def input_schema(graph: Graph, blocks: BlockRegistry) -> dict[str, Any]:
    """The JSON schema of what a start takes: one property per INPUT block."""
    return _schema(graph, blocks, BlockType.INPUT)


def output_schema(graph: Graph, blocks: BlockRegistry) -> dict[str, Any]:
    """The JSON schema of what an execution gives: one property per OUTPUT block."""
    return _schema(graph, blocks, BlockType.OUTPUT)


def _schema(graph: Graph, blocks: BlockRegistry, kind: BlockType) -> dict[str, Any]:
    properties: dict[str, Any] = {}
    required: list[str] = []
    for node in graph.nodes:
        block = blocks.get(node.block_id)
        if block is None or block.block_type is not kind:
            continue
        given = node.input_default
        name = str(given.get("name", ""))
        value = dict(block.Input.model_json_schema().get("properties", {}).get("value", {}))
        for noise in ("default", "description", "title"):
            value.pop(noise, None)
        value["title"] = given.get("title") or name
        value["secret"] = bool(given.get("secret", False))
        value["advanced"] = bool(given.get("advanced", False))
        if given.get("description"):
            value["description"] = given["description"]
        if given.get("value") is not None:
            value["default"] = given["value"]
        elif kind is BlockType.INPUT:
            required.append(name)
        properties[name] = value
    return {"type": "object", "properties": properties, "required": required}


def _has_pin(block: Block[Any] | None, node: Node, pin: str, *, output: bool) -> bool:
    if block is None:
        return True
    given = node.input_default
    pins = block.node_output_pins(given) if output else block.node_input_pins(given)
    return pin in pins or base_name(pin) in pins


def _add(errors: NodeErrors, node_id: str, pin: str, message: str) -> None:
    errors.setdefault(node_id, {}).setdefault(pin, message)


def _raise(errors: NodeErrors) -> None:
    if errors:
        count = sum(len(fields) for fields in errors.values())
        issues = "1 issue" if count == 1 else f"{count} issues"
        on = "1 node" if len(errors) == 1 else f"{len(errors)} nodes"
        raise GraphValidationError(f"Graph validation failed: {issues} on {on}", node_errors=errors)
