"""Answers commands that come over the bus: gateways in other processes ask for stops there."""

from __future__ import annotations

import asyncio
from typing import Any, Final, Protocol

from livetape.errors import BusError, CodecError, LivetapeError
from livetape.events.backoff import Backoff
from livetape.events.bus import Bus, BusMessage
from livetape.events.channel import ENGINE_COMMANDS, engine_reply_channel
from livetape.events.commands import StopCommand, StopReply, decode_command, encode
from livetape.observability import Metrics, NoMetrics, get_logger

logger = get_logger(__name__)

AT_ONCE: Final = 64
"""Commands that are carried out side by side; the others wait on the bus, which is bounded too."""


class Stops(Protocol):
    """The part of the executions that this needs."""

    async def stop(self, user_id: str, graph_exec_id: str) -> Any: ...


class Commands:
    """One per process that has the store. `run` until the process ends.

    A stop is answered after its wish is committed. Who may stop what, the executions decide: another user's do not
    exist. Several processes may get and answer the same command, and one may get it twice: a stop is idempotent.
    """

    def __init__(self, bus: Bus, executions: Stops, *, metrics: Metrics | None = None) -> None:
        self._bus = bus
        self._executions = executions
        self._metrics = metrics or NoMetrics()
        self._room = asyncio.Semaphore(AT_ONCE)
        self.ready = asyncio.Event()
        """Set when it listens, or when the bus could not be reached for the first time: it goes on trying."""

    async def run(self) -> None:
        """Listen for ever."""
        backoff = Backoff(longest=2.0)
        async with asyncio.TaskGroup() as tasks:
            while True:
                try:
                    async with await self._bus.subscribe(ENGINE_COMMANDS) as commands:
                        backoff.reset()
                        self.ready.set()
                        async for message in commands:
                            if not message.gap:  # whoever hears no answer asks again
                                await self._room.acquire()
                                tasks.create_task(self._answer(message), name="engine command")
                except BusError as error:
                    logger.warning("commands cannot be heard: %s", error, extra={"action": "commands_unavailable"})
                self.ready.set()
                await asyncio.sleep(backoff.next())

    async def _answer(self, message: BusMessage) -> None:
        try:
            command = decode_command(message.data)
            reply = await self._carry_out(command)
            self._metrics.count("engine_commands_total", outcome=reply.error or "accepted")
            await self._bus.publish(engine_reply_channel(command.correlation_id), encode(reply))
        except CodecError as error:
            logger.info("not a command: %s", error, extra={"action": "command_unknown"})
        except BusError as error:
            logger.warning("a command is not answered: %s", error, extra={"action": "command_unanswered"})
        except Exception:  # one command takes no other with it
            logger.exception("a command failed", extra={"action": "command_failed"})
            self._metrics.count("internal_errors_total", part="commands")
        finally:
            self._room.release()

    async def _carry_out(self, command: StopCommand) -> StopReply:
        correlation_id = command.correlation_id
        try:
            await self._executions.stop(command.user_id, command.graph_exec_id)
        except LivetapeError as error:
            return StopReply(correlation_id=correlation_id, accepted=False, error=error.code)
        except Exception:
            logger.exception("a stop failed", extra={"action": "command_failed", "correlation_id": correlation_id})
            self._metrics.count("internal_errors_total", part="commands")
            return StopReply(correlation_id=correlation_id, accepted=False, error="internal")
        return StopReply(correlation_id=correlation_id, accepted=True)
