"""Graphs of several shapes for a site that is broken while they run, and what each must give: plain arithmetic.

Every shape takes one whole number, `value`. What a node gives is known from it, so the results can be judged without
asking anybody who ran the graph.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

from acceptance.api import graph, link, node
from reference.blocks import INPUT, OUTPUT

STREAM: Final = "c4a05001-0000-4000-8000-000000000001"
ECHO: Final = "c4a05001-0000-4000-8000-000000000003"
EFFECT: Final = "c4a05001-0000-4000-8000-000000000004"
STUBBORN: Final = "c4a05001-0000-4000-8000-000000000005"
DELAY: Final = "2219d078-831b-4245-aaf9-66e7a85d4faf"
AGENT: Final = "e189baac-8c20-45a1-94a7-55177ea42565"

EFFECTS: Final = frozenset({EFFECT, STUBBORN})
"""Blocks whose runs are seen in the side-effect file."""

Results: TypeAlias = Mapping[str, Sequence[Any]]
"""By the name of a node: all that its node executions give, sorted."""

CHAIN: Final = 6
STREAMED: Final = 12
FANNED: Final = 5
LONG_S: Final = 7.5
"""Longer than a lease of a site that is broken: it lives by being renewed."""

DELAY_S: Final = 6.5
"""Longer than what a worker waits in place: the execution leaves it."""


@dataclass(frozen=True)
class Shape:
    """`seconds`: about how long it takes when nothing is in its way. `calls`: the shape of the graph that it runs."""

    name: str
    make: Callable[[Mapping[str, Any] | None], dict[str, Any]]
    results: Callable[[int], Results]
    seconds: float
    calls: str | None = None


def _start() -> list[dict[str, Any]]:
    return [node("in", INPUT, name="value"), node("first", ECHO)]


def _chain(_: Mapping[str, Any] | None) -> dict[str, Any]:
    nodes = [*_start(), *(node(f"e{n}", EFFECT, pause=0.08) for n in range(CHAIN)), node("out", OUTPUT, name="result")]
    links = [link("in.result", "first.value", is_static=True), link("first.value", "e0.value")]
    links += [link(f"e{n}.done", f"e{n + 1}.value") for n in range(CHAIN - 1)]
    return graph(nodes, [*links, link(f"e{CHAIN - 1}.done", "out.value")], "chain")


def _stream(_: Mapping[str, Any] | None) -> dict[str, Any]:
    nodes = [*_start(), node("stream", STREAM, count=STREAMED, pause=0.1), node("each", EFFECT, pause=0.05)]
    links = [
        link("in.result", "first.value", is_static=True),
        link("first.value", "stream.start"),
        link("stream.value", "each.value"),
    ]
    return graph(nodes, links, "stream")


def _fan(_: Mapping[str, Any] | None) -> dict[str, Any]:
    nodes = [
        *_start(),
        *(node(f"f{n}", STUBBORN if n % 2 else EFFECT, pause=0.1 + 0.15 * n) for n in range(FANNED)),
        node("after", EFFECT),
    ]
    links = [link("in.result", "first.value", is_static=True)]
    links += [link("first.value", f"f{n}.value") for n in range(FANNED)]
    links += [link(f"f{n}.done", "after.value") for n in range(FANNED)]
    return graph(nodes, links, "fan")


def _long(_: Mapping[str, Any] | None) -> dict[str, Any]:
    nodes = [*_start(), node("long", EFFECT, pause=LONG_S), node("stubborn", STUBBORN, pause=0.8)]
    links = [
        link("in.result", "first.value", is_static=True),
        link("first.value", "long.value"),
        link("long.done", "stubborn.value"),
    ]
    return graph(nodes, links, "long")


def _delay(_: Mapping[str, Any] | None) -> dict[str, Any]:
    nodes = [*_start(), node("before", EFFECT), node("delay", DELAY, seconds=DELAY_S), node("after", EFFECT)]
    links = [
        link("in.result", "first.value", is_static=True),
        link("first.value", "before.value"),
        link("before.done", "delay.value"),
        link("delay.value", "after.value"),
    ]
    return graph(nodes, links, "delay")


def _parent(child: Mapping[str, Any] | None) -> dict[str, Any]:
    assert child is not None
    agent = node(
        "agent",
        AGENT,
        user_id="any",
        graph_id=child["id"],
        graph_version=child["version"],
        input_schema={"properties": {"value": {}}},
        output_schema={"properties": {"result": {}}},
    )
    nodes = [*_start(), node("before", EFFECT, pause=0.1), agent, node("after", EFFECT, pause=0.1)]
    links = [
        link("in.result", "first.value", is_static=True),
        link("first.value", "before.value"),
        link("before.done", "agent.value"),
        link("agent.result", "after.value"),
    ]
    return graph(nodes, links, "parent")


def _probe(_: Mapping[str, Any] | None) -> dict[str, Any]:
    nodes = [*_start(), node("probe", EFFECT, pause=PROBE_S)]
    return graph(nodes, [link("in.result", "first.value", is_static=True), link("first.value", "probe.value")], "probe")


PROBE_S: Final = 2.5
CHILD: Final = Shape("child", _chain, lambda v: {f"e{n}": [v + n + 1] for n in range(CHAIN)}, 1.0)
PROBE: Final = Shape("probe", _probe, lambda v: {"probe": [v + 1]}, PROBE_S)

SHAPES: Final = (
    Shape("chain", _chain, lambda v: {f"e{n}": [v + n + 1] for n in range(CHAIN)}, 1.0),
    Shape(
        "stream",
        _stream,
        lambda v: {"stream": list(range(v, v + STREAMED)), "each": list(range(v + 1, v + STREAMED + 1))},
        1.5,
    ),
    Shape(
        "fan",
        _fan,
        lambda v: {**{f"f{n}": [v + 1] for n in range(FANNED)}, "after": [v + 2] * FANNED},
        1.0,
    ),
    Shape("long", _long, lambda v: {"long": [v + 1], "stubborn": [v + 2]}, LONG_S),
    Shape("delay", _delay, lambda v: {"before": [v + 1], "delay": [v + 1], "after": [v + 2]}, DELAY_S),
    Shape(
        "parent",
        _parent,
        lambda v: {"before": [v + 1], "agent": [v + 1 + CHAIN], "after": [v + 2 + CHAIN]},
        2.0,
        calls="child",
    ),
)
