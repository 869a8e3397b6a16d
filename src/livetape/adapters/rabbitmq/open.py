"""From a URL to the ports on RabbitMQ: joins the connections, the queue and the hints."""

from __future__ import annotations

from dataclasses import dataclass

from livetape.adapters.rabbitmq.cancel_hints import RabbitCancelHints
from livetape.adapters.rabbitmq.connection import PATIENCE_S, RabbitConnection
from livetape.adapters.rabbitmq.queue import FRESH_S, HIDDEN_S, RabbitQueue
from livetape.adapters.rabbitmq.topology import Topology
from livetape.observability import Metrics


@dataclass(frozen=True, slots=True)
class RabbitPorts:
    """What goes over one broker. `close` closes all of it."""

    queue: RabbitQueue
    hints: RabbitCancelHints
    publishing: RabbitConnection
    taking: RabbitConnection

    def is_up(self) -> bool:
        """Whether doorbells can be put and taken now, as far as somebody has tried."""
        return not (self.queue.problem or self.publishing.problem)

    async def close(self) -> None:
        """Idempotent."""
        await self.queue.close()
        await self.hints.close()
        await self.publishing.close()
        await self.taking.close()


def from_url(
    url: str,
    *,
    name: str = "livetape",
    topology: Topology | None = None,
    patience_s: float = PATIENCE_S,
    hidden_s: float = HIDDEN_S,
    fresh_s: float = FRESH_S,
    metrics: Metrics | None = None,
) -> RabbitPorts:
    """The ports on two connections of their own. Connects nothing yet.

    Raises:
        ConfigError: the URL cannot be used.
    """
    topology = topology or Topology()
    publishing = RabbitConnection(url, name=f"{name} puts", topology=topology, patience_s=patience_s, metrics=metrics)
    taking = RabbitConnection(url, name=f"{name} takes", topology=topology, patience_s=patience_s, metrics=metrics)
    return RabbitPorts(
        RabbitQueue(publishing, taking, hidden_s=hidden_s, fresh_s=fresh_s, metrics=metrics),
        RabbitCancelHints(publishing, taking, metrics=metrics),
        publishing,
        taking,
    )
