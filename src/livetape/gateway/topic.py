"""One tape as it is watched in this process, and the fan-out of its events. Pure: no await, no lock, no clock.

Everybody in a topic's groups stands at the same position, the topic's, so that an event is checked once for all of
them; whoever is elsewhere reads the log and joins when it stands there too. A `Group` shares one form: what leaves is
built once per event, and every member is handed the same `Push`.

Per recipient there is one call of `put`: no Pydantic, no JSON, no log, no metric.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from typing import Final, Protocol

from livetape.auth import Principal
from livetape.events.log import Position
from livetape.events.recovery import REPLACEMENT, Gap, Item, Tail
from livetape.events.tape_event import TapeEvent
from livetape.gateway.forms import Form
from livetape.gateway.messages import Push
from livetape.gateway.subjects import Kind, Subject

NODE_OUTPUT: Final = "node_output_update"

MAX_HELD_BYTES: Final = 4 * 1024 * 1024
HELD_EVENT_BYTES: Final = 512
"""What a held event counts at least."""


class Member(Protocol):
    """One subscription as the hub sees it."""

    each: bool
    """Whether it also gets every single output."""

    def put(self, push: Push, /) -> bool:
        """Take it without waiting; False when there is no room."""

    def fell_behind(self, position: Position) -> None:
        """It was taken out because `put` refused; it has everything up to here."""

    def finished(self) -> None:
        """The last event of the tape has been handed over."""


@dataclass(slots=True)
class Group:
    """Those who get the same bytes."""

    form: Form
    plain: set[Member] = field(default_factory=set)
    each: set[Member] = field(default_factory=set)

    def members(self) -> list[Member]:
        """All of them, as a copy."""
        return [*self.plain, *self.each]


@dataclass(frozen=True, slots=True)
class TopicKey:
    """What makes two subscriptions share a topic. `reader` stands in topics whose tape has no owner yet: there each
    principal has its own, since it may turn out to belong to any of them."""

    subject: Subject
    reader: Principal | None = None


@dataclass(slots=True)
class Tally:
    """What was handed over since it was last looked at. Counted per push, not per recipient."""

    delivered: int = 0
    refused: int = 0


class Topic:
    """One tape, live."""

    def __init__(
        self, key: TopicKey, pattern: str, *, proven: bool, tail: Tail, max_event_bytes: int, tally: Tally
    ) -> None:
        self.key = key
        self.pattern = pattern
        self.groups: dict[Form, Group] = {}
        self.tail = tail
        self.position = Position("", 0)
        """What all members have been handed. An empty epoch: the tape was not there yet."""
        self.begun = False
        """Whether `position` is known."""
        self.proven = proven
        """Whether the events may be shown to the members. Until then they are kept back."""
        self.readable = key.reader is None
        """Whether the tape may be read for the members: it exists and they may see it."""
        self.denied = False
        """It turned out to be somebody else's: nothing is ever delivered."""
        self.final = False
        self.repairing = False
        """Somebody reads its log to bring it up to date."""
        self.stale = False
        """Messages may have been lost since the log was last asked."""
        self.mixed = False
        """Somebody else writes to the tape too: only its log tells what comes, and in which order."""
        self.heard = 0
        """How many events of a job came without a position (see `settle`)."""
        self.references = 0
        """How many hold it (`Hub.hold`)."""
        self._held: deque[tuple[int, TapeEvent]] = deque()
        self._held_bytes = 0
        self._spilled = False
        self._readers = 0
        self._max_event_bytes = max_event_bytes
        self._tally = tally

    def __repr__(self) -> str:
        return f"Topic({self.key.subject.kind} {self.key.subject.id} at {self.position})"

    @property
    def subject(self) -> Subject:
        """What it is about."""
        return self.key.subject

    # ---- events --------------------------------------------------------------------------------------------------

    def begin(self, position: Position, *, final: bool, mixed: bool = False) -> bool:
        """From here on. Returns whether the log has to be read (see `offer`)."""
        self.begun = True
        self.position = position
        self.final = final
        self.mixed = mixed
        kept = list(self.tail)
        self.tail.clear()
        return sum(self.offer(event) for event in kept) > 0 or self.stale or mixed

    def offer(self, event: TapeEvent) -> bool:
        """A live event. True: it does not join on, somebody has to read the log (`TapeReader.heal`)."""
        if self.denied:
            return False
        if event.offset is None:
            if self.subject.kind is Kind.JOB:
                self._hold(event)
                return self.begun
            if self.proven:
                self._deliver(event)
            return False
        if not self.begun:
            self.tail.add(event)
            return False
        if self.mixed:
            self.stale = True
            return True
        if self._readers:
            self.tail.add(event)
        if not self.proven:
            self.tail.add(event)
            return True
        offset, epoch = self.position.offset, self.position.epoch
        if event.epoch != epoch and not (epoch == "" and event.offset == 1):
            self.tail.add(event)
            return True
        if event.offset <= offset:
            return False  # doubled, or late
        if event.offset > offset + 1 or event.event_type == REPLACEMENT:
            self.tail.add(event)
            return True
        self.advance(event)
        return False

    def settle(self, heard: int) -> None:
        """The log has told whether the tape is mixed, after the first `heard` events without a position had come.

        Those of a mixed tape stand on it, and are delivered from there; others are nowhere else, and are now.
        """
        while self._held and self._held[0][0] <= heard:
            _, event = self._held.popleft()
            self._held_bytes -= len(event.payload) + HELD_EVENT_BYTES
            if not self.mixed:
                self._deliver(event)
        if self._spilled:
            self._spilled = False
            if not self.mixed:
                self.lose_unknown()

    def advance(self, event: TapeEvent) -> None:
        """Hand over the event that comes next."""
        assert event.offset is not None
        before = self.position
        self.position = Position(event.epoch or "", event.offset)
        self.final = self.final or event.final
        self._deliver(event, before)

    def apply(self, items: Iterable[Item]) -> None:
        """Hand over what a reader of the log found to follow `position`."""
        for item in items:
            if isinstance(item, TapeEvent):
                self.advance(item)
            else:
                self.lose(item)

    def lose(self, gap: Gap) -> None:
        """Tell everybody that events are gone."""
        before = self.position
        if gap.last is not None:
            self.position = Position(before.epoch, gap.last)
        for group in tuple(self.groups.values()):
            # Who has no room for this reads the log later, finds the same gap there, and is told then.
            self._hand(Push(group.form.gap(gap.first, gap.last, gap.epoch)), group.members(), before)

    def lose_unknown(self) -> None:
        """Tell everybody that events may be gone, nobody knows which: there is no log to ask."""
        self.lose(Gap(None, None, self.position.epoch or None))

    def move(self, position: Position) -> None:
        """The tape was born again: go on from here. Everybody is told."""
        self.lose(Gap(None if self.mixed else self.position.offset + 1, None, position.epoch))
        self.position = position
        self.final = False

    def too_large(self, offset: int | None = None, epoch: str | None = None) -> None:
        """Tell everybody that an event was too large to be carried."""
        for group in tuple(self.groups.values()):
            self._hand(Push(group.form.too_large(offset, epoch)), group.members(), None)

    # ---- members -------------------------------------------------------------------------------------------------

    def join(self, member: Member, form: Form, position: Position | None) -> bool:
        """Go live. False when this is not where the topic stands (None: wherever it stands)."""
        if position is not None and position != self.position:
            return False
        group = self.groups.get(form)
        if group is None:
            group = self.groups[form] = Group(form)
        (group.each if member.each else group.plain).add(member)
        if self.final:
            member.finished()
        return True

    def leave(self, member: Member, form: Form) -> None:
        """No longer live. Unknown members are ignored."""
        group = self.groups.get(form)
        if group is not None:
            group.plain.discard(member)
            group.each.discard(member)
            if not group.plain and not group.each:
                del self.groups[form]

    def start_reading(self) -> None:
        """Somebody reads the log: keep live events until `stop_reading`."""
        self._readers += 1

    def stop_reading(self) -> None:
        """The twin of `start_reading`."""
        self._readers -= 1
        self._drop_tail()

    def push_of(self, event: TapeEvent, form: Form) -> Push | None:
        """What leaves for this event in this form; None when nothing does."""
        if len(event.payload) > self._max_event_bytes or event.event_type == REPLACEMENT:
            return Push(form.too_large(event.offset, event.epoch, mixed=event.mixed))
        data = form.event(event)
        return None if data is None else Push(data)

    # ---- inside --------------------------------------------------------------------------------------------------

    def _hold(self, event: TapeEvent) -> None:
        """An event of a job without a position: either it is on no tape, or on one that has become mixed."""
        self.stale = True
        self.heard += 1
        if not self.proven or self.mixed:
            return
        self._held.append((self.heard, event))
        self._held_bytes += len(event.payload) + HELD_EVENT_BYTES
        while self._held_bytes > MAX_HELD_BYTES and len(self._held) > 1:
            _, oldest = self._held.popleft()
            self._held_bytes -= len(oldest.payload) + HELD_EVENT_BYTES
            self._spilled = True

    def _drop_tail(self) -> None:
        if self._readers == 0:
            self.tail.clear()

    def _deliver(self, event: TapeEvent, before: Position | None = None) -> None:
        is_output = event.event_type == NODE_OUTPUT
        for group in tuple(self.groups.values()):
            if is_output and not group.each:
                continue
            push = self.push_of(event, group.form)
            if push is not None:
                self._hand(push, group.each, before)
                if not is_output:
                    self._hand(push, group.plain, before)
            if event.final:
                for member in group.members():
                    member.finished()

    def _hand(self, push: Push, members: Collection[Member], before: Position | None) -> None:
        """The hot path. `before` is where those who refuse go on reading later; None for what is not on the tape."""
        refused = [member for member in members if not member.put(push)]
        self._tally.delivered += len(members) - len(refused)
        if refused:
            self._tally.refused += len(refused)
            if before is not None:
                for member in refused:
                    for form in tuple(self.groups):
                        self.leave(member, form)
                    member.fell_behind(before)
