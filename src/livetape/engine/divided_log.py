"""The log of a process with the store, where tapes are copied elsewhere for others to read."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from datetime import datetime
from typing import Final

from livetape.events.channel import execution_tape
from livetape.events.log import MAX_READ, Entry, EventLog, NewEvent, Position, PutResult, Tape

_EXECUTIONS: Final = execution_tape("x").removesuffix("x")


class DividedLog(EventLog):
    """Tapes of executions are read where they are numbered, in the `store`; all others are in the log that is `shared`.

    What the shared log has lost or forgotten of an execution, or does not have yet, can be read here. Tapes of
    executions are written by the store and the relay alone.
    """

    def __init__(self, store: EventLog, shared: EventLog) -> None:
        self._store = store
        self._shared = shared

    async def create(
        self, tape: str, *, owner: str | None, channel: str, graph_id: str | None = None, epoch: str | None = None
    ) -> Tape:
        return await self._shared.create(tape, owner=owner, channel=channel, graph_id=graph_id, epoch=epoch)

    async def append(self, tape: str, event: NewEvent, *, idempotency_key: str | None = None) -> Position:
        return await self._shared.append(tape, event, idempotency_key=idempotency_key)

    async def put(self, tape: str, position: Position, event: NewEvent) -> PutResult:
        return await self._shared.put(tape, position, event)

    async def read(
        self, tape: str, after: int = 0, *, limit: int = MAX_READ, epoch: str | None = None
    ) -> Sequence[Entry]:
        return await self._of(tape).read(tape, after, limit=limit, epoch=epoch)

    async def describe(self, tape: str) -> Tape | None:
        return await self._of(tape).describe(tape)

    async def tapes(self, prefix: str = "") -> AsyncIterator[str]:
        async for name in self._store.tapes(prefix):
            if _is_execution(name):
                yield name
        async for name in self._shared.tapes(prefix):
            if not _is_execution(name):
                yield name

    async def trim(self, tape: str, *, keep_after: int) -> int:
        return await self._of(tape).trim(tape, keep_after=keep_after)

    async def offset_at(self, tape: str, time: datetime) -> int:
        return await self._of(tape).offset_at(tape, time)

    async def close(self) -> None:
        """Both logs belong to whoever opened them."""

    def _of(self, tape: str) -> EventLog:
        return self._store if _is_execution(tape) else self._shared


def _is_execution(tape: str) -> bool:
    return tape.startswith(_EXECUTIONS)
