"""What is too large is cut beside the loop, once for all who read it."""

from __future__ import annotations

import asyncio
import json

from livetape.events.tape_event import MixedTapeEvent, TapeEvent
from livetape.gateway.shortening import KEPT, Shortening


def large(offset: int = 1, size: int = 1_000) -> TapeEvent:
    return TapeEvent("x", json.dumps({"event_type": "x", "data": {"a": "y" * size}}).encode(), offset, "e", True, 7)


async def test_only_what_is_too_large_is_cut() -> None:
    small, encrypted = TapeEvent("x", b"{}", 1, "e"), TapeEvent("x", b'{"encrypted":"%b"}' % (b"x" * 600), 3, "e")
    shortening = Shortening(500)
    assert await shortening.fit([small]) == [small]
    first, second, third = await shortening.fit([small, large(2), encrypted])
    assert first is small
    assert third is encrypted
    assert (second.shortened, second.offset, second.epoch, second.final, second.at_us) == (True, 2, "e", True, 7)
    assert len(second.payload) <= 500
    assert second.event_type == "x"


async def test_of_a_mixed_tape() -> None:
    (cut,) = await Shortening(500).fit([MixedTapeEvent("x", large().payload, 2**60, "e")])
    assert (cut.mixed, cut.shortened) == (True, True)


async def test_many_who_read_the_same_have_it_cut_once() -> None:
    shortening = Shortening(500)
    cuts = await asyncio.gather(*(shortening.fit([large()]) for _ in range(5)))
    assert len({id(cut.payload) for (cut,) in cuts}) == 1
    for size in range(2_000, 2_000 + KEPT):
        await shortening.fit([large(size=size)])
    (again,) = await shortening.fit([large()])
    assert again.payload == cuts[0][0].payload
    assert again.payload is not cuts[0][0].payload  # not all are kept


async def test_the_loop_goes_on_meanwhile() -> None:
    keys = {f"k{number}": number for number in range(100_000)}
    event = TapeEvent("x", json.dumps({"data": {"keys": keys}, "value": "x" * 900_000}).encode(), 1, "e")
    cutting = asyncio.create_task(Shortening(1_000_000).fit([event]))
    turns = 0
    while not cutting.done():
        turns += 1
        await asyncio.sleep(0)
    assert turns > 10
