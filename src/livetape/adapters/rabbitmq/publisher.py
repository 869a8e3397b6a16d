"""Publishing with confirms: when it returns, the broker has it on disk."""

from __future__ import annotations

import asyncio
from typing import Any, Final

from aiormq.abc import AbstractChannel
from aiormq.exceptions import DeliveryError
from pamqp.commands import Basic

from livetape.adapters.rabbitmq.connection import RabbitConnection, broker_errors, in_time
from livetape.adapters.rabbitmq.messages import LEFT, encode_doorbell, first_wait
from livetape.adapters.rabbitmq.topology import STEP
from livetape.engine.queue import Doorbell
from livetape.errors import QueueUnavailableError
from livetape.observability import Metrics, NoMetrics

PERSISTENT: Final = 2
REASON: Final = "livetape-reason"


class Publisher:
    """Publishes over one connection, many messages at once."""

    def __init__(self, connection: RabbitConnection, *, metrics: Metrics | None = None) -> None:
        self._connection = connection
        self._metrics = metrics or NoMetrics()
        self._topology = connection.topology
        self._channel: AbstractChannel | None = None
        self._opening = asyncio.Lock()

    async def doorbell(self, doorbell: Doorbell, delay_s: float = 0) -> None:
        """Put it into the queue, or into that of the first wait of its delay.

        Raises:
            QueueUnavailableError: perhaps it was put, perhaps not.
            ClosedError
        """
        topology, urgent = self._topology, doorbell.rank > 0
        key, queue = (topology.urgent_key, topology.urgent_queue) if urgent else (topology.key, topology.queue)
        body, wait = encode_doorbell(doorbell), first_wait(delay_s)
        exchange, headers = topology.exchange, dict[str, Any]()
        if wait is not None:
            exchange, queue = topology.delay_exchange, topology.delay_queue(wait.step_s)
            headers[STEP] = f"{wait.step_s:g}s"
            if wait.left_ms:
                headers[LEFT] = wait.left_ms
        try:
            await self._publish(exchange, key, body, headers)
        except QueueUnavailableError:
            self._metrics.count("rabbitmq_messages_total", queue=queue, status="failed")
            raise
        self._metrics.count("rabbitmq_messages_total", queue=queue, status="published")

    async def dead(self, body: bytes, reason: str) -> None:
        """Put it with the dead letters. Raises as `doorbell`."""
        await self._publish(self._topology.dead_exchange, "", body, {REASON: reason})
        self._metrics.count("rabbitmq_messages_total", queue=self._topology.dead_queue, status="dead")

    async def _publish(self, exchange: str, key: str, body: bytes, headers: dict[str, Any]) -> None:
        properties = Basic.Properties(
            content_type="application/json", delivery_mode=PERSISTENT, headers=headers or None
        )
        with broker_errors("cannot publish", self._metrics):
            # Connecting has its own limits; this one is for those who wait in line on a connection that died.
            async with asyncio.timeout(4 * self._connection.patience_s):
                channel = await self._open()
                if await self._connection.is_blocked():
                    raise QueueUnavailableError("RabbitMQ takes no messages now: its memory or its disk runs low")
                try:
                    async with asyncio.timeout(self._connection.patience_s):
                        await channel.basic_publish(
                            body, exchange=exchange, routing_key=key, properties=properties, mandatory=True
                        )
                except DeliveryError:
                    # Refused, or there is no such queue any more: a new connection makes it again.
                    self._connection.drop(channel.connection)
                    raise
                except TimeoutError:
                    if not await self._connection.is_blocked():
                        self._connection.drop(channel.connection)
                    raise

    async def _open(self) -> AbstractChannel:
        connection = await self._connection.get()
        async with self._opening:
            channel = self._channel
            if channel is None or channel.is_closed or channel.connection is not connection:
                try:
                    async with in_time(self._connection.patience_s):
                        channel = self._channel = await connection.channel(publisher_confirms=True)
                except TimeoutError:
                    self._connection.drop(connection)
                    raise
            return channel
