"""Small random graphs whose results do not depend on the order in which parallel nodes happen to run.

Which shapes are confluent (each rule follows from "a value goes to the oldest INCOMPLETE execution of the sink that
lacks that pin", counted per pin: the i-th value of a pin goes to the i-th execution that needs it):

- a node with one linked pin: any number of sources. Every value is one execution, whatever the order.
- a node with several linked pins, where `multi` are the pins that may get more than one value:
  - none is multi: at most one execution.
  - one is multi, and all others are static with one value: one execution for every value of the multi pin.
  - the multi pins are not static and their values come in a fixed order (one source, which runs once and streams):
    the i-th values meet each other; pins with one value and no static link allow one execution only.
- a loop is fed back into the only linked pin of its first node.
- a node that fails without a handler has no other way into its descendants, runs once and yields nothing before.

`interpreter.py` runs them under several orders in a property test, which shows that these rules are right.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from hypothesis import strategies as st

from livetape.engine.graph import Graph, Link, Node
from reference.blocks import (
    ARITHMETIC,
    CALCULATOR,
    COMPARISON,
    CONDITION,
    COUNT,
    CREATE_DICTIONARY,
    FAIL,
    FIND_IN_DICTIONARY,
    INPUT,
    OUTPUT,
    STEP,
    STORE,
)


@dataclass(frozen=True)
class Source:
    """An output pin, and what is known of the values that it will give."""

    node_id: str
    name: str
    kind: str  # small (a number near zero) | number | list | dict | any
    single: bool  # never more than one value
    ordered: bool  # in a fixed order (one run of one node)
    static: bool  # its links are static, because the block says so or the link does
    flag: bool = False  # what a link from here says


@dataclass
class Draft:
    nodes: list[Node] = field(default_factory=list)
    links: list[Link] = field(default_factory=list)
    sources: list[Source] = field(default_factory=list)
    inputs: dict[str, Any] = field(default_factory=dict)

    def node(self, block_id: str, **defaults: Any) -> str:
        node_id = f"n{len(self.nodes)}"
        self.nodes.append(Node(id=node_id, block_id=block_id, input_default=defaults, metadata={"ref": node_id}))
        return node_id

    def link(self, source_id: str, source_name: str, sink_id: str, sink_name: str, is_static: bool = False) -> None:
        self.links.append(
            Link(
                id=f"l{len(self.links)}",
                source_id=source_id,
                source_name=source_name,
                sink_id=sink_id,
                sink_name=sink_name,
                is_static=is_static,
            )
        )

    def feed(self, sources: list[Source], sink_id: str, sink_name: str) -> None:
        for source in sources:
            self.link(source.node_id, source.name, sink_id, sink_name, is_static=source.flag)

    def gives(self, node_id: str, pins: dict[str, str], once: bool, *, static: bool = False) -> None:
        for name, kind in pins.items():
            self.sources.append(Source(node_id, name, kind, single=once, ordered=once, static=static))

    def graph(self) -> Graph:
        return Graph(name="random", nodes=self.nodes, links=self.links)


def runs_once(pins: list[list[Source]]) -> bool | None:
    """Whether a node with these sources per linked pin runs at most once; None when it is not confluent."""
    multi = [p for p in pins if len(p) > 1 or not p[0].single]
    if len(pins) == 1:
        return not multi
    for sources in pins:
        if len({s.static for s in sources}) > 1:
            return None  # a pin of a join is static or it is not
    if not multi:
        return True
    others = [p for p in pins if p not in multi]
    others_static = all(p[0].static for p in others)
    if len(multi) == 1 and others_static and others:
        return False
    if all(len(p) == 1 and p[0].ordered and not p[0].static for p in multi):
        return not others_static
    return None


numbers = st.integers(-5, 9)
number_lists = st.lists(numbers, min_size=0, max_size=4)


@st.composite
def small_graphs(draw: st.DrawFn, *, failures: bool = False, max_nodes: int = 9) -> tuple[Graph, dict[str, Any]]:
    """A graph of up to about ten nodes and the inputs to start it with."""
    d = Draft()

    def pick(kind: str, at_most: int) -> list[Source]:
        fitting = [s for s in d.sources if kind in ("any", s.kind) or (kind, s.kind) == ("number", "small")]
        if not fitting:
            return []
        chosen = draw(st.lists(st.sampled_from(fitting), min_size=1, max_size=at_most, unique=True))
        # A link of a source that is not static may still be: then the sink keeps its last value.
        flags = [draw(st.booleans()) for _ in chosen]
        return [replace(s, static=s.static or flag, flag=flag) for s, flag in zip(chosen, flags, strict=True)]

    def store() -> None:
        kind = draw(st.sampled_from(["small", "small", "list"]))
        node = d.node(STORE, input=draw(numbers if kind == "small" else number_lists))
        d.gives(node, {"output": kind}, True, static=True)

    def agent_input() -> None:
        name = f"in{len(d.nodes)}"
        node = d.node(INPUT, name=name, value=draw(st.one_of(st.none(), numbers)))
        if draw(st.booleans()) or d.nodes[-1].input_default["value"] is None:
            d.inputs[name] = draw(numbers)
        d.gives(node, {"result": "small"}, True, static=True)

    def step() -> None:
        sources = pick("list", 2) if draw(st.booleans()) else []
        defaults = {} if sources else {"items": draw(number_lists)}
        node = d.node(STEP, **defaults)
        d.feed(sources, node, "items")
        once = runs_once([sources]) if sources else True
        for name in ("item", "key"):
            d.sources.append(Source(node, name, "small", single=False, ordered=bool(once), static=False))

    def linked_store() -> None:
        sources = pick("any", 3)
        if not sources:
            return store()
        node = d.node(STORE)
        d.feed(sources, node, "input")
        kinds = {s.kind for s in sources}
        kind = kinds.pop() if len(kinds) == 1 else "number" if kinds == {"number", "small"} else "any"
        d.gives(node, {"output": kind}, bool(runs_once([sources])), static=True)
        return None

    def join(block_id: str, pins: list[str], kind: str, outputs: dict[str, str], values: Any, **defaults: Any) -> None:
        feeds = {
            pin: pick(kind, at_most) for pin, at_most in zip(pins, (3, 1), strict=False) if draw(st.integers(0, 4))
        }
        feeds = {pin: sources for pin, sources in feeds.items() if sources}
        if not feeds:
            return store()
        if runs_once(list(feeds.values())) is None:
            # Not confluent: the second pin gets one static value, or none.
            calm = [s for s in d.sources if s.single and s.kind in (kind, "small")]
            if calm:
                s = draw(st.sampled_from(calm))
                feeds[pins[1]] = [replace(s, static=True, flag=not s.static)]
            if not calm or runs_once(list(feeds.values())) is None:
                del feeds[pins[1]]
        once = runs_once(list(feeds.values()))
        node = d.node(block_id, **defaults, **{pin: draw(values) for pin in pins if pin not in feeds})
        for pin, sources in feeds.items():
            d.feed(sources, node, pin)
        d.gives(node, outputs, bool(once))
        return None

    def calculator() -> None:
        join(
            CALCULATOR,
            ["a", "b"],
            "number",
            {"result": "number"},
            numbers,
            operation=draw(st.sampled_from(list(ARITHMETIC))),
        )

    def condition() -> None:
        outputs = {"result": "any", "yes_output": "number", "no_output": "number"}
        operator = draw(st.sampled_from(list(COMPARISON)))
        join(CONDITION, ["value1", "value2"], "number", outputs, numbers, operator=operator)

    def count() -> None:
        join(COUNT, ["collection"], "list", {"count": "number"}, number_lists)

    def dictionary() -> None:
        join(CREATE_DICTIONARY, ["values_#_x", "values_#_y"], "number", {"dictionary": "dict"}, numbers)
        made = d.nodes[-1]
        if made.block_id != CREATE_DICTIONARY:
            return
        made.input_default.clear()  # no default for half a container
        base = d.sources[-1]
        for key in ("x", "zz"):  # the second is never there: nothing is forwarded
            d.sources.append(Source(made.id, f"dictionary_#_{key}", "number", base.single, base.ordered, False))

    def find() -> None:
        sources = pick("dict", 2)
        if not sources:
            return dictionary()
        node = d.node(FIND_IN_DICTIONARY, key=draw(st.sampled_from(["x", "y", "zz"])))
        d.feed(sources, node, "input")
        d.gives(node, {"output": "number", "missing": "dict"}, bool(runs_once([sources])))
        return None

    def output() -> None:
        sources = pick("any", 3)
        if sources:
            node = d.node(OUTPUT, name=f"out{len(d.nodes)}")
            d.feed(sources, node, "value")

    def loop() -> None:
        """add(a, 1) -> is it below the end? -> yes: back to a. The condition's `no_output` leaves the loop."""
        sources = pick("small", 2)  # from far below the loop would take long
        if not sources:
            return store()
        add = d.node(CALCULATOR, operation="Add", b=1)
        test = d.node(CONDITION, operator="<", value2=draw(st.integers(0, 6)))
        d.feed(sources, add, "a")
        d.link(add, "result", test, "value1")
        d.link(test, "yes_output", add, "a")
        d.gives(test, {"no_output": "number"}, bool(runs_once([sources])))
        d.sources.append(Source(test, "yes_output", "number", False, False, False))
        return None

    def failing() -> None:
        sources = pick("number", 2)
        if not sources:
            return store()
        handled = draw(st.booleans())
        if not handled:
            sources = [s for s in sources if s.single][:1]
            if not sources:
                return store()
        node = d.node(FAIL, limit=draw(numbers))
        d.feed(sources, node, "value")
        if handled:
            once = bool(runs_once([sources]))
            handler = d.node(STORE)
            d.link(node, "error", handler, "input")
            d.gives(node, {"value": "number"}, once)
            d.gives(handler, {"output": "any"}, once, static=True)
        else:
            # Only this node leads there, so nothing there can start but through it.
            after = d.node(STORE)
            d.link(node, "value", after, "input")
        return None

    starts = [store, agent_input, step]
    rest = [linked_store, calculator, calculator, condition, step, count, dictionary, find, output, loop]
    if failures:
        rest += [failing, failing]
    for _ in range(draw(st.integers(2, 4))):
        draw(st.sampled_from(starts))()
    for _ in range(draw(st.integers(0, max_nodes))):
        if len(d.nodes) >= max_nodes:
            break
        draw(st.sampled_from(rest))()
    return d.graph(), d.inputs


def upstream_vector(value: float = 4, other: float = 5, sources: int = 3) -> Graph:
    """`sources` StoreValue(value) -> Calculator.a, one StoreValue(other) -> StoreValue -> static Calculator.b."""
    d = Draft()
    adder = d.node(CALCULATOR, operation="Add")
    for _ in range(sources):
        d.link(d.node(STORE, input=value), "output", adder, "a")
    first = d.node(STORE, input=other)
    second = d.node(STORE)
    d.link(first, "output", second, "input")
    d.link(second, "output", adder, "b", is_static=True)
    return d.graph()
