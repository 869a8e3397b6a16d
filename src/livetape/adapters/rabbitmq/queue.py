"""The queue in RabbitMQ: doorbells pulled while there are any, pushed while there are none."""

from __future__ import annotations

import asyncio
import itertools
from collections import deque
from collections.abc import Coroutine
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final

from aiormq.abc import AbstractChannel, AbstractConnection, DeliveredMessage
from pamqp.commands import Basic

from livetape.adapters.rabbitmq.connection import RabbitConnection, broker_errors, ended, in_time
from livetape.adapters.rabbitmq.messages import NotADoorbellError, decode_doorbell, left_ms
from livetape.adapters.rabbitmq.publisher import Publisher
from livetape.engine.queue import Delivery, Doorbell, Queue
from livetape.errors import ClosedError, QueueUnavailableError
from livetape.events.backoff import Backoff
from livetape.observability import Metrics, NoMetrics, get_logger

logger = get_logger(__name__)

HIDDEN_S: Final = 15.0
"""How long a taken doorbell is hidden: longer than a claim can take, shorter than anybody would wait."""

FRESH_S: Final = 30.0
"""Who has waited so long for a doorbell begins anew. A broker whose queue was deleted and made again may neither tell
those who wait, nor send them anything, and keep for them what it thinks that it sent."""

LINGER_S: Final = 0.2
"""What came and nobody takes is given back after so long."""


@dataclass(slots=True)
class _Held:
    """A message that was taken from the broker and not answered yet."""

    message: DeliveredMessage
    timer: asyncio.TimerHandle


class RabbitQueue(Queue):
    """Doorbells in RabbitMQ (names: `Topology`). Connects at the first use, and again whenever the connection broke.

    A process holds no more messages than it was asked to take: what one does not take, others can. `publishing` and
    `taking` are two connections, and stay the caller's. `hidden_s` must be less than the broker's own limit for
    unacknowledged messages (30 minutes).
    """

    def __init__(
        self,
        publishing: RabbitConnection,
        taking: RabbitConnection,
        *,
        hidden_s: float = HIDDEN_S,
        fresh_s: float = FRESH_S,
        backoff: Backoff | None = None,
        metrics: Metrics | None = None,
    ) -> None:
        self._metrics = metrics or NoMetrics()
        self._publisher = Publisher(publishing, metrics=self._metrics)
        self._connection = taking
        self._topology = taking.topology
        self._hidden_s = hidden_s
        self._fresh_s = fresh_s
        self._backoff = backoff or Backoff()
        self._turn = asyncio.Lock()
        self._stir = asyncio.Event()
        self._filled = asyncio.Event()
        self._asked = 0
        self._pulling = False
        self._buffer: deque[Delivery] = deque()
        self._held: dict[int, _Held] = {}
        self._tags = itertools.count(1)
        self._server: asyncio.Task[None] | None = None
        self._errands: set[asyncio.Task[None]] = set()
        self._closed = False
        self.problem = ""
        """Why nothing can be taken, in words; empty when it can, or when nobody has tried."""

    # ---- putting ---------------------------------------------------------------------------------------------------

    async def put(self, doorbell: Doorbell, *, delay_s: float = 0) -> None:
        self._check_open()
        await self._publisher.doorbell(doorbell, delay_s)

    async def depth(self) -> int:
        self._check_open()
        with broker_errors("cannot count", self._metrics):
            async with in_time(2 * self._connection.patience_s), self._connection.brief_channel() as channel:
                declared = [await channel.queue_declare(name, passive=True) for name in self._topology.waiting]
        return sum(answer.message_count or 0 for answer in declared) + len(self._held)

    # ---- taking ----------------------------------------------------------------------------------------------------

    async def take(self, limit: int) -> list[Delivery]:
        self._check_open()
        if self._server is None:
            self._server = asyncio.create_task(self._serve(), name="doorbells of RabbitMQ")
        async with self._turn:
            self._check_open()
            taken: list[Delivery] = []
            self._asked = limit
            self._stir.set()
            try:
                while not self._buffer and not self._closed:
                    self._filled.clear()
                    await self._filled.wait()
                taken = [self._buffer.popleft() for _ in range(min(limit, len(self._buffer)))]
            finally:
                self._asked = 0
                self._stir.set()
                if self._buffer:
                    self._linger()
            if not taken:
                raise ClosedError("the queue is closed")
            return taken

    async def ack(self, delivery: Delivery) -> None:
        held = self._let_go(delivery.tag)
        if held is not None:
            self._count(held.message, "acknowledged")
            await self._settle(held.message, Basic.Ack)

    async def nack(self, delivery: Delivery, *, delay_s: float = 0) -> None:
        held = self._let_go(delivery.tag)
        if held is None:
            return
        try:
            # A new message at the end of the queue: one that is merely refused must not count as one that kills.
            await self._publisher.doorbell(delivery.doorbell, delay_s)
        except (QueueUnavailableError, ClosedError):
            self._hold(delivery.tag, held.message, max(delay_s, 1.0))
        else:
            self._count(held.message, "refused")
            await self._settle(held.message, Basic.Ack)

    async def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        self._filled.set()
        tasks = set(self._errands)
        if self._server is not None:
            tasks.add(self._server)
        await ended(tasks)
        self._forget()

    def _check_open(self) -> None:
        if self._closed:
            raise ClosedError("the queue is closed")

    # ---- from the broker -------------------------------------------------------------------------------------------

    async def _serve(self) -> None:
        connection: AbstractConnection | None = None
        while not self._closed:
            try:
                with broker_errors("cannot take", self._metrics):
                    connection = await self._connection.get()
                    await self._serve_on(connection)
            except QueueUnavailableError as error:
                if not self.problem:
                    logger.warning("no doorbells: %s", error, extra={"action": "queue_retry"})
                self.problem = str(error)
            except ClosedError:
                self._closed = True  # the connection was closed under it: nothing will come any more
                self._filled.set()
                return
            except Exception as error:  # the boundary of the task: who waits for doorbells must not wait for ever
                logger.exception("doorbells cannot be taken", extra={"action": "queue_failed"})
                self._metrics.count("internal_errors_total", part="rabbitmq")
                self.problem = str(error) or type(error).__name__
            if connection is not None:
                self._connection.drop(connection)
                connection = None
            await asyncio.sleep(self._backoff.next())

    async def _serve_on(self, connection: AbstractConnection) -> None:
        while True:
            async with in_time(self._connection.patience_s):
                channel = await connection.channel(publisher_confirms=False)
            try:
                async with in_time(self._connection.patience_s):
                    await channel.basic_qos(prefetch_count=1)
                channel.closing.add_done_callback(lambda _: self._stir.set())
                await self._fetch(channel)
            finally:
                # Tags belong to their channel: the broker gives what it had to somebody, perhaps to us again.
                self._forget()
                await self._leave(channel)

    async def _leave(self, channel: AbstractChannel) -> None:
        """The broker gives to others what was not acknowledged when the channel is closed."""
        with suppress(QueueUnavailableError), broker_errors("cannot leave", self._metrics):
            async with in_time(self._connection.patience_s):
                await channel.close()

    async def _fetch(self, channel: AbstractChannel) -> None:
        """Take what is asked for, as long as the channel lives or until it should be a new one.

        Raises what the driver raises.
        """
        while True:
            self._stir.clear()
            if channel.is_closed:
                raise QueueUnavailableError("the connection to RabbitMQ was lost")
            if self._asked > len(self._buffer):
                self._pulling = True  # whoever waits is woken when all that he asked for is here, or all there is
                try:
                    await self._pull(channel)
                finally:
                    self._pulling = False
                if self._buffer:
                    self._filled.set()
            if self._asked and not self._buffer:
                if not await self._listen(channel) and not self._held:
                    return
            elif not self._stir.is_set():
                await self._stir.wait()

    async def _pull(self, channel: AbstractChannel) -> None:
        for queue in (self._topology.urgent_queue, self._topology.queue):
            while self._asked > len(self._buffer):
                async with in_time(self._connection.patience_s):
                    message = await channel.basic_get(queue)
                self._works()
                if not isinstance(message.delivery, Basic.GetOk):
                    break
                await self._came(message)

    async def _listen(self, channel: AbstractChannel) -> bool:
        """Nothing is there: have the next one pushed, of each queue one at most. False: nothing came for long."""
        lost: list[object] = []

        def cancelled(frame: object) -> None:
            lost.append(frame)
            self._stir.set()

        channel.on_consumer_cancel_callbacks.add(cancelled)
        tags: list[str] = []
        try:
            for queue in (self._topology.urgent_queue, self._topology.queue):
                async with in_time(self._connection.patience_s):
                    consuming = await channel.basic_consume(queue, self._came)
                tags.append(str(consuming.consumer_tag))
            try:
                async with asyncio.timeout(self._fresh_s):
                    while self._asked and not self._buffer and not lost and not channel.is_closed:
                        self._stir.clear()
                        await self._stir.wait()
            except TimeoutError:
                return False
            if lost:
                raise QueueUnavailableError("the queue in RabbitMQ was deleted")
            return True
        finally:
            channel.on_consumer_cancel_callbacks.discard(cancelled)
            if not channel.is_closed:
                for tag in tags:
                    async with in_time(self._connection.patience_s):
                        await channel.basic_cancel(tag)

    def _works(self) -> None:
        if self.problem:
            logger.info("doorbells come again", extra={"action": "queue_back"})
            self.problem = ""
        self._backoff.reset()

    async def _came(self, message: DeliveredMessage) -> None:
        """A message from the broker: for the taker, to be delayed further, or no doorbell at all."""
        if self._closed:
            return
        tag = next(self._tags)
        try:
            doorbell = decode_doorbell(message.body)
        except NotADoorbellError as error:
            logger.warning("put with the dead letters: %s", error, extra={"action": "dead_letter"})
            self._hold(tag, message, self._hidden_s)
            await self._bury(tag, message, str(error))
            return
        left = left_ms(message.header.properties.headers)
        self._hold(tag, message, self._hidden_s)
        delivery = Delivery(doorbell, tag)
        if left:
            await self.nack(delivery, delay_s=left / 1000)
            return
        self._count(message, "delivered")
        self._buffer.append(delivery)
        if not self._pulling:
            self._filled.set()
        self._stir.set()
        if not self._asked:
            self._linger()

    async def _bury(self, tag: int, message: DeliveredMessage, reason: str) -> None:
        try:
            await self._publisher.dead(message.body, reason)
        except (QueueUnavailableError, ClosedError):
            return  # it comes again
        if self._let_go(tag) is not None:
            await self._settle(message, Basic.Ack)

    # ---- what is held ----------------------------------------------------------------------------------------------

    def _hold(self, tag: int, message: DeliveredMessage, seconds: float) -> None:
        if message.channel.is_closed:
            return
        timer = asyncio.get_running_loop().call_later(seconds, self._give_back, tag)
        self._held[tag] = _Held(message, timer)

    def _let_go(self, tag: int) -> _Held | None:
        held = self._held.pop(tag, None)
        if held is not None:
            held.timer.cancel()
        return held

    def _give_back(self, tag: int) -> None:
        """Nobody acknowledged it in time."""
        held = self._let_go(tag)
        if held is not None:
            self._count(held.message, "returned")
            self._run(self._settle(held.message, Basic.Nack))

    def _linger(self) -> None:
        asyncio.get_running_loop().call_later(LINGER_S, self._clear_out)

    def _clear_out(self) -> None:
        """Others may take what nobody here does."""
        while self._buffer and not self._asked:
            self._give_back(self._buffer.popleft().tag)

    def _forget(self) -> None:
        for tag in list(self._held):
            self._let_go(tag)
        self._buffer.clear()

    async def _settle(self, message: DeliveredMessage, how: type[Basic.Ack] | type[Basic.Nack]) -> None:
        """Answer the broker. Where it is away, the message comes again and the claim says that it is old."""
        tag = message.delivery_tag
        if tag is None or message.channel.is_closed:
            return
        try:
            with broker_errors("cannot acknowledge", self._metrics):
                async with in_time(self._connection.patience_s):
                    if how is Basic.Ack:
                        await message.channel.basic_ack(tag, wait=False)
                    else:
                        await message.channel.basic_nack(tag, requeue=True, wait=False)
        except QueueUnavailableError as error:
            logger.info("%s", error, extra={"action": "ack_lost"})

    def _count(self, message: DeliveredMessage, status: str) -> None:
        urgent = message.routing_key == self._topology.urgent_key
        queue = self._topology.urgent_queue if urgent else self._topology.queue
        self._metrics.count("rabbitmq_messages_total", queue=queue, status=status)

    def _run(self, errand: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(errand)
        self._errands.add(task)
        task.add_done_callback(self._errands.discard)
