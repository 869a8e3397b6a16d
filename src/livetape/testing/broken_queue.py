"""Queues that break one promise each. `QueueSuite` must fail every one of them."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Final

from livetape.engine.queue import Delivery, Doorbell, Queue
from livetape.errors import ClosedError

HIDDEN_S: Final = 0.3


@dataclass
class _Waiting:
    """A doorbell. `tag` is that of its newest delivery; `due` is when it is shown, again where it is taken."""

    bell: Doorbell
    due: float
    tag: int = 0


class SoftQueue(Queue):
    """A sound queue in memory, with seams where the broken ones differ."""

    def __init__(self) -> None:
        self.bells: dict[int, _Waiting] = {}
        self.tags = itertools.count(1)
        self.closed = False

    def now(self) -> float:
        return asyncio.get_running_loop().time()

    def check(self) -> None:
        if self.closed:
            raise ClosedError("the queue is closed")

    async def put(self, doorbell: Doorbell, *, delay_s: float = 0) -> None:
        self.check()
        self.bells[next(self.tags)] = _Waiting(doorbell, self.now() + delay_s)

    def due(self) -> list[int]:
        """The keys of what may be taken, in the order in which it is."""
        keys = [key for key, bell in self.bells.items() if bell.due <= self.now()]
        return sorted(keys, key=lambda key: -self.bells[key].bell.rank)

    async def first(self) -> None:
        """Wait until something is due. By looking: delays end without an event."""
        self.check()
        while not self.due():
            await asyncio.sleep(0.005)
            self.check()

    def hide(self, key: int) -> Delivery:
        bell = self.bells[key]
        bell.tag, bell.due = next(self.tags), self.now() + HIDDEN_S
        return Delivery(bell.bell, bell.tag)

    async def take(self, limit: int) -> list[Delivery]:
        await self.first()
        return [self.hide(key) for key in self.due()[:limit]]

    def held(self, delivery: Delivery) -> int | None:
        """The key of what was delivered so; None when that was answered, or was delivered again."""
        return next((key for key, bell in self.bells.items() if bell.tag == delivery.tag), None)

    async def ack(self, delivery: Delivery) -> None:
        key = self.held(delivery)
        if key is not None:
            del self.bells[key]

    async def nack(self, delivery: Delivery, *, delay_s: float = 0) -> None:
        key = self.held(delivery)
        if key is not None:
            bell = self.bells[key]
            bell.tag, bell.due = 0, self.now() + delay_s

    async def depth(self) -> int:
        self.check()
        return len(self.bells)

    async def close(self) -> None:
        self.closed = True


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
            await self.nack(delivery)
        return deliveries


class TakesLate(SoftQueue):
    """Two that take at once get the same."""

    async def take(self, limit: int) -> list[Delivery]:
        await self.first()
        keys = self.due()[:limit]
        await asyncio.sleep(0)
        return [self.hide(key) for key in keys]


class ForgetsAcks(SoftQueue):
    """What was acknowledged comes again."""

    async def ack(self, delivery: Delivery) -> None:
        await self.nack(delivery)


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


class HidesForEver(SoftQueue):
    """What is not acknowledged never comes again."""

    def hide(self, key: int) -> Delivery:
        delivery = super().hide(key)
        self.bells[key].due = float("inf")
        return delivery


class AcksTheExecution(SoftQueue):
    """An acknowledgement takes all doorbells of the execution away."""

    async def ack(self, delivery: Delivery) -> None:
        for key, bell in list(self.bells.items()):
            if bell.bell.graph_exec_id == delivery.doorbell.graph_exec_id:
                del self.bells[key]


class PutsRefusedAgain(SoftQueue):
    """A refusal puts the doorbell anew, whatever has become of the delivery."""

    async def nack(self, delivery: Delivery, *, delay_s: float = 0) -> None:
        self.bells.pop(self.held(delivery) or 0, None)
        if not self.closed:
            await self.put(delivery.doorbell, delay_s=delay_s)


class ShowsWhatOthersHave(SoftQueue):
    """A refusal shows the doorbell, although it was delivered again in the meantime."""

    async def nack(self, delivery: Delivery, *, delay_s: float = 0) -> None:
        for bell in self.bells.values():
            if bell.bell == delivery.doorbell:
                bell.due = self.now() + delay_s


class AcksTheOldest(SoftQueue):
    """Answers are taken to come in the order of the deliveries."""

    async def ack(self, delivery: Delivery) -> None:
        oldest = min((bell.tag for bell in self.bells.values() if bell.tag), default=0)
        await super().ack(replace(delivery, tag=oldest))


class ForgetsTheKind(SoftQueue):
    """A doorbell that is refused loses what it said."""

    async def nack(self, delivery: Delivery, *, delay_s: float = 0) -> None:
        key = self.held(delivery)
        if key is not None and delay_s:
            self.bells[key].bell = Doorbell(delivery.doorbell.graph_exec_id)
        await super().nack(delivery, delay_s=delay_s)


class TakesForThoseWhoLeft(SoftQueue):
    """A take that is given up still takes what comes next."""

    def __init__(self) -> None:
        super().__init__()
        self.gone = 0

    async def take(self, limit: int) -> list[Delivery]:
        while True:
            try:
                deliveries = await super().take(limit)
            except asyncio.CancelledError:
                self.gone += 1
                raise
            while self.gone and deliveries:
                self.gone -= 1
                await self.nack(deliveries.pop(), delay_s=float("inf"))
            if deliveries:
                return deliveries


class ShortensNames(SoftQueue):
    """A name has 255 characters at most."""

    async def put(self, doorbell: Doorbell, *, delay_s: float = 0) -> None:
        await super().put(replace(doorbell, graph_exec_id=doorbell.graph_exec_id[:255]), delay_s=delay_s)


class FirstComeFirstServed(SoftQueue):
    """Nothing is urgent."""

    def due(self) -> list[int]:
        return sorted(super().due())


class NewAsOld(SoftQueue):
    """What has begun waits behind what is new."""

    def due(self) -> list[int]:
        return sorted(sorted(super().due()), key=lambda key: -self.bells[key].bell.priority)


class CalmsDown(SoftQueue):
    """A refused one is not urgent any more."""

    async def nack(self, delivery: Delivery, *, delay_s: float = 0) -> None:
        key = self.held(delivery)
        if key is not None and not delay_s:
            bell = self.bells.pop(key)
            await self.put(replace(bell.bell, priority=0))
        else:
            await super().nack(delivery, delay_s=delay_s)


class CountsWhatIsDue(SoftQueue):
    """What is delayed is not counted."""

    async def depth(self) -> int:
        self.check()
        return sum(bell.due <= self.now() + HIDDEN_S for bell in self.bells.values())


class WaitsForEver(SoftQueue):
    """Closing wakes nobody."""

    async def first(self) -> None:
        self.check()
        while not self.due():  # noqa: ASYNC110
            await asyncio.sleep(0.005)


class TakesAfterClosing(SoftQueue):
    """A closed queue takes doorbells that nobody will ever hear."""

    async def put(self, doorbell: Doorbell, *, delay_s: float = 0) -> None:
        if not self.closed:
            await super().put(doorbell, delay_s=delay_s)


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
    HidesForEver: "test_what_is_not_acknowledged_comes_again",
    AcksTheExecution: "test_an_acknowledgement_belongs_to_one_delivery",
    PutsRefusedAgain: "test_a_refusal_after_the_acknowledgement_is_nothing",
    ShowsWhatOthersHave: "test_a_late_refusal_shows_nothing_that_came_again",
    AcksTheOldest: "test_answers_in_any_order_leave_what_was_refused",
    ForgetsTheKind: "test_a_refused_one_comes_again_as_it_was_after_its_delay",
    TakesForThoseWhoLeft: "test_a_take_that_was_given_up_keeps_nothing",
    ShortensNames: "test_any_name_is_carried",
    FirstComeFirstServed: "test_what_is_urgent_goes_first",
    NewAsOld: "test_what_has_begun_goes_before_what_is_new",
    CalmsDown: "test_what_was_refused_is_as_urgent_as_before",
    CountsWhatIsDue: "test_depth_counts_what_is_delayed",
    WaitsForEver: "test_closing_ends_who_waits",
    TakesAfterClosing: "test_a_closed_queue_does_nothing_more",
}
"""Every one fails `QueueSuite`, at least in the case that is named here."""
