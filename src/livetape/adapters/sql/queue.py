"""The queue as a table: doorbells that are due, with an in-process signal so that nobody waits for a poll."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import Final

from sqlalchemy import Connection, delete, func, insert, select, update

from livetape.adapters.sql.database import Database
from livetape.adapters.sql.tables import doorbell
from livetape.clock import Clock, SystemClock
from livetape.engine.queue import Delivery, Doorbell, Queue

# How long a taken doorbell is hidden: longer than a claim can take, shorter than anybody would wait.
HIDDEN_FOR: Final = timedelta(seconds=15)


class SqlQueue(Queue):
    """Doorbells in the database of the store, so that a start and its doorbell are one commit."""

    def __init__(self, database: Database, *, clock: Clock | None = None, poll_s: float = 1.0) -> None:
        self._database = database
        self._clock = clock or SystemClock()
        self._poll_s = poll_s
        self._rung = asyncio.Event()

    def ring(self) -> None:
        """A doorbell was just committed by this process: look now."""
        self._rung.set()

    async def put(self, doorbell: Doorbell, *, delay_s: float = 0) -> None:
        await self._database.write(lambda db: insert_doorbell(db, doorbell, self._clock, delay_s))
        self.ring()

    async def take(self, limit: int) -> list[Delivery]:
        while True:
            self._rung.clear()
            taken, next_due_s = await self._database.write(lambda db: self._take(db, limit), brief=True)
            if taken:
                if len(taken) == limit:
                    self._rung.set()  # there may be more
                return taken
            wait_s = self._poll_s if next_due_s is None else max(0.0, min(self._poll_s, next_due_s))
            try:
                async with asyncio.timeout(wait_s):
                    await self._rung.wait()
            except TimeoutError:
                pass

    def _take(self, db: Connection, limit: int) -> tuple[list[Delivery], float | None]:
        now = self._clock.now()
        rows = db.execute(
            select(doorbell).where(doorbell.c.due_at <= now).order_by(doorbell.c.due_at, doorbell.c.id).limit(limit)
        ).all()
        if rows:
            db.execute(
                update(doorbell)
                .where(doorbell.c.id.in_([row.id for row in rows]))
                .values(due_at=now + HIDDEN_FOR, taken=True)
            )
            return [Delivery(Doorbell(row.graph_exec_id, row.enqueue_no, row.kind), row.id) for row in rows], None
        next_due = db.execute(select(func.min(doorbell.c.due_at))).scalar()
        return [], None if next_due is None else (next_due - now).total_seconds()

    async def ack(self, delivery: Delivery) -> None:
        gone = delete(doorbell).where(doorbell.c.id == delivery.tag)
        await self._database.write(lambda db: db.execute(gone), brief=True)

    async def nack(self, delivery: Delivery, *, delay_s: float = 0) -> None:
        due = self._clock.now() + timedelta(seconds=delay_s)
        await self._database.write(
            lambda db: db.execute(update(doorbell).where(doorbell.c.id == delivery.tag).values(due_at=due, taken=False))
        )
        self.ring()

    async def void_takes(self) -> None:
        """Make due at once what a process took that is gone: only for who holds the database alone."""
        now = self._clock.now()
        await self._database.write(
            lambda db: db.execute(update(doorbell).where(doorbell.c.taken).values(due_at=now, taken=False))
        )

    async def depth(self) -> int:
        return await self._database.read(lambda db: db.execute(select(func.count(doorbell.c.id))).scalar_one())


def insert_doorbell(db: Connection, bell: Doorbell, clock: Clock, delay_s: float = 0) -> None:
    """Write a doorbell in the transaction that queues the execution."""
    db.execute(
        insert(doorbell),
        {
            "graph_exec_id": bell.graph_exec_id,
            "kind": bell.kind,
            "enqueue_no": bell.enqueue_no,
            "taken": False,
            "due_at": clock.now() + timedelta(seconds=delay_s),
        },
    )
