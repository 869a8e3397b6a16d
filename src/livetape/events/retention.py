"""How long tapes are kept, and the service that forgets the rest."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from datetime import timedelta
from typing import Final

from livetape.clock import Clock, SystemClock
from livetape.errors import LivetapeError
from livetape.events.archive import Archiver
from livetape.events.channel import job_tape
from livetape.events.listener import Sleep
from livetape.events.log import EventLog, Tape
from livetape.events.stream_info import length_of
from livetape.events.tape_retention import DAY_S
from livetape.observability import get_logger

logger = get_logger(__name__)

_JOBS: Final = job_tape("x")[:-1]


@dataclass(frozen=True, slots=True)
class RetentionPolicy:
    """What is kept. Times are seconds; None: for ever.

    `events_s`: each event, after it was appended. `finished_jobs_s`: all events of a job, after its last one when it
    is over. `max_entries`: the newest of each tape.
    """

    events_s: float | None = 30 * DAY_S
    finished_jobs_s: float | None = DAY_S
    max_entries: int | None = None


@dataclass(frozen=True, slots=True)
class RetentionReport:
    """What one run did: tapes looked at, events trimmed, events archived before that, tapes that failed."""

    tapes: int = 0
    trimmed: int = 0
    archived: int = 0
    failed: int = 0


class Retention:
    """Trims tapes. Whoever follows one of them is told: its first offset moves, and that is seen as a gap.

    With an `archiver` each tape is archived first and nothing is trimmed that is not in the archive (so mixed tapes,
    which cannot be archived, are not trimmed at all). `prefix`: only tapes whose names begin so.
    """

    def __init__(
        self,
        log: EventLog,
        policy: RetentionPolicy | None = None,
        *,
        archiver: Archiver | None = None,
        prefix: str = "",
        clock: Clock | None = None,
        sleep: Sleep = asyncio.sleep,
    ) -> None:
        self._log = log
        self._policy = policy or RetentionPolicy()
        self._archiver = archiver
        self._prefix = prefix
        self._clock = clock or SystemClock()
        self._sleep = sleep

    async def run(self, every_s: float) -> None:
        """`run_once` every so many seconds, until cancelled. What fails is logged, and tried again."""
        while True:
            try:
                await self.run_once()
            except LivetapeError as error:
                logger.warning("a run of retention failed: %s", error, extra={"action": "retention_failed"})
            await self._sleep(every_s)

    async def run_once(self) -> RetentionReport:
        """Look at every tape once. A tape that fails does not keep the others from it.

        Raises:
            LogUnavailableError: the log cannot say which tapes there are.
        """
        tapes = trimmed = archived = failed = 0
        async for name in self._log.tapes(self._prefix):
            tapes += 1
            try:
                gone, copied = await self._apply(name)
            except LivetapeError as error:
                logger.warning("a tape was not trimmed: %s", error, extra={"action": "trim_failed", "tape": name})
                failed += 1
            else:
                trimmed += gone
                archived += copied
        return RetentionReport(tapes, trimmed, archived, failed)

    async def _apply(self, name: str) -> tuple[int, int]:
        tape = await self._log.describe(name)
        if tape is None:
            return 0, 0
        upto, copied = tape.offset, 0
        if self._archiver is not None:
            done = await self._archiver.archive(name)
            copied = done.copied
            if done.upto is None or done.upto.epoch != tape.epoch:
                return 0, copied
            upto = done.upto.offset
        keep_after = min(upto, await self._keep_after(tape))
        if keep_after < tape.first_offset:
            return 0, copied
        return await self._log.trim(name, keep_after=keep_after), copied

    async def _keep_after(self, tape: Tape) -> int:
        policy, now = self._policy, self._clock.now()
        if policy.finished_jobs_s is not None and tape.final and tape.name.startswith(_JOBS):
            last = await self._log.read(tape.name, tape.offset - 1, limit=1)
            if last and now - last[0].time >= timedelta(seconds=policy.finished_jobs_s):
                return tape.offset
        keep_after = 0
        if policy.events_s is not None:
            keep_after = await self._log.offset_at(tape.name, now - timedelta(seconds=policy.events_s))
        if policy.max_entries is not None:
            keep_after = max(keep_after, await self._beyond(tape, policy.max_entries))
        return keep_after

    async def _beyond(self, tape: Tape, max_entries: int) -> int:
        if not tape.mixed:
            return tape.offset - max_entries
        surplus = await length_of(self._log, tape) - max_entries
        after = 0
        while surplus > 0 and (entries := await self._log.read(tape.name, after, limit=surplus)):
            surplus -= len(entries)
            after = entries[-1].offset
        return after
