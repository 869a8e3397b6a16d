"""The drain: everybody is told once and closed once, in rounds, within the time, and not longer than needed."""

from __future__ import annotations

import asyncio
import json

from hypothesis import given
from hypothesis import strategies as st

from livetape.gateway.close_codes import CloseCode
from livetape.gateway.drain import MIN_ROUND, Step, move, reconnect_push, schedule
from livetape.gateway.messages import Push
from livetape.testing.fakes import ManualClock


@given(count=st.integers(0, 5000), within=st.floats(0, 60))
def test_everybody_is_told_once_and_closed_once_after_that_and_in_time(count: int, within: float) -> None:
    told: dict[int, float] = {}
    closed: dict[int, float] = {}
    steps = schedule(count, within)
    assert [step.at for step in steps] == sorted(step.at for step in steps)
    for step in steps:
        for number in range(step.first, step.last):
            if step.closes:
                assert number in told, "told first"
            into = closed if step.closes else told
            assert number not in into
            into[number] = step.at
    assert set(told) == set(closed) == set(range(count))
    assert all(told[n] <= closed[n] <= within * 0.8 + 1e-9 for n in told)


def test_few_are_one_round_and_many_are_spread() -> None:
    assert schedule(MIN_ROUND, 20) == [Step(0, False, 0, 20), Step(4, True, 0, 20)]
    many = [step for step in schedule(10_000, 20) if not step.closes]
    assert len(many) == 49
    assert max(step.last - step.first for step in many) <= 205
    assert many[-1].at == 12


def test_without_time_all_go_at_once() -> None:
    assert schedule(1000, 0) == [Step(0, False, 0, 1000), Step(0, True, 0, 1000)]


def test_the_push_says_when() -> None:
    assert json.loads(reconnect_push(1.25).data) == {
        "method": "reconnect",
        "data": {"after_ms": 1250},
        "success": None,
        "channel": None,
        "error": None,
    }


class Site:
    """Sockets on a clock that jumps to whenever somebody waits for."""

    def __init__(self, count: int, *, leaves: bool, closes: bool = True) -> None:
        self.clock = ManualClock()
        self.begun = self.clock.monotonic()
        self.sockets = [FakeSocket(self, leaves=leaves, closes=closes) for _ in range(count)]

    def left(self) -> int:
        return sum(1 for socket in self.sockets if socket.open)

    async def sleep(self, seconds: float) -> None:
        self.clock.advance(seconds)
        await asyncio.sleep(0)

    @property
    def passed(self) -> float:
        return self.clock.monotonic() - self.begun

    async def drain(self, within: float) -> int:
        return await move(self.sockets, self.left, within=within, clock=self.clock, sleep=self.sleep)


class FakeSocket:
    def __init__(self, site: Site, *, leaves: bool, closes: bool) -> None:
        self.site, self.leaves, self.closes = site, leaves, closes
        self.open = True
        self.told: float | None = None
        self.code: CloseCode | None = None

    def tell(self, push: Push) -> None:
        assert self.open
        assert push.data.startswith(b'{"method":"reconnect"')
        self.told = self.site.passed
        self.open = not self.leaves

    def close(self, code: CloseCode) -> None:
        if self.open:
            self.code = code
            self.open = not self.closes


async def test_it_is_over_at_once_without_sockets() -> None:
    site = Site(0, leaves=False)
    assert await site.drain(20) == 0
    assert site.passed == 0


async def test_who_understands_it_has_left_before_the_close() -> None:
    site = Site(5, leaves=True)
    assert await site.drain(20) == 0
    assert site.passed < 0.1
    assert [socket.code for socket in site.sockets] == [None] * 5


async def test_others_are_closed_in_rounds() -> None:
    site = Site(100, leaves=False)
    assert await site.drain(20) == 0
    assert site.passed <= 16.1
    assert len({socket.told for socket in site.sockets}) == 5
    assert {socket.code for socket in site.sockets} == {CloseCode.SERVICE_RESTART}


async def test_who_does_not_go_holds_nobody_up_for_longer_than_the_time() -> None:
    site = Site(3, leaves=False, closes=False)
    assert await site.drain(2) == 3
    assert 2 <= site.passed < 2.1
