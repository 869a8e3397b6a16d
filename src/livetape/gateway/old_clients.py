"""Old clients do not subscribe again after they were cut off: their next socket goes on where the last one was."""

from __future__ import annotations

import asyncio
from typing import Final

from livetape.errors import LivetapeError
from livetape.gateway.compat import CompatResume, Kept, Slot
from livetape.gateway.connection import Connection, Positions
from livetape.gateway.reader import Sleep
from livetape.observability import get_logger

logger = get_logger(__name__)

PATIENCE_S: Final = 1.0
"""A client that knows how to continue says so within this time; it is then not given what it did not ask for."""


class OldClients:
    """Keeps what sockets watch that use nothing but the seed's messages, and gives it to their user's next one.

    Positions are those that the client certainly has: what was sent before a ping that it answered, or all of it when
    both sides said goodbye. So what was on its way when a link broke is sent again. `run` while it serves.
    """

    def __init__(self, compat: CompatResume, *, sleep: Sleep) -> None:
        self._compat = compat
        self._sleep = sleep
        self._tasks: set[asyncio.Task[None]] = set()

    async def run(self) -> None:
        """Until cancelled; then it waits for what is being written down."""
        try:
            await self._compat.run()
        finally:
            await self.settled()

    async def settled(self) -> None:
        """All that was to be written down is."""
        while self._tasks:
            await asyncio.wait(tuple(self._tasks))
        await self._compat.settled()

    def opened(self, connection: Connection) -> None:
        """A socket is open: look whether it comes instead of one that was lost."""
        connection.spawn(self._resume(connection))

    def changed(self, connection: Connection) -> None:
        """It watches something else now, or its client has certainly been given more."""
        if connection.session.is_plain:
            if connection.slot is None:
                connection.slot = self._compat.slot(connection.principal.user_id)
            self._spawn(connection.slot.save(_kept(connection.arrived)))
        elif connection.slot is not None:
            self._spawn(connection.slot.drop())

    def lost(self, connection: Connection, *, clean: bool, left: bool) -> None:
        """It is gone. Called while its subscriptions are still there."""
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

    async def _resume(self, connection: Connection) -> None:
        await self._sleep(PATIENCE_S)
        if not connection.session.is_plain:
            return
        slot = self._compat.slot(connection.principal.user_id)
        kept = await self._compat.take(slot)
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


def _kept(positions: Positions) -> list[Kept]:
    return [Kept(subject, position) for subject, position in positions.items() if position is not None]


async def _join(own: Slot, other: Slot, kept: list[Kept]) -> None:
    """One slot in place of two."""
    await own.save(kept)
    await other.drop()
