"""Hands events to everybody who watches: what came together leaves together, and wide fan-outs leave in slices.

Pure: when the rest of a slice is handed over is up to `later`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final, TypeAlias

from livetape.events.log import Position
from livetape.gateway.forms import Form, SocketForm
from livetape.gateway.lane import FRAME_HEAD_BYTES, MAX_MEMBERS, Lane
from livetape.gateway.member import Member, Writer
from livetape.gateway.messages import Push
from livetape.gateway.sender import PlainSender, Row, Sender
from livetape.observability import get_logger

logger = get_logger(__name__)

SLICE: Final = 512
"""So many deliveries are made before others on the event loop get their turn."""

MAX_WAITING_BYTES: Final = 8 * 1024 * 1024
"""When more than this waits, nobody else gets a turn: who brings events is slowed down by it."""

WIDE: Final = 16
"""With so many members it pays to keep the row of their writers."""

Later: TypeAlias = Callable[[Callable[[], None]], object]
"""Calls back in the next turn of the loop."""

Before: TypeAlias = tuple[str, int]
"""A position as epoch and offset: cheaper to make than a `Position`, and seldom needed."""


@dataclass(slots=True)
class Tally:
    """What was handed over since it was last looked at. Counted per push, not per recipient."""

    delivered: int = 0
    delivered_bytes: int = 0
    refused: int = 0


class Circle:
    """Members who get the same pushes, and what waits for them.

    Those with a straight way are apart: to hand them something their objects need not even be looked at.
    """

    __slots__ = ("_row", "fast", "slow", "waiting")

    def __init__(self) -> None:
        self._row: Row | None = None
        self.fast: dict[Member, Writer] = {}
        self.slow: dict[Member, None] = {}  # a set takes three times as much while it is empty
        self.waiting: list[Push] = []

    def __len__(self) -> int:
        return len(self.fast) + len(self.slow)

    def __contains__(self, member: Member) -> bool:
        return member in self.fast or member in self.slow

    def members(self) -> list[Member]:
        """All of them, as a copy."""
        return [*self.fast, *self.slow]

    def row(self) -> Row:
        """The writers of those with a straight way, as they are now."""
        if self._row is not None:
            return self._row
        row = Row(list(self.fast.values()))
        if len(self.fast) >= WIDE:
            self._row = row
        return row

    def add(self, member: Member) -> None:
        """It belongs to them now, or its straight way has come or gone."""
        self._row = None
        writer = member.writer
        if writer is None:
            self.fast.pop(member, None)
            self.slow[member] = None
        else:
            self.slow.pop(member, None)
            self.fast[member] = writer

    def discard(self, member: Member) -> None:
        """It does not. Unknown members are ignored."""
        self._row = None
        self.fast.pop(member, None)
        self.slow.pop(member, None)


@dataclass(slots=True, eq=False)
class Group:
    """Those who get the same bytes: `each` also single outputs, `plain` all else."""

    form: Form
    drop: Callable[[Member], None]
    """Takes a member that refused out of the topic."""

    plain: Circle = field(default_factory=Circle)
    each: Circle = field(default_factory=Circle)
    before: Before | None = None
    """Where the members stand who have been handed nothing of what waits; None: none of it is on the tape."""

    final: bool = False
    queued: bool = False

    def members(self) -> list[Member]:
        """All of them, as a copy."""
        return [*self.plain.members(), *self.each.members()]

    def discard(self, member: Member) -> None:
        """It belongs here no longer. Unknown members are ignored."""
        self.plain.discard(member)
        self.each.discard(member)

    @property
    def is_empty(self) -> bool:
        """Nobody is here."""
        return not self.plain and not self.each


@dataclass(slots=True, eq=False)
class _Part:
    """One push for one circle, and who has not been handed it yet."""

    push: Push
    row: Row
    slow: list[Member]
    begin: int = 0
    """Up to here the row has been handed it."""

    @property
    def is_written(self) -> bool:
        return self.begin == len(self.row.writers)


@dataclass(slots=True, eq=False)
class _Job:
    """A group whose members are being handed one push each."""

    group: Group
    parts: list[_Part]
    before: Before | None
    ending: list[Member]
    """Whom the last event is for."""


class FanOut:
    """One per process. What is `put` leaves with the next `flush`, at the latest in the next turn of the loop.

    Without `later` everything leaves at once. Groups that something waits for are changed through here: nobody is
    handed what came before it joined, and who leaves has been handed what came before.
    """

    def __init__(
        self, tally: Tally, *, later: Later | None = None, slice_size: int = SLICE, sender: Sender | None = None
    ) -> None:
        self._tally = tally
        self._sender = sender or PlainSender()
        self._later = later
        self._slice = slice_size
        self._queue: deque[Group] = deque()
        self._job: _Job | None = None
        self._handing = False
        self._waiting_bytes = 0
        self._scheduled = False
        self.lanes: list[Lane] = []
        """Those in which something waits: whoever puts the first frame into one appends it here."""

    @property
    def idle(self) -> bool:
        """Whether nothing waits."""
        return self._job is None and not self._queue and not self.lanes

    # ---- who is there ----------------------------------------------------------------------------------------------

    def join(self, group: Group, member: Member) -> None:
        """It gets what comes from here on: what waits lies before its position."""
        self.finish(group)
        (group.each if member.each else group.plain).add(member)

    def leave(self, group: Group, member: Member) -> None:
        """It gets nothing more; what waits it has been handed. Unknown members are ignored."""
        if not self._handing:
            self._finish_job(group)
        group.discard(member)

    def shift(self, group: Group, member: Member) -> None:
        """Its straight way has come or gone."""
        if not self._handing:  # who loses its way while it is handed something has been handed it
            self._finish_job(group)
        for circle in (group.plain, group.each):
            if member in circle:
                circle.add(member)

    # ---- what comes ------------------------------------------------------------------------------------------------

    def put(
        self, group: Group, push: Push | None, before: Before | None, *, only_each: bool = False, final: bool = False
    ) -> None:
        """For all members of the group. `before`: the topic's position before it; None when it is on no tape.

        `push` is None for a `final` event that clients are not sent.
        """
        if push is not None:
            plain, each = group.plain, group.each
            if (plain.fast or plain.slow) and not only_each:
                plain.waiting.append(push)
                self._waiting_bytes += push.size
            if each.fast or each.slow:
                each.waiting.append(push)
                self._waiting_bytes += push.size
        if group.before is None:
            group.before = before
        if final:
            group.final = True
        if not group.queued:
            group.queued = True
            self._queue.append(group)
        if self._later is None:
            self.flush()
        elif not self._scheduled:
            self._schedule(self._later)

    def flush(self) -> None:
        """Hand over what waits; when that is much, the first slice of it now."""
        if self._handing:
            return
        left = self._slice if self._later is not None and self._waiting_bytes <= MAX_WAITING_BYTES else None
        if self._job is not None:
            left = self._go_on(self._job, left)
            if self._job.parts:
                self._schedule_rest()
                return
            self._end(self._job)
        queue = self._queue
        while queue:
            group = queue[0]
            if left is not None:
                plain, each = group.plain, group.each
                left -= len(plain.fast) + len(plain.slow) + len(each.fast) + len(each.slow)
                if left < 0:
                    break
            queue.popleft()
            self._hand_all(group)
        if queue:
            assert left is not None
            group = queue.popleft()
            job = self._begin(group)
            self._job = job
            self._go_on(job, left + len(group.plain) + len(group.each))
            if job.parts:
                self._schedule_rest()
                return
            self._end(job)
            if queue:
                self._schedule_rest()

    def before(self, group: Group) -> Position | None:
        """Where the members of the group stand to whom something has not been handed yet; None when there are none."""
        before = group.before if group.queued else None
        if self._job is not None and self._job.group is group and self._job.before is not None:
            before = self._job.before
        return None if before is None else Position(*before)

    def finish(self, group: Group) -> None:
        """Hand over all that waits for this group."""
        self._finish_job(group)
        if group.queued:
            self._queue.remove(group)
            suspended, self._job = self._job, self._begin(group)
            self._finish_job(group)
            self._job = suspended

    # ---- lanes -----------------------------------------------------------------------------------------------------

    def lane(self, group: Group) -> Lane | None:
        """A lane to all members of this group; None when there are many, when they do not all get the same bytes by a
        straight way, or while something waits for them here. Good until one of that changes."""
        if group.queued or (self._job is not None and self._job.group is group):
            return None
        plain, each = group.plain, group.each
        fast = plain.fast or each.fast
        if (
            not 0 < len(fast) <= MAX_MEMBERS
            or (plain.fast and each.fast)
            or plain.slow
            or each.slow
            or not isinstance(group.form, SocketForm)
        ):
            return None
        return Lane(group.form, list(fast.values()), each=not plain.fast)

    def hand_lanes(self) -> None:
        """Hand over all that waits in lanes, in one slice: it is no more than what came together. The hot path."""
        lanes, self.lanes = self.lanes, []
        shared: list[Lane] = []
        writers: list[Writer] = []
        frames: list[bytes] = []
        for lane in lanes:
            frame = lane.frame
            if frame is None:
                continue
            if lane.simple:
                lane.frame = None
                writers.append(lane.write)
                frames.append(frame)
            else:
                shared.append(lane)
        if frames:
            failed = self._sender.send_each(writers, frames)
            count, size = len(frames), sum(map(len, frames))
            if failed:
                count -= len(failed)
                size -= sum([len(frames[place]) for place in failed])
                self._tally.refused += len(failed)
            self._tally.delivered += count
            self._tally.delivered_bytes += size - count * FRAME_HEAD_BYTES
        for lane in shared:
            self.hand(lane)

    def hand(self, lane: Lane) -> None:
        """Hand over what waits in this one, if anything does."""
        if lane.frame is None:
            return
        frame, count = lane.take()
        failed = self._sender.send_all((lane.write, *lane.others), frame)
        taken = 1 + len(lane.others) - failed
        self._tally.refused += failed
        self._tally.delivered += taken * count
        self._tally.delivered_bytes += taken * (len(frame) - count * FRAME_HEAD_BYTES)

    # ---- inside ----------------------------------------------------------------------------------------------------

    def _schedule_rest(self) -> None:
        assert self._later is not None
        self._schedule(self._later)

    def _hand_all(self, group: Group) -> None:
        """All that waits for a group, to all of its members, now. The hot path."""
        before, ending = group.before, group.members() if group.final else []
        group.before, group.final, group.queued = None, False, False
        for circle in (group.plain, group.each):
            waiting = circle.waiting
            if not waiting:
                continue
            circle.waiting = []
            push = waiting[0] if len(waiting) == 1 else Push.joined(waiting)
            self._waiting_bytes -= push.size
            slow = list(circle.slow) if circle.slow else None
            if circle.fast:
                row = circle.row()
                self._write(push, row, 0, len(row.writers))
            if slow:
                refused = self._hand(group, push, slow, before)
                if refused and ending:  # they are told when they have read it in the log
                    ending = [member for member in ending if member not in refused]
        for member in ending:
            member.finished()

    def _schedule(self, later: Later) -> None:
        if not self._scheduled:
            self._scheduled = True
            later(self._go_on_later)

    def _go_on_later(self) -> None:
        self._scheduled = False
        self.flush()

    def _begin(self, group: Group) -> _Job:
        parts = []
        for circle in (group.plain, group.each):
            waiting = circle.waiting
            if waiting:
                circle.waiting = []
                self._waiting_bytes -= sum([push.size for push in waiting])
                if circle:
                    parts.append(_Part(Push.joined(waiting), circle.row(), list(circle.slow)))
        job = _Job(group, parts, group.before, group.members() if group.final else [])
        group.before, group.final, group.queued = None, False, False
        return job

    def _finish_job(self, group: Group) -> None:
        job = self._job
        if job is not None and job.group is group:
            self._go_on(job, None)
            self._end(job)

    def _end(self, job: _Job) -> None:
        if self._job is job:
            self._job = None
        for member in job.ending:
            member.finished()

    def _go_on(self, job: _Job, left: int | None) -> int | None:
        """Returns how many more deliveries may be made in this turn; None: any number."""
        while job.parts:
            part = job.parts[-1]
            if not part.is_written:
                end = len(part.row.writers)
                if left is not None:
                    end = min(end, part.begin + left)
                    left -= end - part.begin
                begin, part.begin = part.begin, end
                self._write(part.push, part.row, begin, end)
            if part.slow and part.is_written:
                left = self._put(job, part, left)
            if part.slow or not part.is_written:
                return left
            job.parts.pop()
        return left

    def _write(self, push: Push, row: Row, begin: int, end: int) -> None:
        """The hot path."""
        self._handing = True
        try:
            self._tally.refused += self._sender.send_row(row, begin, end, push.frame)
        finally:  # a sender that breaks must not hold up what comes after
            self._handing = False
        self._tally.delivered += (end - begin) * push.count
        self._tally.delivered_bytes += (end - begin) * push.size

    def _put(self, job: _Job, part: _Part, left: int | None) -> int | None:
        if left is not None and left < len(part.slow):
            some, part.slow = part.slow[:left], part.slow[left:]
        else:
            some, part.slow = part.slow, []
        refused = self._hand(job.group, part.push, some, job.before)
        if refused and job.ending:  # they are told when they have read it in the log
            job.ending = [member for member in job.ending if member not in refused]
        return None if left is None else left - len(some)

    def _hand(self, group: Group, push: Push, members: list[Member], before: Before | None) -> list[Member]:
        """Returns who refused."""
        refused: list[Member] = []
        self._handing = True
        for member in members:
            try:
                taken = member.put(push)
            except Exception:
                logger.exception("a client took nothing", extra={"action": "write_failed"})
                taken = False  # counted as such, and read from the log again
            if not taken:
                refused.append(member)
        self._handing = False
        self._tally.delivered += (len(members) - len(refused)) * push.count
        self._tally.delivered_bytes += (len(members) - len(refused)) * push.size
        self._tally.refused += len(refused) * push.count
        if before is not None:
            for member in refused:
                group.drop(member)
                member.fell_behind(Position(*before))
        return refused
