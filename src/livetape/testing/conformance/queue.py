"""What every Queue must do. Each case is a sentence of the docstrings in `livetape.engine.queue`.

Subclass it in a test module and give the fixture:

    class TestMyQueue(QueueSuite):
        @pytest.fixture
        async def queue(self):
            async with opened(MyQueue()) as queue:
                yield queue
"""

from __future__ import annotations

import asyncio

from livetape.engine.queue import Delivery, Doorbell, Queue


class QueueSuite:
    """Cases for the Queue port. The queue is empty at the start of each."""

    patience_s = 5.0
    """How long a case waits for a delivery that must come."""

    silence_s = 0.15
    """How long a case listens for one that must not come."""

    async def test_what_was_put_is_taken(self, queue: Queue) -> None:
        bell = Doorbell("e", enqueue_no=3, kind="resume")
        await queue.put(bell)
        assert [delivery.doorbell for delivery in await self._take(queue)] == [bell]

    async def test_everything_that_was_put_is_taken_in_the_end(self, queue: Queue) -> None:
        await asyncio.gather(*(queue.put(Doorbell(f"e{n}")) for n in range(50)))
        taken: set[str] = set()
        while len(taken) < 50:
            for delivery in await self._take(queue, 7):
                taken.add(delivery.doorbell.graph_exec_id)
                await queue.ack(delivery)
        await self._expect_silence(queue)

    async def test_no_more_are_taken_than_asked_for(self, queue: Queue) -> None:
        for n in range(5):
            await queue.put(Doorbell(f"e{n}"))
        assert 1 <= len(await self._take(queue, 2)) <= 2

    async def test_taking_waits_for_the_first(self, queue: Queue) -> None:
        waiting = asyncio.ensure_future(self._take(queue))
        await asyncio.sleep(0.02)
        assert not waiting.done()
        await queue.put(Doorbell("e"))
        assert len(await waiting) == 1

    async def test_what_was_taken_is_hidden_from_others(self, queue: Queue) -> None:
        await queue.put(Doorbell("e"))
        await self._take(queue)
        await self._expect_silence(queue)

    async def test_concurrent_takers_share_what_there_is(self, queue: Queue) -> None:
        for n in range(20):
            await queue.put(Doorbell(f"e{n}"))
        taken = await asyncio.gather(*(self._take(queue, 5) for _ in range(4)))
        names = [delivery.doorbell.graph_exec_id for one in taken for delivery in one]
        assert len(names) == len(set(names))

    async def test_what_was_acknowledged_does_not_come_again(self, queue: Queue) -> None:
        await queue.put(Doorbell("e"))
        (delivery,) = await self._take(queue)
        await queue.ack(delivery)
        await queue.ack(delivery)
        assert await queue.depth() == 0
        await self._expect_silence(queue)

    async def test_a_refused_one_comes_again(self, queue: Queue) -> None:
        await queue.put(Doorbell("e", enqueue_no=2))
        (delivery,) = await self._take(queue)
        await queue.nack(delivery)
        (again,) = await self._take(queue)
        assert again.doorbell == delivery.doorbell

    async def test_a_refused_one_comes_no_sooner_than_its_delay(self, queue: Queue) -> None:
        await queue.put(Doorbell("e"))
        (delivery,) = await self._take(queue)
        await queue.nack(delivery, delay_s=60)
        await self._expect_silence(queue)
        assert await queue.depth() == 1

    async def test_a_delayed_one_comes_after_its_delay(self, queue: Queue) -> None:
        await queue.put(Doorbell("late"), delay_s=0.3)
        await queue.put(Doorbell("now"))
        (first,) = await self._take(queue)
        assert first.doorbell.graph_exec_id == "now"
        await queue.ack(first)
        await self._expect_silence(queue)
        (second,) = await self._take(queue)
        assert second.doorbell.graph_exec_id == "late"

    async def test_the_same_execution_may_be_rung_twice(self, queue: Queue) -> None:
        await queue.put(Doorbell("e"))
        await queue.put(Doorbell("e"))
        taken = 0
        while taken < 2:
            taken += len(await self._take(queue))
        assert taken == 2

    async def test_depth_counts_what_waits_and_what_is_taken(self, queue: Queue) -> None:
        for n in range(3):
            await queue.put(Doorbell(f"e{n}"))
        await self._take(queue, 1)
        assert await queue.depth() == 3

    async def _take(self, queue: Queue, limit: int = 10) -> list[Delivery]:
        async with asyncio.timeout(self.patience_s):
            return await queue.take(limit)

    async def _expect_silence(self, queue: Queue) -> None:
        try:
            async with asyncio.timeout(self.silence_s):
                taken = await queue.take(10)
        except TimeoutError:
            return
        raise AssertionError(f"nothing should have come, but {taken} did")
