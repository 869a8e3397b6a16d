"""The shortest way of an event gives everybody exactly what the long one gives."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from livetape.adapters.prometheus.metrics import PrometheusMetrics
from livetape.adapters.redis.router import Router
from livetape.events.bus import BusMessage, ExpressSink
from livetape.events.channel import execution_channel
from livetape.events.codec import Envelope, split
from livetape.events.funnel import Funnel
from livetape.events.log import Position
from livetape.events.recovery import Gap
from livetape.gateway.forms import SocketForm
from livetape.gateway.frames import text_frame
from livetape.gateway.hub import Hub
from livetape.gateway.lane import EXPRESS_TYPES, MAX_FRAME, MAX_MEMBERS
from livetape.gateway.member import Writer
from livetape.gateway.messages import Push
from livetape.gateway.subjects import Kind, Subject
from livetape.gateway.topic import Topic, TopicKey
from livetape.testing.conformance.bus import CollectedFast

CHANNEL = execution_channel("U", "G", "E")
SUBJECT = Subject(Kind.EXECUTION, "E")
FORM = SocketForm.of(SUBJECT.client_channel("U"), is_job=False)


class Watcher:
    """Writes down the bytes that it is given, whichever way they come."""

    def __init__(self, *, each: bool, fast: bool) -> None:
        self.each = each
        self.fast = fast
        self.bytes = b""
        self.ended = 0
        self.on_write: Callable[[], None] = lambda: None

    @property
    def writer(self) -> Writer | None:
        return self._write if self.fast else None

    def _write(self, frame: bytes) -> None:
        self.bytes += frame
        self.on_write()

    def put(self, push: Push, /) -> bool:
        self.bytes += push.frame
        return True

    def fell_behind(self, position: Position) -> None:
        raise AssertionError(position)

    def finished(self) -> None:
        self.ended += 1


class Side:
    """A hub with one tape, and its watchers by number."""

    def __init__(self, *, express: bool) -> None:
        self.express = express
        self.hub = Hub(tail_max_events=100, tail_max_bytes=10**6, max_event_bytes=200_000, later=lambda work: None)
        self.topic = self.hub.hold(TopicKey(SUBJECT), CHANNEL)
        self.topic.begin(Position("e%", 0), final=False)
        self.watchers: dict[int, Watcher] = {}

    def do(self, step: tuple[Any, ...]) -> None:
        match step:
            case ("events", *messages):
                for data in messages:
                    if not (self.express and self.hub.express(CHANNEL, data)):
                        self.hub.dispatch(CHANNEL, split(data))
                self.hub.flush()
            case ("join", number, each, fast):
                watcher = self.watchers.setdefault(number, Watcher(each=each, fast=fast))
                if watcher not in self.members:
                    assert self.topic.join(watcher, FORM, None)
            case ("leave", number) if number in self.watchers:
                self.topic.leave(self.watchers[number], FORM)
            case ("shift", number, fast) if number in self.watchers:
                self.watchers[number].fast = fast
                self.topic.shift(self.watchers[number], FORM)
            case ("read",):
                self.topic.start_reading()
                self.topic.stop_reading()
            case ("gap", size):
                self.topic.lose(Gap(self.topic.position.offset + 1, self.topic.position.offset + size, "e%"))
                self.hub.flush()

    @property
    def members(self) -> list[Any]:
        return [member for group in self.topic.groups.values() for member in group.members()]


def message(offset: int, kind: str = "node_execution_update", body: bytes = b"", *, final: bool = False) -> bytes:
    payload = b'{"event_type":"%b","x":"%b"}' % (kind.encode(), body)
    return Envelope(payload, kind, offset, "e%", final=final).encode()


KINDS = [*EXPRESS_TYPES.values(), "something_else"]
BODIES = [b"", b"y" * 300, "日本".encode(), b"\xff\xfe", b"z" * 70_000, b"%d %b"]


@st.composite
def steps(draw: st.DrawFn) -> list[tuple[Any, ...]]:
    """What happens to a tape: nearly all events come in order, some are doubled or too early."""
    offset, made = 0, []
    for _ in range(draw(st.integers(1, 12))):
        what = draw(st.sampled_from(["events", "events", "events", "join", "join", "leave", "shift", "read", "gap"]))
        number = draw(st.integers(0, 3))
        if what == "events":
            messages = []
            for _ in range(draw(st.integers(1, 5))):
                step = draw(st.sampled_from([1, 1, 1, 1, 1, 1, 0, 2]))
                kind, body = draw(st.sampled_from(KINDS)), draw(st.sampled_from(BODIES))
                messages.append(message(max(1, offset + step), kind, body, final=draw(st.integers(0, 20)) == 0))
                offset += step == 1
            made.append((what, *messages))
        elif what == "join":
            made.append((what, number, draw(st.booleans()), draw(st.integers(0, 3)) > 0))
        elif what == "gap":
            size = draw(st.integers(1, 3))
            offset += size
            made.append((what, size))
        else:
            made.append({"leave": (what, number), "shift": (what, number, draw(st.booleans())), "read": (what,)}[what])
    return made


@given(steps())
def test_both_ways_give_the_same(script: list[tuple[Any, ...]]) -> None:
    short, long = Side(express=True), Side(express=False)
    for step in script:
        short.do(step)
        long.do(step)
        assert {number: w.bytes for number, w in short.watchers.items()} == {
            number: w.bytes for number, w in long.watchers.items()
        }
        assert short.topic.position == long.topic.position
        offset = short.topic.position.offset
        assert short.topic.marked_after == long.topic.marked_after
        assert [short.topic.mark(at) for at in range(offset + 2)] == [long.topic.mark(at) for at in range(offset + 2)]
    assert short.hub.tally == long.hub.tally


def test_what_comes_together_leaves_in_one_write() -> None:
    side = Side(express=True)
    side.do(("join", 0, False, True))
    writes = []
    side.watchers[0].on_write = lambda: writes.append(1)
    side.do(("events", *(message(offset) for offset in range(1, 11))))
    assert len(writes) == 1
    frames = side.watchers[0].bytes
    assert frames.count(b'"offset":') == 10


def test_an_event_is_handed_to_the_topic_by_a_lane_that_was_looked_up() -> None:
    side = Side(express=True)
    side.do(("join", 0, False, True))
    assert not side.hub.lanes
    side.do(("events", message(1)))
    lane = side.hub.lanes[CHANNEL.encode()]
    assert lane(message(2))
    assert not lane(message(4))
    side.hub.hand_lanes()
    assert side.watchers[0].bytes.endswith(b',"offset":2,"epoch":"e%"}')
    side.hub.hold(TopicKey(Subject(Kind.EXECUTION, "F")), execution_channel("U", "G", "F"))
    assert not side.hub.lanes, "who is interested has changed"


def test_who_leaves_has_been_handed_what_came_before() -> None:
    side = Side(express=True)
    side.do(("join", 0, False, True))
    assert side.topic.express(message(1))
    assert not side.watchers[0].bytes
    side.topic.leave(side.watchers[0], FORM)
    assert b'"offset":1' in side.watchers[0].bytes


def test_who_joins_is_handed_nothing_that_came_before() -> None:
    side = Side(express=True)
    side.do(("join", 0, False, True))
    assert side.topic.express(message(1))
    side.do(("join", 1, False, True))
    side.hub.flush()
    assert side.watchers[0].bytes
    assert not side.watchers[1].bytes


def test_where_the_members_stand_counts_only_what_has_left() -> None:
    side = Side(express=True)
    side.do(("join", 0, False, True))
    assert side.topic.express(message(1))
    assert side.topic.handed(FORM) == Position("e%", 1)
    assert b'"offset":1' in side.watchers[0].bytes


def test_many_members_are_handed_their_events_in_slices() -> None:
    side = Side(express=True)
    for number in range(MAX_MEMBERS + 1):
        side.do(("join", number, False, True))
    assert side.topic.express(message(1))
    side.hub.hand_lanes()
    assert not side.watchers[0].bytes, "it waits for its slice"
    side.hub.flush()
    assert all(watcher.bytes for watcher in side.watchers.values())


def test_a_client_that_becomes_congested_by_a_frame_gets_the_next_ones_by_its_outbox() -> None:
    side = Side(express=True)
    side.do(("join", 0, False, True))
    watcher = side.watchers[0]
    watcher.on_write = lambda: side.do(("shift", 0, False))
    side.do(("events", message(1), message(2)))
    side.do(("events", message(3)))
    assert [watcher.bytes.count(b'"offset":%d,' % offset) for offset in (1, 2, 3)] == [1, 1, 1]


def test_one_socket_that_fails_takes_nothing_from_the_others(caplog: pytest.LogCaptureFixture) -> None:
    side = Side(express=True)
    for number in range(3):
        side.do(("join", number, False, True))

    def fail() -> None:
        raise OSError("gone")

    side.watchers[1].on_write = fail
    with caplog.at_level(logging.CRITICAL):
        side.do(("events", message(1)))
    assert side.watchers[0].bytes == side.watchers[2].bytes != b""
    assert (side.hub.tally.delivered, side.hub.tally.refused) == (2, 1)


@pytest.mark.parametrize("size", [100, 125, 126, 65_000, MAX_FRAME - 1, MAX_FRAME, MAX_FRAME + 1, MAX_FRAME + 400])
def test_a_frame_of_any_size_is_well_formed(size: int) -> None:
    side = Side(express=True)
    side.do(("join", 0, False, True))
    side.do(("events", message(1)))
    watcher, empty = side.watchers[0], len(message(2))
    watcher.bytes = b""
    side.do(("events", message(2, body=b"a" * max(0, size - empty))))
    body = watcher.bytes[watcher.bytes.index(b"{") :]
    assert watcher.bytes == text_frame(body)
    assert json.loads(body)["offset"] == 2


# ---- what the bus does ----------------------------------------------------------------------------------------------


def listening(sink: ExpressSink, router: Router, *others: Funnel) -> Funnel:
    funnel = Funnel(sink)
    for one in (funnel, *others):
        router.open(one)
        router.attach("suite/a", one)
    router.changed("suite/a", True)
    router.listening(again=False)
    router.route(b"suite/a")
    return funnel


def pushed(number: int) -> list[object]:
    return [b"message", b"suite/a", b"%d" % number]


def test_the_sink_is_called_after_the_lanes_with_what_they_left() -> None:
    router, got = Router(), CollectedFast()
    listening(got, router)
    router.arrived([pushed(number) for number in range(5)], lambda push: None)
    assert got.by_lane == [b"0", b"2", b"4"]
    assert got.data == [b"1", b"3"]
    assert got.told == 3
    router.arrived([pushed(6)], lambda push: None)
    assert got.calls[-1] == []
    assert got.told == 4
    assert router.messages == 6


def test_lanes_are_not_offered_what_somebody_else_wants() -> None:
    router, got, other = Router(), CollectedFast(), CollectedFast()
    listening(got, router, Funnel(other))
    router.arrived([pushed(number) for number in range(4)], lambda push: None)
    assert not got.by_lane
    assert got.data == other.data == [b"0", b"1", b"2", b"3"]


def test_lanes_are_offered_nothing_while_the_link_comes_back() -> None:
    router, got = Router(), CollectedFast()
    listening(got, router)
    router.lost()
    router.changed("suite/a", True)
    router.arrived([pushed(2)], lambda push: router.message(None, b"suite/a", b"2"))
    assert not got.by_lane
    router.listening(again=True)
    assert got.messages == [BusMessage("", b"", gap=True), BusMessage("suite/a", b"2")]


def test_a_lane_that_raises_loses_nothing_in_silence(caplog: pytest.LogCaptureFixture) -> None:
    router, got = Router(), CollectedFast()
    listening(got, router)

    def broken(data: bytes) -> bool:
        raise ValueError(data)

    got.lanes = {b"suite/a": broken}
    metrics = PrometheusMetrics("t")
    router = Router(metrics=metrics)
    listening(got, router)
    with caplog.at_level(logging.CRITICAL):
        router.arrived([pushed(1), pushed(2)], lambda push: None)
    assert [(m.data, m.gap) for m in got.messages][-1] == (b"2", False)
    assert got.messages[0].gap
    assert {m.data for m in got.messages if not m.gap} == {b"1", b"2"}
    assert b't_internal_errors_total{part="bus"} 2.0' in metrics.render()[0]


def test_a_topic_that_nobody_watches_keeps_its_place() -> None:
    side = Side(express=True)
    assert isinstance(side.topic, Topic)
    side.do(("events", message(1), message(2)))
    assert side.topic.position == Position("e%", 2)
