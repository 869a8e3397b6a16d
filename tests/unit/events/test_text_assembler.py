"""The assembler gives the text, tells what is missing, and is not misled by what belongs to others."""

from __future__ import annotations

import asyncio
import random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from livetape.events.text_assembler import TextAssembler, TextChange
from livetape.events.tokens import TokenStream
from livetape.testing.fakes import ManualClock


def delta(index: int, text: str, **more: Any) -> tuple[str, dict[str, Any]]:
    return "token_delta", {"stream_id": "s", "run": 1, "index": index, "text": text} | more


def odd(**more: Any) -> tuple[str, dict[str, Any]]:
    return "token_delta", {"stream_id": "s", "run": 1, "index": 1, "text": "x"} | more


def checkpoint(index: int, text: str, **more: Any) -> tuple[str, dict[str, Any]]:
    return "token_checkpoint", delta(index, text, **more)[1]


def fed(*events: tuple[str, Any]) -> TextAssembler:
    assembler = TextAssembler("s")
    for event in events:
        assembler.feed(*event)
    return assembler


def test_deltas_are_added_and_checkpoints_change_nothing():
    assembler = TextAssembler("s")
    assert not assembler.started
    assert assembler.feed(*delta(0, "a")) == TextChange("a", replaces=True)
    assert assembler.feed(*delta(1, "b")) == TextChange("b")
    assert assembler.feed(*checkpoint(2, "ab")) is None
    assert assembler.feed(*delta(3, "c")) == TextChange("c")
    assert assembler.feed("token_end", delta(4, "abc", finish_reason="stop")[1]) == TextChange("")
    assert (assembler.text, assembler.finished, assembler.finish_reason) == ("abc", True, "stop")


def test_a_repetition_is_ignored_and_counted():
    assembler = fed(delta(0, "a"), delta(1, "b"), delta(1, "b"), delta(0, "a"))
    assert (assembler.text, assembler.duplicates, assembler.complete) == ("ab", 2, True)


def test_a_hole_is_told_until_a_checkpoint_makes_it_good():
    assembler = fed(delta(0, "a"), delta(2, "c"), delta(3, "d"))
    assert (assembler.complete, assembler.holes) == (False, 1)
    assert assembler.feed(*checkpoint(4, "abcd")) == TextChange("abcd", replaces=True)
    assert (assembler.text, assembler.complete) == ("abcd", True)


def test_a_lost_delta_is_in_the_checkpoint_after_it():
    assembler = fed(delta(0, "a"))
    assert assembler.feed(*checkpoint(2, "ab")) == TextChange("ab", replaces=True)
    assert (assembler.complete, assembler.holes) == (True, 1)


def test_it_may_begin_at_a_checkpoint_but_not_at_a_delta():
    assert fed(checkpoint(7, "so far"), delta(8, "!")).text == "so far!"
    assert fed(checkpoint(7, "so far"), delta(8, "!")).complete
    assert not fed(delta(8, "!")).complete


def test_segments_follow_one_another():
    assembler = fed(delta(0, "aa"), checkpoint(1, "aa", sealed=True), delta(2, "b"), checkpoint(3, "b", segment=1))
    assert (assembler.text, assembler.complete, assembler.holes) == ("aab", True, 0)
    later = fed(checkpoint(9, "c", segment=2), delta(10, "d"))
    assert (later.text, later.complete, later.missing()) == ("cd", False, [0, 1])
    later.know(0, "a")
    later.know(1, "b")
    assert (later.text, later.complete) == ("abcd", True)


def test_a_lost_end_of_a_segment_is_missing():
    assembler = fed(delta(0, "a"), checkpoint(5, "x", segment=1))
    assert (assembler.complete, assembler.missing()) == (False, [0])


def test_the_newest_run_is_the_text():
    assembler = fed(delta(0, "old"), delta(1, "er"))
    assert assembler.feed(*delta(0, "new", run=2)) == TextChange("new", replaces=True)
    assert assembler.feed(*delta(2, "of the dead", run=1)) is None
    assert (assembler.text, assembler.complete) == ("new", True)
    ended = fed(("token_end", delta(0, "old")[1]), delta(0, "new", run=2))
    assert not ended.finished


@pytest.mark.parametrize(
    "event",
    [
        ("task_progress", {"stream_id": "s", "index": 1, "text": "x"}),
        ("token_delta", None), ("token_delta", []), ("token_delta", {}), ("token_delta", "text"),
        odd(stream_id="other"), odd(index="1"), odd(index=True), odd(index=-1),
        odd(text=None), odd(run="1"), odd(segment=10**9), checkpoint(2, "x", segment=-1),
    ],
)  # fmt: skip
def test_what_is_of_others_or_wrong_is_ignored(event):
    assembler = fed(delta(0, "a"), event, delta(1, "b"))
    assert (assembler.text, assembler.complete) == ("ab", True)


def test_events_without_a_run_are_of_one_run():
    first, second = delta(0, "a")[1], delta(1, "b")[1]
    del first["run"], second["run"]
    assert fed(("token_delta", first), ("token_delta", second)).text == "ab"


def test_a_segment_that_is_over_is_not_changed():
    assembler = fed(delta(0, "a"), checkpoint(1, "a", sealed=True), checkpoint(2, "forged"), delta(3, "b"))
    assert assembler.text == "ab"


def written(tokens: list[str]) -> list[tuple[str, dict[str, Any]]]:
    events: list[tuple[str, dict[str, Any]]] = []

    async def publish(event_type: str, data: dict[str, Any], /, *, idempotency_key: str) -> None:
        events.append((event_type, data))

    async def write() -> None:
        clock = ManualClock()
        async with TokenStream(
            publish, stream_id="s", max_tokens=2, segment_bytes=256, checkpoint_every=64, clock=clock, sleep=clock.sleep
        ) as stream:
            for token in tokens:
                await stream.write(token)

    asyncio.run(write())
    return events


@settings(max_examples=50)
@given(st.lists(st.text(min_size=1, max_size=60), min_size=1, max_size=40), st.randoms(use_true_random=False))
def test_the_pieces_make_the_text_whatever_was_lost_or_repeated(tokens: list[str], chance: random.Random):
    """What a follower shows is the assembler's text at every moment, and `complete` is never said of a wrong text."""
    assembler, shown = TextAssembler("s"), ""
    whole = "".join(tokens).encode("utf-8", "backslashreplace").decode()
    events = written(tokens)
    for event in events:
        times = chance.choice([0, 1, 1, 1, 2])
        for _ in range(times):
            change = assembler.feed(*event)
            if change is not None:
                shown = change.added if change.replaces else shown + change.added
            assert shown == assembler.text
        if assembler.complete and assembler.started:
            assert whole.startswith(assembler.text)
    if assembler.finished and assembler.complete:
        assert assembler.text == whole
