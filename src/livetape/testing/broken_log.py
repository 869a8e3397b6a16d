"""Event logs that break one promise each. `EventLogSuite` must fail every one of them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from fnmatch import fnmatchcase
from typing import Final

from livetape.clock import new_epoch
from livetape.events.log import MAX_READ, Entry, EventLog, NewEvent, Position, PutResult, Tape
from livetape.testing.fakes import FakeLog, Reel


class LosesOne(FakeLog):
    """The third event is acknowledged and not kept."""

    def store(self, reel: Reel, offset: int, event: NewEvent) -> None:
        super().store(reel, offset, event)
        if offset == 3:
            reel.entries.pop()


class DoublesOne(FakeLog):
    """The third event is there twice."""

    def store(self, reel: Reel, offset: int, event: NewEvent) -> None:
        super().store(reel, offset, event)
        if offset == 3:
            reel.entries.append(reel.entries[-1])


class SwapsTwo(FakeLog):
    """The fifth event is read before the fourth."""

    def store(self, reel: Reel, offset: int, event: NewEvent) -> None:
        super().store(reel, offset, event)
        if offset == 5 and len(reel.entries) > 1:
            reel.entries[-1], reel.entries[-2] = reel.entries[-2], reel.entries[-1]


class AllotsLate(FakeLog):
    """Concurrent appends see the same last offset."""

    async def append(self, tape: str, event: NewEvent, *, idempotency_key: str | None = None) -> Position:
        await self.create(tape, owner=None, channel="")
        offset = self.reels[tape].tape.offset + 1
        await asyncio.sleep(0)
        self.store(self.reels[tape], offset, event)
        return Position(self.reels[tape].tape.epoch, offset)


class StartsAtTwo(FakeLog):
    """The first offset of a tape is 2."""

    async def append(self, tape: str, event: NewEvent, *, idempotency_key: str | None = None) -> Position:
        made = await self.create(tape, owner=None, channel="")
        if made.offset == 0:
            self.reels[tape].tape = replace(made, offset=1)
        return await super().append(tape, event, idempotency_key=idempotency_key)


class ForgetsMetadata(FakeLog):
    """The graph of a tape is dropped."""

    async def create(
        self, tape: str, *, owner: str | None, channel: str, graph_id: str | None = None, epoch: str | None = None
    ) -> Tape:
        return await super().create(tape, owner=owner, channel=channel, epoch=epoch)


class OneNumbering(FakeLog):
    """All tapes share one count."""

    count = 0

    async def append(self, tape: str, event: NewEvent, *, idempotency_key: str | None = None) -> Position:
        await self.create(tape, owner=None, channel="")
        self.count += 1
        self.store(self.reels[tape], self.count, event)
        return Position(self.reels[tape].tape.epoch, self.count)


class ForgetsKeys(FakeLog):
    """An idempotency key has no effect."""

    async def append(self, tape: str, event: NewEvent, *, idempotency_key: str | None = None) -> Position:
        return await super().append(tape, event)


class ChecksKeysLate(FakeLog):
    """Two that come at once with one key both write."""

    async def append(self, tape: str, event: NewEvent, *, idempotency_key: str | None = None) -> Position:
        reel = self.reels.get(tape)
        if reel is not None and idempotency_key in reel.keys:
            return Position(reel.tape.epoch, reel.keys[idempotency_key or ""])
        await asyncio.sleep(0)
        position = await super().append(tape, event)
        self.reels[tape].keys.setdefault(idempotency_key or "", position.offset)
        return position


class SharesKeys(FakeLog):
    """A key of one tape is taken for that of another."""

    async def append(self, tape: str, event: NewEvent, *, idempotency_key: str | None = None) -> Position:
        for reel in self.reels.values():
            if idempotency_key in reel.keys:
                return Position(reel.tape.epoch, reel.keys[idempotency_key or ""])
        return await super().append(tape, event, idempotency_key=idempotency_key)


class Reformats(FakeLog):
    """The JSON is parsed and written again."""

    def store(self, reel: Reel, offset: int, event: NewEvent) -> None:
        from pydantic_core import from_json, to_json  # noqa: PLC0415

        try:
            event = replace(event, payload=to_json(from_json(event.payload)))
        except ValueError:
            event = replace(event, payload=b"{}")
        super().store(reel, offset, event)


class ReadsFromTheOffset(FakeLog):
    """`after` is included."""

    async def read(
        self, tape: str, after: int = 0, *, limit: int = MAX_READ, epoch: str | None = None
    ) -> Sequence[Entry]:
        return await super().read(tape, max(0, after - 1), limit=limit, epoch=epoch)


class ReadsEverything(FakeLog):
    """No bound on one read."""

    async def read(
        self, tape: str, after: int = 0, *, limit: int = MAX_READ, epoch: str | None = None
    ) -> Sequence[Entry]:
        reel = self.reels.get(tape)
        return [] if reel is None else [entry for entry in reel.entries if entry.offset > after][:limit]


class LastCreatorWins(FakeLog):
    """Whoever comes later takes the tape over."""

    async def create(
        self, tape: str, *, owner: str | None, channel: str, graph_id: str | None = None, epoch: str | None = None
    ) -> Tape:
        made = await super().create(tape, owner=owner, channel=channel, graph_id=graph_id, epoch=epoch)
        if owner is not None:
            made = self.reels[tape].tape = replace(made, owner=owner, channel=channel, graph_id=graph_id)
        return made


class NeverOwned(FakeLog):
    """Metadata that comes after the first event is dropped."""

    async def create(
        self, tape: str, *, owner: str | None, channel: str, graph_id: str | None = None, epoch: str | None = None
    ) -> Tape:
        if tape in self.reels:
            return self.reels[tape].tape
        return await super().create(tape, owner=owner, channel=channel, graph_id=graph_id, epoch=epoch)


class NewEpochs(FakeLog):
    """Every append has its own epoch."""

    async def append(self, tape: str, event: NewEvent, *, idempotency_key: str | None = None) -> Position:
        position = await super().append(tape, event, idempotency_key=idempotency_key)
        return replace(position, epoch=new_epoch())


class NeverFinal(FakeLog):
    """The end of a tape is not noted."""

    def store(self, reel: Reel, offset: int, event: NewEvent) -> None:
        super().store(reel, offset, replace(event, final=False))


class PutsTwice(FakeLog):
    """A copy that is there already is written over it."""

    async def put(self, tape: str, position: Position, event: NewEvent) -> PutResult:
        result = await super().put(tape, position, event)
        if result == "duplicate":
            entries = self.reels[tape].entries
            entries[position.offset - 1] = entries[position.offset - 1]._replace(payload=event.payload)
        return result


class LeavesHoles(FakeLog):
    """A copy is taken whatever is missing before it."""

    async def put(self, tape: str, position: Position, event: NewEvent) -> PutResult:
        reel = self.reels.get(tape)
        if reel is not None and position.offset > reel.tape.offset + 1:
            self.store(reel, position.offset, event)
            return "stored"
        return await super().put(tape, position, event)


class IgnoresEpochs(FakeLog):
    """A copy of another epoch is mixed in."""

    async def put(self, tape: str, position: Position, event: NewEvent) -> PutResult:
        reel = self.reels.get(tape)
        if reel is not None:
            position = replace(position, epoch=reel.tape.epoch)
        return await super().put(tape, position, event)


class StartsAgain(FakeLog):
    """Offsets begin anew when everything was trimmed."""

    async def trim(self, tape: str, *, keep_after: int) -> int:
        gone = await super().trim(tape, keep_after=keep_after)
        reel = self.reels.get(tape)
        if reel is not None and not reel.entries:
            reel.tape = replace(reel.tape, offset=0, first_offset=1)
        return gone


class TrimsNothing(FakeLog):
    """Retention has no effect."""

    async def trim(self, tape: str, *, keep_after: int) -> int:
        return 0


class InventsTapes(FakeLog):
    """Asking for a tape makes it."""

    async def describe(self, tape: str) -> Tape | None:
        return await self.create(tape, owner=None, channel="")


class IgnoresTheEpochAsked(FakeLog):
    """`read` takes every epoch for its own."""

    async def read(
        self, tape: str, after: int = 0, *, limit: int = MAX_READ, epoch: str | None = None
    ) -> Sequence[Entry]:
        if tape not in self.reels:
            return await super().read(tape, after, limit=limit, epoch=epoch)
        return await super().read(tape, after, limit=limit)


class AbsentIsEmpty(FakeLog):
    """An absent tape has every epoch."""

    async def read(
        self, tape: str, after: int = 0, *, limit: int = MAX_READ, epoch: str | None = None
    ) -> Sequence[Entry]:
        return [] if tape not in self.reels else await super().read(tape, after, limit=limit, epoch=epoch)


class SaysMixed(FakeLog):
    """Every tape is said to have another writer."""

    async def describe(self, tape: str) -> Tape | None:
        described = await super().describe(tape)
        return None if described is None else replace(described, mixed=True)


class NamesTwice(FakeLog):
    """A tape is named for each of its events."""

    async def tapes(self, prefix: str = "") -> AsyncIterator[str]:
        async for name in super().tapes(prefix):
            for _ in self.reels[name].entries:
                yield name


class PrefixIsAPattern(FakeLog):
    """A `*` in the beginning of a name matches anything."""

    async def tapes(self, prefix: str = "") -> AsyncIterator[str]:
        async for name in super().tapes():
            if fnmatchcase(name, prefix + "*"):
                yield name


class OnePage(FakeLog):
    """Only the first thousand tapes are named."""

    async def tapes(self, prefix: str = "") -> AsyncIterator[str]:
        found = [name async for name in super().tapes(prefix)]
        for name in found[:MAX_READ]:
            yield name


class StandsStill(FakeLog):
    """Every event has the time of the first day."""

    def store(self, reel: Reel, offset: int, event: NewEvent) -> None:
        super().store(reel, offset, event)
        reel.entries[-1] = reel.entries[-1]._replace(at_us=offset)


class FindsTheNext(FakeLog):
    """The event after a time is taken for the one before it."""

    async def offset_at(self, tape: str, time: datetime) -> int:
        found = await super().offset_at(tape, time)
        reel = self.reels.get(tape)
        return 0 if reel is None or found == 0 else min(found + 1, reel.tape.offset)


class FindsNothing(FakeLog):
    """No time is known."""

    async def offset_at(self, tape: str, time: datetime) -> int:
        return 0


class FindsTheFirst(FakeLog):
    """What was before everything is the first event."""

    async def offset_at(self, tape: str, time: datetime) -> int:
        return max(1, await super().offset_at(tape, time))


BROKEN_LOGS: Final[Mapping[Callable[[], EventLog], str]] = {
    LosesOne: "test_concurrent_appends_get_different_consecutive_offsets",
    DoublesOne: "test_concurrent_appends_get_different_consecutive_offsets",
    SwapsTwo: "test_concurrent_appends_get_different_consecutive_offsets",
    AllotsLate: "test_concurrent_appends_get_different_consecutive_offsets",
    StartsAtTwo: "test_offsets_are_one_two_three",
    ForgetsMetadata: "test_create_gives_a_tape_its_metadata",
    OneNumbering: "test_tapes_are_numbered_apart",
    ForgetsKeys: "test_an_idempotency_key_writes_once_and_returns_the_first_position",
    ChecksKeysLate: "test_concurrent_appends_with_one_key_write_once",
    SharesKeys: "test_a_key_belongs_to_its_tape",
    Reformats: "test_what_was_appended_is_read_back_byte_for_byte",
    ReadsFromTheOffset: "test_read_returns_what_is_after_the_offset_in_order",
    ReadsEverything: "test_read_never_returns_more_than_the_most",
    LastCreatorWins: "test_the_first_creator_wins",
    NeverOwned: "test_a_tape_without_owner_gets_one_later",
    NewEpochs: "test_an_epoch_is_born_with_the_tape_and_has_no_dash",
    NeverFinal: "test_describe_tells_the_newest_offset_and_the_end",
    PutsTwice: "test_put_of_a_known_number_changes_nothing",
    LeavesHoles: "test_put_never_leaves_a_hole",
    IgnoresEpochs: "test_put_refuses_another_epoch_and_an_absent_tape",
    StartsAgain: "test_trim_of_everything_keeps_the_position",
    TrimsNothing: "test_trim_forgets_the_oldest_and_offsets_go_on",
    IgnoresTheEpochAsked: "test_read_of_another_epoch_is_refused",
    AbsentIsEmpty: "test_read_of_an_epoch_of_an_absent_tape_is_refused",
    SaysMixed: "test_a_tape_that_only_the_log_writes_is_not_mixed",
    NamesTwice: "test_tapes_names_each_tape_once",
    PrefixIsAPattern: "test_tapes_takes_the_beginning_of_a_name_as_it_is",
    OnePage: "test_tapes_goes_on_beyond_a_page",
    StandsStill: "test_an_entry_knows_when_it_was_appended",
    FindsTheNext: "test_the_offset_at_a_time_is_never_that_of_a_later_event",
    FindsNothing: "test_the_offset_at_a_later_time_is_the_newest",
    FindsTheFirst: "test_the_offset_before_the_first_event_and_of_an_absent_tape_is_0",
    InventsTapes: "test_an_absent_tape_reads_as_empty",
}
"""Every one fails `EventLogSuite`, at least in the case that is named here."""
