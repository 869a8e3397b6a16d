"""One tape as it is watched in this process, and the fan-out of its events. Pure: no await, no lock, no clock.

Everybody in a topic's groups stands at the same position, the topic's, so that an event is checked once for all of
them; whoever is elsewhere reads the log and joins when it stands there too. A `Group` shares one form: what leaves is
built once per event, and every member is handed the same `Push`.

What leaves waits in the groups until the fan-out hands it over (`fan_out.py`). Per recipient there is one call of
`put`: no Pydantic, no JSON, no log, no metric.

The log is the truth, and it is written before an event is pushed (wire contract, section 3, Promise):

- A live event that joins on is handed over at once; any other has the log asked first.
- What is live beyond the end of the log although the log was asked again and again is handed over after a gap, and the
  topic is `ahead`. As soon as the log goes on, everybody is told, and its events are handed over from where it ended.

What the log says about where it stands is in `standing.py`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from livetape.events.log import Position, Tape
from livetape.events.recovery import REPLACEMENT, Item
from livetape.events.tape_event import TapeEvent
from livetape.gateway.fan_out import Group
from livetape.gateway.forms import Form
from livetape.gateway.lane import NODE_OUTPUT
from livetape.gateway.marks import MARKS
from livetape.gateway.member import Member
from livetape.gateway.messages import Push
from livetape.gateway.standing import Standing, TopicKey
from livetape.gateway.subjects import Kind

__all__ = ["Topic", "TopicKey"]


class Topic(Standing):
    """One tape, live."""

    __slots__ = ()

    # ---- events --------------------------------------------------------------------------------------------------

    def begin(self, position: Position, *, final: bool, mixed: bool = False, tape: Tape | None = None) -> bool:
        """From here on; `tape` when it may be read for the members. Returns whether the log has to be read."""
        self.begun = True
        if tape is not None:
            self.bound, self.owner = True, tape.owner
        self._place(position.epoch, position.offset)
        self._marks.restart(position.offset)
        self.final = final
        self.mixed = mixed
        self._close_lane()
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
        if len(event.payload) > self._max_event_bytes:
            return self.offer(_stand_in(event))
        if not self.begun:
            self.tail.add(event)
            return False
        if self.mixed:
            self.stale = True
            return True
        if self._readers or self._replays:
            self.tail.add(event)
        if not self.proven:
            self.tail.add(event)
            return True
        offset, epoch = self.position.offset, self.position.epoch
        if event.epoch != epoch and not (epoch == "" and event.offset == 1):
            self.tail.add(event)
            return True
        if event.offset <= offset:
            return self._is_doubtful(event)
        if event.offset > offset + 1 or event.event_type == REPLACEMENT:
            self.tail.add(event)
            return True
        self.advance(event)
        self._heard_to = event.offset
        return self.ahead is not None

    def settle(self, heard: int) -> None:
        """The log has told whether the tape is mixed, after the first `heard` events without a position had come.

        Those of a mixed tape stand on it, and are delivered from there; others are nowhere else, and are now.
        """
        for event in self._held.take(heard):
            if not self.mixed:
                self._deliver(event)
        if self._held.spilled:
            self._held.spilled = False
            if not self.mixed:
                self.lose_unknown()

    def advance(self, event: TapeEvent) -> None:
        """Hand over the event that comes next."""
        assert event.offset is not None
        before = self.position
        if event.epoch != before.epoch:
            self._turn_to(before)
            self._seen = 0
        if event.offset != before.offset + 1:
            self._marks.restart(event.offset - 1)
        self._marks.numbers[event.offset % MARKS] = hash(event.payload)
        self._place(event.epoch or "", event.offset)
        self.final = self.final or event.final
        self._deliver(event, before)

    def apply(self, items: Iterable[Item]) -> None:
        """Hand over what a reader of the log found to follow `position`."""
        for item in items:
            if isinstance(item, TapeEvent):
                self.advance(item)
            else:
                self.lose(item)

    def too_large(self, offset: int | None = None, epoch: str | None = None) -> None:
        """Tell everybody that an event was too large to be carried."""
        self._close_lane()
        for group in tuple(self.groups.values()):
            self._fan_out.put(group, Push(group.form.too_large(offset, epoch)), None)

    # ---- members -------------------------------------------------------------------------------------------------

    def join(self, member: Member, form: Form, position: Position | None) -> bool:
        """Go live. False when this is not where the topic stands (None: wherever it stands)."""
        if position is not None and position != self.position:
            return False
        self._close_lane()
        group = self.groups.get(form)
        if group is None:
            group = self.groups[form] = Group(form, self._drop)
        self._fan_out.join(group, member)
        if self.final:
            member.finished()
        return True

    def leave(self, member: Member, form: Form) -> None:
        """No longer live. Unknown members are ignored."""
        group = self.groups.get(form)
        if group is not None:
            self._close_lane()
            self._fan_out.leave(group, member)
            if group.is_empty:
                self.groups.pop(form, None)

    def shift(self, member: Member, form: Form) -> None:
        """Its straight way has come or gone (`Member.writer`)."""
        group = self.groups.get(form)
        if group is not None:
            self._close_lane()
            self._fan_out.shift(group, member)

    def start_reading(self, member: Member | None = None) -> None:
        """Somebody reads the log: keep live events until `stop_reading`. A member that does is told of rewinds."""
        self._close_lane()
        if member is None:
            self._readers += 1
        else:
            self._replays.add(member)

    def stop_reading(self, member: Member | None = None) -> None:
        """The twin of `start_reading`. For a member idempotent."""
        if member is None:
            self._readers -= 1
        else:
            self._replays.discard(member)
        if self._readers == 0 and not self._replays:
            self.tail.clear()

    def handed(self, form: Form) -> Position:
        """What the live members of this form have certainly been handed, as far as the log has it."""
        self._close_lane()
        group = self.groups.get(form)
        before = None if group is None else self._fan_out.before(group)
        position = self.position if before is None else before
        if self.ahead is not None and position.offset > self.ahead:
            return replace(position, offset=self.ahead)
        return position

    def push_of(self, event: TapeEvent, form: Form) -> Push | None:
        """What leaves for this event in this form; None when nothing does."""
        if len(event.payload) > self._max_event_bytes or event.event_type == REPLACEMENT:
            return Push(form.too_large(event.offset, event.epoch, mixed=event.mixed))
        data = form.shortened(event) if event.shortened else form.event(event)
        return None if data is None else Push(data)

    # ---- inside --------------------------------------------------------------------------------------------------

    @property
    def _is_steady(self) -> bool:
        """What comes next is handed over, whatever the log says."""
        return (
            self.begun
            and self.proven
            and not self.denied
            and not self.mixed
            and self.ahead is None
            and not self._readers
            and not self._replays
        )

    def _hold(self, event: TapeEvent) -> None:
        """An event of a job without a position: either it is on no tape, or on one that has become mixed."""
        self.stale = True
        self.heard += 1
        if self.proven and not self.mixed:
            self._held.add(self.heard, event)

    def _deliver(self, event: TapeEvent, position: Position | None = None) -> None:
        self._close_lane()
        before = None if position is None else (position.epoch, position.offset)
        is_output = event.event_type == NODE_OUTPUT
        for group in tuple(self.groups.values()):
            if is_output and not group.each and not event.final:
                continue
            push = self.push_of(event, group.form)
            if push is not None or event.final:
                self._fan_out.put(group, push, before, only_each=is_output, final=event.final)

    def _drop(self, member: Member) -> None:
        """It has no room: it reads the log by itself from now on."""
        self._close_lane()
        for form, group in tuple(self.groups.items()):
            group.discard(member)
            if group.is_empty:
                del self.groups[form]


def _stand_in(event: TapeEvent) -> TapeEvent:
    """What waits in place of an event that is too large: it is read from the log, whose reader cuts it off the loop."""
    return TapeEvent(REPLACEMENT, b"", event.offset, event.epoch, event.final)
