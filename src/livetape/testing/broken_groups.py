"""Consumer groups that break one promise each. `ConsumerGroupsSuite` must fail every one of them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from livetape.errors import NotFoundError
from livetape.events.groups import ConsumerGroups, Delivered, Pending, check_names
from livetape.events.log import MAX_READ, Entry
from livetape.testing.fakes import FakeLog, ManualClock


@dataclass
class Held:
    """An entry that somebody has."""

    entry: Entry
    consumer: str
    at: float
    deliveries: int = 1


@dataclass
class Crew:
    """One group."""

    position: int
    held: dict[int, Held] = field(default_factory=dict)


class SoftGroups(ConsumerGroups):
    """Sound groups in memory on a `FakeLog`, with seams where the broken ones differ."""

    def __init__(self) -> None:
        self.clock = ManualClock()
        self.log = FakeLog(self.clock)
        self.crews: dict[tuple[str, str], Crew] = {}

    def now(self) -> float:
        return self.clock.monotonic()

    def check(self, *names: str) -> None:
        check_names(*names)

    def crew(self, tape: str, group: str) -> Crew | None:
        return self.crews.get((tape, group))

    def required(self, tape: str, group: str) -> Crew:
        crew = self.crew(tape, group)
        if crew is None:
            raise NotFoundError(group=group)
        return crew

    async def create(self, tape: str, group: str, *, after: int = 0) -> bool:
        self.check(group)
        if (tape, group) in self.crews:
            return False
        self.crews[tape, group] = Crew(after)
        return True

    async def next(self, tape: str, crew: Crew, limit: int) -> list[Entry]:
        """What the group was not given yet."""
        return list(await self.log.read(tape, crew.position, limit=limit))

    def hand_over(self, crew: Crew, consumer: str, entries: Sequence[Entry]) -> list[Delivered]:
        for entry in entries:
            crew.held[entry.offset] = Held(entry, consumer, self.now())
            crew.position = entry.offset
        return [Delivered(entry, 1) for entry in entries]

    async def take(
        self, tape: str, group: str, consumer: str, *, limit: int = 100, wait_s: float = 0
    ) -> Sequence[Delivered]:
        self.check(group, consumer)
        loop = asyncio.get_running_loop()
        until = loop.time() + wait_s
        while True:
            crew = self.required(tape, group)
            entries = await self.next(tape, crew, min(limit, MAX_READ))
            if entries or loop.time() >= until:
                return self.hand_over(crew, consumer, entries)
            await asyncio.sleep(0.005)

    async def ack(self, tape: str, group: str, *offsets: int) -> int:
        self.check(group)
        crew = self.crew(tape, group)
        return 0 if crew is None else sum(crew.held.pop(offset, None) is not None for offset in offsets)

    def idle(self, crew: Crew, idle_s: float) -> list[Held]:
        """Who lies long enough, in order."""
        return [held for _, held in sorted(crew.held.items()) if self.now() - held.at >= idle_s]

    async def claim(
        self, tape: str, group: str, consumer: str, *, idle_s: float, limit: int = 100
    ) -> Sequence[Delivered]:
        self.check(group, consumer)
        crew = self.required(tape, group)
        self.forget_trimmed(tape, crew)
        return [self.pass_on(held, consumer) for held in self.idle(crew, idle_s)[:limit]]

    def forget_trimmed(self, tape: str, crew: Crew) -> None:
        reel = self.log.reels.get(tape)
        first = 1 if reel is None else reel.tape.first_offset
        crew.held = {offset: held for offset, held in crew.held.items() if offset >= first}

    def pass_on(self, held: Held, consumer: str) -> Delivered:
        held.consumer, held.at, held.deliveries = consumer, self.now(), held.deliveries + 1
        return Delivered(held.entry, held.deliveries)

    async def pending(self, tape: str, group: str, *, limit: int = MAX_READ) -> Sequence[Pending]:
        self.check(group)
        crew = self.crew(tape, group)
        if crew is None:
            return []
        return [
            Pending(offset, held.consumer, self.now() - held.at, held.deliveries)
            for offset, held in sorted(crew.held.items())
        ][:limit]

    async def drop(self, tape: str, group: str) -> bool:
        self.check(group)
        return self.crews.pop((tape, group), None) is not None


class BeginsAnew(SoftGroups):
    """A group that is made again begins again."""

    async def create(self, tape: str, group: str, *, after: int = 0) -> bool:
        made = (tape, group) not in self.crews
        self.crews[tape, group] = Crew(after)
        return made


class AlwaysFromTheStart(SoftGroups):
    """`after` has no effect."""

    async def create(self, tape: str, group: str, *, after: int = 0) -> bool:
        return await super().create(tape, group)


class NeedsATape(SoftGroups):
    """No group without a tape."""

    async def create(self, tape: str, group: str, *, after: int = 0) -> bool:
        return tape in self.log.reels and await super().create(tape, group, after=after)


class OnlyOldTapes(SoftGroups):
    """A group that waits for a tape that is made later waits for ever."""

    async def take(
        self, tape: str, group: str, consumer: str, *, limit: int = 100, wait_s: float = 0
    ) -> Sequence[Delivered]:
        if tape not in self.log.reels:
            await asyncio.sleep(wait_s)
            return []
        return await super().take(tape, group, consumer, limit=limit, wait_s=wait_s)


class NeverForgets(SoftGroups):
    """A dropped group lives on."""

    async def drop(self, tape: str, group: str) -> bool:
        return (tape, group) in self.crews


class MakesGroups(SoftGroups):
    """Who asks for an absent group gets a new one."""

    def required(self, tape: str, group: str) -> Crew:
        return self.crews.setdefault((tape, group), Crew(0))


class SimpleNames(SoftGroups):
    """Names are cut and put into lower case."""

    async def create(self, tape: str, group: str, *, after: int = 0) -> bool:
        return await super().create(tape, group[:64].lower(), after=after)

    def crew(self, tape: str, group: str) -> Crew | None:
        return super().crew(tape, group[:64].lower())


class LongNames(SoftGroups):
    """Any length will do."""

    def check(self, *names: str) -> None:
        super().check(*(name[:200] for name in names))


class NamelessConsumers(SoftGroups):
    """Only the names of groups are looked at."""

    def check(self, *names: str) -> None:
        super().check(names[0])


class ForgetsTheEnd(SoftGroups):
    """The last event is not marked."""

    async def next(self, tape: str, crew: Crew, limit: int) -> list[Entry]:
        return [entry._replace(final=False) for entry in await super().next(tape, crew, limit)]


class TakesAll(SoftGroups):
    """The limit has no effect."""

    async def next(self, tape: str, crew: Crew, limit: int) -> list[Entry]:
        return await super().next(tape, crew, MAX_READ)


class NoMost(SoftGroups):
    """Whoever asks for more than the most gets it."""

    async def take(
        self, tape: str, group: str, consumer: str, *, limit: int = 100, wait_s: float = 0
    ) -> Sequence[Delivered]:
        first = list(await super().take(tape, group, consumer, limit=limit, wait_s=wait_s))
        return first + list(await super().take(tape, group, consumer, limit=max(0, limit - MAX_READ)))


class LosesOne(SoftGroups):
    """The seventh event is given to nobody."""

    async def next(self, tape: str, crew: Crew, limit: int) -> list[Entry]:
        return [entry for entry in await super().next(tape, crew, limit) if entry.offset != 7]


class DoublesOne(SoftGroups):
    """The seventh event is given to the next one too."""

    def hand_over(self, crew: Crew, consumer: str, entries: Sequence[Entry]) -> list[Delivered]:
        delivered = super().hand_over(crew, consumer, entries)
        if crew.position == 7 and len(entries) > 1:
            crew.position = 6
        return delivered


class SwapsTwo(SoftGroups):
    """The fourth event comes before the third."""

    def hand_over(self, crew: Crew, consumer: str, entries: Sequence[Entry]) -> list[Delivered]:
        delivered = super().hand_over(crew, consumer, entries)
        delivered[2:4] = reversed(delivered[2:4])
        return delivered


class TakesLate(SoftGroups):
    """Two that take at once get the same."""

    async def next(self, tape: str, crew: Crew, limit: int) -> list[Entry]:
        entries = await super().next(tape, crew, limit)
        await asyncio.sleep(0)
        return entries


class ForgetsWho(SoftGroups):
    """All that is pending is the first consumer's."""

    first: str | None = None

    def hand_over(self, crew: Crew, consumer: str, entries: Sequence[Entry]) -> list[Delivered]:
        self.first = self.first or consumer
        return super().hand_over(crew, self.first, entries)


class OneGroup(SoftGroups):
    """All groups of a tape are one."""

    async def create(self, tape: str, group: str, *, after: int = 0) -> bool:
        return await super().create(tape, "", after=after)

    def crew(self, tape: str, group: str) -> Crew | None:
        return super().crew(tape, "")


class NeverWaits(SoftGroups):
    """An empty tape answers at once."""

    async def take(
        self, tape: str, group: str, consumer: str, *, limit: int = 100, wait_s: float = 0
    ) -> Sequence[Delivered]:
        return await super().take(tape, group, consumer, limit=limit)


class WakesEverybody(SoftGroups):
    """All who wait return when the first event comes, most of them with nothing."""

    async def take(
        self, tape: str, group: str, consumer: str, *, limit: int = 100, wait_s: float = 0
    ) -> Sequence[Delivered]:
        if wait_s:
            before = self.required(tape, group).position
            reel = self.log.reels.get(tape)
            while reel is None or reel.tape.offset <= before:
                await asyncio.sleep(0.005)
                reel = self.log.reels.get(tape)
        return await super().take(tape, group, consumer, limit=limit)


class WaitsForEver(SoftGroups):
    """`wait_s` has no end."""

    async def take(
        self, tape: str, group: str, consumer: str, *, limit: int = 100, wait_s: float = 0
    ) -> Sequence[Delivered]:
        return await super().take(tape, group, consumer, limit=limit, wait_s=3600 if wait_s else 0)


class GoesOnWaiting(SoftGroups):
    """Who gave up still takes the next event."""

    def __init__(self) -> None:
        super().__init__()
        self.tasks: set[asyncio.Task[Sequence[Delivered]]] = set()

    async def take(
        self, tape: str, group: str, consumer: str, *, limit: int = 100, wait_s: float = 0
    ) -> Sequence[Delivered]:
        taking = asyncio.ensure_future(super().take(tape, group, consumer, limit=limit, wait_s=wait_s))
        self.tasks.add(taking)
        taking.add_done_callback(self.tasks.discard)
        return await asyncio.shield(taking)


class CountsTrimmed(SoftGroups):
    """What was trimmed is handed out as an empty event."""

    async def next(self, tape: str, crew: Crew, limit: int) -> list[Entry]:
        reel = self.log.reels.get(tape)
        first = reel.tape.first_offset if reel is not None else 1
        gone = [Entry(offset, "", b"{}", False, 0) for offset in range(crew.position + 1, first)]
        return (gone + await super().next(tape, crew, limit))[:limit]


class ForgetsAcks(SoftGroups):
    """What is done is pending still."""

    async def ack(self, tape: str, group: str, *offsets: int) -> int:
        crew = self.crew(tape, group)
        return 0 if crew is None else len([offset for offset in offsets if offset in crew.held])


class CountsEverything(SoftGroups):
    """`ack` answers how many it was told."""

    async def ack(self, tape: str, group: str, *offsets: int) -> int:
        await super().ack(tape, group, *offsets)
        return len(offsets)


class AcksFew(SoftGroups):
    """Of many that are done at once some are forgotten."""

    async def ack(self, tape: str, group: str, *offsets: int) -> int:
        return await super().ack(tape, group, *offsets[:500])


class Impatient(SoftGroups):
    """Whatever is pending can be taken over at once."""

    def idle(self, crew: Crew, idle_s: float) -> list[Held]:
        return super().idle(crew, 0)


class CountsOnce(SoftGroups):
    """Taking over is no delivery."""

    def pass_on(self, held: Held, consumer: str) -> Delivered:
        held.consumer, held.at = consumer, self.now()
        return Delivered(held.entry, held.deliveries)


class KeepsTheConsumer(SoftGroups):
    """What was taken over is still the first one's."""

    def pass_on(self, held: Held, consumer: str) -> Delivered:
        return super().pass_on(held, held.consumer)


class KeepsTheTime(SoftGroups):
    """Taking over does not begin the time anew, so that all who claim get the same."""

    def pass_on(self, held: Held, consumer: str) -> Delivered:
        before = held.at
        delivered = super().pass_on(held, consumer)
        held.at = before
        return delivered


class ClaimsLate(SoftGroups):
    """Those who claim at once get the same."""

    async def claim(
        self, tape: str, group: str, consumer: str, *, idle_s: float, limit: int = 100
    ) -> Sequence[Delivered]:
        found = self.idle(self.required(tape, group), idle_s)[:limit]
        await asyncio.sleep(0)
        return [self.pass_on(held, consumer) for held in found]


class ClaimsAll(SoftGroups):
    """Taking over has no limit."""

    async def claim(
        self, tape: str, group: str, consumer: str, *, idle_s: float, limit: int = 100
    ) -> Sequence[Delivered]:
        return await super().claim(tape, group, consumer, idle_s=idle_s)


class ClaimsBackwards(SoftGroups):
    """The newest is taken over first."""

    def idle(self, crew: Crew, idle_s: float) -> list[Held]:
        return super().idle(crew, idle_s)[::-1]


class ClaimsTrimmed(SoftGroups):
    """What was trimmed stays pending for ever."""

    def forget_trimmed(self, tape: str, crew: Crew) -> None:
        pass


class NeverIdle(SoftGroups):
    """Pending ones look as if they were handed over just now."""

    async def pending(self, tape: str, group: str, *, limit: int = MAX_READ) -> Sequence[Pending]:
        return [one._replace(idle_s=0.0) for one in await super().pending(tape, group, limit=limit)]


class TellsAll(SoftGroups):
    """The limit of `pending` has no effect."""

    async def pending(self, tape: str, group: str, *, limit: int = MAX_READ) -> Sequence[Pending]:
        return await super().pending(tape, group)


BROKEN_GROUPS: Final[Mapping[Callable[[], SoftGroups], str]] = {
    BeginsAnew: "test_a_group_is_made_once_and_then_nothing_changes",
    AlwaysFromTheStart: "test_a_group_begins_after_its_offset",
    NeedsATape: "test_the_tape_need_not_exist_yet",
    OnlyOldTapes: "test_taking_waits_for_a_tape_that_is_made_later",
    NeverForgets: "test_a_dropped_group_is_forgotten",
    MakesGroups: "test_an_absent_group_is_told_from_an_empty_one",
    SimpleNames: "test_names_are_taken_as_they_are",
    LongNames: "test_names_that_cannot_be_are_refused",
    NamelessConsumers: "test_names_that_cannot_be_are_refused",
    ForgetsTheEnd: "test_entries_come_as_they_are_on_the_tape",
    TakesAll: "test_no_more_are_taken_than_asked_for",
    NoMost: "test_never_more_than_the_most_are_taken",
    LosesOne: "test_each_entry_goes_to_one_consumer",
    DoublesOne: "test_each_entry_goes_to_one_consumer",
    SwapsTwo: "test_each_entry_goes_to_one_consumer",
    TakesLate: "test_each_entry_goes_to_one_consumer",
    ForgetsWho: "test_each_entry_goes_to_one_consumer",
    OneGroup: "test_groups_know_nothing_of_each_other",
    NeverWaits: "test_taking_waits_for_the_first",
    WakesEverybody: "test_of_those_who_wait_one_gets_it",
    WaitsForEver: "test_taking_waits_no_longer_than_it_was_told",
    GoesOnWaiting: "test_who_waits_in_vain_and_gives_up_takes_nothing",
    CountsTrimmed: "test_what_was_trimmed_is_not_handed_out",
    ForgetsAcks: "test_what_is_done_is_pending_no_more",
    CountsEverything: "test_ack_counts_what_was_pending_and_ignores_the_rest",
    AcksFew: "test_many_are_done_at_once",
    Impatient: "test_only_what_has_lain_long_enough_is_taken_over",
    CountsOnce: "test_taking_over_counts_and_changes_the_consumer",
    KeepsTheConsumer: "test_taking_over_counts_and_changes_the_consumer",
    KeepsTheTime: "test_taking_over_begins_the_time_anew",
    ClaimsLate: "test_what_many_take_over_at_once_goes_to_one",
    ClaimsAll: "test_they_are_taken_over_in_order_and_no_more_than_asked_for",
    ClaimsBackwards: "test_they_are_taken_over_in_order_and_no_more_than_asked_for",
    ClaimsTrimmed: "test_what_was_trimmed_is_dropped_from_what_is_pending",
    NeverIdle: "test_pending_tells_who_has_what_since_when",
    TellsAll: "test_no_more_pending_ones_are_told_than_asked_for",
}
"""Every one fails `ConsumerGroupsSuite`, at least in the case that is named here."""
