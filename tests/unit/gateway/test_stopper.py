"""A stop by request and answer on the bus: both sides of it, on a bus in memory."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import pytest

from livetape.adapters.memory.bus import MemoryBus
from livetape.engine.commands import Commands
from livetape.errors import BusUnavailableError, NotFoundError, StoreUnavailableError
from livetape.events.bus import Sink, Subscription
from livetape.events.channel import ENGINE_COMMANDS, engine_command_channel, engine_reply_channel
from livetape.events.commands import StopReply, decode_command, encode
from livetape.gateway.stopper import Stopper


class Running:
    """Executions by `(user, id)`; what was asked of them."""

    def __init__(self, *known: tuple[str, str]) -> None:
        self.known = set(known)
        self.stopped: list[tuple[str, str]] = []
        self.fails: Exception | None = None

    async def stop(self, user_id: str, graph_exec_id: str) -> Any:
        if self.fails is not None:
            raise self.fails
        if (user_id, graph_exec_id) not in self.known:
            raise NotFoundError
        self.stopped.append((user_id, graph_exec_id))


@asynccontextmanager
async def engine(bus: MemoryBus, executions: Running) -> AsyncIterator[None]:
    commands = Commands(bus, executions)
    task = asyncio.create_task(commands.run())
    await commands.ready.wait()
    try:
        yield
    finally:
        task.cancel()
        await asyncio.wait({task})
        assert task.cancelled(), task.exception()


async def test_a_stop_returns_when_the_engine_has_committed_it() -> None:
    bus, executions = MemoryBus(), Running(("u", "e/1"))
    async with engine(bus, executions):
        await Stopper(bus).stop("u", "e/1")
    assert executions.stopped == [("u", "e/1")]


@pytest.mark.parametrize(
    ("user_id", "graph_exec_id"), [("u", "x"), ("v", "e"), ("u", "*"), ("u", ""), ("u", "e" * 201)]
)
async def test_what_is_not_there_or_not_ours_is_not_found(user_id: str, graph_exec_id: str) -> None:
    bus, executions = MemoryBus(), Running(("u", "e"))
    async with engine(bus, executions):
        with pytest.raises(NotFoundError):
            await Stopper(bus).stop(user_id, graph_exec_id)
    assert executions.stopped == []


async def test_without_an_answer_it_is_unavailable_in_time() -> None:
    begun = asyncio.get_running_loop().time()
    with pytest.raises(StoreUnavailableError) as error:
        await Stopper(MemoryBus(), timeout_s=0.05).stop("u", "e")
    assert error.value.retryable
    assert asyncio.get_running_loop().time() - begun < 1


async def test_an_engine_that_cannot_write_now_is_unavailable() -> None:
    bus, executions = MemoryBus(), Running()
    for failure in (StoreUnavailableError("the disk is full"), RuntimeError("a bug")):
        executions.fails = failure
        async with engine(bus, executions):
            with pytest.raises(StoreUnavailableError):
                await Stopper(bus).stop("u", "e")


async def test_a_bus_that_is_away_is_unavailable() -> None:
    class Away(MemoryBus):
        async def publish(self, channel: str, data: bytes) -> int:
            raise BusUnavailableError

    with pytest.raises(StoreUnavailableError):
        await Stopper(Away()).stop("u", "e")


async def test_of_several_engines_the_one_that_has_it_counts() -> None:
    bus, executions, other = MemoryBus(), Running(("u", "e")), Running()
    async with engine(bus, other), engine(bus, executions):
        await asyncio.gather(*(Stopper(bus).stop("u", "e") for _ in range(20)))
    assert len(executions.stopped) == 20


async def test_a_lost_request_is_sent_again() -> None:
    class Forgetful(MemoryBus):
        left = 1

        async def publish(self, channel: str, data: bytes) -> int:
            if channel == engine_command_channel("e") and self.left:
                self.left -= 1
                return 0
            return await super().publish(channel, data)

    bus, executions = Forgetful(), Running(("u", "e"))
    async with engine(bus, executions):
        await Stopper(bus).stop("u", "e")


async def test_noise_on_the_channels_is_passed_over() -> None:
    bus, executions = MemoryBus(), Running(("u", "e"))
    async with engine(bus, executions), await bus.subscribe(ENGINE_COMMANDS) as heard:
        await bus.publish(engine_command_channel("e"), b"noise")
        await bus.publish(engine_command_channel("e"), b'{"payload":{"event_type":"stop_graph_execution"}}')
        stopping = asyncio.create_task(Stopper(bus).stop("u", "e"))
        async for message in heard:
            if b"correlation_id" in message.data:
                command = decode_command(message.data)
                replies = engine_reply_channel(command.correlation_id)
                await bus.publish(replies, b"noise")
                await bus.publish(replies, encode(StopReply(correlation_id="another", accepted=True)))
                break
        await stopping
    assert executions.stopped == [("u", "e")]


async def test_an_engine_listens_as_soon_as_the_bus_is_there() -> None:
    class Late(MemoryBus):
        refusals = 2

        async def subscribe(self, *patterns: str, sink: Sink | None = None) -> Subscription:
            if patterns == (ENGINE_COMMANDS,) and self.refusals:
                self.refusals -= 1
                raise BusUnavailableError
            return await super().subscribe(*patterns, sink=sink)

    bus, executions = Late(), Running(("u", "e"))
    async with engine(bus, executions):
        await Stopper(bus).stop("u", "e")


def test_the_wire_form_is_that_of_the_contract() -> None:
    replies: Sequence[tuple[StopReply, bytes]] = [
        (
            StopReply(correlation_id="c", accepted=True),
            b'{"payload":{"event_type":"stop_graph_execution_reply","correlation_id":"c","accepted":true}}',
        ),
        (
            StopReply(correlation_id="c", accepted=False, error="not_found"),
            b'{"payload":{"event_type":"stop_graph_execution_reply","correlation_id":"c","accepted":false,'
            b'"error":"not_found"}}',
        ),
    ]
    for reply, wire in replies:
        assert encode(reply) == wire
