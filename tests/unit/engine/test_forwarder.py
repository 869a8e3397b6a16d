"""The forwarder between a table and a broker that fail in every way."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from livetape.adapters.prometheus.metrics import PrometheusMetrics
from livetape.engine.forwarder import Forwarder
from livetape.engine.queue import Delivery, Doorbell
from livetape.errors import ClosedError, LockTimeoutError, QueueUnavailableError, StoreUnavailableError
from livetape.events.backoff import Backoff
from livetape.observability import Metrics
from livetape.testing.broken_queue import SoftQueue


class Table(SoftQueue):
    """Its database is away for the next `takes` takes and `acks` acknowledgements."""

    takes = acks = 0
    wrong: Exception | None = None

    async def take(self, limit: int) -> list[Delivery]:
        if self.takes:
            self.takes -= 1
            raise StoreUnavailableError
        if self.wrong is not None:
            wrong, self.wrong = self.wrong, None
            raise wrong
        return await super().take(limit)

    async def ack(self, delivery: Delivery) -> None:
        if self.acks:
            self.acks -= 1
            raise StoreUnavailableError
        await super().ack(delivery)


class Broker(SoftQueue):
    """Away for the next `puts` puts; with `keeps` it has the doorbell all the same."""

    puts = 0
    keeps = False
    wrong: Exception | None = None

    async def put(self, doorbell: Doorbell, *, delay_s: float = 0) -> None:
        if self.wrong is not None and doorbell.graph_exec_id == "wrong":
            raise self.wrong
        away = self.puts > 0
        self.puts -= away
        if not away or self.keeps:
            await super().put(doorbell, delay_s=delay_s)
        if away:
            raise QueueUnavailableError("away")

    @property
    def names(self) -> list[str]:
        return [waiting.bell.graph_exec_id for waiting in self.bells.values()]


@asynccontextmanager
async def forwarding(*forwarders: Forwarder) -> AsyncIterator[None]:
    tasks = [asyncio.create_task(forwarder.run()) for forwarder in forwarders]
    yield
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)


def between(table: Table, broker: Broker, metrics: Metrics | None = None) -> Forwarder:
    return Forwarder(table, broker, batch=4, backoff=Backoff(0.001, 0.01), metrics=metrics)


async def emptied(table: Table) -> None:
    async with asyncio.timeout(10):
        while table.bells:
            await asyncio.sleep(0.005)


async def test_everything_goes_over_as_it_was_and_leaves_the_table() -> None:
    table, broker = Table(), Broker()
    bells = [Doorbell(f"e{n}", enqueue_no=n, kind="resume", priority=n % 3) for n in range(10)]
    for bell in bells:
        await table.put(bell)
    async with forwarding(between(table, broker)):
        await emptied(table)
    assert sorted((waiting.bell for waiting in broker.bells.values()), key=lambda bell: bell.enqueue_no) == bells


async def test_a_delay_is_waited_out_in_the_table() -> None:
    table, broker = Table(), Broker()
    await table.put(Doorbell("later"), delay_s=0.2)
    async with forwarding(between(table, broker)):
        await asyncio.sleep(0.05)
        assert (broker.names, len(table.bells)) == ([], 1)
        await emptied(table)
    assert broker.names == ["later"]


async def test_a_broker_that_is_away_is_tried_again_and_the_doorbell_kept(caplog: pytest.LogCaptureFixture) -> None:
    table, broker = Table(), Broker()
    broker.puts = 9
    for n in range(3):
        await table.put(Doorbell(f"e{n}"))
    forwarder = between(table, broker)
    async with forwarding(forwarder):
        await emptied(table)
        await asyncio.sleep(0.02)
    assert sorted(broker.names) == ["e0", "e1", "e2"]
    assert forwarder.problem == ""
    said = [record.action for record in caplog.records if hasattr(record, "action")]
    assert said.count("doorbells_wait") == 1


async def test_an_answer_that_was_lost_rings_twice() -> None:
    table, broker = Table(), Broker()
    broker.puts, broker.keeps = 1, True
    await table.put(Doorbell("e"))
    async with forwarding(between(table, broker)):
        await emptied(table)
    assert broker.names == ["e", "e"]


async def test_a_database_that_is_away_ends_nothing() -> None:
    table, broker = Table(), Broker()
    table.takes, table.acks = 3, 1
    await table.put(Doorbell("e"))
    async with forwarding(between(table, broker)):
        await emptied(table)
    assert broker.names == ["e", "e"]  # the row that could not be deleted was shown again


async def test_two_processes_forward_each_doorbell_once() -> None:
    table, broker = Table(), Broker()
    for n in range(30):
        await table.put(Doorbell(f"e{n}"))
    async with forwarding(between(table, broker), between(table, broker)):
        await emptied(table)
    assert sorted(broker.names) == sorted(f"e{n}" for n in range(30))


async def test_an_error_that_nobody_foresaw_is_counted_and_holds_up_no_other_doorbell(
    caplog: pytest.LogCaptureFixture,
) -> None:
    table, broker, metrics = Table(), Broker(), PrometheusMetrics("t")
    broker.wrong = Exception()  # as a driver says it to those who wait on a connection that it gave up
    await table.put(Doorbell("wrong"))
    for n in range(10):
        await table.put(Doorbell(f"e{n}"))
    async with forwarding(between(table, broker, metrics)):
        async with asyncio.timeout(10):
            while len(table.bells) > 1:
                await asyncio.sleep(0.005)
        broker.wrong = None
        await emptied(table)  # it was shown again
    assert sorted(broker.names) == sorted(["wrong", *(f"e{n}" for n in range(10))])
    assert b't_internal_errors_total{part="forwarder"} ' in metrics.render()[0]
    assert "forwarder_failed" in [record.__dict__["action"] for record in caplog.records]


@pytest.mark.parametrize("error", [LockTimeoutError("held"), KeyError("nobody foresaw this")])
async def test_a_table_that_fails_in_another_way_is_tried_again(error: Exception) -> None:
    table, broker = Table(), Broker()
    table.wrong = error
    await table.put(Doorbell("e"))
    async with forwarding(between(table, broker)):
        await emptied(table)
    assert broker.names == ["e"]


async def test_a_queue_that_is_closed_ends_it() -> None:
    table = Table()
    table.wrong = ClosedError("closed")
    async with asyncio.timeout(5):
        with pytest.raises(ClosedError):
            await between(table, Broker()).run()
