"""Tapes for ever: copied from the log that is fast to one that keeps, with their epochs and numbers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Final

from livetape.errors import LivetapeError, PositionLostError, TapeHoleError
from livetape.events.log import MAX_READ, Entry, EventLog, NewEvent, Position, PutResult, Tape
from livetape.observability import get_logger

logger = get_logger(__name__)

LOST: Final = "livetape.lost"
"""Stands in the archive in place of an event that was gone before it was copied. Never given to a reader."""

BATCH: Final = 200


def archive_tape(tape: str, epoch: str) -> str:
    """The archive's name of a tape's epoch."""
    return f"{tape}#{epoch}"


@dataclass(frozen=True, slots=True)
class Archived:
    """What one run did for a tape.

    `upto`: everything up to here is in the archive; None when there is nothing to archive. `copied` and `lost` are
    counts of this run: lost ones had been trimmed already. `skipped`: it is mixed, and cannot be numbered.
    """

    upto: Position | None
    copied: int = 0
    lost: int = 0
    skipped: bool = False


class Archiver:
    """Copies tapes. Idempotent: what is there stays, a run that was cut off goes on where it stopped.

    `cold` is any log with `put`; nobody else writes these tapes to it. Run it before `Retention` trims (which can do
    so itself). Mixed tapes are not copied: their numbers have holes.
    """

    def __init__(self, hot: EventLog, cold: EventLog) -> None:
        self._hot = hot
        self._cold = cold

    async def run_once(self, prefix: str = "") -> dict[str, Archived]:
        """Copy what is new on all tapes whose names begin so. What fails is logged, and tried by the next run.

        Raises:
            LogUnavailableError: the log cannot say which tapes there are.
        """
        done = {}
        async for name in self._hot.tapes(prefix):
            try:
                done[name] = await self.archive(name)
            except LivetapeError as error:
                logger.warning("a tape was not archived: %s", error, extra={"action": "archive_failed", "tape": name})
        return done

    async def archive(self, tape: str) -> Archived:
        """Copy what is new on this tape.

        Raises:
            LogUnavailableError: one of the logs is away; what was copied stays.
        """
        found = await self._hot.describe(tape)
        if found is None:
            return Archived(None)
        if found.mixed:
            return Archived(None, skipped=True)
        name = archive_tape(tape, found.epoch)
        copy = await self._cold.create(
            name, owner=found.owner, channel=found.channel, graph_id=found.graph_id, epoch=found.epoch
        )
        copied = lost = 0
        reached = copy.offset
        while reached < found.offset:
            try:
                entries = await self._hot.read(tape, reached, epoch=found.epoch)
            except PositionLostError:
                break  # born again: the next run copies the new epoch
            until = entries[0].offset if entries else found.offset + 1
            if until > reached + 1:
                lost += until - reached - 1
                await self._mark_lost(name, found.epoch, reached, until)
            copied += await self._put(name, found.epoch, entries)
            reached = entries[-1].offset if entries else found.offset
        return Archived(Position(found.epoch, reached), copied, lost)

    async def _mark_lost(self, name: str, epoch: str, after: int, until: int) -> None:
        logger.warning(
            "events were gone before they were archived",
            extra={"action": "archive_hole", "tape": name, "first": after + 1, "last": until - 1},
        )
        for first in range(after + 1, until, BATCH):
            gone = [Entry(n, LOST, b"null", False, 0) for n in range(first, min(first + BATCH, until))]
            await self._put(name, epoch, gone)
        if after == 0:
            await self._cold.trim(name, keep_after=until - 1)

    async def _put(self, name: str, epoch: str, entries: Sequence[Entry]) -> int:
        stored = 0
        for first in range(0, len(entries), BATCH):
            stored += await self._put_batch(name, epoch, entries[first : first + BATCH])
        return stored

    async def _put_batch(self, name: str, epoch: str, batch: Sequence[Entry]) -> int:
        """All at once, so that a log that commits in groups commits once; in order should that leave holes."""
        results = await asyncio.gather(*(self._put_one(name, epoch, entry) for entry in batch), return_exceptions=True)
        stored = results.count("stored")
        for result in results:
            if isinstance(result, BaseException) and not isinstance(result, TapeHoleError):
                raise result
        if any(isinstance(result, TapeHoleError) for result in results):
            for entry in batch:
                stored += await self._put_one(name, epoch, entry) == "stored"
        return stored

    async def _put_one(self, name: str, epoch: str, entry: Entry) -> PutResult:
        event = NewEvent(entry.event_type, entry.payload, final=entry.final, at_us=entry.at_us or None)
        return await self._cold.put(name, Position(epoch, entry.offset), event)


class ArchivedLog(EventLog):
    """A log, and behind it the archive that an `Archiver` fills: one tape, from its first event on.

    What was trimmed is read from the archive, as if it were still there. The positions of an epoch that is over stay
    readable (give `epoch`). A tape that the first log does not know any more is the newest of its archived epochs.
    Writing and trimming concern the first log alone. `close` closes neither.
    """

    def __init__(self, hot: EventLog, cold: EventLog) -> None:
        self._hot = hot
        self._cold = cold

    async def create(
        self,
        tape: str,
        *,
        owner: str | None,
        channel: str,
        graph_id: str | None = None,
        epoch: str | None = None,
    ) -> Tape:
        return await self._hot.create(tape, owner=owner, channel=channel, graph_id=graph_id, epoch=epoch)

    async def append(self, tape: str, event: NewEvent, *, idempotency_key: str | None = None) -> Position:
        return await self._hot.append(tape, event, idempotency_key=idempotency_key)

    async def put(self, tape: str, position: Position, event: NewEvent) -> PutResult:
        return await self._hot.put(tape, position, event)

    async def read(
        self, tape: str, after: int = 0, *, limit: int = MAX_READ, epoch: str | None = None
    ) -> Sequence[Entry]:
        limit = max(0, min(limit, MAX_READ))
        lost: PositionLostError | None = None
        entries: Sequence[Entry] = []
        try:
            entries = await self._hot.read(tape, after, limit=limit, epoch=epoch)
        except PositionLostError as error:
            lost = error
        if limit == 0 or (entries and entries[0].offset == after + 1):
            return entries
        known = epoch
        if known is None:
            found = await self.describe(tape)
            if found is None or found.mixed:
                return entries
            known = found.epoch
        name = archive_tape(tape, known)
        if lost is not None and await self._cold.describe(name) is None:
            raise lost
        older = await self._older(name, after, limit, before=entries[0].offset if entries else None)
        return [*older, *entries][:limit]

    async def describe(self, tape: str) -> Tape | None:
        found = await self._hot.describe(tape)
        if found is None:
            newest = await self._newest_epoch(tape)
            return None if newest is None else replace(newest, name=tape)
        if found.mixed or found.first_offset == 1:
            return found
        copy = await self._cold.describe(archive_tape(tape, found.epoch))
        if copy is None or copy.offset == 0:
            return found
        return replace(found, first_offset=min(found.first_offset, copy.first_offset))

    async def tapes(self, prefix: str = "") -> AsyncIterator[str]:
        seen = set()
        async for name in self._hot.tapes(prefix):
            seen.add(name)
            yield name
        async for name in self._cold.tapes(prefix):
            base = name.rpartition("#")[0]
            if base and base not in seen:
                seen.add(base)
                yield base

    async def trim(self, tape: str, *, keep_after: int) -> int:
        return await self._hot.trim(tape, keep_after=keep_after)

    async def offset_at(self, tape: str, time: datetime) -> int:
        offset = await self._hot.offset_at(tape, time)
        if offset:
            return offset
        found = await self.describe(tape)
        return 0 if found is None else await self._cold.offset_at(archive_tape(tape, found.epoch), time)

    async def close(self) -> None:
        """Both logs belong to whoever opened them."""

    async def _older(self, name: str, after: int, limit: int, *, before: int | None) -> list[Entry]:
        """What the archive has after an offset and before another, without what is marked as lost."""
        while True:
            page = await self._cold.read(name, after, limit=limit)
            kept = [e for e in page if e.event_type != LOST and (before is None or e.offset < before)]
            if kept or len(page) < limit or (before is not None and page[-1].offset >= before):
                return kept
            after = page[-1].offset

    async def _newest_epoch(self, tape: str) -> Tape | None:
        newest: Tape | None = None
        newest_at = -1
        async for name in self._cold.tapes(archive_tape(tape, "")):
            found = await self._cold.describe(name)
            if found is None or "#" in name[len(tape) + 1 :]:
                continue
            last = await self._cold.read(name, found.offset - 1, limit=1)
            at = last[0].at_us if last else 0
            if at > newest_at:
                newest, newest_at = found, at
        return newest
