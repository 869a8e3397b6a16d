"""Ordinary code on asynchronous objects: threads, interruptions, forked children, and a clean end."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, ClassVar

import pytest

from livetape.adapters.memory.bus import MemoryBus
from livetape.errors import ClosedError
from livetape.events.buses import RedisEventBus
from livetape.events.event import Event
from livetape.events.sync import Portal


class Thing(Event):
    event_type: str = "thing"
    number: int


class Things(RedisEventBus[Thing]):
    Model: ClassVar[Any] = Thing
    event_bus_name = "things"


async def answer(value: int) -> int:
    await asyncio.sleep(0)
    return value


async def fail() -> None:
    raise ValueError("as it was")


async def numbers(until: int) -> AsyncIterator[int]:
    for number in range(until):
        yield number


def test_results_and_errors_come_back() -> None:
    with Portal() as portal:
        assert portal.call(answer(1)) == 1
        with pytest.raises(ValueError, match="as it was"):
            portal.call(fail())
        assert list(portal.iterate(numbers(3))) == [0, 1, 2]
    with pytest.raises(ClosedError):
        portal.call(answer(1))
    portal.close()


def test_nothing_starts_before_it_is_needed() -> None:
    before = threading.active_count()
    bus = Things(bus=MemoryBus())
    portal = Portal()
    assert threading.active_count() == before
    assert not bus.publish_event(Thing(number=1), "a")
    portal.call(answer(1))
    assert threading.active_count() == before + 2
    bus.close()
    portal.close()
    assert threading.active_count() == before


def test_a_generator_that_is_closed_closes_what_it_asks() -> None:
    closed = []

    async def endless() -> AsyncIterator[int]:
        try:
            while True:
                yield 1
        finally:
            closed.append(True)

    with Portal() as portal:
        generator = portal.iterate(endless())
        assert next(generator) == 1
        generator.close()
        assert closed == [True]


def test_many_threads_share_one_loop() -> None:
    with Portal() as portal, ThreadPoolExecutor(8) as pool:
        assert sorted(pool.map(lambda n: portal.call(answer(n)), range(200))) == list(range(200))
        assert len([t for t in threading.enumerate() if t.name == "livetape"]) == 1


def test_a_call_from_within_its_own_loop_is_refused() -> None:
    async def nested(portal: Portal) -> int:
        return portal.call(answer(1))

    with Portal() as portal, pytest.raises(RuntimeError, match="within the event loop"):
        portal.call(nested(portal))


def test_an_interruption_cancels_the_call() -> None:
    cancelled = threading.Event()

    async def long() -> None:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            cancelled.set()
            raise

    with Portal() as portal:
        portal.call(answer(1))
        main = threading.main_thread().ident
        assert main is not None
        timer = threading.Timer(0.1, signal.pthread_kill, [main, signal.SIGINT])
        timer.start()
        with pytest.raises(KeyboardInterrupt):
            portal.call(long())
        timer.join()
        assert cancelled.wait(5)
        assert portal.call(answer(2)) == 2


def test_closing_ends_what_another_thread_waits_for() -> None:
    bus = Things(bus=MemoryBus())
    listener = bus.listen_events("a")
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(list, listener)
        time.sleep(0.05)
        bus.publish_event(Thing(number=1), "a")
        time.sleep(0.05)
        bus.close()
        assert waiting.result(5) == [Thing(number=1)]
    bus.close()


def test_a_listener_is_a_generator_and_listens_at_once() -> None:
    with Things(bus=MemoryBus()) as bus:
        listener = bus.listen_events("a")
        for number in range(3):
            assert bus.publish_event(Thing(number=number), "a").receivers == 1
        assert [next(listener).number, listener.send(None).number] == [0, 1]
        with pytest.raises(ValueError, match="mine"):
            listener.throw(ValueError("mine"))
        assert list(listener) == []
        listener.close()
        assert bus.publish_event(Thing(number=9), "a").receivers == 0


def test_several_buses_may_share_a_thread() -> None:
    adapter = MemoryBus()
    with Portal() as portal:
        one, other = Things(bus=adapter, portal=portal), Things(bus=adapter, portal=portal)
        with one.listen_events("a") as listener:
            assert other.publish_event(Thing(number=1), "a")
            assert next(listener).number == 1
        one.close()
        other.close()
        assert portal.call(answer(1)) == 1


def test_waiting_and_flushing() -> None:
    with Things(bus=MemoryBus()) as bus, ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(bus.wait_for_event, "a", 5)
        deadline = time.monotonic() + 5
        while not bus.publish_event(Thing(number=1), "a"):
            assert time.monotonic() < deadline
        assert waiting.result() == Thing(number=1)
        assert bus.wait_for_event("a", 0.01) is None
        assert bus.flush(1) == 0


def child_status(child: int) -> int:
    _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status)


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_forked_child_has_a_loop_of_its_own() -> None:
    bus = Things(url="memory://")
    listener = bus.listen_events("a")
    assert bus.publish_event(Thing(number=1), "a").receivers == 1
    child = os.fork()
    if child == 0:
        status = 1
        try:
            # the parent's listener is not here
            assert bus.publish_event(Thing(number=2), "a").receivers == 0
            with bus.listen_events("a") as own:
                assert bus.publish_event(Thing(number=3), "a").receivers == 1
                assert next(own).number == 3
            bus.close()
            assert bus.publish_event(Thing(number=4), "a").error is None
            bus.close()
            status = 0
        finally:
            os._exit(status)
    assert child_status(child) == 0
    assert next(listener).number == 1
    assert bus.publish_event(Thing(number=5), "a").receivers == 1
    assert next(listener).number == 5
    bus.close()


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_fork_while_another_thread_holds_the_lock() -> None:
    portal = Portal()
    lock = portal._locks.setdefault(os.getpid(), threading.Lock())
    with lock:
        child = os.fork()
        if child == 0:
            os._exit(0 if portal.call(answer(7)) == 7 else 1)
    assert child_status(child) == 0
    portal.close()


def test_a_program_that_never_closes_ends_without_a_word() -> None:
    code = """
import os
from livetape.events.buses import RedisNotificationEventBus
from livetape.events.notifications import NotificationEvent, NotificationPayload
bus = RedisNotificationEventBus(url="memory://")
listener = bus.listen()
assert bus.publish(NotificationEvent(user_id="u", payload=NotificationPayload(type="t", event="e"))).receivers == 1
assert next(listener).user_id == "u"
"""
    run = subprocess.run(
        [sys.executable, "-W", "error", "-X", "dev", "-c", code], capture_output=True, text=True, check=False
    )
    assert (run.returncode, run.stdout, run.stderr) == (0, "", "")
