"""Event logs that break one promise each. `EventLogSuite` must fail every one of them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final

from livetape.clock import new_epoch
from livetape.errors import NotFoundError, PositionLostError, TapeHoleError
from livetape.events.log import MAX_READ, Entry, EventLog, NewEvent, Position, PutResult, Tape


@dataclass
class _Reel:
    tape: Tape
    entries: list[Entry] = field(default_factory=list)
    keys: dict[str, int] = field(default_factory=dict)


class SoftLog(EventLog):
    """A sound log in memory, with seams where the broken ones differ."""

    def __init__(self) -> None:
        self.reels: dict[str, _Reel] = {}

    async def create(
        self, tape: str, *, owner: str | None, channel: str, graph_id: str | None = None, epoch: str | None = None
    ) -> Tape:
        reel = self.reels.get(tape)
        if reel is None:
            made = Tape(tape, owner, graph_id, channel, epoch or new_epoch(), 0, 1, final=False)
            reel = self.reels[tape] = _Reel(made)
        elif reel.tape.owner is None:
            reel.tape = replace(reel.tape, owner=owner, channel=channel, graph_id=graph_id)
        return reel.tape

    async def append(self, tape: str, event: NewEvent, *, idempotency_key: str | None = None) -> Position:
        await self.create(tape, owner=None, channel="")
        reel = self.reels[tape]
        if idempotency_key is not None and idempotency_key in reel.keys:
            return Position(reel.tape.epoch, reel.keys[idempotency_key])
        offset = reel.tape.offset + 1
        if idempotency_key is not None:
            reel.keys[idempotency_key] = offset
        self.store(reel, offset, event)
        return Position(reel.tape.epoch, offset)

    def store(self, reel: _Reel, offset: int, event: NewEvent) -> None:
        reel.entries.append(Entry(offset, event.event_type, event.payload, event.final, int(time.time() * 1_000_000)))
        reel.tape = replace(reel.tape, offset=offset, final=reel.tape.final or event.final)

    async def put(self, tape: str, position: Position, event: NewEvent) -> PutResult:
        reel = self.reels.get(tape)
        if reel is None:
            raise NotFoundError
        if reel.tape.epoch != position.epoch:
            raise PositionLostError
        if position.offset <= reel.tape.offset:
            return "duplicate"
        if position.offset > reel.tape.offset + 1:
            raise TapeHoleError(missing_from=reel.tape.offset + 1)
        self.store(reel, position.offset, event)
        return "stored"

    async def read(
        self, tape: str, after: int = 0, *, limit: int = MAX_READ, epoch: str | None = None
    ) -> Sequence[Entry]:
        reel = self.reels.get(tape)
        if epoch is not None and (reel is None or reel.tape.epoch != epoch):
            raise PositionLostError(tape=tape)
        return [] if reel is None else [e for e in reel.entries if e.offset > after][: min(limit, MAX_READ)]

    async def tapes(self, prefix: str = "") -> AsyncIterator[str]:
        for name in [name for name in self.reels if name.startswith(prefix)]:
            yield name

    async def describe(self, tape: str) -> Tape | None:
        reel = self.reels.get(tape)
        return None if reel is None else reel.tape

    async def trim(self, tape: str, *, keep_after: int) -> int:
        reel = self.reels.get(tape)
        if reel is None:
            return 0
        before = len(reel.entries)
        reel.entries = [entry for entry in reel.entries if entry.offset > keep_after]
        upto = min(keep_after, reel.tape.offset)
        reel.tape = replace(reel.tape, first_offset=max(reel.tape.first_offset, upto + 1))
        return before - len(reel.entries)

    async def close(self) -> None:
        pass


class LosesOne(SoftLog):
    """The third event is acknowledged and not kept."""

    def store(self, reel: _Reel, offset: int, event: NewEvent) -> None:
        super().store(reel, offset, event)
        if offset == 3:
            reel.entries.pop()


class DoublesOne(SoftLog):
    """The third event is there twice."""

    def store(self, reel: _Reel, offset: int, event: NewEvent) -> None:
        super().store(reel, offset, event)
        if offset == 3:
            reel.entries.append(reel.entries[-1])


class SwapsTwo(SoftLog):
    """The fifth event is read before the fourth."""

    def store(self, reel: _Reel, offset: int, event: NewEvent) -> None:
        super().store(reel, offset, event)
        if offset == 5 and len(reel.entries) > 1:
            reel.entries[-1], reel.entries[-2] = reel.entries[-2], reel.entries[-1]


class AllotsLate(SoftLog):
    """Concurrent appends see the same last offset."""

    async def append(self, tape: str, event: NewEvent, *, idempotency_key: str | None = None) -> Position:
        await self.create(tape, owner=None, channel="")
        offset = self.reels[tape].tape.offset + 1
        await asyncio.sleep(0)
        self.store(self.reels[tape], offset, event)
        return Position(self.reels[tape].tape.epoch, offset)


class StartsAtTwo(SoftLog):
    """The first offset of a tape is 2."""

    async def append(self, tape: str, event: NewEvent, *, idempotency_key: str | None = None) -> Position:
        made = await self.create(tape, owner=None, channel="")
        if made.offset == 0:
            self.reels[tape].tape = replace(made, offset=1)
        return await super().append(tape, event, idempotency_key=idempotency_key)


class ForgetsMetadata(SoftLog):
    """The graph of a tape is dropped."""

    async def create(
        self, tape: str, *, owner: str | None, channel: str, graph_id: str | None = None, epoch: str | None = None
    ) -> Tape:
        return await super().create(tape, owner=owner, channel=channel, epoch=epoch)


class OneNumbering(SoftLog):
    """All tapes share one count."""

    count = 0

    async def append(self, tape: str, event: NewEvent, *, idempotency_key: str | None = None) -> Position:
        await self.create(tape, owner=None, channel="")
        self.count += 1
        self.store(self.reels[tape], self.count, event)
        return Position(self.reels[tape].tape.epoch, self.count)


class ForgetsKeys(SoftLog):
    """An idempotency key has no effect."""

    async def append(self, tape: str, event: NewEvent, *, idempotency_key: str | None = None) -> Position:
        return await super().append(tape, event)


class ChecksKeysLate(SoftLog):
    """Two that come at once with one key both write."""

    async def append(self, tape: str, event: NewEvent, *, idempotency_key: str | None = None) -> Position:
        reel = self.reels.get(tape)
        if reel is not None and idempotency_key in reel.keys:
            return Position(reel.tape.epoch, reel.keys[idempotency_key or ""])
        await asyncio.sleep(0)
        position = await super().append(tape, event)
        self.reels[tape].keys.setdefault(idempotency_key or "", position.offset)
        return position


class SharesKeys(SoftLog):
    """A key of one tape is taken for that of another."""

    async def append(self, tape: str, event: NewEvent, *, idempotency_key: str | None = None) -> Position:
        for reel in self.reels.values():
            if idempotency_key in reel.keys:
                return Position(reel.tape.epoch, reel.keys[idempotency_key or ""])
        return await super().append(tape, event, idempotency_key=idempotency_key)


class Reformats(SoftLog):
    """The JSON is parsed and written again."""

    def store(self, reel: _Reel, offset: int, event: NewEvent) -> None:
        from pydantic_core import from_json, to_json  # noqa: PLC0415

        try:
            event = replace(event, payload=to_json(from_json(event.payload)))
        except ValueError:
            event = replace(event, payload=b"{}")
        super().store(reel, offset, event)


class ReadsFromTheOffset(SoftLog):
    """`after` is included."""

    async def read(
        self, tape: str, after: int = 0, *, limit: int = MAX_READ, epoch: str | None = None
    ) -> Sequence[Entry]:
        return await super().read(tape, max(0, after - 1), limit=limit, epoch=epoch)


class ReadsEverything(SoftLog):
    """No bound on one read."""

    async def read(
        self, tape: str, after: int = 0, *, limit: int = MAX_READ, epoch: str | None = None
    ) -> Sequence[Entry]:
        reel = self.reels.get(tape)
        return [] if reel is None else [entry for entry in reel.entries if entry.offset > after][:limit]


class LastCreatorWins(SoftLog):
    """Whoever comes later takes the tape over."""

    async def create(
        self, tape: str, *, owner: str | None, channel: str, graph_id: str | None = None, epoch: str | None = None
    ) -> Tape:
        made = await super().create(tape, owner=owner, channel=channel, graph_id=graph_id, epoch=epoch)
        if owner is not None:
            made = self.reels[tape].tape = replace(made, owner=owner, channel=channel, graph_id=graph_id)
        return made


class NeverOwned(SoftLog):
    """Metadata that comes after the first event is dropped."""

    async def create(
        self, tape: str, *, owner: str | None, channel: str, graph_id: str | None = None, epoch: str | None = None
    ) -> Tape:
        if tape in self.reels:
            return self.reels[tape].tape
        return await super().create(tape, owner=owner, channel=channel, graph_id=graph_id, epoch=epoch)


class NewEpochs(SoftLog):
    """Every append has its own epoch."""

    async def append(self, tape: str, event: NewEvent, *, idempotency_key: str | None = None) -> Position:
        position = await super().append(tape, event, idempotency_key=idempotency_key)
        return replace(position, epoch=new_epoch())


class NeverFinal(SoftLog):
    """The end of a tape is not noted."""

    def store(self, reel: _Reel, offset: int, event: NewEvent) -> None:
        super().store(reel, offset, replace(event, final=False))


class PutsTwice(SoftLog):
    """A copy that is there already is written over it."""

    async def put(self, tape: str, position: Position, event: NewEvent) -> PutResult:
        result = await super().put(tape, position, event)
        if result == "duplicate":
            entries = self.reels[tape].entries
            entries[position.offset - 1] = entries[position.offset - 1]._replace(payload=event.payload)
        return result


class LeavesHoles(SoftLog):
    """A copy is taken whatever is missing before it."""

    async def put(self, tape: str, position: Position, event: NewEvent) -> PutResult:
        reel = self.reels.get(tape)
        if reel is not None and position.offset > reel.tape.offset + 1:
            self.store(reel, position.offset, event)
            return "stored"
        return await super().put(tape, position, event)


class IgnoresEpochs(SoftLog):
    """A copy of another epoch is mixed in."""

    async def put(self, tape: str, position: Position, event: NewEvent) -> PutResult:
        reel = self.reels.get(tape)
        if reel is not None:
            position = replace(position, epoch=reel.tape.epoch)
        return await super().put(tape, position, event)


class StartsAgain(SoftLog):
    """Offsets begin anew when everything was trimmed."""

    async def trim(self, tape: str, *, keep_after: int) -> int:
        gone = await super().trim(tape, keep_after=keep_after)
        reel = self.reels.get(tape)
        if reel is not None and not reel.entries:
            reel.tape = replace(reel.tape, offset=0, first_offset=1)
        return gone


class TrimsNothing(SoftLog):
    """Retention has no effect."""

    async def trim(self, tape: str, *, keep_after: int) -> int:
        return 0


class InventsTapes(SoftLog):
    """Asking for a tape makes it."""

    async def describe(self, tape: str) -> Tape | None:
        return await self.create(tape, owner=None, channel="")


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
    InventsTapes: "test_an_absent_tape_reads_as_empty",
}
"""Every one fails `EventLogSuite`, at least in the case that is named here."""
