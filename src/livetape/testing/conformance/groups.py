"""What every ConsumerGroups must do. Each case is a sentence of the docstrings in `livetape.events.groups`.

Subclass it in a test module and give the fixture, the groups with the log whose tapes they share out:

    class TestMyGroups(ConsumerGroupsSuite):
        @pytest.fixture
        async def sharing(self):
            async with opened(MyBackend()) as backend:
                yield Sharing.of(backend)

An adapter that keeps groups beyond the process also passes `reopen_groups`, see `DurableConsumerGroupsSuite`.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Final, Protocol, Self

from livetape.errors import ChannelError, NotFoundError
from livetape.events.groups import ConsumerGroups, Delivered
from livetape.events.log import MAX_READ, EventLog
from livetape.events.open import Backend
from livetape.testing.conformance.log import event

TAPE: Final = "suite:a"
LONG_S: Final = 60.0
"""Nothing in a case is ever idle for so long."""


@dataclass(frozen=True, slots=True)
class Sharing:
    """Groups, and the log whose events they hand out. `elapse` lets so many seconds pass, for real or not."""

    groups: ConsumerGroups
    log: EventLog
    elapse: Callable[[float], Awaitable[None]] = asyncio.sleep

    @classmethod
    def of(cls, backend: Backend, elapse: Callable[[float], Awaitable[None]] = asyncio.sleep) -> Self:
        """Of a backend that has them."""
        assert backend.groups is not None
        assert backend.log is not None
        return cls(backend.groups, backend.log, elapse)

    async def fill(self, count: int, tape: str = TAPE) -> None:
        """Append so many events, fifty at a time."""
        for start in range(0, count, 50):
            await asyncio.gather(*(self.log.append(tape, event(str(n))) for n in range(start, min(count, start + 50))))

    async def pending(self, group: str = "g") -> list[tuple[int, str, int]]:
        """Offset, consumer and deliveries of what is pending."""
        return [(p.offset, p.consumer, p.deliveries) for p in await self.groups.pending(TAPE, group)]


def offsets(delivered: Sequence[Delivered]) -> list[int]:
    return [one.entry.offset for one in delivered]


class ConsumerGroupsSuite:
    """Cases for the ConsumerGroups port. Tapes are `suite:…`; there are none, and no groups, at the start of each."""

    patience_s = 5.0
    """How long a case waits for a delivery that must come."""

    idle_s = 0.3
    """How long a case lets an entry lie before somebody takes it over."""

    # ---- create and drop -------------------------------------------------------------------------------------------

    async def test_a_group_is_made_once_and_then_nothing_changes(self, sharing: Sharing) -> None:
        await sharing.fill(4)
        assert await sharing.groups.create(TAPE, "g", after=1) is True
        await sharing.groups.take(TAPE, "g", "c", limit=2)
        assert await sharing.groups.create(TAPE, "g", after=0) is False
        assert await sharing.pending() == [(2, "c", 1), (3, "c", 1)]
        assert offsets(await sharing.groups.take(TAPE, "g", "c")) == [4]

    async def test_a_group_begins_after_its_offset(self, sharing: Sharing) -> None:
        await sharing.fill(5)
        await sharing.groups.create(TAPE, "all")
        await sharing.groups.create(TAPE, "rest", after=3)
        await sharing.groups.create(TAPE, "new", after=5)
        assert offsets(await sharing.groups.take(TAPE, "all", "c")) == [1, 2, 3, 4, 5]
        assert offsets(await sharing.groups.take(TAPE, "rest", "c")) == [4, 5]
        assert await sharing.groups.take(TAPE, "new", "c") == []

    async def test_the_tape_need_not_exist_yet(self, sharing: Sharing) -> None:
        assert await sharing.groups.create(TAPE, "g") is True
        assert await sharing.groups.take(TAPE, "g", "c") == []
        assert await sharing.groups.claim(TAPE, "g", "c", idle_s=0) == []
        assert (await sharing.log.append(TAPE, event("one"))).offset == 1
        assert offsets(await sharing.groups.take(TAPE, "g", "c")) == [1]

    async def test_a_dropped_group_is_forgotten(self, sharing: Sharing) -> None:
        await sharing.fill(2)
        await sharing.groups.create(TAPE, "g")
        await sharing.groups.take(TAPE, "g", "c", limit=1)
        assert await sharing.groups.drop(TAPE, "g") is True
        assert await sharing.groups.drop(TAPE, "g") is False
        assert await sharing.groups.pending(TAPE, "g") == []
        assert await sharing.groups.create(TAPE, "g") is True
        assert await sharing.groups.pending(TAPE, "g") == []
        assert [(d.entry.offset, d.deliveries) for d in await sharing.groups.take(TAPE, "g", "c")] == [(1, 1), (2, 1)]

    async def test_an_absent_group_is_told_from_an_empty_one(self, sharing: Sharing) -> None:
        await sharing.fill(1)
        await self._not_found(sharing.groups.take(TAPE, "none", "c"))
        await self._not_found(sharing.groups.take(TAPE, "none", "c", wait_s=LONG_S))
        await self._not_found(sharing.groups.claim(TAPE, "none", "c", idle_s=0))
        assert await sharing.groups.pending(TAPE, "none") == []
        assert await sharing.groups.ack(TAPE, "none", 1) == 0
        assert await sharing.groups.drop(TAPE, "none") is False
        await self._not_found(sharing.groups.take("suite:none", "none", "c"))

    async def test_names_are_taken_as_they_are(self, sharing: Sharing) -> None:
        await sharing.fill(2)
        names = ["x" * 200, "ä b/c:*{1}\n", "%", "G", "g"]
        for name in names:
            assert await sharing.groups.create(TAPE, name) is True
            assert offsets(await sharing.groups.take(TAPE, name, name, limit=1)) == [1]
            assert await sharing.pending(name) == [(1, name, 1)]

    async def test_names_that_cannot_be_are_refused(self, sharing: Sharing) -> None:
        await sharing.fill(1)
        groups = sharing.groups
        await groups.create(TAPE, "g")
        for name in ("", "x" * 201, "ä" * 201, "\ud800"):
            await self._refused(groups.create(TAPE, name))
            await self._refused(groups.take(TAPE, name, "c"))
            await self._refused(groups.take(TAPE, "g", name))
            await self._refused(groups.take(TAPE, "g", name, limit=0))
            await self._refused(groups.ack(TAPE, name, 1))
            await self._refused(groups.ack(TAPE, name))
            await self._refused(groups.claim(TAPE, name, "c", idle_s=0))
            await self._refused(groups.claim(TAPE, "g", name, idle_s=0))
            await self._refused(groups.pending(TAPE, name))
            await self._refused(groups.drop(TAPE, name))
        assert await sharing.pending() == [], "nothing was handed to nobody"

    # ---- take ------------------------------------------------------------------------------------------------------

    async def test_entries_come_as_they_are_on_the_tape(self, sharing: Sharing) -> None:
        await sharing.fill(3)
        await sharing.log.append(TAPE, event("last", final=True))
        await sharing.groups.create(TAPE, "g")
        delivered = await sharing.groups.take(TAPE, "g", "c")
        assert [one.entry for one in delivered] == list(await sharing.log.read(TAPE))
        assert {one.deliveries for one in delivered} == {1}

    async def test_no_more_are_taken_than_asked_for(self, sharing: Sharing) -> None:
        await sharing.fill(5)
        await sharing.groups.create(TAPE, "g")
        assert offsets(await sharing.groups.take(TAPE, "g", "c", limit=2)) == [1, 2]
        assert offsets(await sharing.groups.take(TAPE, "g", "c", limit=2)) == [3, 4]
        assert offsets(await sharing.groups.take(TAPE, "g", "c", limit=2)) == [5]
        assert await sharing.groups.take(TAPE, "g", "c", limit=2) == []

    async def test_never_more_than_the_most_are_taken(self, sharing: Sharing) -> None:
        await sharing.fill(MAX_READ + 5)
        await sharing.groups.create(TAPE, "g")
        assert len(await sharing.groups.take(TAPE, "g", "c", limit=10 * MAX_READ)) == MAX_READ

    async def test_each_entry_goes_to_one_consumer(self, sharing: Sharing) -> None:
        await sharing.fill(40)
        await sharing.groups.create(TAPE, "g")
        taken = await asyncio.gather(*(sharing.groups.take(TAPE, "g", f"c{n}", limit=7) for n in range(8)))
        assert sorted(offset for one in taken for offset in offsets(one)) == list(range(1, 41))
        for one in taken:
            assert offsets(one) == sorted(offsets(one))
        by_consumer = {offset: f"c{n}" for n, one in enumerate(taken) for offset in offsets(one)}
        assert await sharing.pending() == [(offset, by_consumer[offset], 1) for offset in range(1, 41)]

    async def test_groups_know_nothing_of_each_other(self, sharing: Sharing) -> None:
        await sharing.fill(3)
        await sharing.fill(1, "suite:b")
        for tape, group in ((TAPE, "g"), (TAPE, "h"), ("suite:b", "g")):
            await sharing.groups.create(tape, group)
        assert offsets(await sharing.groups.take(TAPE, "g", "c")) == [1, 2, 3]
        assert offsets(await sharing.groups.take("suite:b", "g", "c")) == [1]
        assert offsets(await sharing.groups.take(TAPE, "h", "c", limit=2)) == [1, 2]
        assert await sharing.groups.ack(TAPE, "h", 1) == 1
        assert await sharing.pending("g") == [(1, "c", 1), (2, "c", 1), (3, "c", 1)]
        assert await sharing.groups.drop(TAPE, "h")
        assert [p.offset for p in await sharing.groups.pending("suite:b", "g")] == [1]

    async def test_taking_waits_for_the_first(self, sharing: Sharing) -> None:
        await sharing.fill(1)
        await sharing.groups.create(TAPE, "g", after=1)
        waiting = asyncio.ensure_future(sharing.groups.take(TAPE, "g", "c", wait_s=LONG_S))
        await asyncio.sleep(0.05)
        assert not waiting.done()
        await sharing.log.append(TAPE, event("two"))
        assert offsets(await self._soon(waiting)) == [2]

    async def test_taking_waits_for_a_tape_that_is_made_later(self, sharing: Sharing) -> None:
        await sharing.groups.create(TAPE, "g")
        waiting = asyncio.ensure_future(sharing.groups.take(TAPE, "g", "c", wait_s=LONG_S))
        await asyncio.sleep(0.05)
        await sharing.log.append(TAPE, event("one"))
        assert offsets(await self._soon(waiting)) == [1]

    async def test_of_those_who_wait_one_gets_it(self, sharing: Sharing) -> None:
        await sharing.groups.create(TAPE, "g")
        waiting = [asyncio.ensure_future(sharing.groups.take(TAPE, "g", f"c{n}", wait_s=LONG_S)) for n in range(5)]
        await asyncio.sleep(0.05)
        for n in range(5):
            await sharing.log.append(TAPE, event(str(n)))
            still = [one for one in waiting if not one.done()]
            await asyncio.wait(still, timeout=self.patience_s, return_when=asyncio.FIRST_COMPLETED)
        got = [offset for one in waiting for offset in offsets(await self._soon(one))]
        assert sorted(got) == [1, 2, 3, 4, 5]

    async def test_taking_waits_no_longer_than_it_was_told(self, sharing: Sharing) -> None:
        await sharing.fill(1)
        await sharing.groups.create(TAPE, "g", after=1)
        assert await self._soon(sharing.groups.take(TAPE, "g", "c")) == []
        began = time.monotonic()
        waiting = asyncio.ensure_future(sharing.groups.take(TAPE, "g", "c", wait_s=0.2))
        await asyncio.sleep(0.05)
        assert not waiting.done()
        await sharing.elapse(0.2)
        assert await self._soon(waiting) == []
        assert time.monotonic() - began < self.patience_s

    async def test_who_waits_in_vain_and_gives_up_takes_nothing(self, sharing: Sharing) -> None:
        await sharing.groups.create(TAPE, "g")
        waiting = asyncio.ensure_future(sharing.groups.take(TAPE, "g", "gone", wait_s=LONG_S))
        await asyncio.sleep(0.05)
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
        await asyncio.sleep(0.05)
        await sharing.fill(1)
        await asyncio.sleep(0.05)
        assert offsets(await self._soon(sharing.groups.take(TAPE, "g", "c", wait_s=LONG_S))) == [1]

    async def test_what_was_trimmed_is_not_handed_out(self, sharing: Sharing) -> None:
        await sharing.fill(5)
        await sharing.groups.create(TAPE, "g")
        await sharing.log.trim(TAPE, keep_after=3)
        assert offsets(await sharing.groups.take(TAPE, "g", "c")) == [4, 5]

    # ---- ack -------------------------------------------------------------------------------------------------------

    async def test_what_is_done_is_pending_no_more(self, sharing: Sharing) -> None:
        await sharing.fill(4)
        await sharing.groups.create(TAPE, "g")
        await sharing.groups.take(TAPE, "g", "c")
        assert await sharing.groups.ack(TAPE, "g", 1, 3) == 2
        assert await sharing.pending() == [(2, "c", 1), (4, "c", 1)]
        await sharing.elapse(self.idle_s)
        assert offsets(await sharing.groups.claim(TAPE, "g", "d", idle_s=0)) == [2, 4]
        assert await sharing.groups.take(TAPE, "g", "c") == []

    async def test_ack_counts_what_was_pending_and_ignores_the_rest(self, sharing: Sharing) -> None:
        await sharing.fill(3)
        await sharing.groups.create(TAPE, "g")
        await sharing.groups.take(TAPE, "g", "c", limit=2)
        assert await sharing.groups.ack(TAPE, "g", 1, 3, 99) == 1
        assert await sharing.groups.ack(TAPE, "g", 1) == 0
        assert await sharing.groups.ack(TAPE, "g") == 0
        assert offsets(await sharing.groups.take(TAPE, "g", "c")) == [3]

    async def test_many_are_done_at_once(self, sharing: Sharing) -> None:
        await sharing.fill(MAX_READ)
        await sharing.groups.create(TAPE, "g")
        taken = await sharing.groups.take(TAPE, "g", "c", limit=MAX_READ)
        assert await sharing.groups.ack(TAPE, "g", *offsets(taken)) == MAX_READ
        assert await sharing.groups.pending(TAPE, "g") == []

    # ---- claim -----------------------------------------------------------------------------------------------------

    async def test_only_what_has_lain_long_enough_is_taken_over(self, sharing: Sharing) -> None:
        await sharing.fill(2)
        await sharing.groups.create(TAPE, "g")
        await sharing.groups.take(TAPE, "g", "c", limit=1)
        await sharing.elapse(self.idle_s)
        assert await sharing.groups.claim(TAPE, "g", "d", idle_s=LONG_S) == []
        assert offsets(await sharing.groups.claim(TAPE, "g", "d", idle_s=self.idle_s * 0.9)) == [1]
        assert await sharing.groups.claim(TAPE, "g", "e", idle_s=LONG_S) == []
        assert offsets(await sharing.groups.take(TAPE, "g", "e")) == [2]

    async def test_taking_over_counts_and_changes_the_consumer(self, sharing: Sharing) -> None:
        await sharing.fill(2)
        await sharing.groups.create(TAPE, "g")
        await sharing.groups.take(TAPE, "g", "c")
        await sharing.groups.ack(TAPE, "g", 1)
        await sharing.elapse(self.idle_s)
        (again,) = await sharing.groups.claim(TAPE, "g", "d", idle_s=0)
        assert (again.entry, again.deliveries) == ((await sharing.log.read(TAPE, 1))[0], 2)
        assert await sharing.pending() == [(2, "d", 2)]
        await sharing.elapse(self.idle_s)
        (third,) = await sharing.groups.claim(TAPE, "g", "d", idle_s=0)
        assert third.deliveries == 3, "also from oneself: a consumer that began again"

    async def test_taking_over_begins_the_time_anew(self, sharing: Sharing) -> None:
        await sharing.fill(1)
        await sharing.groups.create(TAPE, "g")
        await sharing.groups.take(TAPE, "g", "c")
        await sharing.elapse(self.idle_s)
        (before,) = await sharing.groups.pending(TAPE, "g")
        assert before.idle_s >= self.idle_s * 0.9
        began = time.monotonic()
        await sharing.groups.claim(TAPE, "g", "d", idle_s=0)
        (after,) = await sharing.groups.pending(TAPE, "g")
        assert 0 <= after.idle_s <= time.monotonic() - began + 0.05

    async def test_they_are_taken_over_in_order_and_no_more_than_asked_for(self, sharing: Sharing) -> None:
        await sharing.fill(5)
        await sharing.groups.create(TAPE, "g")
        for consumer in "abcde":
            await sharing.groups.take(TAPE, "g", consumer, limit=1)
        await sharing.elapse(self.idle_s)
        idle_s = self.idle_s * 0.9
        assert offsets(await sharing.groups.claim(TAPE, "g", "x", idle_s=idle_s, limit=2)) == [1, 2]
        assert offsets(await sharing.groups.claim(TAPE, "g", "y", idle_s=0)) == [1, 2, 3, 4, 5]

    async def test_what_many_take_over_at_once_goes_to_one(self, sharing: Sharing) -> None:
        await sharing.fill(20)
        await sharing.groups.create(TAPE, "g")
        await sharing.groups.take(TAPE, "g", "gone")
        # Long enough that nothing taken over in this case is idle for so long again.
        await sharing.elapse(2 * self.idle_s)
        claims = (sharing.groups.claim(TAPE, "g", f"c{n}", idle_s=2 * self.idle_s * 0.95, limit=5) for n in range(8))
        claimed = await asyncio.gather(*claims)
        assert sorted(offset for one in claimed for offset in offsets(one)) == list(range(1, 21))

    async def test_what_was_trimmed_is_dropped_from_what_is_pending(self, sharing: Sharing) -> None:
        await sharing.fill(4)
        await sharing.groups.create(TAPE, "g")
        await sharing.groups.take(TAPE, "g", "c")
        await sharing.log.trim(TAPE, keep_after=2)
        await sharing.elapse(self.idle_s)
        assert offsets(await sharing.groups.claim(TAPE, "g", "d", idle_s=0)) == [3, 4]
        assert await sharing.pending() == [(3, "d", 2), (4, "d", 2)]

    # ---- pending ---------------------------------------------------------------------------------------------------

    async def test_pending_tells_who_has_what_since_when(self, sharing: Sharing) -> None:
        await sharing.fill(3)
        await sharing.groups.create(TAPE, "g")
        assert await sharing.groups.pending(TAPE, "g") == []
        await sharing.groups.take(TAPE, "g", "c", limit=1)
        await sharing.elapse(self.idle_s)
        await sharing.groups.take(TAPE, "g", "d", limit=1)
        first, second = await sharing.groups.pending(TAPE, "g")
        assert (first.offset, first.consumer, first.deliveries) == (1, "c", 1)
        assert (second.offset, second.consumer, second.deliveries) == (2, "d", 1)
        assert first.idle_s >= self.idle_s * 0.9
        assert 0 <= second.idle_s <= first.idle_s - self.idle_s * 0.8

    async def test_no_more_pending_ones_are_told_than_asked_for(self, sharing: Sharing) -> None:
        await sharing.fill(5)
        await sharing.groups.create(TAPE, "g")
        await sharing.groups.take(TAPE, "g", "c")
        assert [p.offset for p in await sharing.groups.pending(TAPE, "g", limit=3)] == [1, 2, 3]

    # ---- how cases wait --------------------------------------------------------------------------------------------

    async def _soon(self, delivered: Awaitable[Sequence[Delivered]]) -> Sequence[Delivered]:
        async with asyncio.timeout(self.patience_s):
            return await delivered

    async def _not_found(self, refused: Awaitable[object]) -> None:
        try:
            async with asyncio.timeout(self.patience_s):
                await refused
        except NotFoundError:
            return
        raise AssertionError("an absent group was not told")

    async def _refused(self, refused: Awaitable[object]) -> None:
        try:
            async with asyncio.timeout(self.patience_s):
                await refused
        except ChannelError:
            return
        raise AssertionError("a name that cannot be was not refused")


class ReopenGroups(Protocol):
    """Ends the adapter as a killed process would and opens it again on the same data."""

    async def __call__(self) -> Sharing: ...


class DurableConsumerGroupsSuite(ConsumerGroupsSuite):
    """Further cases for groups that outlive the process; give the fixture `reopen_groups` too."""

    async def test_groups_are_there_after_a_restart(self, sharing: Sharing, reopen_groups: ReopenGroups) -> None:
        await sharing.fill(3)
        await sharing.groups.create(TAPE, "g")
        await sharing.groups.take(TAPE, "g", "c", limit=2)
        await sharing.groups.ack(TAPE, "g", 1)
        again = await reopen_groups()
        assert await again.groups.create(TAPE, "g") is False
        assert await again.pending() == [(2, "c", 1)]
        assert offsets(await again.groups.take(TAPE, "g", "d")) == [3]
        await again.elapse(self.idle_s)
        assert [(d.entry.offset, d.deliveries) for d in await again.groups.claim(TAPE, "g", "d", idle_s=0)] == [
            (2, 2),
            (3, 2),
        ]
