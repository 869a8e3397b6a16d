"""What the driver may do to us, and what becomes of it: errors of every kind, and cancellations that it keeps."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import cast

import pytest
from aiormq.abc import AbstractConnection
from aiormq.exceptions import AMQPError, ConnectionClosed

from livetape.adapters.rabbitmq import connection as module
from livetape.adapters.rabbitmq.connection import RabbitConnection, broker_errors, ended, in_time
from livetape.errors import ClosedError, QueueUnavailableError


class Counts:
    def __init__(self) -> None:
        self.seen: Counter[str] = Counter()

    def count(self, name: str, amount: float = 1, **labels: str) -> None:
        self.seen[f"{name} {' '.join(labels.values())}"] += int(amount)

    def gauge(self, name: str, value: float, **labels: str) -> None: ...

    def observe(self, name: str, seconds: float, **labels: str) -> None: ...


FORESEEN = [AMQPError(), OSError("cut"), RuntimeError("closed"), EOFError(), StopAsyncIteration(), TimeoutError()]
NOBODY_FORESAW = [KeyError("x"), AttributeError("y"), asyncio.InvalidStateError("z"), AssertionError(), ValueError()]


@pytest.mark.parametrize("error", [*FORESEEN, Exception()], ids=lambda error: type(error).__name__)
async def test_what_the_driver_raises_is_a_broker_that_is_away(error: Exception) -> None:
    metrics = Counts()
    with pytest.raises(QueueUnavailableError), broker_errors("cannot", metrics):
        raise error
    assert metrics.seen == {}


@pytest.mark.parametrize("error", NOBODY_FORESAW, ids=lambda error: type(error).__name__)
async def test_what_nobody_foresaw_is_one_too_and_is_told_and_counted(
    error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    metrics = Counts()
    with pytest.raises(QueueUnavailableError), broker_errors("cannot", metrics):
        raise error
    assert metrics.seen == {"internal_errors_total rabbitmq": 1}
    assert [record.exc_info[1] for record in caplog.records if record.exc_info] == [error]


async def test_our_own_errors_pass() -> None:
    with pytest.raises(ClosedError), broker_errors("cannot"):
        raise ClosedError("closed")


async def test_a_cancellation_that_the_driver_invents_is_a_broker_that_is_away() -> None:
    with pytest.raises(QueueUnavailableError), broker_errors("cannot"):
        raise asyncio.CancelledError


@pytest.mark.parametrize("instead", [AMQPError(), TimeoutError(), KeyError(), QueueUnavailableError("away")])
async def test_a_task_that_was_cancelled_stays_so_whatever_the_driver_makes_of_it(instead: Exception) -> None:
    begun = asyncio.Event()

    async def work() -> None:
        with broker_errors("cannot"):
            try:
                begun.set()
                await asyncio.sleep(60)
            finally:
                raise instead

    task = asyncio.create_task(work())
    await begun.wait()
    task.cancel()
    await asyncio.wait({task})
    assert task.cancelled()


async def test_a_driver_that_keeps_a_cancellation_is_told_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "AGAIN_S", 0.01)

    async def stubborn() -> None:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            await asyncio.sleep(60)  # as when it tells a full queue that the channel is closed
            raise

    async with asyncio.timeout(5):
        with pytest.raises(TimeoutError):
            async with in_time(0.01):
                await stubborn()
        await ended({asyncio.create_task(stubborn())})


class Leaving:
    """A connection that keeps so many cancellations before it is closed."""

    def __init__(self, keeps: int) -> None:
        self.keeps = keeps
        self.reasons: list[object] = []
        self.is_closed = False

    async def close(self, reason: BaseException | None) -> None:
        self.reasons.append(reason)
        while self.keeps:
            try:
                await asyncio.sleep(60)
            except asyncio.CancelledError:
                self.keeps -= 1
        self.is_closed = True


@pytest.mark.parametrize("keeps", [0, 1, 3])
async def test_a_connection_that_is_put_away_says_why_and_ends_in_any_case(
    keeps: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a reason, those who wait for its answers would be told nothing that they could understand."""
    monkeypatch.setattr(module, "AGAIN_S", 0.01)
    monkeypatch.setattr(module, "CLOSE_S", 0.01)
    leaving = Leaving(keeps)
    connection = RabbitConnection("amqp://127.0.0.1/", name="test")
    connection._put_away(cast("AbstractConnection", leaving))
    async with asyncio.timeout(5):
        await connection.close()
    assert leaving.reasons
    assert all(isinstance(reason, ConnectionClosed) for reason in leaving.reasons)


async def test_only_the_connection_that_failed_is_dropped() -> None:
    connection = RabbitConnection("amqp://127.0.0.1/", name="test")
    present, former = Leaving(0), Leaving(0)
    connection._connection = cast("AbstractConnection", present)
    connection.drop(cast("AbstractConnection", former))
    assert [connection.current] == [present]
    connection.drop()
    assert [connection.current] == [None]
    await connection.close()
