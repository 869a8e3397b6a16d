"""The Queue port: doorbells for executions that somebody should run.

A message is a doorbell, never data: it may be lost, doubled, late or out of order and nothing breaks, because the
claim in the store decides (execution contract, "Queue").
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Doorbell:
    """Go and look at this execution. `enqueue_no` grows with each time it was queued."""

    graph_exec_id: str
    enqueue_no: int = 0
    kind: str = "run"


@dataclass(frozen=True, slots=True)
class Delivery:
    """A doorbell that was taken and must be acknowledged, or comes again."""

    doorbell: Doorbell
    tag: int


class Queue(ABC):
    """At least once, no order promised. Safe for concurrent use by tasks of one event loop."""

    @abstractmethod
    async def put(self, doorbell: Doorbell, *, delay_s: float = 0) -> None:
        """Make it due after `delay_s` seconds. Durable when it returns."""

    @abstractmethod
    async def take(self, limit: int) -> list[Delivery]:
        """At least one and at most `limit` doorbells that are due; waits for the first.

        What is taken is hidden from others for a while, and comes again unless it is acknowledged.
        """

    @abstractmethod
    async def ack(self, delivery: Delivery) -> None:
        """It was looked at (the claim committed, or there is nothing to run). Idempotent."""

    @abstractmethod
    async def nack(self, delivery: Delivery, *, delay_s: float = 0) -> None:
        """Not now: due again after `delay_s`."""

    @abstractmethod
    async def depth(self) -> int:
        """How many doorbells wait, taken ones included."""
