"""The virtual machine itself: loops, threads and clocks, without any engine."""

from __future__ import annotations

import asyncio
import random

import pytest

from livetape.errors import StoreUnavailableError
from simulation.faults import Faults
from simulation.host import Host
from simulation.threads import SimEvent, SimThread, Town
from simulation.world import World


def make(seed: int = 1) -> tuple[World, Host]:
    world = World(random.Random(seed))
    faults = Faults(world.rng)
    faults.active = False
    return world, Host(world, faults, "one", note=lambda *_: None)


def test_time_jumps_to_the_next_timer() -> None:
    world, host = make()
    woken: list[float] = []

    async def sleep() -> None:
        await asyncio.sleep(3600)
        woken.append(world.now)

    host.start(sleep, "sleep")
    assert world.run(lambda: bool(woken), 10_000)
    assert woken == [3600]


def test_nothing_left_to_do_ends_the_run() -> None:
    world, _ = make()
    assert not world.run(lambda: False, 5)
    assert world.now == 5


def test_a_paused_process_does_late_what_came_due() -> None:
    world, host = make()
    woken: list[float] = []

    async def sleep() -> None:
        await asyncio.sleep(1)
        woken.append(world.now)

    host.start(sleep, "sleep")
    world.after(0.5, lambda: host.pause(10, 3.0))
    world.run(lambda: bool(woken), 100)
    assert 10.5 <= woken[0] < 10.6
    assert host.clock.skew_s == 3.0


def test_a_dead_process_does_nothing_any_more_not_even_finally() -> None:
    world, host = make()
    said: list[str] = []

    async def work() -> None:
        try:
            await asyncio.sleep(5)
        finally:
            if host.state.value == "running":
                said.append("finally")

    host.start(work, "work")
    world.after(1, lambda: host.crash("test"))
    world.run(lambda: False, 20)
    assert not said
    with pytest.raises(RuntimeError, match="closed"):
        host.loop.call_soon_threadsafe(print)


def test_a_call_that_cannot_arrive_is_refused_and_one_that_can_is_answered_later() -> None:
    world, host = make()
    heard: list[object] = []

    async def work() -> None:
        heard.append(await host.call("database", lambda: world.now))
        host.part("database", 1)
        try:
            await host.call("database", lambda: None)
        except StoreUnavailableError as error:
            heard.append(error)

    host.start(work, "work")
    world.run(lambda: len(heard) == 2, 10)
    assert isinstance(heard[0], float)
    assert 0 < heard[0] < 0.1
    assert isinstance(heard[1], StoreUnavailableError)


def test_threads_take_turns_and_end_with_the_town() -> None:
    world, host = make()
    town = Town(world)
    said: list[tuple[str, float]] = []

    async def work() -> None:
        event = SimEvent(town)

        def wait() -> None:
            said.append(("set", world.now) if event.wait(5) else ("late", world.now))
            event.wait(None)
            said.append(("over", world.now))

        SimThread(town, wait).start()
        await asyncio.sleep(7)
        event.set()

    host.start(work, "work")
    world.run(lambda: False, 20)
    assert said == [("late", 5.0), ("over", 7.0)]
    town.close()
    assert all(thread.ended for thread in town.threads)


def test_a_process_that_is_held_up_is_not_awake_because_it_goes_on() -> None:
    world, host = make()
    host.freeze(20)
    host.pause(5, 0.0)
    world.run(lambda: False, 10)
    assert host.state.value == "running"
    assert host.awake_since == 20
