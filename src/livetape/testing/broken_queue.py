"""Queues that break one promise each. `QueueSuite` must fail every one of them."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Final

from livetape.engine.queue import Delivery, Doorbell, Queue


@dataclass
class _Waiting:
    bell: Doorbell
    due: float
    taken: bool = False


class SoftQueue(Queue):
    """A sound queue in memory, with seams where the broken ones differ."""

    def __init__(self) -> None:
        self.bells: dict[int, _Waiting] = {}
        self.tags = itertools.count(1)

    def now(self) -> float:
        return asyncio.get_running_loop().time()

    async def put(self, doorbell: Doorbell, *, delay_s: float = 0) -> None:
        self.bells[next(self.tags)] = _Waiting(doorbell, self.now() + delay_s)

    def due(self) -> list[int]:
        return [tag for tag, bell in self.bells.items() if not bell.taken and bell.due <= self.now()]

    async def first(self) -> None:
        """Wait until something is due. By looking: delays end without an event."""
        while not self.due():  # noqa: ASYNC110
            await asyncio.sleep(0.005)

    async def take(self, limit: int) -> list[Delivery]:
        await self.first()
        tags = self.due()[:limit]
        for tag in tags:
            self.bells[tag].taken = True
        return [Delivery(self.bells[tag].bell, tag) for tag in tags]

    async def ack(self, delivery: Delivery) -> None:
        self.bells.pop(delivery.tag, None)

    async def nack(self, delivery: Delivery, *, delay_s: float = 0) -> None:
        bell = self.bells.get(delivery.tag)
        if bell is not None:
            bell.taken, bell.due = False, self.now() + delay_s

    async def depth(self) -> int:
        return len(self.bells)


class LosesOne(SoftQueue):
    """The tenth doorbell is forgotten."""

    async def put(self, doorbell: Doorbell, *, delay_s: float = 0) -> None:
        await super().put(doorbell, delay_s=delay_s)
        self.bells.pop(10, None)


class ForgetsTheNumber(SoftQueue):
    """A doorbell loses what it said."""

    async def put(self, doorbell: Doorbell, *, delay_s: float = 0) -> None:
        await super().put(replace(doorbell, enqueue_no=0), delay_s=delay_s)


class TakesAll(SoftQueue):
    """The limit has no effect."""

    async def take(self, limit: int) -> list[Delivery]:
        return await super().take(1000)


class NeverWaits(SoftQueue):
    """An empty queue answers at once."""

    async def take(self, limit: int) -> list[Delivery]:
        return await super().take(limit) if self.due() else []


class HidesNothing(SoftQueue):
    """What one has taken, the next one takes too."""

    async def take(self, limit: int) -> list[Delivery]:
        deliveries = await super().take(limit)
        for delivery in deliveries:
            self.bells[delivery.tag].taken = False
        return deliveries


class TakesLate(SoftQueue):
    """Two that take at once get the same."""

    async def take(self, limit: int) -> list[Delivery]:
        await self.first()
        tags = self.due()[:limit]
        await asyncio.sleep(0)
        for tag in tags:
            self.bells[tag].taken = True
        return [Delivery(self.bells[tag].bell, tag) for tag in tags]


class ForgetsAcks(SoftQueue):
    """What was acknowledged comes again."""

    async def ack(self, delivery: Delivery) -> None:
        if delivery.tag in self.bells:
            self.bells[delivery.tag].taken = False


class DropsRefused(SoftQueue):
    """A refusal is taken for an acknowledgement."""

    async def nack(self, delivery: Delivery, *, delay_s: float = 0) -> None:
        await self.ack(delivery)


class Impatient(SoftQueue):
    """A refused one comes again at once, whatever its delay."""

    async def nack(self, delivery: Delivery, *, delay_s: float = 0) -> None:
        await super().nack(delivery)


class NeverLater(SoftQueue):
    """A delayed one comes at once."""

    async def put(self, doorbell: Doorbell, *, delay_s: float = 0) -> None:
        await super().put(doorbell)


class OncePerExecution(SoftQueue):
    """A second doorbell for the same execution is dropped."""

    async def put(self, doorbell: Doorbell, *, delay_s: float = 0) -> None:
        if all(bell.bell != doorbell for bell in self.bells.values()):
            await super().put(doorbell, delay_s=delay_s)


class CountsWaitingOnly(SoftQueue):
    """What is taken is not counted."""

    async def depth(self) -> int:
        return len(self.due())


BROKEN_QUEUES: Final[Mapping[Callable[[], Queue], str]] = {
    LosesOne: "test_everything_that_was_put_is_taken_in_the_end",
    ForgetsTheNumber: "test_what_was_put_is_taken",
    TakesAll: "test_no_more_are_taken_than_asked_for",
    NeverWaits: "test_taking_waits_for_the_first",
    HidesNothing: "test_what_was_taken_is_hidden_from_others",
    TakesLate: "test_concurrent_takers_share_what_there_is",
    ForgetsAcks: "test_what_was_acknowledged_does_not_come_again",
    DropsRefused: "test_a_refused_one_comes_again",
    Impatient: "test_a_refused_one_comes_no_sooner_than_its_delay",
    NeverLater: "test_a_delayed_one_comes_after_its_delay",
    OncePerExecution: "test_the_same_execution_may_be_rung_twice",
    CountsWaitingOnly: "test_depth_counts_what_waits_and_what_is_taken",
}
"""Every one fails `QueueSuite`, at least in the case that is named here."""
