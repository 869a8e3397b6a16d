"""The queue as a table: doorbells that are due, with a signal so that nobody waits for a poll."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Awaitable, Sequence
from datetime import datetime, timedelta
from typing import Any, Final, NamedTuple

from sqlalchemy import BigInteger, ColumnElement, Connection, Integer, bindparam, delete, func, insert, select, update

from livetape.adapters.sql.database import Database
from livetape.adapters.sql.notices import DOORBELL, notify
from livetape.adapters.sql.prepared import Prepared, micros
from livetape.adapters.sql.single import GONE_SQL, TAKE_SQL, moment_of
from livetape.adapters.sql.tables import doorbell
from livetape.clock import Clock
from livetape.engine.queue import Delivery, Doorbell, Queue
from livetape.errors import ClosedError, StoreUnavailableError
from livetape.observability import get_logger

logger = get_logger(__name__)

HIDDEN_S: Final = 15.0
"""How long a taken doorbell is hidden: longer than a claim can take, shorter than anybody would wait."""

KEPT_TAGS: Final = 10_000
"""Deliveries that nobody answered are forgotten beyond these: their doorbells came again long ago."""


_INSERT: Final = Prepared(insert(doorbell), [c.name for c in doorbell.columns if c.name != "id"])
_REMOVE: Final = Prepared(
    delete(doorbell).where(
        doorbell.c.id == bindparam("of"), doorbell.c.taken, doorbell.c.due_at == bindparam("until", type_=BigInteger)
    )
)
_DUE: Final = Prepared(
    select(
        doorbell.c.id,
        doorbell.c.graph_exec_id,
        doorbell.c.enqueue_no,
        doorbell.c.kind,
        doorbell.c.priority,
    )
    .where(doorbell.c.rank == bindparam("of", type_=Integer), doorbell.c.due_at <= bindparam("now", type_=BigInteger))
    .order_by(doorbell.c.due_at, doorbell.c.id)
    .limit(bindparam("most", type_=Integer))
    .with_for_update(skip_locked=True)
)
_HIGHEST: Final = Prepared(select(func.max(doorbell.c.rank)))
_LOWER: Final = Prepared(select(func.max(doorbell.c.rank)).where(doorbell.c.rank < bindparam("of", type_=Integer)))
_HIDE: Final = Prepared(
    update(doorbell)
    .where(doorbell.c.id == bindparam("of"))
    .values(due_at=bindparam("until", type_=BigInteger), taken=True)
)
_NEXT: Final = Prepared(select(func.min(doorbell.c.due_at)))


class _Taken(NamedTuple):
    row_id: int
    hidden_until: datetime
    doorbell: Doorbell


class SqlQueue(Queue):
    """Doorbells in the database of the store, so that a start and its doorbell are one commit.

    Several processes may take from it at once: none waits for another, and none gets what another was given. Each
    looks when it is rung (`ring`), when the next doorbell is due, and every `poll_s`. What was taken is hidden for
    `hidden_s`. Moments are those of the database's clock, unless `clock` is given.
    """

    def __init__(
        self, database: Database, *, clock: Clock | None = None, poll_s: float = 1.0, hidden_s: float = HIDDEN_S
    ) -> None:
        self._database = database
        self._clock = clock
        self._poll_s = poll_s
        self._hidden_for = timedelta(seconds=hidden_s)
        self._rung = asyncio.Event()
        self._tags = itertools.count(1)
        self._taken: dict[int, _Taken] = {}
        self._returning: set[asyncio.Future[None]] = set()
        self._closed = False

    def ring(self) -> None:
        """A doorbell was just committed: look now."""
        self._rung.set()

    async def put(self, doorbell: Doorbell, *, delay_s: float = 0) -> None:
        self._check_open()
        await self._database.write(lambda db: insert_doorbell(db, doorbell, self._now(db), delay_s))
        self.ring()

    async def take(self, limit: int) -> list[Delivery]:
        while True:
            self._check_open()
            self._rung.clear()
            taken, next_due_s = await self._looked(limit)
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

    async def _looked(self, limit: int) -> tuple[list[Delivery], float | None]:
        look = asyncio.ensure_future(self._take(limit))
        try:
            taken, next_due_s = await asyncio.shield(look)
        except asyncio.CancelledError:
            # Whoever asked is gone: others shall have what was taken now, not when it is shown again.
            back = asyncio.ensure_future(self._give_back(look))
            self._returning.add(back)
            back.add_done_callback(self._returning.discard)
            raise
        deliveries = []
        for one in taken:
            tag = next(self._tags)
            self._taken[tag] = one
            deliveries.append(Delivery(one.doorbell, tag))
        while len(self._taken) > KEPT_TAGS:
            del self._taken[next(iter(self._taken))]
        return deliveries, next_due_s

    async def _give_back(self, look: asyncio.Future[tuple[list[_Taken], float | None]]) -> None:
        try:
            taken, _ = await look
        except StoreUnavailableError:
            return
        if taken:
            await self._given_back(taken)
            self.ring()

    async def _take(self, limit: int) -> tuple[list[_Taken], float | None]:
        single = self._database.single
        if single is None:
            return await self._database.write(lambda db: self._take_by_unit(db, limit), brief=True, read_committed=True)
        now = single.moment() if self._clock is None else self._clock.now()
        rows = await single.fetch(TAKE_SQL, [micros(now), limit, self._hidden_for // timedelta(microseconds=1)])
        taken = [
            _Taken(row[0], moment_of(row[5]), Doorbell(row[1], row[2], row[3], row[4]))
            for row in rows
            if row[0] is not None
        ]
        moment, next_due = rows[0][8], rows[0][9]
        return taken, None if taken or next_due is None else (next_due - moment) / 1_000_000

    def _take_by_unit(self, db: Connection, limit: int) -> tuple[list[_Taken], float | None]:
        now = self._now(db)
        rows: list[tuple[Any, ...]] = []
        rank = _value(_HIGHEST.all(db, {}))
        while rank is not None and len(rows) < limit:
            rows += _DUE.all(db, {"of": rank, "now": micros(now), "most": limit - len(rows)})
            rank = _value(_LOWER.all(db, {"of": rank}))
        if rows:
            until = now + self._hidden_for
            _HIDE.run(db, [{"of": row[0], "until": micros(until)} for row in rows])
            return [_Taken(row[0], until, Doorbell(*row[1:])) for row in rows], None
        next_due = _value(_NEXT.all(db, {}))
        return [], None if next_due is None else (moment_of(next_due) - now).total_seconds()

    async def ack(self, delivery: Delivery) -> None:
        taken = self._taken.pop(delivery.tag, None)
        if taken is not None:
            await self._tried(self._remove(taken), "acknowledged")

    async def nack(self, delivery: Delivery, *, delay_s: float = 0) -> None:
        taken = self._taken.pop(delivery.tag, None)
        if taken is not None:
            await self._given_back([taken], delay_s)
            self.ring()

    async def _remove(self, taken: _Taken) -> None:
        single = self._database.single
        if single is None:
            gone = {"of": taken.row_id, "until": micros(taken.hidden_until)}
            await self._database.write(lambda db: _REMOVE.run(db, [gone]), brief=True, read_committed=True)
        else:
            await single.fetch(GONE_SQL, [taken.row_id, micros(taken.hidden_until)])

    async def _given_back(self, taken: Sequence[_Taken], delay_s: float = 0) -> None:
        showing = self._database.write(lambda db: self._show(db, taken, delay_s), brief=True, read_committed=True)
        await self._tried(showing, "given back")

    async def _tried(self, writing: Awaitable[object], what: str) -> None:
        """It comes again by itself when this cannot be written now."""
        try:
            await writing
        except StoreUnavailableError as error:
            logger.warning("a doorbell cannot be %s: %s", what, error, extra={"action": "queue_retry"})

    def _show(self, db: Connection, taken: Sequence[_Taken], delay_s: float = 0) -> None:
        """Make due what was taken, unless it came again meanwhile: then it is somebody else's."""
        due = self._now(db) + timedelta(seconds=delay_s)
        for one in taken:
            db.execute(update(doorbell).where(_still(one)).values(due_at=due, taken=False))
        notify(db, DOORBELL)

    async def void_takes(self) -> None:
        """Make due at once what a process took that is gone: only for who holds the database alone."""
        await self._database.write(
            lambda db: db.execute(update(doorbell).where(doorbell.c.taken).values(due_at=self._now(db), taken=False))
        )

    async def depth(self) -> int:
        self._check_open()
        return await self._database.read(lambda db: db.execute(select(func.count(doorbell.c.id))).scalar_one())

    async def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        self.ring()
        if self._returning:
            await asyncio.wait(self._returning)
        taken = list(self._taken.values())
        self._taken.clear()
        if taken:
            await self._given_back(taken)

    def _now(self, db: Connection) -> datetime:
        return self._database.now(db) if self._clock is None else self._clock.now()

    def _check_open(self) -> None:
        if self._closed:
            raise ClosedError("the queue is closed")


def insert_doorbell(db: Connection, bell: Doorbell, now: datetime | Clock, delay_s: float = 0) -> None:
    """Write a doorbell in the transaction that queues the execution, and ring it with the commit."""
    moment = now if isinstance(now, datetime) else now.now()
    _INSERT.run(
        db,
        [
            {
                "graph_exec_id": bell.graph_exec_id,
                "kind": bell.kind,
                "enqueue_no": bell.enqueue_no,
                "priority": bell.priority,
                "rank": bell.rank,
                "taken": False,
                "due_at": micros(moment + timedelta(seconds=delay_s)),
            }
        ],
    )
    notify(db, DOORBELL)


def _value(rows: Sequence[tuple[Any, ...]]) -> Any:
    """That of a query for one value."""
    return rows[0][0]


def _still(taken: _Taken) -> ColumnElement[bool]:
    """The row as it was taken: not one that others took since, nor a new one that got the id of a deleted one."""
    return (doorbell.c.id == taken.row_id) & doorbell.c.taken & (doorbell.c.due_at == taken.hidden_until)
