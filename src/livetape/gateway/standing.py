"""Where a topic stands on its tape, and what the log says about that. Pure: no await, no lock, no clock.

The log is the truth, and it is written before an event is pushed (wire contract, section 3, Promise). Whoever asks it
tells the topic what it answered (`ask`, `learn`, `compare`), and where that is not what was handed over, everybody is
told:

- A log that ends before what has been seen of it has lost its end: it goes on from there.
- A tape with another epoch was born again: it goes on from its beginning.
- A tape with another owner is another tape: those who watched the former one are sent nothing of it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from livetape.auth import Principal
from livetape.events.log import Position, Tape
from livetape.events.recovery import REPLACEMENT, Gap, Tail
from livetape.events.tape_event import TapeEvent
from livetape.gateway.asked import Asked, Doubt, is_trimmed
from livetape.gateway.fan_out import FanOut, Group
from livetape.gateway.forms import Form
from livetape.gateway.held import Held
from livetape.gateway.marks import Marks
from livetape.gateway.member import Member
from livetape.gateway.messages import Push, position_format
from livetape.gateway.subjects import Subject


@dataclass(frozen=True, slots=True)
class TopicKey:
    """What makes two subscriptions share a topic. `reader` stands in topics whose tape has no owner yet: there each
    principal has its own, since it may turn out to belong to any of them."""

    subject: Subject
    reader: Principal | None = None


class Standing:
    """The position of all members, who they are, and what makes it doubtful."""

    __slots__ = (
        "_doubt", "_epoch", "_fan_out", "_heard_to", "_held", "_marks", "_max_event_bytes", "_offset",
        "_position", "_readers", "_replays", "_seen", "_tail", "ahead", "begun", "bound", "denied", "final",
        "groups", "heard", "key", "listens_to", "mixed", "owner", "pattern", "proven", "readable", "references",
        "repairing", "stale", "tail", "turn",
    )  # fmt: skip

    def __init__(
        self, key: TopicKey, pattern: str, *, proven: bool, tail: Tail, max_event_bytes: int, fan_out: FanOut
    ) -> None:
        self.key = key
        self.pattern = pattern
        self.listens_to = pattern
        """What the bus is asked for: at least all that matches `pattern`."""
        self.groups: dict[Form, Group] = {}
        self.tail = tail
        self._marks = Marks()
        self._position: Position | None = None
        self._epoch, self._offset = "", 0
        self._tail = position_format("")
        self.begun = False
        """Whether `position` is known."""
        self.proven = proven
        """Whether the events may be shown to the members. Until then they are kept back."""
        self.readable = key.reader is None
        """Whether the tape may be read for the members: it exists and they may see it."""
        self.denied = False
        """It turned out to be somebody else's, or became so: nothing more is ever delivered."""
        self.owner: str | None = None
        """Whose events the members are given, once it is `bound`: those of another owner are never theirs."""
        self.bound = False
        self.ahead: int | None = None
        """Where the log ended when live events were handed over that it does not have; else None."""
        self.turn = 0
        """Changes when the position was set by anything else than the next event."""
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
        self._held = Held()
        self._readers = 0
        self._replays: set[Member] = set()
        self._seen = 0
        self._heard_to = 0
        self._doubt: Doubt | None = None
        self._max_event_bytes = max_event_bytes
        self._fan_out = fan_out

    def __repr__(self) -> str:
        return f"Topic({self.key.subject.kind} {self.key.subject.id} at {self.position})"

    @property
    def position(self) -> Position:
        """What all members have been handed. An empty epoch: the tape was not there yet."""
        position = self._position
        if position is None:  # made when somebody asks, not for each event
            position = self._position = Position(self._epoch, self._offset)
        return position

    @property
    def subject(self) -> Subject:
        """What it is about."""
        return self.key.subject

    # ---- what everybody is told ------------------------------------------------------------------------------------

    def lose(self, gap: Gap) -> None:
        """Tell everybody that events are gone."""
        before = self.position
        if gap.last is not None:
            self._place(before.epoch, gap.last)
            self._marks.restart(gap.last)
        self._close_lane()
        for group in tuple(self.groups.values()):
            # Who has no room for this reads the log later, finds the same gap there, and is told then.
            self._fan_out.put(
                group, Push(group.form.gap(gap.first, gap.last, gap.epoch)), (before.epoch, before.offset)
            )

    def lose_unknown(self) -> None:
        """Tell everybody that events may be gone, nobody knows which: there is no log to ask."""
        self.lose(Gap(None, None, self.position.epoch or None))

    def move(self, position: Position) -> None:
        """The tape was born again: go on from here. Everybody is told."""
        self.lose(Gap(None if self.mixed else self.position.offset + 1, None, position.epoch))
        self._turn_to(position)

    def rewind(self, end: int) -> None:
        """The log has lost its end, and ends here (or has gone on from here): go on from there. Everybody is told."""
        self._close_lane()
        for group in tuple(self.groups.values()):
            self._fan_out.finish(group)  # so that who has no room stands on this side of it or on the other
        self.lose_unknown()
        for group in tuple(self.groups.values()):
            self._fan_out.finish(group)
        for member in tuple(self._replays):
            member.rewound(end)
        self.tail.clear()
        self._turn_to(Position(self.position.epoch, min(self.position.offset, end)))

    def run_ahead(self, end: int) -> None:
        """The log ends here and says nothing about what is live beyond that, which is handed over next."""
        self._close_lane()
        self.ahead = end
        self.turn += 1

    # ---- what the log says -----------------------------------------------------------------------------------------

    @property
    def top(self) -> int:
        """The log had an event with this offset; so if it ends before it, it has lost its end."""
        return max(self._seen, self.position.offset) if self.ahead is None else self.ahead

    def saw(self, offset: int) -> None:
        """Somebody has read this far in the log, in the topic's epoch."""
        self._seen = max(self._seen, offset)

    def ask(self) -> Asked:
        """To be called before the log is asked what the tape is now; goes to `learn` with the answer."""
        return Asked(self.turn, self.top)

    def learn(self, tape: Tape, asked: Asked) -> bool:
        """The log's answer, about a tape that may be read for the members or that was theirs.

        False: it contradicts what was learnt since the question, and may be older than that. Ask again.
        """
        if self.denied:
            return True
        is_fresh = asked.turn == self.turn
        if self.bound and tape.owner != self.owner:
            if not is_fresh:
                return False
            if not self._change_owner(tape):
                return True
        self.bound, self.owner = True, tape.owner
        if self.position.epoch == "":
            self._turn_to(replace(self.position, epoch=tape.epoch))
        elif self.position.epoch != tape.epoch:
            if not is_fresh:
                return False
            self.move(Position(tape.epoch, max(0, tape.first_offset - 1)))
        elif is_fresh:
            self._compare(tape.offset, asked.top)
        self.proven = self.readable = True
        self.mixed = tape.mixed
        if tape.mixed:
            self._close_lane()
            self.tail.clear()
            if is_trimmed(tape, self.position):
                self.lose_unknown()
                self._place(self._epoch, tape.first_offset - 1)
        return True

    @property
    def marked_after(self) -> int | None:
        """From here to its position the topic can be compared with the log; None: not at all."""
        if self.denied or self.mixed or self.ahead is not None:
            return None
        return self._marks.after(self._offset)

    def mark(self, offset: int) -> int | None:
        """What the event with this offset was that was handed over, as a number; None: that is not known (any more)."""
        return None if self.mixed else self._marks.of(offset, self._offset)

    def compare(self, events: Iterable[TapeEvent]) -> None:
        """The log has these. Where that is not what was handed over, everybody is told, and gets what the log has."""
        for event in events:
            mark = None if event.offset is None else self.mark(event.offset)
            if mark is not None and event.offset is not None and self._is_other(event, mark):
                self.rewind(event.offset - 1)
                return

    def denies(self, events: Iterable[TapeEvent], doubt: Doubt) -> bool:
        """The log has these; whether what was handed over where there is doubt is something else."""
        for event in events:
            if event.offset == doubt.offset and doubt.mark is not None:
                return self._is_other(event, doubt.mark)
        return False

    def take_doubt(self) -> Doubt | None:
        """What came that cannot be if all that was handed over is what the log has. Once."""
        doubt, self._doubt = self._doubt, None
        return doubt

    def strays(self) -> bool:
        """There is no tape: take away what nobody can say whose it is. Returns whether there was anything.

        A channel that names its user proves what comes on it, and an epoch proves what has been bound to it.
        """
        if self.subject.channel_proves_owner or not self.bound:
            return False
        mine = [event for event in self.tail if event.epoch == self.position.epoch]
        found = len(mine) < len(self.tail) or bool(self._held)
        self.tail.clear()
        for event in mine:
            self.tail.add(event)
        self._held.clear()
        return found

    # ---- inside --------------------------------------------------------------------------------------------------

    def _close_lane(self) -> None:
        """To be called before anything changes that a shorter way of events may go by (who the members are, whether the
        topic is steady, where it stands), and before anything leaves the long way. Here there is no shorter way."""

    def _place(self, epoch: str, offset: int) -> None:
        self._position = None
        self._epoch, self._offset = epoch, offset
        self._tail = position_format(epoch)

    def _is_other(self, event: TapeEvent, mark: int) -> bool:
        """Of what is too large only a part was handed over, which tells nothing."""
        return len(event.payload) <= self._max_event_bytes and mark != hash(event.payload)

    def _is_doubtful(self, event: TapeEvent) -> bool:
        """Whether an event at a position that has been passed may be more than doubled or late: when the log has lost
        its end and counts on from there, numbers come again with other events."""
        assert event.offset is not None
        if self.ahead is not None:
            return True
        is_late = event.offset > self._heard_to  # the log was quicker
        self._heard_to = max(self._heard_to, event.offset)
        mark = self.mark(event.offset)
        if event.event_type == REPLACEMENT or (is_late if mark is None else mark == hash(event.payload)):
            return False
        doubt, known = Doubt(event.offset, mark), self._doubt
        if known is None or (mark is None, event.offset) < (known.mark is None, known.offset):
            self._doubt = doubt  # one that can be compared goes before
        self.stale = True
        return True

    def _compare(self, end: int, top: int) -> None:
        """The log ends here, after it had an event at `top`."""
        if self.ahead is not None:
            if end != self.ahead:
                self.rewind(min(end, self.ahead))
        elif end < top:
            self.rewind(end if self._doubt is None else min(end, self._doubt.offset - 1))

    def _turn_to(self, position: Position) -> None:
        self._close_lane()
        self._place(position.epoch, position.offset)
        self._marks.restart(position.offset)
        self.final = False
        self.ahead = self._doubt = None
        self._seen = position.offset
        self._heard_to = 0
        self.turn += 1

    def _change_owner(self, tape: Tape) -> bool:
        """What nobody owned has been claimed (some may stay), or the tape was lost and its name taken by another."""
        is_claimed = self.owner is None and tape.epoch == self.position.epoch and not self.subject.channel_proves_owner
        self.turn += 1
        self._close_lane()
        if not is_claimed:
            self.denied = True
            self.tail.clear()
            self._held.clear()
        for group in tuple(self.groups.values()):
            self._fan_out.finish(group)  # that is theirs
        members = {member for group in self.groups.values() for member in group.members()}
        for member in members | self._replays:
            if not is_claimed or not member.may_stay(tape):
                member.withdrawn()
        return is_claimed
