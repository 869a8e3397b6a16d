"""The Queue port: doorbells for executions that somebody should run.

A message is a doorbell, never data: it may be lost, doubled, late or out of order and nothing breaks, because the
claim in the store decides (execution contract, "Queue"), and the store rings again what nobody claimed.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Doorbell:
    """Go and look at this execution. `enqueue_no` grows with each time it was queued: 0 is one that has not begun yet.

    `priority` above 0 goes before the others, and of the same priority what has begun already before what is new.
    Queues that can, go by `rank`.
    """

    graph_exec_id: str
    enqueue_no: int = 0
    kind: str = "run"
    priority: int = 0

    @property
    def rank(self) -> int:
        """Higher goes first; 0 and less may wait for everything else."""
        return 2 * self.priority + (self.enqueue_no > 0)


@dataclass(frozen=True, slots=True)
class Delivery:
    """A doorbell that was taken and must be acknowledged, or comes again."""

    doorbell: Doorbell
    tag: int


class Queue(ABC):
    """At least once, no order promised. Safe for concurrent use by tasks of one event loop.

    Where a queue is away for a while, `put` and `depth` say so, `take` waits until it is back, and `ack` and `nack`
    do nothing: what they meant comes again.
    """

    @abstractmethod
    async def put(self, doorbell: Doorbell, *, delay_s: float = 0) -> None:
        """Make it due after `delay_s` seconds. Durable when it returns.

        Raises:
            QueueUnavailableError, StoreUnavailableError: nobody knows whether it was put; put it again.
            ClosedError
        """

    @abstractmethod
    async def take(self, limit: int) -> list[Delivery]:
        """At least one and at most `limit` doorbells that are due; waits for the first.

        What is taken is hidden from others for a while, and comes again unless it is acknowledged. Nothing is hidden
        that was not returned, beyond a moment.

        Raises:
            StoreUnavailableError: it is in a database that is away.
            ClosedError: also when it is closed meanwhile.
        """

    @abstractmethod
    async def ack(self, delivery: Delivery) -> None:
        """It was looked at (the claim committed, or there is nothing to run). Idempotent."""

    @abstractmethod
    async def nack(self, delivery: Delivery, *, delay_s: float = 0) -> None:
        """Not now: due again after `delay_s`. Nothing happens when it was acknowledged, or came again already."""

    @abstractmethod
    async def depth(self) -> int:
        """How many doorbells wait, those included that are delayed and those that this process has taken.

        Raises:
            QueueUnavailableError, StoreUnavailableError
            ClosedError
        """

    @abstractmethod
    async def close(self) -> None:
        """What was taken and not acknowledged comes again, to others. Idempotent."""
