"""What the simulated system is asked to do: graphs of a few nodes, and what each of their blocks does this time."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, Final

from livetape.engine.block import Block, BlockContext, BlockRegistry, BlockSchema, BlockType, PinValue
from livetape.engine.block_ports import ChildCall, ReviewRequest
from livetape.engine.graph import Graph, Link, Node
from livetape.errors import BlockExecutionError
from simulation.host import Host

USER: Final = "alice"


@dataclass(frozen=True, slots=True)
class Behaviour:
    """What one node of one execution does. `ends` is how: value, error, rude (a BaseException), exit
    (SystemExit), kill (the process is gone, as when a library crashes).


    `times`: so many attempts end so, later ones give their values.
    """

    seconds: float = 0.0
    outputs: int = 1
    ends: str = "value"
    times: int = 1_000


class RudenessError(BaseException):
    """What no block should raise."""


@dataclass(slots=True)
class Ledger:
    """The world outside, which blocks act upon: what was begun and done there, by whom and for which key."""

    behaviours: dict[tuple[str, str], Behaviour] = field(default_factory=dict)
    attempts: Counter[str] = field(default_factory=Counter)
    began: Callable[[Host, BlockContext, Block[Any]], None] = lambda host, ctx, block: None
    acted: Callable[[Host, BlockContext, Block[Any]], None] = lambda host, ctx, block: None
    together: int = 0
    """How many probes run at this moment; the next field is how many that were at most."""

    most: int = 0

    def of(self, key: str, node_id: str) -> Behaviour:
        return self.behaviours.get((key, node_id), Behaviour())


class _Value(BlockSchema):
    value: Any = None


class _Named(BlockSchema):
    name: str = ""
    value: Any = None


class _Two(BlockSchema):
    left: Any = None
    right: Any = None


class _Out(BlockSchema):
    out: Any = None


class Begin(Block[_Named]):
    id = "sim-begin"
    pure = True
    block_type = BlockType.INPUT
    Input = _Named
    Output = _Out

    async def run(self, data: _Named, ctx: BlockContext) -> AsyncIterator[PinValue]:
        yield "out", data.value


class End(Block[_Named]):
    id = "sim-end"
    pure = True
    block_type = BlockType.OUTPUT
    Input = _Named
    Output = _Out

    async def run(self, data: _Named, ctx: BlockContext) -> AsyncIterator[PinValue]:
        yield "out", data.value


class Join(Block[_Two]):
    id = "sim-join"
    pure = True
    Input = _Two
    Output = _Out

    async def run(self, data: _Two, ctx: BlockContext) -> AsyncIterator[PinValue]:
        yield "out", data.left


_BOOK: Final = """
INSERT INTO key_value (user_id, key, value, updated_at) VALUES (:user, :key, x'01', 0)
ON CONFLICT (user_id, key) DO UPDATE SET value = x'02'
"""


class _Acting(Block[_Value]):
    """Does something that the world notices, under the idempotency key, and then ends as it was told to."""

    Input = _Value
    Output = _Out

    def __init__(self, ledger: Ledger, host: Host) -> None:
        self._ledger = ledger
        self._host = host

    def _begin(self, data: _Value, ctx: BlockContext) -> Behaviour:
        self._ledger.began(self._host, ctx, self)
        self._ledger.attempts[ctx.idempotency_key] += 1
        return self._ledger.of(data.value["key"], ctx.node_id)

    def _act(self, does: Behaviour, ctx: BlockContext) -> None:
        key = ctx.idempotency_key
        self._ledger.acted(self._host, ctx, self)
        if self._ledger.attempts[key] <= does.times:
            match does.ends:
                case "error":
                    raise BlockExecutionError("it was told to fail")
                case "rude":
                    raise RudenessError
                case "exit":
                    raise SystemExit(3)
                case "kill":
                    self._host.crash("a block killed it")
                    raise RudenessError


class Act(_Acting):
    """On the event loop."""

    id = "sim-act"

    async def run(self, data: _Value, ctx: BlockContext) -> AsyncIterator[PinValue]:
        does = self._begin(data, ctx)
        if does.seconds:
            await asyncio.sleep(does.seconds)
        self._act(does, ctx)
        for number in range(does.outputs):
            yield "out", {**data.value, "n": 3 * data.value["n"] + number}
            if does.outputs > 1:
                await asyncio.sleep(0.01)


class ActOnce(Act):
    """Never again what was interrupted."""

    id = "sim-act-once"
    on_interrupt = "fail"


class ActIfAllowed(Act):
    """What was interrupted only if somebody says so."""

    id = "sim-act-if-allowed"
    on_interrupt = "ask"


class ActInTime(Act):
    """Not for long."""

    id = "sim-act-in-time"
    timeout = 3.0


class Book(_Acting):
    """Writes into the database, with the record that it did."""

    id = "sim-book"

    async def run(self, data: _Value, ctx: BlockContext) -> AsyncIterator[PinValue]:
        does = self._begin(data, ctx)
        booked = {"user": ctx.graph_exec_id, "key": ctx.idempotency_key}
        await ctx.transaction(lambda db: db.exec_driver_sql(_BOOK, booked).rowcount)
        if does.seconds:
            await asyncio.sleep(does.seconds)
        self._act(does, ctx)
        yield "out", data.value


class ActInThread(_Acting):
    """The same in a thread, which nobody can stop."""

    id = "sim-act-thread"

    def __init__(self, ledger: Ledger, host: Host, sleep: Callable[[float], None]) -> None:
        super().__init__(ledger, host)
        self._sleep = sleep

    def run(self, data: _Value, ctx: BlockContext) -> Iterator[PinValue]:
        does = self._begin(data, ctx)
        if does.seconds:
            self._sleep(does.seconds)
        self._act(does, ctx)
        for number in range(does.outputs):
            yield "out", {**data.value, "n": 3 * data.value["n"] + number}


class Wait(_Acting):
    """Waits long enough to give its place away, then acts."""

    id = "sim-wait"

    async def run(self, data: _Value, ctx: BlockContext) -> AsyncIterator[PinValue]:
        does = self._ledger.of(data.value["key"], ctx.node_id)
        await ctx.sleep_until(ctx.clock.now() + timedelta(seconds=6.0 + does.seconds))
        self._act(self._begin(data, ctx), ctx)
        yield "out", data.value


class Ask(_Acting):
    """Asks a person, then acts."""

    id = "sim-ask"

    async def run(self, data: _Value, ctx: BlockContext) -> AsyncIterator[PinValue]:
        answer = await ctx.review.ask(ReviewRequest(data.value, "may it?"))
        self._act(self._begin(data, ctx), ctx)
        yield "out", {**data.value, "approved": answer.approved}


class Call(_Acting):
    """Runs another graph, then acts."""

    id = "sim-call"

    async def run(self, data: _Value, ctx: BlockContext) -> AsyncIterator[PinValue]:
        value = {**data.value, "key": f"{data.value['key']}/child{data.value['n']}"}
        result = await ctx.children.run(ChildCall("chain", {"value": value}))
        self._act(self._begin(data, ctx), ctx)
        yield "out", {**data.value, "child": result.status}


class Probe(Block[_Value]):
    """Holds its slot for some seconds and counts how many do at once."""

    id = "sim-probe"
    Input = _Value
    Output = _Out

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger

    async def run(self, data: _Value, ctx: BlockContext) -> AsyncIterator[PinValue]:
        self._ledger.together += 1
        self._ledger.most = max(self._ledger.most, self._ledger.together)
        try:
            await asyncio.sleep(40.0)
        finally:
            self._ledger.together -= 1
        yield "out", data.value


def blocks_of(ledger: Ledger, host: Host, sleep: Callable[[float], None]) -> BlockRegistry:
    """The blocks that this process can run; `sleep` is what blocking code calls."""
    acting = [kind(ledger, host) for kind in (Act, ActOnce, ActIfAllowed, ActInTime, Book, Wait, Ask, Call)]
    return BlockRegistry([Begin(), End(), Join(), *acting, ActInThread(ledger, host, sleep), Probe(ledger)])


def _node(node_id: str, block: type[Block[Any]], **defaults: Any) -> Node:
    return Node(id=node_id, block_id=block.id, input_default=defaults)


def _link(source: str, sink: str, pin: str = "value", *, name: str = "out", static: bool = False) -> Link:
    return Link(source_id=source, sink_id=sink, source_name=name, sink_name=pin, is_static=static)


ACTING: Final = frozenset(
    kind.id for kind in (Act, ActOnce, ActIfAllowed, ActInTime, ActInThread, Book, Wait, Ask, Call)
)
ASKING: Final = frozenset({"waits", "careful"})
"""Graphs in which people are asked."""

GRAPHS: Final = {
    "chain": Graph(
        name="chain",
        nodes=[_node("in", Begin, name="value"), _node("a", Act), _node("b", Act), _node("to", End, name="result")],
        links=[_link("in", "a"), _link("a", "b"), _link("b", "to")],
    ),
    "join": Graph(
        name="join",
        nodes=[
            _node("in", Begin, name="value"),
            _node("a", Act),
            _node("b", Act),
            _node("j", Join),
            _node("to", End, name="result"),
        ],
        links=[
            _link("in", "a"),
            _link("in", "b"),
            _link("a", "j", "left"),
            _link("b", "j", "right", static=True),
            _link("j", "to"),
        ],
    ),
    "errors": Graph(
        name="errors",
        nodes=[
            _node("in", Begin, name="value"),
            _node("a", Act),
            _node("b", ActInThread),
            _node("to", End, name="result"),
            _node("bad", End, name="failed"),
        ],
        links=[_link("in", "a"), _link("a", "b"), _link("b", "to"), _link("a", "bad", name="error")],
    ),
    "waits": Graph(
        name="waits",
        nodes=[_node("in", Begin, name="value"), _node("a", Wait), _node("b", Ask), _node("to", End, name="result")],
        links=[_link("in", "a"), _link("in", "b"), _link("a", "to"), _link("b", "to")],
    ),
    "calls": Graph(
        name="calls",
        nodes=[_node("in", Begin, name="value"), _node("a", Act), _node("b", Call), _node("to", End, name="result")],
        links=[_link("in", "a"), _link("a", "b"), _link("b", "to")],
    ),
    "careful": Graph(
        name="careful",
        nodes=[
            _node("in", Begin, name="value"),
            _node("a", ActOnce),
            _node("b", ActIfAllowed),
            _node("to", End, name="result"),
        ],
        links=[_link("in", "a"), _link("in", "b"), _link("a", "to"), _link("b", "to")],
    ),
    "hurried": Graph(
        name="hurried",
        nodes=[
            _node("in", Begin, name="value"),
            _node("a", Act),
            _node("b", ActInTime),
            _node("to", End, name="result"),
        ],
        links=[_link("in", "a"), _link("a", "b"), _link("b", "to")],
    ),
    "books": Graph(
        name="books",
        nodes=[_node("in", Begin, name="value"), _node("a", Book), _node("b", Book), _node("to", End, name="result")],
        links=[_link("in", "a"), _link("in", "b"), _link("a", "to"), _link("b", "to")],
    ),
    "probe": Graph(
        name="probe",
        nodes=[_node("in", Begin, name="value"), _node("p", Probe)],
        links=[_link("in", "p")],
    ),
}


@dataclass(frozen=True, slots=True)
class Wish:
    """One execution that somebody wants: when, of which graph, under which key, when it is to be stopped, and whether
    it is to be tried again when it comes to nothing."""

    at: float
    graph: str
    key: str
    stop_after: float | None
    again: bool


def draw(rng: random.Random, within_s: float, ledger: Ledger, counts: Counter[str]) -> list[Wish]:
    """The wishes of one history, with the behaviour of every block."""
    wishes: list[Wish] = []
    for number in range(rng.randint(2, 4)):
        graph, key = (
            rng.choice(
                ["chain", "join", "errors", "errors", "waits", "calls", "careful", "careful", "hurried", "books"]
            ),
            f"key{number}",
        )
        stop = rng.choice([None, None, rng.uniform(0.0, 2.0), rng.uniform(0.0, 30.0)])
        wishes.append(Wish(rng.uniform(0.0, within_s), graph, key, stop, again=rng.random() < 0.3))
        for node in ("a", "b"):
            in_thread = graph == "errors" and node == "b"
            ledger.behaviours[key, node] = does = _behaviour(rng)
            kind = {
                "error": "block_error",
                "rude": "block_base_exception",
                "exit": "block_exits",
                "kill": "block_kills",
            }.get(does.ends)
            if kind is not None:
                counts[kind] += 1
            if does.seconds > 4:
                counts["block_slow"] += 1
            if in_thread:
                counts["block_in_thread"] += 1
    return wishes


def _behaviour(rng: random.Random) -> Behaviour:
    seconds = rng.choice([0.0, 0.0, rng.uniform(0.0, 1.0), rng.uniform(4.0, 20.0)])
    outputs = rng.choice([1, 1, 2, 3])
    drawn = rng.random()
    if drawn < 0.1:
        return Behaviour(seconds, outputs, "error")
    if drawn < 0.15:
        return Behaviour(seconds, outputs, "rude", rng.choice([1, 1_000]))
    if drawn < 0.18:
        return Behaviour(seconds, outputs, "exit", rng.choice([1, 1_000]))
    if drawn < 0.21:
        return Behaviour(seconds, outputs, "kill", rng.choice([1, 1, 2, 3, 1_000]))
    return Behaviour(seconds, outputs)
