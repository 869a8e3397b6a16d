"""The exchanges and queues in RabbitMQ: their names, and making them.

graph_execution (direct) ─ graph_execution.run ──────── graph_execution_queue_v2
                         ─ graph_execution.run.urgent ─ graph_execution_queue_v2_urgent
graph_execution_delay (headers) ─ step ─ graph_execution_delay_5s … ─ after 5 s back to graph_execution
graph_execution_dead (fan-out) ─ graph_execution_dead_letters
graph_execution_cancel (fan-out) ─ one queue for each process that listens
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from aiormq.abc import AbstractChannel, AbstractConnection
from aiormq.exceptions import ChannelAccessRefused, ChannelPreconditionFailed

from livetape.adapters.rabbitmq.messages import STEPS_S
from livetape.observability import get_logger

logger = get_logger(__name__)

_REFUSALS: Final = (ChannelPreconditionFailed, ChannelAccessRefused)
"""It is there, made otherwise; or this user may not make anything."""

DELIVERY_LIMIT: Final = 20
"""A doorbell that was taken and not acknowledged so often is put with the dead letters: something that looks at it
kills the one who looks. The store goes on ringing for its execution, less and less often."""

DEAD_LETTERS: Final = 10_000
"""So many are kept, the newest."""

_SAFE: Final[dict[str, Any]] = {"x-dead-letter-strategy": "at-least-once", "x-overflow": "reject-publish"}
"""A message leaves one queue when the next one has it. Otherwise a delay that ends while the broker starts loses it."""

STEP: Final = "step"
"""The header by which a delayed message finds its queue."""


@dataclass(frozen=True, slots=True)
class Topology:
    """The names. `prefix` keeps several systems on one broker apart; without it they are those that older publishers
    know."""

    prefix: str = ""

    @property
    def exchange(self) -> str:
        return f"{self.prefix}graph_execution"

    @property
    def key(self) -> str:
        return "graph_execution.run"

    @property
    def urgent_key(self) -> str:
        return "graph_execution.run.urgent"

    @property
    def queue(self) -> str:
        return f"{self.prefix}graph_execution_queue_v2"

    @property
    def urgent_queue(self) -> str:
        return f"{self.queue}_urgent"

    @property
    def delay_exchange(self) -> str:
        return f"{self.prefix}graph_execution_delay"

    def delay_queue(self, step_s: float) -> str:
        return f"{self.delay_exchange}_{step_s:g}s"

    @property
    def dead_exchange(self) -> str:
        return f"{self.prefix}graph_execution_dead"

    @property
    def dead_queue(self) -> str:
        return f"{self.prefix}graph_execution_dead_letters"

    @property
    def cancel_exchange(self) -> str:
        return f"{self.prefix}graph_execution_cancel"

    @property
    def waiting(self) -> tuple[str, ...]:
        """Every queue in which doorbells wait."""
        return (self.urgent_queue, self.queue, *(self.delay_queue(step) for step in STEPS_S))


async def declare(connection: AbstractConnection, topology: Topology) -> None:
    """Make what is not there. What somebody made otherwise, or may not be made by us, is used as it is.

    Raises what the driver raises, among others when something is missing and may not be made.
    """
    declaring = _Declaring(connection)
    try:
        for name, kind in (
            (topology.exchange, "direct"),
            (topology.delay_exchange, "headers"),
            (topology.dead_exchange, "fanout"),
            (topology.cancel_exchange, "fanout"),
        ):
            await declaring.exchange(name, kind)
        limits = {**_SAFE, "x-dead-letter-exchange": topology.dead_exchange, "x-delivery-limit": DELIVERY_LIMIT}
        for name, key in ((topology.queue, topology.key), (topology.urgent_queue, topology.urgent_key)):
            await declaring.queue(name, limits)
            await declaring.bind(name, topology.exchange, key)
        for step in STEPS_S:
            name = topology.delay_queue(step)
            wait = {**_SAFE, "x-dead-letter-exchange": topology.exchange, "x-message-ttl": round(step * 1000)}
            await declaring.queue(name, wait)
            await declaring.bind(name, topology.delay_exchange, "", {"x-match": "all", STEP: f"{step:g}s"})
        await declaring.queue(topology.dead_queue, {"x-max-length": DEAD_LETTERS})
        await declaring.bind(topology.dead_queue, topology.dead_exchange, "")
    finally:
        await declaring.close()


class _Declaring:
    """Declares on one channel, and on another one after a refusal, which closes the channel."""

    def __init__(self, connection: AbstractConnection) -> None:
        self._connection = connection
        self._channel: AbstractChannel | None = None

    async def _open(self) -> AbstractChannel:
        if self._channel is None or self._channel.is_closed:
            self._channel = await self._connection.channel(publisher_confirms=False)
        return self._channel

    async def exchange(self, name: str, kind: str) -> None:
        try:
            await (await self._open()).exchange_declare(name, exchange_type=kind, durable=True)
        except _REFUSALS as refused:
            await (await self._open()).exchange_declare(name, passive=True)
            _told("exchange", name, refused)

    async def queue(self, name: str, arguments: dict[str, Any]) -> None:
        arguments = {"x-queue-type": "quorum", **arguments}
        try:
            await (await self._open()).queue_declare(name, durable=True, arguments=arguments)
        except _REFUSALS as refused:
            await (await self._open()).queue_declare(name, passive=True)
            _told("queue", name, refused)

    async def bind(self, queue: str, exchange: str, key: str, arguments: dict[str, Any] | None = None) -> None:
        try:
            await (await self._open()).queue_bind(queue, exchange, routing_key=key, arguments=arguments)
        except ChannelAccessRefused as refused:
            _told("binding of", queue, refused)

    async def close(self) -> None:
        if self._channel is not None and not self._channel.is_closed:
            await self._channel.close()


def _told(what: str, name: str, refused: Exception) -> None:
    logger.warning("the %s %s is used as it is: %s", what, name, refused, extra={"action": "rabbitmq_as_it_is"})
