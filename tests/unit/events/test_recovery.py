"""Any interleaving of log and live yields each event once, in order; or the watcher is told what is gone."""

from __future__ import annotations

from collections.abc import Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from livetape.events.log import Position
from livetape.events.recovery import Gap, Tail, merge, skip_hole
from livetape.events.tape_event import TapeEvent


def event(offset: int, epoch: str = "e") -> TapeEvent:
    return TapeEvent("t", b"%d" % offset, offset, epoch)


def events(*offsets: int, epoch: str = "e") -> list[TapeEvent]:
    return [event(offset, epoch) for offset in offsets]


def offsets(items: Iterable[object]) -> list[object]:
    return [item.offset if isinstance(item, TapeEvent) else item for item in items]


def tail_of(live: Iterable[TapeEvent], max_events: int = 100, max_bytes: int = 10_000) -> Tail:
    tail = Tail(max_events, max_bytes)
    for one in live:
        tail.add(one)
    return tail


# ---- merge ----


@pytest.mark.parametrize(
    ("read", "live", "items", "position", "behind"),
    [
        ([], [], [], 3, False),
        ([4, 5], [], [4, 5], 5, False),
        ([], [4, 5], [4, 5], 5, False),
        ([4, 5], [5, 6, 7], [4, 5, 6, 7], 7, False),
        ([1, 2, 3, 4], [2, 3], [4], 4, False),
        ([4], [6, 7], [4], 4, True),
        ([], [5], [], 3, True),
        ([6, 7], [], [Gap(4, 5, "e"), 6, 7], 7, False),
    ],
)
def test_merge(read: list[int], live: list[int], items: list[object], position: int, behind: bool) -> None:
    merged = merge(Position("e", 3), events(*read), events(*live))
    assert offsets(merged.items) == items
    assert merged.position == Position("e", position)
    assert merged.behind is behind


def test_what_stands_in_for_a_large_event_is_asked_of_the_log() -> None:
    stand_in = TapeEvent("error_comms_update", b"{}", 4, "e")
    merged = merge(Position("e", 3), [], [stand_in, event(5)])
    assert (merged.items, merged.behind) == ([], True)
    assert offsets(merge(Position("e", 3), [event(4)], [stand_in, event(5)]).items) == [4, 5]
    assert skip_hole(Position("e", 3), [stand_in]).items == [stand_in]


def test_another_epoch_does_not_join_on() -> None:
    merged = merge(Position("e", 3), events(4), events(5, epoch="f"))
    assert (offsets(merged.items), merged.behind) == ([4], True)


def test_what_the_log_cannot_give_is_told_as_a_gap() -> None:
    skipped = skip_hole(Position("e", 3), events(2, 3, 6, 7))
    assert offsets(skipped.items) == [Gap(4, 5, "e"), 6, 7]
    assert skipped.position == Position("e", 7)
    assert offsets(skip_hole(Position("e", 3), events(1, 2, epoch="f")).items) == [Gap(4, None, "f"), 1, 2]
    assert offsets(skip_hole(Position("", 0), events(4, epoch="f")).items) == [Gap(1, None, "f"), 4]
    assert skip_hole(Position("e", 3), []).items == []


@given(
    length=st.integers(0, 30),
    start=st.integers(0, 30),
    read_until=st.integers(0, 30),
    live=st.lists(st.integers(1, 30), max_size=40),
    keep=st.integers(1, 40),
)
def test_whatever_arrived_each_comes_once_in_order(
    length: int, start: int, read_until: int, live: list[int], keep: int
) -> None:
    """`live` has losses, doubles and swaps; the log was read up to somewhere."""
    start = min(start, length)
    read = events(*range(start + 1, max(start, min(read_until, length)) + 1))
    tail = tail_of([event(offset) for offset in live if offset <= length], max_events=keep)
    merged = merge(Position("e", start), read, tail)
    assert offsets(merged.items) == list(range(start + 1, merged.position.offset + 1))
    assert merged.position.offset >= start + len(read)
    newest = max((one.offset or 0 for one in tail), default=0)
    assert merged.behind is (newest > merged.position.offset)


# ---- the tail ----


def test_a_tail_keeps_the_newest_within_its_bounds() -> None:
    tail = tail_of(events(1, 2, 3, 4, 5), max_events=3)
    assert offsets(tail) == [3, 4, 5]
    assert offsets(tail_of(events(1, 2, 3), max_bytes=2)) == [2, 3]
    big = TapeEvent("t", b"x" * 100, 9, "e")
    assert offsets(tail_of([*events(1), big], max_bytes=10)) == [9], "one is always kept"
    assert tail.first == event(3)
    tail.clear()
    assert (len(tail), tail.first) == (0, None)


def test_a_tail_leaves_to_the_log_what_comes_out_of_order() -> None:
    assert offsets(tail_of(events(3, 2, 3, 5, 4))) == [3, 5]
    assert offsets(tail_of([TapeEvent("live only", b"{}")])) == []


def test_a_tail_is_of_one_epoch() -> None:
    assert offsets(tail_of([*events(7, 8), *events(1, epoch="f")])) == [1]
