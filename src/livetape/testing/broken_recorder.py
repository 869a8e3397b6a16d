"""Recorders that break one promise each. `RecorderSuite` must fail every one of them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Final

from livetape.adapters.memory.bus import MemoryBus
from livetape.errors import NotFoundError
from livetape.events.codec import Envelope
from livetape.events.log import NewEvent, Position
from livetape.events.recorder import AS_RECORDED, Live, Recorded, Recorder
from livetape.testing.fakes import FakeLog


@dataclass(frozen=True, slots=True)
class Call:
    """What `record` was called with."""

    tape: str
    channel: str
    event: NewEvent
    live: Live
    owner: str | None
    key: str | None
    any_owner: bool


class SoftRecorder(Recorder):
    """A sound recorder of a log and a bus in memory, with seams where the broken ones differ."""

    def __init__(self) -> None:
        self.log = FakeLog()
        self.bus = MemoryBus()
        self.turn = asyncio.Lock()

    async def record(
        self,
        tape: str,
        channel: str,
        event: NewEvent,
        *,
        live: Live = AS_RECORDED,
        owner: str | None = None,
        any_owner: bool = False,
        idempotency_key: str | None = None,
    ) -> Recorded:
        return await self.handle(Call(tape, channel, event, live, owner, idempotency_key, any_owner=any_owner))

    async def handle(self, call: Call) -> Recorded:
        async with self.turn:
            await self.claim(call.tape, call.channel, call.owner, any_owner=call.any_owner)
            before = self.log.reels[call.tape].tape.offset
            position = await self.append(call.tape, call.event, call.key)
            if position.offset <= before:
                return self.repeat(position)
            envelope = self.envelope(call.event, position, call.live)
            return Recorded(position, f"{position.offset}-0", await self.push(call.channel, envelope))

    async def claim(self, tape: str, channel: str, owner: str | None, *, any_owner: bool) -> None:
        made = await self.log.create(tape, owner=owner, channel=channel)
        if owner is not None and made.owner != owner and not any_owner:
            raise NotFoundError(tape=tape)

    async def append(self, tape: str, event: NewEvent, key: str | None) -> Position:
        return await self.log.append(tape, event, idempotency_key=key)

    def repeat(self, position: Position) -> Recorded:
        return Recorded(position, f"{position.offset}-0", None, repeated=True)

    def envelope(self, event: NewEvent, position: Position, live: Live) -> Envelope:
        return Envelope(
            event.payload if live.payload is None else live.payload,
            event.event_type if live.event_type is None else live.event_type,
            position.offset,
            position.epoch,
            final=event.final,
            lossy=live.lossy,
            traceparent=live.traceparent,
        )

    async def push(self, channel: str, envelope: Envelope) -> int | None:
        return await self.bus.publish(channel, envelope.encode())

    async def close(self) -> None:
        pass


class OnlyPushes(SoftRecorder):
    """The fourth event of a tape is acknowledged and pushed, and is not on the tape."""

    async def append(self, tape: str, event: NewEvent, key: str | None) -> Position:
        position = await super().append(tape, event, key)
        if position.offset == 4:
            self.log.reels[tape].entries.pop()
        return position


class NeverPushes(SoftRecorder):
    """Events go onto the tape alone."""

    async def push(self, channel: str, envelope: Envelope) -> int | None:
        return None


class LosesOne(SoftRecorder):
    """The fourth event of a tape is not pushed."""

    async def push(self, channel: str, envelope: Envelope) -> int | None:
        return 0 if envelope.offset == 4 else await super().push(channel, envelope)


class DoublesOne(SoftRecorder):
    """The fourth event of a tape is pushed twice."""

    async def push(self, channel: str, envelope: Envelope) -> int | None:
        if envelope.offset == 4:
            await super().push(channel, envelope)
        return await super().push(channel, envelope)


class SwapsTwo(SoftRecorder):
    """The fifth event of a tape is pushed before the fourth."""

    def __init__(self) -> None:
        super().__init__()
        self.held: Envelope | None = None

    async def push(self, channel: str, envelope: Envelope) -> int | None:
        if envelope.offset == 4:
            self.held = envelope
            return 1
        receivers = await super().push(channel, envelope)
        if envelope.offset == 5 and self.held is not None:
            await super().push(channel, self.held)
        return receivers


class PublishesBeforeAppend(SoftRecorder):
    """Who listens learns of an event that the tape does not have yet."""

    async def handle(self, call: Call) -> Recorded:
        async with self.turn:
            await self.claim(call.tape, call.channel, call.owner, any_owner=call.any_owner)
            described = self.log.reels[call.tape].tape
            position = Position(described.epoch, described.offset + 1)
            receivers = await self.push(call.channel, self.envelope(call.event, position, call.live))
            await asyncio.sleep(0.001)
            return Recorded(await self.append(call.tape, call.event, call.key), f"{position.offset}-0", receivers)


class LastComesFirst(SoftRecorder):
    """Of calls that overlap the last is written first."""

    def __init__(self) -> None:
        super().__init__()
        self.waiting: list[asyncio.Event] = []

    async def handle(self, call: Call) -> Recorded:
        mine = asyncio.Event()
        self.waiting.append(mine)
        await asyncio.sleep(0)
        if self.waiting[-1] is not mine:
            await mine.wait()
        try:
            return await super().handle(call)
        finally:
            self.waiting.remove(mine)
            if self.waiting:
                self.waiting[-1].set()


class PushesLate(SoftRecorder):
    """The push is left to a task, and tasks overtake each other."""

    def __init__(self) -> None:
        super().__init__()
        self.tasks: set[asyncio.Task[int | None]] = set()

    async def push(self, channel: str, envelope: Envelope) -> int | None:
        async def later() -> int | None:
            await asyncio.sleep(0 if (envelope.offset or 0) % 2 else 0.002)
            return await SoftRecorder.push(self, channel, envelope)

        task = asyncio.ensure_future(later())
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)
        return 1


class LargeOnesTakeLonger(SoftRecorder):
    """A large event lets smaller ones pass."""

    async def handle(self, call: Call) -> Recorded:
        await asyncio.sleep(0.01 if len(call.event.payload) > 65536 else 0)
        return await super().handle(call)


class CutsLargeOnes(SoftRecorder):
    """What is larger than a mebibyte is cut."""

    async def append(self, tape: str, event: NewEvent, key: str | None) -> Position:
        return await super().append(tape, replace(event, payload=event.payload[: 1 << 20]), key)


class GivesUpItsTurn(SoftRecorder):
    """After a call was cancelled nothing more is pushed."""

    async def handle(self, call: Call) -> Recorded:
        try:
            return await super().handle(call)
        except asyncio.CancelledError:
            await self.bus.close()
            raise

    async def append(self, tape: str, event: NewEvent, key: str | None) -> Position:
        await asyncio.sleep(0)
        return await super().append(tape, event, key)


class NoPosition(SoftRecorder):
    """The bus copy has neither offset nor epoch."""

    def envelope(self, event: NewEvent, position: Position, live: Live) -> Envelope:
        return super().envelope(event, position, live)._replace(offset=None, epoch=None)


class WrongEpoch(SoftRecorder):
    """The bus copy has an epoch of its own."""

    def envelope(self, event: NewEvent, position: Position, live: Live) -> Envelope:
        return super().envelope(event, position, live)._replace(epoch="other")


class Reformats(SoftRecorder):
    """The bus copy is parsed and written again."""

    def envelope(self, event: NewEvent, position: Position, live: Live) -> Envelope:
        from pydantic_core import from_json, to_json  # noqa: PLC0415

        made = super().envelope(event, position, live)
        try:
            return made._replace(payload=to_json(from_json(made.payload)))
        except ValueError:
            return made._replace(payload=b"{}")


class SortsJobs(SoftRecorder):
    """Of an event of a job only what every such event has is kept."""

    async def append(self, tape: str, event: NewEvent, key: str | None) -> Position:
        from pydantic_core import from_json, to_json  # noqa: PLC0415

        if tape.startswith("job_events:"):
            body = from_json(event.payload)
            job = {name: body.get(name) for name in ("event_type", "job_id", "timestamp", "data")}
            event = replace(event, payload=to_json(job))
        return await super().append(tape, event, key)


class ForgetsTheEnd(SoftRecorder):
    """The bus copy of the last event is not marked."""

    def envelope(self, event: NewEvent, position: Position, live: Live) -> Envelope:
        return super().envelope(event, position, live)._replace(final=False)


class CountsNobody(SoftRecorder):
    """It never knows who listened."""

    async def push(self, channel: str, envelope: Envelope) -> int | None:
        await super().push(channel, envelope)
        return 0


class PushesEverywhere(SoftRecorder):
    """All tapes are pushed on the first one's channel."""

    first: str | None = None

    async def push(self, channel: str, envelope: Envelope) -> int | None:
        self.first = self.first or channel
        return await super().push(self.first, envelope)


class OneNumbering(SoftRecorder):
    """Every tape is written as one."""

    async def append(self, tape: str, event: NewEvent, key: str | None) -> Position:
        return await super().append("suite:a", event, key)


class ForgetsOwner(SoftRecorder):
    """Nobody owns anything."""

    async def claim(self, tape: str, channel: str, owner: str | None, *, any_owner: bool) -> None:
        await super().claim(tape, channel, None, any_owner=True)


class RefusesNobody(SoftRecorder):
    """Everybody writes everywhere."""

    async def claim(self, tape: str, channel: str, owner: str | None, *, any_owner: bool) -> None:
        await super().claim(tape, channel, owner, any_owner=True)


class RemembersOwners(SoftRecorder):
    """Only what this recorder itself made has an owner."""

    def __init__(self) -> None:
        super().__init__()
        self.owners: dict[str, str | None] = {}

    async def claim(self, tape: str, channel: str, owner: str | None, *, any_owner: bool) -> None:
        await super().claim(tape, channel, owner, any_owner=True)
        if owner is not None and self.owners.setdefault(tape, owner) != owner and not any_owner:
            raise NotFoundError(tape=tape)


class RefusesEverybody(SoftRecorder):
    """`any_owner` has no effect."""

    async def claim(self, tape: str, channel: str, owner: str | None, *, any_owner: bool) -> None:
        await super().claim(tape, channel, owner, any_owner=False)


class NobodyIsSomebody(SoftRecorder):
    """Who claims nothing is refused like a stranger."""

    async def claim(self, tape: str, channel: str, owner: str | None, *, any_owner: bool) -> None:
        await super().claim(tape, channel, owner, any_owner=any_owner)
        if owner is None and self.log.reels[tape].tape.owner is not None:
            raise NotFoundError(tape=tape)


class OwnedWhenMade(SoftRecorder):
    """A tape that exists without an owner stays so."""

    async def claim(self, tape: str, channel: str, owner: str | None, *, any_owner: bool) -> None:
        if tape not in self.log.reels:
            await super().claim(tape, channel, owner, any_owner=any_owner)


class ClaimsLate(SoftRecorder):
    """Who comes at once with the first owner slips through."""

    async def handle(self, call: Call) -> Recorded:
        described = await self.log.describe(call.tape)
        await asyncio.sleep(0)
        free = described is None or described.owner is None
        return await super().handle(replace(call, any_owner=call.any_owner or free))


class ForgetsKeys(SoftRecorder):
    """An idempotency key has no effect."""

    async def append(self, tape: str, event: NewEvent, key: str | None) -> Position:
        return await super().append(tape, event, None)


class RepeatsThePush(SoftRecorder):
    """A repetition is not written, but it is pushed."""

    async def handle(self, call: Call) -> Recorded:
        answer = await super().handle(call)
        if answer.repeated:
            await self.push(call.channel, self.envelope(call.event, answer.position, call.live))
        return answer


class HidesRepetitions(SoftRecorder):
    """A repetition looks like the first."""

    def repeat(self, position: Position) -> Recorded:
        return Recorded(position, f"{position.offset}-0", 0)


class ChecksKeysLate(SoftRecorder):
    """Calls that come at once with one key are all pushed."""

    def __init__(self) -> None:
        super().__init__()
        self.done: set[str] = set()

    async def handle(self, call: Call) -> Recorded:
        known = call.key is None or call.key in self.done
        await asyncio.sleep(0)
        answer = await super().handle(call)
        self.done.add(call.key or "")
        if answer.repeated and not known:
            await self.push(call.channel, self.envelope(call.event, answer.position, call.live))
        return answer


class SharesKeys(SoftRecorder):
    """A key of one tape is taken for that of another."""

    def __init__(self) -> None:
        super().__init__()
        self.keys: dict[str, Recorded] = {}

    async def handle(self, call: Call) -> Recorded:
        if call.key in self.keys:
            return self.repeat(self.keys[call.key or ""].position)
        answer = await super().handle(call)
        if call.key is not None:
            self.keys[call.key] = answer
        return answer


class RecordsTheLiveCopy(SoftRecorder):
    """What was meant for the bus alone is on the tape."""

    async def handle(self, call: Call) -> Recorded:
        if call.live.payload is not None:
            call = replace(call, event=replace(call.event, payload=call.live.payload))
        return await super().handle(call)


class IgnoresLive(SoftRecorder):
    """Whoever listens gets what was recorded."""

    def envelope(self, event: NewEvent, position: Position, live: Live) -> Envelope:
        return super().envelope(event, position, AS_RECORDED)


class ForgetsTheRest(SoftRecorder):
    """Nothing stands beside the payload but the position."""

    def envelope(self, event: NewEvent, position: Position, live: Live) -> Envelope:
        return super().envelope(event, position, live)._replace(lossy=False, traceparent=None)


class ClosesAll(SoftRecorder):
    """The log and the bus that it was given are closed with it."""

    async def close(self) -> None:
        await self.log.close()
        await self.bus.close()


BROKEN_RECORDERS: Final[Mapping[Callable[[], SoftRecorder], str]] = {
    OnlyPushes: "test_events_of_one_tape_are_pushed_in_the_order_of_their_offsets",
    NeverPushes: "test_an_event_goes_onto_the_tape_and_out_on_the_bus",
    LosesOne: "test_events_of_one_tape_are_pushed_in_the_order_of_their_offsets",
    DoublesOne: "test_events_of_one_tape_are_pushed_in_the_order_of_their_offsets",
    SwapsTwo: "test_events_of_one_tape_are_pushed_in_the_order_of_their_offsets",
    PublishesBeforeAppend: "test_an_event_is_on_the_tape_before_it_is_pushed",
    LastComesFirst: "test_calls_that_overlap_are_recorded_in_the_order_in_which_they_were_made",
    PushesLate: "test_calls_for_many_tapes_are_in_order_on_each",
    LargeOnesTakeLonger: "test_large_events_do_not_overtake_and_are_not_overtaken",
    CutsLargeOnes: "test_a_large_event_goes_the_same_way",
    GivesUpItsTurn: "test_a_call_that_is_cancelled_does_not_disturb_the_others",
    NoPosition: "test_the_answer_and_the_envelope_carry_offset_and_epoch",
    WrongEpoch: "test_the_answer_and_the_envelope_carry_offset_and_epoch",
    Reformats: "test_bytes_are_not_changed_on_the_way",
    SortsJobs: "test_an_event_of_a_job_is_not_changed_either",
    ForgetsTheEnd: "test_the_last_event_is_marked_on_both",
    CountsNobody: "test_the_answer_tells_whether_anybody_listened",
    PushesEverywhere: "test_nothing_is_pushed_on_another_channel",
    OneNumbering: "test_calls_for_many_tapes_are_in_order_on_each",
    ForgetsOwner: "test_a_tape_that_does_not_exist_is_made",
    RefusesNobody: "test_somebody_else_is_refused_and_writes_nothing",
    RemembersOwners: "test_a_tape_that_was_made_for_somebody_is_theirs",
    RefusesEverybody: "test_any_owner_writes_there_all_the_same",
    NobodyIsSomebody: "test_none_claims_nothing_and_is_refused_nothing",
    OwnedWhenMade: "test_a_tape_without_owner_gets_the_first_one",
    ClaimsLate: "test_of_those_who_claim_at_once_one_wins",
    ForgetsKeys: "test_a_key_writes_and_pushes_once_and_returns_the_first_position",
    RepeatsThePush: "test_a_key_writes_and_pushes_once_and_returns_the_first_position",
    HidesRepetitions: "test_a_key_writes_and_pushes_once_and_returns_the_first_position",
    ChecksKeysLate: "test_calls_at_once_with_one_key_write_and_push_once",
    SharesKeys: "test_a_key_belongs_to_its_tape",
    RecordsTheLiveCopy: "test_a_live_payload_replaces_only_the_copy_on_the_bus",
    IgnoresLive: "test_a_live_payload_replaces_only_the_copy_on_the_bus",
    ForgetsTheRest: "test_lossy_and_traceparent_stand_beside_the_payload",
    ClosesAll: "test_closing_twice_is_no_error_and_log_and_bus_stay_open",
}
"""Every one fails `RecorderSuite`, at least in the case that is named here."""
