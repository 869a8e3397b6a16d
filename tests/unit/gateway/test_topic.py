"""One tape as it is watched: order, holes, groups, slow members."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from livetape.auth import Principal
from livetape.events.log import Position
from livetape.events.recovery import Gap, Tail, merge
from livetape.events.tape_event import TapeEvent, shortened
from livetape.gateway.asked import Doubt
from livetape.gateway.fan_out import FanOut, Tally
from livetape.gateway.forms import LinesForm, SocketForm
from livetape.gateway.member import Writer
from livetape.gateway.messages import Push
from livetape.gateway.subjects import Kind, Subject
from livetape.gateway.topic import Topic, TopicKey

FORM = SocketForm.of("U|graph_exec#E", is_job=False)
OTHER_FORM = SocketForm.of("V|graph_exec#E", is_job=False)
EXECUTION = Subject(Kind.EXECUTION, "E")


class Watcher:
    """A member that writes everything down, and refuses when it is told to."""

    def __init__(self, *, each: bool = False) -> None:
        self.each = each
        self.writer: Writer | None = None
        self.got: list[Push] = []
        self.full = False
        self.behind: list[Position] = []
        self.ended = 0

    def put(self, push: Push, /) -> bool:
        if self.full:
            return False
        self.got.append(push)
        return True

    def fell_behind(self, position: Position) -> None:
        self.behind.append(position)

    def finished(self) -> None:
        self.ended += 1

    @property
    def offsets(self) -> list[Any]:
        bodies = [json.loads(push.data) for push in self.got]
        return [body.get("offset", body["method"]) for body in bodies]


def topic(*members: Watcher, at: int | None = 0, reader: Principal | None = None, proven: bool = True) -> Topic:
    made = Topic(
        TopicKey(EXECUTION, reader),
        "p",
        proven=proven,
        tail=Tail(100, 10_000),
        max_event_bytes=1000,
        fan_out=FanOut(Tally()),
    )
    if at is not None:
        made.begin(Position("e", at), final=False)
    for member in members:
        assert made.join(member, FORM, None)
    return made


def event(offset: int | None, kind: str = "node_execution_update", epoch: str = "e", final: bool = False) -> TapeEvent:
    return TapeEvent(kind, b"{}", offset, None if offset is None else epoch, final)


def test_events_in_order_are_handed_over() -> None:
    watcher = Watcher()
    made = topic(watcher, at=3)
    assert not any(made.offer(event(offset)) for offset in (4, 5, 6))
    assert watcher.offsets == [4, 5, 6]
    assert made.position == Position("e", 6)


def test_doubles_and_late_ones_are_dropped() -> None:
    watcher = Watcher()
    made = topic(watcher)
    for offset in (1, 1, 2, 1, 2, 3):
        assert not made.offer(event(offset))
    assert watcher.offsets == [1, 2, 3]


def test_a_number_that_comes_again_with_another_event_has_the_log_asked() -> None:
    watcher = Watcher()
    made = topic(watcher)
    for offset in (1, 2, 3):
        made.offer(event(offset))
    assert made.offer(TapeEvent("node_execution_update", b'{"n":2}', 2, "e"))
    assert made.take_doubt()
    made.compare([event(1), TapeEvent("node_execution_update", b'{"n":2}', 2, "e")])
    assert watcher.offsets == [1, 2, 3, "gap"]
    assert made.position == Position("e", 1), "from there on it is read from the log"


def test_a_hole_stops_the_flow_and_asks_for_the_log() -> None:
    watcher = Watcher()
    made = topic(watcher)
    made.start_reading()
    assert made.offer(event(3))
    assert made.offer(event(4))
    assert watcher.offsets == []
    made.apply(merge(made.position, [event(1), event(2)], made.tail).items)
    assert watcher.offsets == [1, 2, 3, 4]
    made.stop_reading()
    assert len(made.tail) == 0


def test_another_epoch_asks_for_the_log() -> None:
    assert topic().offer(event(1, epoch="f"))


def test_a_tape_born_again_is_told() -> None:
    watcher = Watcher()
    made = topic(watcher, at=3)
    made.move(Position("f", 0))
    made.advance(event(1, epoch="f"))
    gap, first = [json.loads(push.data) for push in watcher.got]
    assert (gap["method"], gap["data"]) == ("gap", {"from": 4, "to": None, "epoch": "f"})
    assert (first["offset"], first["epoch"]) == (1, "f")


def test_before_its_position_is_known_events_are_kept() -> None:
    watcher = Watcher()
    made = topic(at=None)
    assert not made.offer(event(4))
    assert not made.offer(event(5))
    made.join(watcher, FORM, None)
    assert not made.begin(Position("e", 4), final=False)
    assert watcher.offsets == [5]
    assert made.position == Position("e", 5)


def test_a_position_far_behind_asks_for_the_log_at_once() -> None:
    made = topic(at=None)
    made.offer(event(4))
    assert made.begin(Position("e", 1), final=False)


def test_who_lost_messages_before_it_began_asks_for_the_log() -> None:
    made = topic(at=None)
    made.stale = True
    assert made.begin(Position("e", 1), final=False)


def test_a_tape_that_was_not_there_begins_with_its_first_event() -> None:
    watcher = Watcher()
    made = topic(reader=Principal("U"), at=None)
    made.begin(Position("", 0), final=False)
    made.join(watcher, FORM, None)
    assert not made.offer(event(1))
    assert watcher.offsets == [1]
    assert made.position == Position("e", 1)
    late = topic(reader=Principal("U"), at=None)
    late.begin(Position("", 0), final=False)
    assert late.offer(event(2)), "its first event is missing"


def test_what_is_not_proven_is_kept_back() -> None:
    watcher = Watcher()
    made = topic(watcher, reader=Principal("U"), proven=False)
    assert made.offer(event(1))
    assert not made.offer(event(None))
    assert watcher.offsets == []
    made.denied = True
    assert not made.offer(event(1))


def test_events_on_no_tape_are_handed_over_at_once() -> None:
    watcher = Watcher()
    made = topic(watcher, at=5)
    assert not made.offer(event(None))
    assert watcher.offsets == ["node_execution_event"]
    assert made.position == Position("e", 5)


def test_single_outputs_go_to_who_asked_and_count_for_all() -> None:
    plain, each = Watcher(), Watcher(each=True)
    made = topic(plain, each)
    made.offer(event(1))
    made.offer(event(2, "node_output_update"))
    made.offer(event(3))
    assert plain.offsets == [1, 3]
    assert each.offsets == [1, 2, 3]
    assert made.offer(event(5)), "a hole is noticed whatever the type of what is missing"


def test_one_push_is_shared_by_all_of_a_channel() -> None:
    watchers = [Watcher(), Watcher(), Watcher(each=True)]
    made = topic(*watchers)
    other = Watcher()
    made.join(other, OTHER_FORM, None)
    made.offer(event(1))
    assert len({id(watcher.got[0]) for watcher in watchers}) == 1
    assert other.got[0] is not watchers[0].got[0]
    assert json.loads(other.got[0].data)["channel"] == "V|graph_exec#E"


def test_the_last_event_ends_it() -> None:
    watcher, line = Watcher(), Watcher()
    made = topic(watcher)
    made.join(line, LinesForm(), None)
    made.offer(event(1, final=True))
    assert (watcher.ended, line.ended) == (1, 1)
    assert json.loads(watcher.got[0].data)["final"] is True
    late = Watcher()
    made.join(late, FORM, None)
    assert late.ended == 1


def test_who_has_no_room_is_taken_out_with_its_position() -> None:
    slow, fast = Watcher(), Watcher()
    made = topic(slow, fast)
    made.offer(event(1))
    slow.full = True
    made.offer(event(2))
    made.offer(event(3))
    assert slow.offsets == [1]
    assert slow.behind == [Position("e", 1)], "once: it is no member any more"
    assert fast.offsets == [1, 2, 3]
    slow.full = False
    assert not made.join(slow, FORM, Position("e", 1)), "first it has to read what it missed"
    assert made.join(slow, FORM, Position("e", 3))


def test_who_has_no_room_for_a_gap_finds_it_in_the_log() -> None:
    slow = Watcher()
    made = topic(slow)
    slow.full = True
    made.apply([Gap(1, 4, "e"), event(5)])
    assert slow.behind == [Position("e", 0)]
    assert made.position == Position("e", 5)


def test_who_has_no_room_for_what_is_on_no_tape_misses_it() -> None:
    slow = Watcher()
    made = topic(slow)
    slow.full = True
    made.offer(event(None))
    made.too_large()
    assert slow.behind == []
    slow.full = False
    made.offer(event(1))
    assert slow.offsets == [1]


def test_leaving() -> None:
    watcher = Watcher()
    made = topic(watcher)
    made.leave(watcher, FORM)
    made.leave(watcher, FORM)
    made.leave(watcher, OTHER_FORM)
    made.offer(event(1))
    assert watcher.got == []
    assert made.groups == {}


LARGE = TapeEvent("node_execution_update", b'{"x":"%s"}' % (b"x" * 2000), 1, "e")


def test_an_event_that_is_too_large_is_read_from_the_log_where_it_can_be_cut() -> None:
    watcher = Watcher()
    made = topic(watcher)
    made.start_reading()
    assert made.offer(LARGE)
    assert watcher.got == []
    assert [(event.offset, event.event_type, event.payload) for event in made.tail] == [(1, "error_comms_update", b"")]
    made.advance(shortened(LARGE, b'{"x":"x"}'))
    body = json.loads(watcher.got[0].data)
    assert (body["data"], body["offset"], body["epoch"], body["truncated"]) == ({"x": "x"}, 1, "e", True)
    assert list(body)[-1] == "truncated"


def test_an_event_that_is_too_large_and_cannot_be_cut_is_told_with_its_offset() -> None:
    watcher = Watcher()
    made = topic(watcher)
    made.advance(LARGE)
    body = json.loads(watcher.got[0].data)
    assert (body["method"], body["code"], body["offset"], body["epoch"]) == ("error", "payload_too_large", 1, "e")


def test_an_event_that_is_too_large_and_stands_nowhere_is_told() -> None:
    watcher = Watcher()
    made = topic(watcher)
    assert not made.offer(TapeEvent(LARGE.event_type, LARGE.payload))
    body = json.loads(watcher.got[0].data)
    assert (body["method"], body["code"]) == ("error", "payload_too_large")


def test_a_part_of_an_event_is_not_taken_for_another_event() -> None:
    """What the log has is compared with what was handed over: of this only a part was."""
    watcher = Watcher()
    made = topic(watcher)
    made.advance(shortened(LARGE, b"{}"))
    made.compare([LARGE])
    assert made.position.offset == 1
    assert not made.denies([LARGE], Doubt(1, hash(b"another")))
    assert made.denies([TapeEvent("x", b"small", 1, "e")], Doubt(1, hash(b"another")))
    assert not made.denies([TapeEvent("x", b"small", 2, "e")], Doubt(1, hash(b"another")))


def test_an_event_that_cannot_be_had_is_told_with_its_offset() -> None:
    watcher = Watcher()
    made = topic(watcher)
    made.apply([event(1, "error_comms_update")])
    body = json.loads(watcher.got[0].data)
    assert (body["method"], body["code"], body["offset"]) == ("error", "payload_too_large", 1)


def test_what_was_handed_over_is_counted_per_push() -> None:
    tally = Tally()
    made = Topic(TopicKey(EXECUTION), "p", proven=True, tail=Tail(9, 99), max_event_bytes=99, fan_out=FanOut(tally))
    made.begin(Position("e", 0), final=False)
    fast, slow = Watcher(), Watcher()
    slow.full = True
    made.join(fast, FORM, None)
    made.join(slow, FORM, None)
    made.offer(event(1))
    assert (tally.delivered, tally.refused) == (1, 1)


def test_it_can_be_named_in_a_log_line() -> None:
    assert "execution E at e-0" in repr(topic())


# ---- every interleaving -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("each", [False, True])
@given(data=st.data())
def test_any_interleaving_of_log_and_live_gives_each_event_once_in_order(each: bool, data: st.DataObject) -> None:
    """Events are appended and published; the bus loses, doubles and swaps; the log is read at any moment, with a read
    that returns later than it looked; watchers come at any position, are slow at any moment, and read for themselves.
    """
    draw = data.draw
    log: list[TapeEvent] = []
    bus: list[TapeEvent] = []
    made = Topic(
        TopicKey(EXECUTION),
        "p",
        proven=True,
        tail=Tail(draw(st.integers(1, 6)), 10_000),
        max_event_bytes=1000,
        fan_out=FanOut(Tally()),
    )
    made.begin(Position("e", 0), final=False)
    made.start_reading()
    watchers: list[Watcher] = []
    reading: dict[Watcher, Position] = {}
    starts: dict[Watcher, int] = {}
    seen: list[TapeEvent] | None = None  # what the topic's own reader has read and not yet applied

    def forward(watcher: Watcher) -> None:
        """One step of a watcher that is not live."""
        position = reading[watcher]
        merged = merge(position, log[position.offset : position.offset + 3], made.tail)
        for item in merged.items:
            assert isinstance(item, TapeEvent), "nothing is ever lost here"
            if item.offset == made.position.offset + 1:
                made.advance(item)
            if each or item.event_type != "node_output_update":
                push = made.push_of(item, FORM)
                assert push is not None
                watcher.got.append(push)
        reading[watcher] = merged.position
        if made.join(watcher, FORM, merged.position):
            del reading[watcher]

    def collect() -> None:
        for watcher in watchers:
            while watcher.behind:
                reading[watcher] = watcher.behind.pop()

    for _ in range(draw(st.integers(5, 40))):
        step = draw(st.sampled_from(["append", "append", "live", "live", "lose", "double", "swap", "look", "apply",
                                     "watch", "slow", "read"]))  # fmt: skip
        if step == "append":
            kind = draw(st.sampled_from(["node_execution_update", "node_output_update"]))
            log.append(event(len(log) + 1, kind))
            bus.append(log[-1])
        elif step == "live" and bus:
            made.offer(bus.pop(0))
        elif step == "lose" and bus:
            bus.pop(0)
        elif step == "double" and bus:
            bus.insert(0, bus[0])
        elif step == "swap" and len(bus) > 1:
            bus[0], bus[1] = bus[1], bus[0]
        elif step == "look":
            seen = log[made.position.offset : made.position.offset + 4]
        elif step == "apply" and seen is not None:
            made.apply(merge(made.position, seen, made.tail).items)
            seen = None
        elif step == "watch":
            watcher = Watcher(each=each)
            starts[watcher] = draw(st.integers(0, len(log)))
            watchers.append(watcher)
            reading[watcher] = Position("e", starts[watcher])
        elif step == "slow" and watchers:
            watcher = draw(st.sampled_from(watchers))
            watcher.full = not watcher.full
        elif step == "read" and reading:
            forward(draw(st.sampled_from(sorted(reading, key=watchers.index))))
        collect()
    for watcher in watchers:
        watcher.full = False
    while made.position.offset < len(log):
        made.apply(merge(made.position, log[made.position.offset :], made.tail).items)
    while reading:
        forward(next(iter(reading)))
    for watcher in watchers:
        wanted = [one.offset for one in log[starts[watcher] :] if each or one.event_type != "node_output_update"]
        assert watcher.offsets == wanted
