"""A graph indexed for running: what the planner must know of its nodes and links. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from livetape.engine.block import BlockRegistry, BlockType
from livetape.engine.graph import Graph, Link


@dataclass(frozen=True, slots=True)
class LinkPlan:
    """A link as its source follows it."""

    source_name: str
    sink: NodePlan
    sink_name: str
    is_static: bool


@dataclass(slots=True, eq=False)
class NodePlan:
    """A node with what the planner must know of it. `pins` are the input pins that links feed."""

    id: str
    block_id: str
    defaults: Mapping[str, Any]
    starts: bool
    is_input: bool
    output_name: str | None
    pins: tuple[str, ...] = ()
    static_pins: frozenset[str] = frozenset()
    links: list[LinkPlan] = field(default_factory=list)
    handles_error: bool = False


class GraphPlan:
    """A graph indexed for running. Built once per execution; never changes."""

    def __init__(self, graph: Graph, blocks: BlockRegistry) -> None:
        fed: dict[str, list[Link]] = {}
        for link in graph.links:
            fed.setdefault(link.sink_id, []).append(link)
        self.nodes: dict[str, NodePlan] = {}
        for node in graph.nodes:
            block = blocks.get(node.block_id)
            kind = BlockType.STANDARD if block is None else block.block_type
            if kind is BlockType.NOTE:
                continue
            pins = dict.fromkeys(link.sink_name for link in fed.get(node.id, ()))
            is_input = kind is BlockType.INPUT
            self.nodes[node.id] = NodePlan(
                id=node.id,
                block_id=node.block_id,
                defaults={k: v for k, v in node.input_default.items() if k not in pins},
                starts=is_input or not pins,
                is_input=is_input,
                output_name=str(node.input_default.get("name", "")) if kind is BlockType.OUTPUT else None,
                pins=tuple(pins),
            )
        static_sources = {
            node.id for node in graph.nodes if (block := blocks.get(node.block_id)) is not None and block.static_output
        }
        for link in graph.links:
            source, sink = self.nodes.get(link.source_id), self.nodes.get(link.sink_id)
            if source is None or sink is None:
                continue
            static = link.is_static or link.source_id in static_sources
            source.links.append(LinkPlan(link.source_name, sink, link.sink_name, static))
            source.handles_error |= link.source_name == "error"
            if static:
                sink.static_pins |= {link.sink_name}

    def sources_of(self, node_id: str) -> list[str]:
        """The output pins that the links of a node come from; none for a node that is not of this graph."""
        node = self.nodes.get(node_id)
        return [] if node is None else [link.source_name for link in node.links]

    def downstream(self, node_id: str) -> frozenset[str]:
        """Everything that can be reached from this node, itself only when a loop leads back."""
        reached: set[str] = set()
        waiting = [link.sink for link in self.nodes[node_id].links]
        while waiting:
            current = waiting.pop()
            if current.id not in reached:
                reached.add(current.id)
                waiting.extend(link.sink for link in current.links)
        return frozenset(reached)
