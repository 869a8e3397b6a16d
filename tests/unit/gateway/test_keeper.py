"""One task looks after all sockets: each is asked in its turn, the dead are given up, tokens end in time."""

from __future__ import annotations

import asyncio
from datetime import datetime, timedelta

from livetape.gateway.keeper import Keeper
from livetape.gateway.options import GatewayOptions
from livetape.testing.fakes import ManualClock


class Socket:
    """Kept, with a client that can be silent."""

    def __init__(self, clock: ManualClock, ends_in: float | None = None) -> None:
        self.clock = clock
        self.wake_at: datetime | None = None if ends_in is None else clock.now() + timedelta(seconds=ends_in)
        self.asked: list[float] = []
        self.ticks: list[datetime] = []
        self.silent = False
        self.given_up: float | None = None

    def tick(self, now: datetime) -> None:
        self.ticks.append(now)
        self.wake_at = None

    def ask(self) -> None:
        self.asked.append(self.clock.monotonic())

    def is_silent(self) -> bool:
        return self.silent

    def give_up(self) -> None:
        self.given_up = self.clock.monotonic()


def kept(**options: float) -> tuple[Keeper, ManualClock]:
    clock = ManualClock()
    return Keeper(GatewayOptions.model_validate(options), clock, sleep=clock.sleep), clock


def pass_seconds(keeper: Keeper, clock: ManualClock, seconds: int) -> None:
    for _ in range(seconds):
        clock.advance(1)
        keeper.beat()


def test_each_socket_is_asked_once_in_an_interval() -> None:
    keeper, clock = kept(ping_interval_seconds=25)
    sockets = []
    for _ in range(10):
        sockets.append(Socket(clock))
        keeper.add(sockets[-1])
        pass_seconds(keeper, clock, 3)
    pass_seconds(keeper, clock, 100)
    for socket in sockets:
        waits = [after - before for before, after in zip(socket.asked, socket.asked[1:], strict=False)]
        assert set(waits) == {25.0}


def test_who_connects_at_the_same_time_is_asked_at_the_same_time_and_not_before_an_interval() -> None:
    keeper, clock = kept()
    socket, begun = Socket(clock), clock.monotonic()
    keeper.add(socket)
    pass_seconds(keeper, clock, 30)
    assert [at - begun for at in socket.asked] == [24.0] or [at - begun for at in socket.asked] == [25.0]


def test_who_gives_no_sign_of_life_is_given_up_and_not_asked_again() -> None:
    keeper, clock = kept(ping_interval_seconds=25, ping_timeout_seconds=60)
    socket = Socket(clock)
    socket.silent = True
    keeper.add(socket)
    pass_seconds(keeper, clock, 90)
    assert len(socket.asked) == 1
    assert socket.given_up == socket.asked[0] + 60


def test_a_late_answer_is_an_answer() -> None:
    keeper, clock = kept(ping_interval_seconds=25, ping_timeout_seconds=60)
    socket = Socket(clock)
    socket.silent = True
    keeper.add(socket)
    pass_seconds(keeper, clock, 80)
    socket.silent = False
    pass_seconds(keeper, clock, 40)
    assert socket.given_up is None
    assert len(socket.asked) == 2


def test_short_intervals_hold_too() -> None:
    keeper, clock = kept(ping_interval_seconds=0.2, ping_timeout_seconds=0.4)
    socket = Socket(clock)
    socket.silent = True
    keeper.add(socket)
    for _ in range(40):
        clock.advance(0.05)
        keeper.beat()
    assert socket.given_up is not None
    assert socket.given_up - socket.asked[0] <= 0.46


def test_tokens_are_looked_at_in_their_second_and_not_before() -> None:
    keeper, clock = kept()
    soon, late, never = Socket(clock, 10), Socket(clock, 1000), Socket(clock)
    for socket in (soon, late, never):
        keeper.add(socket)
    pass_seconds(keeper, clock, 9)
    assert soon.ticks == []
    pass_seconds(keeper, clock, 2)
    assert len(soon.ticks) == 1
    assert late.ticks == never.ticks == []


def test_a_token_that_was_refreshed_counts_with_its_new_end() -> None:
    keeper, clock = kept()
    socket = Socket(clock, 10)
    keeper.add(socket)
    socket.wake_at = clock.now() + timedelta(seconds=100)
    keeper.changed(socket)
    pass_seconds(keeper, clock, 50)
    assert socket.ticks == []
    pass_seconds(keeper, clock, 60)
    assert len(socket.ticks) == 1


def test_who_is_gone_is_forgotten() -> None:
    keeper, clock = kept()
    socket = Socket(clock, 10)
    socket.silent = True
    keeper.add(socket)
    pass_seconds(keeper, clock, 26)
    keeper.discard(socket)
    keeper.discard(socket)
    keeper.changed(socket)
    pass_seconds(keeper, clock, 200)
    assert socket.given_up is None
    assert len(socket.asked) == 1


async def test_it_beats_by_itself() -> None:
    keeper, clock = kept()
    socket = Socket(clock, 5)
    keeper.add(socket)
    running = asyncio.create_task(keeper.run())
    for _ in range(10):
        await clock.sleeper()
        clock.advance(1)
    await clock.sleeper()
    assert len(socket.ticks) == 1
    running.cancel()
    await asyncio.wait({running})
