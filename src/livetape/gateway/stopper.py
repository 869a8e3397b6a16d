"""Stops executions for clients: the gateway asks on the bus, an engine process answers. It never calls the engine."""

from __future__ import annotations

import asyncio
from typing import Final

from livetape.clock import IdFactory, new_id
from livetape.errors import BusError, ChannelError, CodecError, NotFoundError, StoreUnavailableError
from livetape.events.bus import Bus, BusMessage
from livetape.events.channel import engine_command_channel, engine_reply_channel
from livetape.events.commands import StopCommand, StopReply, decode_reply, encode
from livetape.observability import get_logger

logger = get_logger(__name__)

STOP_SECONDS: Final = 3.0
ASK_AGAIN_S: Final = 1.0
"""A message of the bus may be lost, and to stop twice is to stop once."""
OTHERS_S: Final = 0.25
"""So long may another engine process still say yes after one has said that there is no such execution."""


class Stopper:
    """Asks for stops. Safe for concurrent use by tasks of one event loop; it opens and closes nothing of the bus."""

    def __init__(self, bus: Bus, *, timeout_s: float = STOP_SECONDS, ids: IdFactory = new_id) -> None:
        self._bus = bus
        self._timeout_s = timeout_s
        self._ids = ids

    async def stop(self, user_id: str, graph_exec_id: str) -> None:
        """Returns when an engine process has committed the wish of this user that the execution stops.

        One that is over already is no error.

        Raises:
            NotFoundError: no such execution of this user.
            StoreUnavailableError: no engine process answered in `timeout_s` seconds, or the one that did cannot
                write now; nothing is known, asking again does no harm.
        """
        try:
            channel = engine_command_channel(graph_exec_id)
        except ChannelError:
            raise NotFoundError(f"Graph execution #{graph_exec_id} not found.") from None
        command = StopCommand(user_id=user_id, graph_exec_id=graph_exec_id, correlation_id=self._ids())
        refused: StopReply | None = None
        try:
            async with (
                asyncio.timeout(self._timeout_s) as limit,
                await self._bus.subscribe(engine_reply_channel(command.correlation_id)) as replies,
                _Asking(self._bus, channel, encode(command)),
            ):
                async for message in replies:
                    reply = _reply(message, command.correlation_id)
                    if reply is None:
                        continue
                    if reply.accepted:
                        return
                    refused = reply
                    limit.reschedule(asyncio.get_running_loop().time() + OTHERS_S)
        except TimeoutError:
            pass
        except BusError as error:
            raise StoreUnavailableError("the engine cannot be asked now") from error
        if refused is not None and refused.error == "not_found":
            raise NotFoundError(f"Graph execution #{graph_exec_id} not found.")
        if refused is not None:
            raise StoreUnavailableError(f"the engine cannot stop it now: {refused.error}")
        raise StoreUnavailableError("no engine answers")


class _Asking:
    """Says it on the bus, and again until the body is done."""

    def __init__(self, bus: Bus, channel: str, message: bytes) -> None:
        self._bus = bus
        self._channel = channel
        self._message = message
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> None:
        await self._bus.publish(self._channel, self._message)
        self._task = asyncio.create_task(self._again(), name="stop: ask again")

    async def __aexit__(self, *_: object) -> None:
        assert self._task is not None
        self._task.cancel()
        await asyncio.wait({self._task})

    async def _again(self) -> None:
        while True:
            await asyncio.sleep(ASK_AGAIN_S)
            try:
                await self._bus.publish(self._channel, self._message)
            except BusError as error:
                logger.debug("cannot ask again: %s", error)


def _reply(message: BusMessage, correlation_id: str) -> StopReply | None:
    """The answer to our command, or None for anything else."""
    if message.gap:
        return None
    try:
        reply = decode_reply(message.data)
    except CodecError:
        return None
    return reply if reply.correlation_id == correlation_id else None
