"""What every Queue must do. Each case is a sentence of the docstrings in `livetape.engine.queue`.

Subclass it in a test module and give the fixture; what is taken should be hidden for about a second:

    class TestMyQueue(QueueSuite):
        @pytest.fixture
        async def queue(self):
            async with opened(MyQueue(hidden_s=1)) as queue:
                yield queue
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from contextlib import suppress

from livetape.engine.queue import Delivery, Doorbell, Queue
from livetape.errors import ClosedError


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
        for delivery in await self._take_all(queue, 2, ack=True):
            assert delivery.doorbell == Doorbell("e")

    # ---- lost, doubled, late and out of order ----------------------------------------------------------------------

    async def test_what_is_not_acknowledged_comes_again(self, queue: Queue) -> None:
        await queue.put(Doorbell("e", enqueue_no=7))
        (lost,) = await self._take(queue)
        (again,) = await self._take(queue)
        assert again.doorbell == lost.doorbell

    async def test_an_acknowledgement_belongs_to_one_delivery(self, queue: Queue) -> None:
        await queue.put(Doorbell("e"))
        await queue.put(Doorbell("e"))
        first, second = await self._take_all(queue, 2)
        await queue.ack(first)
        await queue.ack(first)
        await queue.nack(second)
        (again,) = await self._take(queue)
        await queue.ack(again)
        await self._expect_silence(queue)

    async def test_a_refusal_after_the_acknowledgement_is_nothing(self, queue: Queue) -> None:
        await queue.put(Doorbell("e"))
        (delivery,) = await self._take(queue)
        await queue.ack(delivery)
        await queue.nack(delivery)
        await self._expect_silence(queue)

    async def test_a_late_refusal_shows_nothing_that_came_again(self, queue: Queue) -> None:
        await queue.put(Doorbell("e"))
        (late,) = await self._take(queue)
        await self._take(queue)
        await queue.nack(late)
        await self._expect_silence(queue)

    async def test_answers_in_any_order_leave_what_was_refused(self, queue: Queue) -> None:
        for n in range(12):
            await queue.put(Doorbell(f"e{n}"))
        taken = await self._take_all(queue, 12)
        refused = {delivery.doorbell.graph_exec_id for delivery in taken[::2]}
        for delivery in reversed(taken):
            if delivery.doorbell.graph_exec_id in refused:
                await queue.nack(delivery)
            else:
                await queue.ack(delivery)
        again = await self._take_all(queue, 6)
        assert {delivery.doorbell.graph_exec_id for delivery in again} == refused
        for delivery in again:
            await queue.ack(delivery)
        await self._expect_silence(queue)

    async def test_a_refused_one_comes_again_as_it_was_after_its_delay(self, queue: Queue) -> None:
        bell = Doorbell("e", enqueue_no=4, kind="resume", priority=3)
        await queue.put(bell)
        (delivery,) = await self._take(queue)
        await queue.nack(delivery, delay_s=0.3)
        assert [again.doorbell for again in await self._take(queue)] == [bell]

    async def test_a_take_that_was_given_up_keeps_nothing(self, queue: Queue) -> None:
        for n in range(3):
            gone = asyncio.ensure_future(queue.take(10))
            await asyncio.sleep(0.01)
            if n == 1:
                await queue.put(Doorbell("e"))
            gone.cancel()
            with suppress(asyncio.CancelledError):
                for delivery in await gone:
                    await queue.nack(delivery)
        (delivery,) = await self._take(queue)
        await queue.ack(delivery)
        await self._expect_silence(queue)

    async def test_any_name_is_carried(self, queue: Queue) -> None:
        names = {"e/1 #2", "Ausführung β 🙂", "x" * 300, '"{}', "0"}
        for name in names:
            await queue.put(Doorbell(name))
        taken = await self._take_all(queue, len(names))
        assert {delivery.doorbell.graph_exec_id for delivery in taken} == names

    # ---- priorities ------------------------------------------------------------------------------------------------

    async def test_what_is_urgent_goes_first(self, queue: Queue) -> None:
        for n in range(3):
            await queue.put(Doorbell(f"e{n}"))
        await queue.put(Doorbell("urgent", priority=5))
        (first,) = await self._take(queue, 1)
        assert first.doorbell == Doorbell("urgent", priority=5)
        rest = await self._take_all(queue, 3)
        assert {delivery.doorbell.graph_exec_id for delivery in rest} == {"e0", "e1", "e2"}

    async def test_what_has_begun_goes_before_what_is_new(self, queue: Queue) -> None:
        for n in range(3):
            await queue.put(Doorbell(f"e{n}"))
        await queue.put(Doorbell("begun", enqueue_no=1))
        (first,) = await self._take(queue, 1)
        assert first.doorbell == Doorbell("begun", enqueue_no=1)
        rest = await self._take_all(queue, 3)
        assert {delivery.doorbell.graph_exec_id for delivery in rest} == {"e0", "e1", "e2"}

    async def test_what_was_refused_is_as_urgent_as_before(self, queue: Queue) -> None:
        await queue.put(Doorbell("urgent", priority=1))
        (delivery,) = await self._take(queue, 1)
        await queue.put(Doorbell("e"))
        await queue.nack(delivery)
        (first,) = await self._take(queue, 1)
        assert first.doorbell.graph_exec_id == "urgent"

    # ---- counting and closing --------------------------------------------------------------------------------------

    async def test_depth_counts_what_is_delayed(self, queue: Queue) -> None:
        await queue.put(Doorbell("e"), delay_s=60)
        await queue.put(Doorbell("urgent", priority=1), delay_s=60)
        assert await queue.depth() == 2

    async def test_closing_ends_who_waits(self, queue: Queue) -> None:
        waiting = asyncio.ensure_future(self._take(queue))
        await asyncio.sleep(0.02)
        await queue.close()
        await self._expect_closed(waiting)

    async def test_a_closed_queue_does_nothing_more(self, queue: Queue) -> None:
        await queue.put(Doorbell("e"))
        (delivery,) = await self._take(queue)
        await queue.close()
        await queue.close()
        await queue.ack(delivery)
        await queue.nack(delivery)
        await self._expect_closed(queue.put(Doorbell("e")))
        await self._expect_closed(self._take(queue))
        await self._expect_closed(queue.depth())

    async def test_depth_counts_what_waits_and_what_is_taken(self, queue: Queue) -> None:
        for n in range(3):
            await queue.put(Doorbell(f"e{n}"))
        await self._take(queue, 1)
        assert await queue.depth() == 3

    async def _take(self, queue: Queue, limit: int = 10) -> list[Delivery]:
        async with asyncio.timeout(self.patience_s):
            return await queue.take(limit)

    async def _take_all(self, queue: Queue, count: int, *, ack: bool = False) -> list[Delivery]:
        """So many, however many calls it takes."""
        taken: list[Delivery] = []
        while len(taken) < count:
            came = await self._take(queue, count - len(taken))
            if ack:
                for delivery in came:
                    await queue.ack(delivery)
            taken += came
        return taken

    async def _expect_closed(self, call: Awaitable[object]) -> None:
        try:
            await call
        except ClosedError:
            return
        raise AssertionError("a closed queue must say that it is closed")

    async def _expect_silence(self, queue: Queue) -> None:
        try:
            async with asyncio.timeout(self.silence_s):
                taken = await queue.take(10)
        except TimeoutError:
            return
        raise AssertionError(f"nothing should have come, but {taken} did")
