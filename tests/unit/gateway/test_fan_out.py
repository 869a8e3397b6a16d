"""Together what came together, in slices what is wide, to nobody who is not to get it."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from livetape.events.log import Position
from livetape.gateway.fan_out import MAX_WAITING_BYTES, FanOut, Group, Tally
from livetape.gateway.forms import LinesForm
from livetape.gateway.member import Member, Writer
from livetape.gateway.messages import Push
from livetape.gateway.sender import PlainSender, Row

AT = [("e", offset) for offset in range(100)]
WIDE = 3


class Watcher:
    """A member that writes down what it is handed."""

    def __init__(self, *, each: bool = False, room: int = 10**9) -> None:
        self.each = each
        self.room = room
        self.pushes: list[Push] = []
        self.behind: list[Position] = []
        self.ended = 0
        self.writer: Writer | None = None

    def straight(self) -> Watcher:
        """With a way past `put`."""
        self.writer = lambda frames: self.pushes.extend(messages_of(frames))
        return self

    def put(self, push: Push, /) -> bool:
        if self.room <= 0:
            return False
        self.room -= 1
        self.pushes.append(push)
        return True

    def fell_behind(self, position: Position) -> None:
        self.behind.append(position)

    def finished(self) -> None:
        self.ended += 1

    def rewound(self, end: int) -> None:
        raise AssertionError("nobody rewinds here")

    def may_stay(self, tape: object) -> bool:
        raise AssertionError("nobody asks here")

    def withdrawn(self) -> None:
        raise AssertionError("nobody withdraws here")

    @property
    def got(self) -> list[bytes]:
        return [part.data for push in self.pushes for part in push.parts]


def messages_of(frames: bytes) -> list[Push]:
    """Of short ones."""
    found = []
    while frames:
        size = frames[1]
        found.append(Push(frames[2 : 2 + size]))
        frames = frames[2 + size :]
    return found


class Turns:
    """The turns of a loop, taken by hand."""

    def __init__(self) -> None:
        self.waiting: deque[Callable[[], None]] = deque()

    def later(self, work: Callable[[], None]) -> None:
        self.waiting.append(work)

    def turn(self) -> bool:
        for _ in range(len(self.waiting)):
            self.waiting.popleft()()
        return bool(self.waiting)


def group_of(*members: Member) -> Group:
    group = Group(LinesForm(), lambda member: None)
    group.drop = group.discard
    for member in members:
        (group.each if member.each else group.plain).add(member)
    return group


def wide(count: int = WIDE) -> tuple[list[Watcher], Group]:
    watchers = [Watcher() for _ in range(count)]
    return watchers, group_of(*watchers)


def test_what_comes_together_is_one_push_that_all_share() -> None:
    fan_out, (watchers, group) = FanOut(Tally(), later=Turns().later), wide()
    for number in range(3):
        fan_out.put(group, Push(b"%d" % number), AT[number])
    assert all(watcher.pushes == [] for watcher in watchers)
    fan_out.flush()
    assert {tuple(map(id, watcher.pushes)) for watcher in watchers} == {(id(watchers[0].pushes[0]),)}
    assert watchers[0].got == [b"0", b"1", b"2"]


def test_who_does_not_flush_has_it_flushed_in_the_next_turn() -> None:
    turns = Turns()
    fan_out, (watchers, group) = FanOut(Tally(), later=turns.later), wide()
    fan_out.put(group, Push(b"x"), AT[0])
    turns.turn()
    assert watchers[0].got == [b"x"]
    assert fan_out.idle


def test_a_wide_fan_out_leaves_in_slices_and_what_comes_meanwhile_after_it() -> None:
    turns, tally = Turns(), Tally()
    fan_out, (watchers, group) = FanOut(tally, later=turns.later, slice_size=10), wide(35)
    fan_out.put(group, Push(b"1"), AT[0])
    fan_out.flush()
    assert tally.delivered == 10
    fan_out.put(group, Push(b"2"), AT[1])
    steps = 1
    while turns.turn():
        steps += 1
    assert steps >= 4
    assert all(watcher.got == [b"1", b"2"] for watcher in watchers)
    assert tally.delivered == 70


def test_when_too_much_waits_nobody_else_gets_a_turn() -> None:
    fan_out, (watchers, group) = FanOut(Tally(), later=Turns().later, slice_size=1), wide(5)
    fan_out.put(group, Push(b"x" * MAX_WAITING_BYTES), AT[0])
    fan_out.put(group, Push(b"y"), AT[1])
    fan_out.flush()
    assert all(len(watcher.got) == 2 for watcher in watchers)


def test_outputs_go_only_to_those_who_asked() -> None:
    plain, each = Watcher(), Watcher(each=True)
    others = [Watcher() for _ in range(WIDE)]
    fan_out, group = FanOut(Tally()), group_of(plain, each, *others)
    fan_out.put(group, Push(b"output"), AT[0], only_each=True)
    fan_out.put(group, Push(b"node"), AT[1])
    assert (plain.got, each.got) == ([b"node"], [b"output", b"node"])


def test_who_has_no_room_goes_on_from_before_all_that_it_was_to_be_handed() -> None:
    tally = Tally()
    slow = Watcher(room=1)
    fan_out, group = FanOut(tally, later=Turns().later), group_of(slow, *[Watcher() for _ in range(3)])
    fan_out.put(group, Push(b"1"), AT[0])
    fan_out.flush()
    for number in (1, 2):
        fan_out.put(group, Push(b"x"), AT[number])
    fan_out.flush()
    assert slow.behind == [Position(*AT[1])]
    assert slow not in group.plain
    assert (tally.delivered, tally.refused) == (4 + 6, 2)


def test_the_end_is_told_after_it_was_handed_over_and_only_to_those_who_took_it() -> None:
    slow = Watcher(room=0)
    watchers, group = wide(4)
    fan_out = FanOut(Tally(), later=Turns().later)
    fan_out.join(group, slow)
    fan_out.put(group, Push(b"last"), AT[0], final=True)
    assert watchers[0].ended == 0
    fan_out.flush()
    assert [watcher.ended for watcher in (*watchers, slow)] == [1, 1, 1, 1, 0]


def test_an_end_that_clients_are_not_sent() -> None:
    watchers, group = wide(4)
    FanOut(Tally()).put(group, None, AT[0], final=True)
    assert [(watcher.ended, watcher.got) for watcher in watchers] == [(1, [])] * 4


def test_who_leaves_between_two_slices_has_all_that_came_before_and_nothing_after() -> None:
    turns = Turns()
    fan_out, (watchers, group) = FanOut(Tally(), later=turns.later, slice_size=1), wide(6)
    fan_out.put(group, Push(b"x"), AT[0])
    fan_out.flush()
    gone = next(watcher for watcher in watchers if not watcher.got)
    fan_out.leave(group, gone)
    fan_out.put(group, Push(b"y"), AT[1])
    while turns.turn():
        pass
    assert gone.got == [b"x"], "it came while it was there"
    assert all(watcher.got == [b"x", b"y"] for watcher in watchers if watcher is not gone)


def test_finish_hands_over_what_waits_for_one_group_alone() -> None:
    turns = Turns()
    fan_out = FanOut(Tally(), later=turns.later, slice_size=1)
    (mine, group), (theirs, other) = wide(5), wide(5)
    for one in (other, group):
        fan_out.put(one, Push(b"1"), AT[0])
    fan_out.flush()
    fan_out.put(group, Push(b"2"), AT[1])
    fan_out.finish(group)
    assert all(watcher.got == [b"1", b"2"] for watcher in mine)
    assert sum(len(watcher.got) for watcher in theirs) == 1
    while turns.turn():
        pass
    assert all(watcher.got == [b"1"] for watcher in theirs)
    assert all(watcher.got == [b"1", b"2"] for watcher in mine)


def test_those_with_a_straight_way_are_handed_the_frame_that_all_share() -> None:
    frames: list[bytes] = []
    watchers, group = [Watcher() for _ in range(WIDE + 1)], group_of()
    fan_out = FanOut(Tally(), later=Turns().later)
    for watcher in watchers[1:]:
        watcher.writer = frames.append
    for watcher in watchers:
        fan_out.join(group, watcher)
    fan_out.put(group, Push(b"x"), AT[0])
    fan_out.flush()
    assert {id(frame) for frame in frames} == {id(frames[0])}
    assert frames == [b"\x81\x01x"] * (WIDE)
    assert watchers[0].got == [b"x"]


@pytest.mark.parametrize("straight", [False, True])
def test_one_that_fails_ends_nothing_for_the_others(straight: bool, caplog: pytest.LogCaptureFixture) -> None:
    def fail(data: object) -> bool:
        raise RuntimeError("closed")

    watchers, group = [Watcher() for _ in range(5)], group_of()
    tally = Tally()
    fan_out = FanOut(tally, later=Turns().later)
    for number, watcher in enumerate(watchers):
        if straight:
            watcher.straight()
        if number == 2 and straight:
            watcher.writer = fail
        elif number == 2:
            setattr(watcher, "put", fail)  # noqa: B010 - a method is replaced
        fan_out.join(group, watcher)
    for number in range(2):
        fan_out.put(group, Push(b"%d" % number), AT[number])
        fan_out.flush()
    assert [len(watcher.got) for watcher in watchers] == [2, 2, 0, 2, 2]
    # Who is asked and fails reads the log from then on; a straight way is about to be lost with its socket.
    assert (len(caplog.records), tally.refused) == ((2, 2) if straight else (1, 1))
    assert watchers[2].behind == ([] if straight else [Position(*AT[0])])


def test_who_loses_its_way_while_it_is_handed_something_has_it_and_is_asked_from_then_on() -> None:
    for few in (False, True):
        watcher, group = Watcher(), group_of(*[Watcher() for _ in range(0 if few else 5)])
        fan_out = FanOut(Tally(), later=Turns().later)
        frames: list[bytes] = []

        def write(frame: bytes, watcher: Watcher = watcher, group: Group = group, fan_out: FanOut = fan_out) -> None:
            frames.append(frame)  # noqa: B023 - of this round
            watcher.writer = None
            fan_out.shift(group, watcher)

        watcher.writer = write
        fan_out.join(group, watcher)
        for number in range(2):
            fan_out.put(group, Push(b"%d" % number), AT[number])
            fan_out.flush()
        assert frames == [b"\x81\x010"]
        assert watcher.got == [b"1"]


def test_who_loses_its_way_between_two_slices_has_all_that_came_before_in_order() -> None:
    turns = Turns()
    watchers, group = [Watcher().straight() for _ in range(6)], group_of()
    fan_out = FanOut(Tally(), later=turns.later, slice_size=1)
    for watcher in watchers:
        fan_out.join(group, watcher)
    fan_out.put(group, Push(b"1"), AT[0])
    fan_out.flush()
    fan_out.put(group, Push(b"2"), AT[1])
    watchers[-1].writer = None
    fan_out.shift(group, watchers[-1])
    while turns.turn():
        pass
    assert all(watcher.got == [b"1", b"2"] for watcher in watchers)


@given(st.data())
def test_whatever_happens_everybody_has_all_that_came_while_it_was_there_in_order(data: st.DataObject) -> None:
    turns = Turns()
    fan_out = FanOut(Tally(), later=turns.later, slice_size=data.draw(st.integers(1, 4)))
    groups = [group_of(), group_of()]
    wanted: dict[Watcher, list[bytes]] = {}
    home: dict[Watcher, Group] = {}
    for number in range(data.draw(st.integers(1, 60))):
        group = data.draw(st.sampled_from(groups))
        match data.draw(st.sampled_from(["put", "put", "join", "leave", "shift", "flush", "turn"])):
            case "put":
                only_each = data.draw(st.booleans())
                fan_out.put(group, Push(b"%d" % number), ("e", number), only_each=only_each)
                for watcher, where in home.items():
                    if where is group and (watcher.each or not only_each):
                        wanted[watcher].append(b"%d" % number)
            case "join":
                watcher = Watcher(each=data.draw(st.booleans()))
                if data.draw(st.booleans()):
                    watcher.straight()
                fan_out.join(group, watcher)
                wanted[watcher], home[watcher] = [], group
            case "leave" if group.members():
                member = data.draw(st.sampled_from([watcher for watcher in home if home[watcher] is group]))
                fan_out.leave(group, member)
                wanted[member] = wanted[member][: len(member.got)]  # what had not begun to leave is not sent any more
                del home[member]
            case "shift" if group.members():
                member = data.draw(st.sampled_from([watcher for watcher in home if home[watcher] is group]))
                if member.writer is None:
                    member.straight()
                else:
                    member.writer = None
                fan_out.shift(group, member)
            case "flush":
                fan_out.flush()
            case "turn":
                turns.turn()
    while turns.turn():
        pass
    for watcher in home:
        assert watcher.got == wanted[watcher]
    for watcher, expected in wanted.items():
        assert watcher.got == expected, "nothing after it left, either"


class Breaking(PlainSender):
    """Fails as a whole, once."""

    def __init__(self) -> None:
        self.broken = True

    def send_row(self, row: Row, begin: int, end: int, frame: bytes) -> int:
        if self.broken:
            self.broken = False
            raise MemoryError
        return super().send_row(row, begin, end, frame)


def test_a_sender_that_breaks_once_holds_up_nothing_that_follows() -> None:
    watcher = Watcher().straight()
    fan_out, group = FanOut(Tally(), sender=Breaking()), group_of(watcher)
    with pytest.raises(MemoryError):
        fan_out.put(group, Push(b"lost"), AT[0])
    fan_out.put(group, Push(b"next"), AT[1])
    assert watcher.got == [b"next"]
