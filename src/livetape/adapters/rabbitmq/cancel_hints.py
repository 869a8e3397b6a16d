"""Hints over RabbitMQ: a fan-out exchange, and one queue for each process that listens."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, Final

from aiormq.abc import AbstractChannel, DeliveredMessage

from livetape.adapters.rabbitmq.connection import RabbitConnection, broker_errors, ended, in_time
from livetape.adapters.rabbitmq.messages import NotADoorbellError, decode_hint, encode_hint
from livetape.engine.cancel_hints import CancelHints, Heard, tell
from livetape.errors import ClosedError, QueueUnavailableError
from livetape.events.backoff import Backoff
from livetape.observability import Metrics, NoMetrics, get_logger

logger = get_logger(__name__)

KEPT: Final = 1_000
"""So many hints wait for a broker that is away; workers learn of older ones when they renew."""


class RabbitCancelHints(CancelHints):
    """`{"graph_exec_id"}` to `graph_execution_cancel`, as older publishers send it.

    The connections stay the caller's.
    """

    def __init__(
        self,
        publishing: RabbitConnection,
        taking: RabbitConnection,
        *,
        backoff: Callable[[], Backoff] = lambda: Backoff(longest=2.0),
        metrics: Metrics | None = None,
    ) -> None:
        self._publishing = publishing
        self._taking = taking
        self._exchange = taking.topology.cancel_exchange
        self._new_backoff = backoff
        self._metrics = metrics or NoMetrics()
        self._waiting: dict[str, None] = {}
        self._more = asyncio.Event()
        self._sender: asyncio.Task[None] | None = None
        self._listening: set[asyncio.Event] = set()
        self._closed = False

    async def send(self, graph_exec_id: str) -> None:
        if self._closed:
            return
        self._waiting[graph_exec_id] = None
        while len(self._waiting) > KEPT:
            del self._waiting[next(iter(self._waiting))]
        self._more.set()
        if self._sender is None:
            self._sender = asyncio.create_task(self._send_forever(), name="hints to RabbitMQ")

    async def _send_forever(self) -> None:
        backoff = self._new_backoff()
        channel: AbstractChannel | None = None
        while not self._closed:
            await self._more.wait()
            try:
                with broker_errors("a stop is not told", self._metrics):
                    connection = await self._publishing.get()
                    if await self._publishing.is_blocked():
                        raise QueueUnavailableError("a stop is not told: RabbitMQ takes no messages now")
                    async with in_time(self._publishing.patience_s):
                        if channel is None or channel.is_closed or channel.connection is not connection:
                            channel = await connection.channel(publisher_confirms=False)
                        while self._waiting:
                            hint = next(iter(self._waiting))
                            await channel.basic_publish(encode_hint(hint), exchange=self._exchange)
                            self._waiting.pop(hint, None)
                self._more.clear()
                backoff.reset()
            except QueueUnavailableError as error:
                logger.info("%s", error, extra={"action": "hint_late"})
                await asyncio.sleep(backoff.next())
            except ClosedError:
                return

    async def listen(self, heard: Heard, ready: asyncio.Event) -> None:
        backoff = self._new_backoff()

        async def came(message: DeliveredMessage) -> None:
            try:
                tell(heard, decode_hint(message.body), self._metrics)
            except NotADoorbellError as error:
                logger.info("not a hint: %s", error, extra={"action": "hint_unknown"})

        while not self._closed:
            try:
                with broker_errors("stops are not heard at once", self._metrics):
                    await self._listen_once(came, ready, backoff)
            except QueueUnavailableError as error:
                logger.warning("%s", error, extra={"action": "hints_unavailable"})
            except ClosedError:
                return
            finally:
                ready.set()
            await asyncio.sleep(backoff.next())

    async def _listen_once(
        self, came: Callable[[DeliveredMessage], Coroutine[Any, Any, None]], ready: asyncio.Event, backoff: Backoff
    ) -> None:
        connection = await self._taking.get()
        async with in_time(self._taking.patience_s):
            channel = await connection.channel(publisher_confirms=False)
            queue = str((await channel.queue_declare(exclusive=True, auto_delete=True)).queue)
            await channel.queue_bind(queue, self._exchange)
            await channel.basic_consume(queue, came, no_ack=True)
        over = asyncio.Event()
        self._listening.add(over)
        channel.closing.add_done_callback(lambda _: over.set())
        channel.on_consumer_cancel_callbacks.add(lambda _: over.set())
        ready.set()
        backoff.reset()
        try:
            await over.wait()
        finally:
            self._listening.discard(over)
            if not channel.is_closed:
                async with in_time(self._taking.patience_s):
                    await channel.close()
        if not self._closed:
            raise QueueUnavailableError("the connection to RabbitMQ was lost")

    async def close(self) -> None:
        self._closed = True
        self._waiting.clear()
        for over in self._listening:
            over.set()
        if self._sender is not None:
            await ended({self._sender})
