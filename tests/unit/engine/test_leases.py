"""Leases of one worker (execution contract, "Lease"), by a clock that the test moves."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Mapping
from typing import Any, cast

import pytest

from livetape.adapters.prometheus.metrics import PrometheusMetrics
from livetape.engine.executor import Executor
from livetape.engine.leases import Leases, LeaseTimes, Renewer
from livetape.errors import StoreUnavailableError
from livetape.store.executions import Renewal
from stage import ManualClock

TIMES = LeaseTimes(lease_s=15, renew_s=5, silence_s=10)


class Row:
    def __init__(self, name: str, lease_no: int) -> None:
        self.id = name
        self.lease_no = lease_no


class FakeExecutor:
    def __init__(self, name: str, lease_no: int = 1) -> None:
        self.row = Row(name, lease_no)
        self.said: list[str] = []

    def fence(self) -> None:
        self.said.append("fence")

    def cancel(self) -> None:
        self.said.append("cancel")


class Rig:
    def __init__(self) -> None:
        self.clock = ManualClock()
        self.asked: list[dict[str, int]] = []
        self.answer = Renewal(frozenset(), frozenset())
        self.away = False
        self.leases = Leases(TIMES, self.clock, self.prolong)

    def prolong(self, leases: Mapping[str, int]) -> Renewal:
        self.asked.append(dict(leases))
        if self.away:
            raise StoreUnavailableError
        return self.answer

    def hold(self, name: str, lease_no: int = 1) -> Any:
        executor = FakeExecutor(name, lease_no)
        return executor, self.leases.add(cast("Executor", executor), self.clock.monotonic())

    async def renew(self) -> None:
        self.leases.renew(asyncio.get_running_loop())
        await asyncio.sleep(0)


async def test_a_renewal_names_every_lease_with_its_number_and_prolongs_it() -> None:
    rig = Rig()
    one, _ = rig.hold("e1", 3)
    rig.clock.go(5)
    rig.answer = Renewal(frozenset({"e1"}), frozenset())
    await rig.renew()
    assert rig.asked == [{"e1": 3}]
    rig.clock.go(11)
    rig.leases.tick()
    assert one.said == []
    rig.clock.go(1)
    rig.leases.tick()
    assert one.said == ["fence"], "3 s before the end of a lease that was prolonged at 5 s"


async def test_a_lease_that_cannot_be_renewed_is_given_up_before_it_ends_and_only_once() -> None:
    rig = Rig()
    one, _ = rig.hold("e1")
    rig.away = True
    for _ in range(11):
        rig.clock.go(1)
        rig.leases.tick()
        with pytest.raises(StoreUnavailableError):
            await rig.renew()
        assert one.said == []
    rig.clock.go(1)
    rig.leases.tick()
    rig.clock.go(1)
    rig.leases.tick()
    assert one.said == ["fence"]
    assert rig.clock.monotonic() < 15
    rig.asked.clear()
    rig.away = False
    await rig.renew()
    assert rig.asked == [], "what was given up is not asked for again"


async def test_the_end_counts_from_before_the_request() -> None:
    """The database may have answered long after it was asked; the lease began no later than the question."""
    rig = Rig()
    executor = FakeExecutor("e1")
    rig.clock.go(20)
    rig.leases.add(cast("Executor", executor), claimed_at=7.9)
    rig.leases.tick()
    assert executor.said == ["fence"]


async def test_what_others_hold_is_fenced_and_what_was_stopped_is_cancelled() -> None:
    rig = Rig()
    lost, _ = rig.hold("lost")
    stopped, _ = rig.hold("stopped")
    rig.answer = Renewal(frozenset({"stopped"}), frozenset({"stopped"}))
    await rig.renew()
    assert (lost.said, stopped.said) == (["fence"], ["cancel"])


async def test_a_loop_that_hangs_loses_its_leases_and_one_that_is_busy_does_not() -> None:
    rig = Rig()
    rig.hold("e1")
    rig.leases.tick()
    rig.clock.go(9)
    rig.answer = Renewal(frozenset({"e1"}), frozenset())
    await rig.renew()
    assert len(rig.asked) == 1
    rig.clock.go(2)
    await rig.renew()
    assert len(rig.asked) == 1


async def test_an_older_lease_on_the_same_execution_is_void_and_takes_nothing_with_it() -> None:
    rig = Rig()
    old, old_lease = rig.hold("e1", 1)
    new, _ = rig.hold("e1", 2)
    assert (old.said, new.said) == (["fence"], [])
    rig.leases.remove(old_lease)
    assert rig.leases.get("e1") is new
    rig.answer = Renewal(frozenset({"e1"}), frozenset())
    await rig.renew()
    assert rig.asked == [{"e1": 2}]


@pytest.mark.parametrize("error", [KeyError("nobody foresaw this"), RuntimeError("of the driver")])
async def test_the_thread_that_renews_outlives_every_error_and_counts_it(error: Exception) -> None:
    renewed, metrics = threading.Event(), PrometheusMetrics("t")

    class Failing(Leases):
        tries = 0

        def renew(self, loop: asyncio.AbstractEventLoop) -> None:
            self.tries += 1
            if self.tries < 3:
                raise error
            renewed.set()

    times = LeaseTimes(lease_s=0.1, renew_s=0.01, silence_s=10)
    leases = Failing(times, ManualClock(), lambda held: Renewal(frozenset(), frozenset()))
    renewer = Renewer(leases, times, asyncio.get_running_loop(), metrics=metrics)
    renewer.start()
    assert await asyncio.to_thread(renewed.wait, 5)
    renewer.stop()
    assert b't_internal_errors_total{part="leases"} 2.0' in metrics.render()[0]
