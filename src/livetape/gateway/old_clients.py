"""Old clients do not subscribe again after they were cut off: their next socket goes on where the last one was."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Final

from livetape.clock import Clock, SystemClock
from livetape.errors import LivetapeError
from livetape.gateway.compat import CompatResume, Kept, Slot
from livetape.gateway.connection import Connection, Positions
from livetape.gateway.reader import Sleep
from livetape.observability import get_logger

logger = get_logger(__name__)

PATIENCE_S: Final = 1.0
"""A client that knows how to continue says so within this time; it is then not given what it did not ask for."""

SAVE_EVERY_S: Final = 0.25
"""What a socket watches is written down at most this often, however fast it changes: all of it, each time."""

LOOKS_AT_ONCE: Final = 32
"""So many sockets look at once whether they come instead of one that was lost; meanwhile others may show that they
need not."""

TURNS: Final = 4
"""So many turns has the loop after that: a busy one has not read yet what clients have long said."""


class OldClients:
    """Keeps what sockets watch that use nothing but the seed's messages, and gives it to their user's next one.

    Positions are those that the client certainly has: what was sent before a ping that it answered, or all of it when
    both sides said goodbye. So what was on its way when a link broke is sent again. `run` while it serves.
    """

    def __init__(self, compat: CompatResume, *, sleep: Sleep, clock: Clock | None = None) -> None:
        self._compat = compat
        self._sleep = sleep
        self._clock = clock or SystemClock()
        self._opened: list[Connection] = []
        """In this turn of the loop."""
        self._new: deque[tuple[float, Connection]] = deque()
        """Sockets that have until then to show that they need nothing, in this order."""
        self._any_new = asyncio.Event()
        self._lately: dict[Connection, bool] = {}
        """What was written down lately; whether it has changed since."""
        self._written: deque[tuple[float, Connection]] = deque()
        """Until when that is lately, in this order."""
        self._any_written = asyncio.Event()
        self._turns = asyncio.Semaphore(LOOKS_AT_ONCE)
        self._tasks: set[asyncio.Task[None]] = set()

    async def run(self) -> None:
        """Until cancelled; then it waits for what is being written down."""
        beside = [
            asyncio.create_task(self._look_at_new(), name="new sockets"),
            asyncio.create_task(self._write_again(), name="what old clients watch"),
        ]
        try:
            await self._compat.run()
        finally:
            for task in beside:
                task.cancel()
            await self.settled()

    async def settled(self) -> None:
        """All that was to be written down is."""
        for connection, has_changed in self._lately.items():
            if has_changed:
                self._save(connection)
        self._lately = dict.fromkeys(self._lately, False)
        while self._tasks:
            await asyncio.wait(tuple(self._tasks))
        await self._compat.settled()

    def opened(self, connection: Connection) -> None:
        """A socket is open: look whether it comes instead of one that was lost."""
        # Thousands that come at once make one turn long, and the first of them is answered at its end.
        if not self._opened:
            asyncio.get_running_loop().call_soon(self._begin_to_wait)
        self._opened.append(connection)

    def changed(self, connection: Connection) -> None:
        """It watches something else now, or its client has certainly been given more."""
        if connection.session.is_plain:
            if connection.slot is None:
                connection.slot = self._compat.slot(connection.principal.user_id)
            if connection in self._lately:
                self._lately[connection] = True
            else:
                self._write(connection)
        elif connection.slot is not None:
            self._spawn(connection.slot.drop())

    def lost(self, connection: Connection, *, clean: bool, left: bool) -> None:
        """It is gone. Called while its subscriptions are still there."""
        self._lately.pop(connection, None)
        slot = connection.slot
        if slot is None:
            return
        if left or not connection.session.is_plain or connection.is_barred:
            self._spawn(slot.drop())
        else:
            self._spawn(slot.leave(_kept(connection.positions() if clean else connection.arrived)))

    async def forget(self, user_id: str) -> None:
        """Keep nothing for this user: its tokens were revoked."""
        try:
            await self._compat.forget(user_id)
        except LivetapeError as error:
            logger.warning("cannot forget what a user watched: %s", error, extra={"action": "compat_unavailable"})

    def _begin_to_wait(self) -> None:
        until = self._clock.monotonic() + PATIENCE_S
        self._new.extend((until, connection) for connection in self._opened)
        self._opened = []
        self._any_new.set()

    async def _look_at_new(self) -> None:
        """One task for all of them: most know how to continue, and cost nothing more."""
        while True:
            if not self._new:
                self._any_new.clear()
                await self._any_new.wait()
            await self._sleep(max(0.0, self._new[0][0] - self._clock.monotonic()))
            for _ in range(TURNS):
                await asyncio.sleep(0)
            now = self._clock.monotonic()
            while self._new and self._new[0][0] <= now:
                _, connection = self._new.popleft()
                if connection.session.is_plain:
                    await self._turns.acquire()
                    self._look(connection)

    def _write(self, connection: Connection) -> None:
        self._lately[connection] = False
        self._written.append((self._clock.monotonic() + SAVE_EVERY_S, connection))
        self._any_written.set()
        self._save(connection)

    def _save(self, connection: Connection) -> None:
        if connection.slot is not None and connection.session.is_plain:
            self._spawn(connection.slot.save(_kept(connection.arrived)))

    async def _write_again(self) -> None:
        """One task for all of them, too: what has changed since it was written down."""
        while True:
            if not self._written:
                self._any_written.clear()
                await self._any_written.wait()
            until = self._written[0][0]
            await self._sleep(max(0.0, until - self._clock.monotonic()))
            now = max(until, self._clock.monotonic())
            while self._written and self._written[0][0] <= now:
                _, connection = self._written.popleft()
                if self._lately.pop(connection, False):
                    self._write(connection)

    def _look(self, connection: Connection) -> None:
        """In its turn, which is over when it has looked or is gone."""
        turn = _Turn(self._turns)
        task = connection.spawn(self._resume(connection, turn)) if connection.session.is_plain else None
        if task is None:
            turn.end()
        else:
            task.add_done_callback(turn.end)

    async def _resume(self, connection: Connection, turn: _Turn) -> None:
        slot = self._compat.slot(connection.principal.user_id)
        kept = await self._compat.take(slot, looked=turn.end)
        if not kept or not connection.session.is_plain:
            if slot.key is not None:
                self._spawn(slot.drop())
            return
        # Until it is lost or all is restored, what was taken stands in its slot: it is owed, and nobody else's.
        own, connection.slot = connection.slot, connection.slot or slot
        connection.owe(kept)
        if own is not None:
            self._spawn(_join(own, slot, _kept(connection.arrived)))
        await connection.restore()
        self.changed(connection)

    def _spawn(self, work: object) -> None:
        assert asyncio.iscoroutine(work)
        task = asyncio.create_task(work, name="old clients")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


class _Turn:
    """What was acquired, to be given back once."""

    def __init__(self, turns: asyncio.Semaphore) -> None:
        self._turns: asyncio.Semaphore | None = turns

    def end(self, _: object = None) -> None:
        turns, self._turns = self._turns, None
        if turns is not None:
            turns.release()


def _kept(positions: Positions) -> list[Kept]:
    return [Kept(subject, position) for subject, position in positions.items() if position is not None]


async def _join(own: Slot, other: Slot, kept: list[Kept]) -> None:
    """One slot in place of two."""
    await own.save(kept)
    await other.drop()
