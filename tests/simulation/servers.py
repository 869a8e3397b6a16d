"""The other servers that simulated processes share: a broker of doorbells, a bus, and the log that watchers read."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import partial
from typing import Any, Final, TypeVar

from sqlalchemy import Connection

from livetape.adapters.sql.database import Database
from livetape.engine.queue import Delivery, Doorbell, Queue
from livetape.errors import LogUnavailableError, StoreUnavailableError
from livetape.events.bus import Bus, Sink, Subscription
from livetape.events.log import MAX_READ, Entry, EventLog, NewEvent, Position, PutResult, Tape
from livetape.testing.fakes import FakeLog
from simulation.faults import Faults
from simulation.host import Host
from simulation.world import State, World

T = TypeVar("T")

REDELIVERED_S: Final = 15.0
"""An unacknowledged doorbell comes again after so long, as does one whose taker is seen to be gone."""


@dataclass(slots=True)
class _Bell:
    number: int
    doorbell: Doorbell
    due: float
    taker: Host | None = None


@dataclass(slots=True)
class Broker:
    """Doorbells outside the database: lost, doubled, late and out of order as the faults say."""

    world: World
    faults: Faults
    seen_ack: Callable[[Doorbell, int], None]
    """Told of every acknowledgement, with the number of the delivery."""

    seen_take: Callable[[Doorbell, int], None]
    listeners: dict[str, Callable[[], None]] = field(default_factory=dict)
    _bells: dict[int, _Bell] = field(default_factory=dict)
    _numbers: itertools.count[int] = field(default_factory=lambda: itertools.count(1))

    def put(self, doorbell: Doorbell, delay_s: float) -> None:
        if self.faults.strikes("bell_lost"):
            return
        for _ in range(2 if self.faults.strikes("bell_doubled") else 1):
            late = self.world.rng.uniform(0.5, 30.0) if self.faults.strikes("bell_late") else 0.0
            if self.faults.strikes("bell_reordered"):
                late += self.world.rng.uniform(0.0, 1.0)
            bell = _Bell(next(self._numbers), doorbell, self.world.now + delay_s + late)
            self._bells[bell.number] = bell
            self.world.after(delay_s + late, self._ring)

    def _ring(self) -> None:
        for listener in list(self.listeners.values()):
            listener()

    def take(self, host: Host, limit: int) -> list[Delivery]:
        now = self.world.now
        due = [bell for bell in self._bells.values() if bell.due <= now]
        if "bell_reordered" in self.faults.chosen:
            self.world.rng.shuffle(due)
        taken = due[:limit]
        for bell in taken:
            bell.due, bell.taker = now + REDELIVERED_S, host
            self.seen_take(bell.doorbell, bell.number)
        return [Delivery(bell.doorbell, bell.number) for bell in taken]

    def ack(self, tag: int) -> None:
        bell = self._bells.pop(tag, None)
        if bell is not None:
            self.seen_ack(bell.doorbell, tag)

    def nack(self, tag: int, delay_s: float) -> None:
        if tag in self._bells:
            self._bells[tag].due = self.world.now + delay_s
            self.world.after(delay_s, self._ring)

    def lost_taker(self, host: Host) -> None:
        """Its connection is closed: what it took comes again."""
        for bell in self._bells.values():
            if bell.taker is host:
                bell.due = min(bell.due, self.world.now + 1.0)
        self.world.after(1.0, self._ring)

    def depth(self) -> int:
        return len(self._bells)


class BrokerQueue(Queue):
    """The broker as one process reaches it."""

    def __init__(self, broker: Broker, host: Host, poll_s: float = 5.0) -> None:
        self._broker = broker
        self._host = host
        self._poll_s = poll_s
        self._rung = asyncio.Event()
        broker.listeners[host.name] = self._heard

    def _heard(self) -> None:
        if self._host.state is not State.DEAD and not self._host.cut["queue"]:
            world = self._host.world
            later = world.now + self._host.latency()
            world.at(later, self._host.loop, asyncio.Handle(self._rung.set, (), self._host.loop))

    async def put(self, doorbell: Doorbell, *, delay_s: float = 0) -> None:
        await self._host.call("queue", lambda: self._broker.put(doorbell, delay_s))

    async def take(self, limit: int) -> list[Delivery]:
        while True:
            self._rung.clear()
            taken = await self._host.call("queue", lambda: self._broker.take(self._host, limit))
            if taken:
                return taken
            try:
                async with asyncio.timeout(self._poll_s):
                    await self._rung.wait()
            except TimeoutError:
                pass

    async def ack(self, delivery: Delivery) -> None:
        await self._host.call("queue", lambda: self._broker.ack(delivery.tag))

    async def nack(self, delivery: Delivery, *, delay_s: float = 0) -> None:
        await self._host.call("queue", lambda: self._broker.nack(delivery.tag, delay_s))

    async def depth(self) -> int:
        return await self._host.call("queue", self._broker.depth)

    async def close(self) -> None:
        self._broker.listeners.pop(self._host.name, None)


@dataclass(slots=True)
class Air:
    """What the bus is: whoever listens to a channel now hears it, mostly."""

    world: World
    faults: Faults
    listeners: dict[str, list[tuple[Host, Callable[[bytes], None]]]] = field(default_factory=dict)

    def publish(self, channel: str, data: bytes) -> int:
        heard = 0
        for host, hear in self.listeners.get(channel, ()):
            if host.cut["bus"] or self.faults.strikes("bus_lost"):
                continue
            heard += 1
            for _ in range(2 if self.faults.strikes("bus_doubled") else 1):
                late = 0.001
                if self.faults.strikes("bus_late"):
                    late = self.world.rng.uniform(0.5, 5.0)
                elif self.faults.strikes("bus_reordered"):
                    late = self.world.rng.uniform(0.0, 0.1)
                self.world.at(self.world.now + late, host.loop, asyncio.Handle(hear, (data,), host.loop))
        return heard


class AirBus(Bus):
    """The bus as a process that publishes reaches it."""

    def __init__(self, air: Air, host: Host) -> None:
        self._air = air
        self._host = host

    async def publish(self, channel: str, data: bytes) -> int:
        return await self._host.call("bus", lambda: self._air.publish(channel, data))

    async def subscribe(self, *patterns: str, sink: Sink | None = None) -> Subscription:
        raise NotImplementedError("watchers listen to the air itself")

    async def close(self) -> None:
        pass


class RemoteLog(EventLog):
    """A log of another server, as one process reaches it."""

    def __init__(self, log: FakeLog, host: Host) -> None:
        self._log = log
        self._host = host

    async def _call(self, work: Callable[[], Coroutine[Any, Any, T]]) -> T:
        return await self._host.call("log", lambda: _at_once(work()))

    async def create(
        self, tape: str, *, owner: str | None, channel: str, graph_id: str | None = None, epoch: str | None = None
    ) -> Tape:
        made = partial(self._log.create, tape, owner=owner, channel=channel, graph_id=graph_id, epoch=epoch)
        return await self._call(made)

    async def append(self, tape: str, event: NewEvent, *, idempotency_key: str | None = None) -> Position:
        return await self._call(lambda: self._log.append(tape, event, idempotency_key=idempotency_key))

    async def put(self, tape: str, position: Position, event: NewEvent) -> PutResult:
        return await self._call(lambda: self._log.put(tape, position, event))

    async def read(
        self, tape: str, after: int = 0, *, limit: int = MAX_READ, epoch: str | None = None
    ) -> Sequence[Entry]:
        return await self._call(lambda: self._log.read(tape, after, limit=limit, epoch=epoch))

    async def describe(self, tape: str) -> Tape | None:
        return await self._call(lambda: self._log.describe(tape))

    def tapes(self, prefix: str = "") -> AsyncIterator[str]:
        return self._log.tapes(prefix)

    async def trim(self, tape: str, *, keep_after: int) -> int:
        return await self._call(lambda: self._log.trim(tape, keep_after=keep_after))

    async def offset_at(self, tape: str, time: datetime) -> int:
        return await self._call(lambda: self._log.offset_at(tape, time))

    async def close(self) -> None:
        pass


class TableLog(EventLog):
    """The events in the database, as far as the relay and the use cases read them."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def read(
        self, tape: str, after: int = 0, *, limit: int = MAX_READ, epoch: str | None = None
    ) -> Sequence[Entry]:
        def unit(db: Connection) -> list[Entry]:
            rows = db.exec_driver_sql(
                "SELECT e.number, e.event_type, e.payload, e.final, e.time FROM event e JOIN tape t ON t.id = e.tape_id"
                " WHERE t.name = ? AND e.number > ? ORDER BY e.number LIMIT ?",
                (tape, after, limit),
            )
            return [Entry(number, kind, payload, bool(final), at) for number, kind, payload, final, at in rows]

        return await self._read(unit)

    async def describe(self, tape: str) -> Tape | None:
        def unit(db: Connection) -> Tape | None:
            row = db.exec_driver_sql(
                "SELECT owner, graph_id, channel, epoch, last_number, first_number, final FROM tape WHERE name = ?",
                (tape,),
            ).one_or_none()
            if row is None:
                return None
            owner, graph_id, channel, epoch, last, first, final = row
            return Tape(tape, owner, graph_id, channel, epoch, last, first, final=bool(final))

        return await self._read(unit)

    async def _read(self, unit: Callable[[Connection], T]) -> T:
        try:
            return await self._database.read(unit)
        except StoreUnavailableError as error:
            raise LogUnavailableError(error.message) from error

    async def create(self, tape: str, **_: Any) -> Tape:
        raise NotImplementedError

    async def append(self, tape: str, event: NewEvent, *, idempotency_key: str | None = None) -> Position:
        raise NotImplementedError

    async def put(self, tape: str, position: Position, event: NewEvent) -> PutResult:
        raise NotImplementedError

    def tapes(self, prefix: str = "") -> AsyncIterator[str]:
        raise NotImplementedError

    async def trim(self, tape: str, *, keep_after: int) -> int:
        raise NotImplementedError

    async def offset_at(self, tape: str, time: datetime) -> int:
        raise NotImplementedError

    async def close(self) -> None:
        pass


def _at_once(work: Coroutine[Any, Any, T]) -> T:
    """The result of a coroutine that never waits."""
    try:
        work.send(None)
    except StopIteration as done:
        result: T = done.value
        return result
    raise AssertionError("it waits")
