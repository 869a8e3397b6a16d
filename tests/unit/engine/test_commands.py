"""Commands over the bus: an error that nobody foresaw ends neither the listening nor another command."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from livetape.adapters.memory.bus import MemoryBus
from livetape.adapters.prometheus.metrics import PrometheusMetrics
from livetape.engine.commands import Commands
from livetape.events.bus import BusMessage
from livetape.events.channel import engine_command_channel, engine_reply_channel
from livetape.events.commands import StopCommand, decode_reply, encode


class Stops:
    """Fails once in a way that nobody foresaw."""

    fails = 1

    async def stop(self, user_id: str, graph_exec_id: str) -> Any:
        if self.fails:
            self.fails -= 1
            raise KeyError(graph_exec_id)


class Mute(MemoryBus):
    """Cannot publish a reply once, and nobody knows why."""

    fails = 1

    async def publish(self, channel: str, data: bytes) -> int:
        if channel == engine_reply_channel("c") and self.fails:
            self.fails -= 1
            raise KeyError("reply")
        return await super().publish(channel, data)


@pytest.mark.parametrize(("bus", "told"), [(MemoryBus(), ["internal", ""]), (Mute(), [""])])
async def test_a_command_that_fails_is_counted_and_the_next_one_is_answered(bus: MemoryBus, told: list[str]) -> None:
    metrics = PrometheusMetrics("t")
    stops = Stops()
    if isinstance(bus, Mute):
        stops.fails = 0
    commands = Commands(bus, stops, metrics=metrics)
    listening = asyncio.create_task(commands.run())
    await commands.ready.wait()
    heard: list[str] = []
    async with await bus.subscribe(engine_reply_channel("c")) as replies:
        for _ in range(2):
            command = StopCommand(correlation_id="c", user_id="u", graph_exec_id="e")
            await bus.publish(engine_command_channel("e"), encode(command))
            await asyncio.sleep(0.01)
        async with asyncio.timeout(5):
            message: BusMessage
            async for message in replies:
                heard.append(decode_reply(message.data).error or "")
                if len(heard) == len(told):
                    break
    assert heard == told
    assert b't_internal_errors_total{part="commands"} 1.0' in metrics.render()[0]
    listening.cancel()
    await asyncio.wait({listening})
    await bus.close()
