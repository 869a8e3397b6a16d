"""Carries doorbells from the database, where they are written, to the broker, from where workers take them.

A start is accepted when its commit is: the doorbell is a row of the same transaction. So a broker that is away delays
executions and refuses none. Delays are waited out in the table.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Final

from livetape.engine.queue import Delivery, Queue
from livetape.errors import ClosedError, LivetapeError, QueueUnavailableError, StoreUnavailableError
from livetape.events.backoff import Backoff
from livetape.observability import Metrics, NoMetrics, get_logger

logger = get_logger(__name__)

BATCH: Final = 100
"""So many are given to the broker at once."""


class Forwarder:
    """One per process that writes doorbells; several may share a table. `run` until the process ends.

    A doorbell leaves the table when the broker has it on disk. Who dies in between, or takes long, rings twice.
    """

    def __init__(
        self,
        table: Queue,
        broker: Queue,
        *,
        batch: int = BATCH,
        backoff: Backoff | None = None,
        metrics: Metrics | None = None,
    ) -> None:
        self._table = table
        self._broker = broker
        self._batch = batch
        self._backoff = backoff or Backoff(longest=2.0)
        self._metrics = metrics or NoMetrics()
        self.ready = asyncio.Event()
        self.problem = ""
        """Why doorbells wait in the table, in words; empty when they do not."""

    async def run(self) -> None:
        """Forward for ever. Neither a broker nor a database that is away ends it, nor an error that nobody foresaw.

        Raises:
            ClosedError: one of the queues is closed.
        """
        self.ready.set()
        while True:
            try:
                await self._carry(await self._table.take(self._batch))
            except ClosedError:
                raise
            except Exception as error:  # without this task every doorbell would lie in the table
                if isinstance(error, LivetapeError) and error.retryable:
                    self._stuck(f"doorbells cannot be read: {error}")
                else:
                    self._failed(error)
                await asyncio.sleep(self._backoff.next())

    async def _carry(self, deliveries: Sequence[Delivery]) -> None:
        """Until the broker has them all. What takes long is shown in the table again, and others try too."""
        while deliveries:
            left = [delivery for delivery in await asyncio.gather(*map(self._give, deliveries)) if delivery is not None]
            if left:
                await asyncio.sleep(self._backoff.next())
            else:
                self._flows()
            deliveries = left

    async def _give(self, delivery: Delivery) -> Delivery | None:
        try:
            await self._broker.put(delivery.doorbell)
        except QueueUnavailableError as error:
            self._stuck(f"doorbells wait in the database: {error}")
            return delivery
        except ClosedError:
            raise
        except Exception as error:  # it is shown in the table again; the others go on
            self._failed(error)
            return None
        try:
            await self._table.ack(delivery)
        except StoreUnavailableError:
            logger.info("a doorbell will ring twice", extra={"action": "doorbell_twice"})
        return None

    def _failed(self, error: Exception) -> None:
        logger.error("doorbells cannot be forwarded", exc_info=error, extra={"action": "forwarder_failed"})
        self._metrics.count("internal_errors_total", part="forwarder")
        self.problem = self.problem or f"doorbells cannot be forwarded: {str(error) or type(error).__name__}"

    def _stuck(self, problem: str) -> None:
        if not self.problem:
            logger.warning("%s", problem, extra={"action": "doorbells_wait"})
        self.problem = problem

    def _flows(self) -> None:
        if self.problem:
            logger.info("doorbells are forwarded again", extra={"action": "doorbells_flow"})
        self.problem = ""
        self._backoff.reset()
