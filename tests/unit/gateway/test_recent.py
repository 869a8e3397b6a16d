"""Tapes as they were described within the last second."""

from __future__ import annotations

from livetape.events.log import Tape
from livetape.gateway import recent
from livetape.gateway.recent import RecentTapes
from livetape.gateway.subjects import Kind, Subject
from livetape.testing.fakes import ManualClock

E, F = Subject(Kind.EXECUTION, "E"), Subject(Kind.EXECUTION, "F")


def tape(name: str) -> Tape:
    return Tape(
        name=name, owner="U", graph_id="G", channel="c", epoch="e", offset=1, first_offset=1, final=False, mixed=False
    )


def test_it_is_known_for_a_second_after_it_was_asked_for() -> None:
    clock = ManualClock()
    tapes = RecentTapes(clock.monotonic)
    asked_at = clock.monotonic()
    clock.advance(0.4)
    tapes.put(E, tape("E"), asked_at)
    clock.advance(0.5)
    tapes.put(F, tape("F"), clock.monotonic())
    assert tapes.get(E) == tape("E")
    clock.advance(0.1)
    assert tapes.get(E) is None
    assert tapes.get(F) == tape("F")
    assert len(tapes) == 1


def test_it_is_forgotten_when_it_may_be_another() -> None:
    tapes = RecentTapes(ManualClock().monotonic)
    tapes.put(E, tape("E"), 1000.0)
    tapes.forget(E)
    tapes.forget(F)
    assert tapes.get(E) is None


def test_it_is_bounded() -> None:
    tapes = RecentTapes(ManualClock().monotonic)
    for number in range(recent.MAX_TAPES + 5):
        tapes.put(Subject(Kind.EXECUTION, str(number)), tape("E"), 1000.0)
    assert len(tapes) == recent.MAX_TAPES


def test_one_that_was_asked_for_long_ago_is_not_known_because_another_stands_before_it() -> None:
    clock = ManualClock()
    tapes = RecentTapes(clock.monotonic)
    asked_at = clock.monotonic()
    clock.advance(0.9)
    tapes.put(F, tape("F"), clock.monotonic())
    tapes.put(E, tape("E"), asked_at)
    clock.advance(0.2)
    assert tapes.get(E) is None
    assert tapes.get(F) == tape("F")
