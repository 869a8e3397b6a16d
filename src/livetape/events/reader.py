"""Reads the events of jobs: pages, live, in search of something, by several workers, and as they once happened."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Collection, Iterator, Sequence
from contextlib import aclosing, asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Final, NamedTuple, TypeAlias

from livetape.clock import Clock, SystemClock
from livetape.errors import ChannelError, ConfigError, PositionLostError
from livetape.events.archive import ArchivedLog
from livetape.events.bus import Bus
from livetape.events.channel import job_channel, job_tape, split_tape
from livetape.events.follow import DEFAULT_OPTIONS, FollowOptions, Start, follow
from livetape.events.groups import ConsumerGroups
from livetape.events.job_groups import JobGroup
from livetape.events.job_record import JobRecord, Matcher, Where, decode
from livetape.events.listener import Sleep
from livetape.events.log import MAX_READ, Entry, EventLog, Position, Tape
from livetape.events.open import Backend, open_backend
from livetape.events.pace import Pace
from livetape.events.recovery import Gap
from livetape.events.replay import in_time, is_at_once
from livetape.events.stream_info import length_of, offset_of
from livetape.observability import Metrics

MAX_SCANNED: Final = 10_000
"""`read` looks at no more events than this before it returns, however few of them match."""

CHUNK_BYTES: Final = 4 * 1024 * 1024

LATEST: Final = "latest"
MAX_OFFSET: Final = (1 << 63) - 1
_NO_POSITION: Final = 'after is a position, an offset from 0 on, the id of an entry, "latest" or None'

After: TypeAlias = Position | str | int | None
"""After which event: a position, `<epoch>-<offset>`, the id of an entry, an offset; None: from the beginning.
"latest": the newest there is now."""


@dataclass(frozen=True, slots=True)
class JobInfo:
    """What is known of a job's events. `length` can be read now, from `first_offset` to `offset`.

    `owner`: a user id, or None. `final`: the job is over. `mixed`: see `Tape`.
    """

    job_id: str
    owner: str | None
    length: int
    first_offset: int
    offset: int
    epoch: str
    final: bool
    mixed: bool

    @property
    def position(self) -> Position:
        """The newest."""
        return Position(self.epoch, self.offset)


@dataclass(frozen=True, slots=True)
class JobPage:
    """Some events, in order.

    `next` is what to give as `after` to go on: the last event that was looked at. `more`: there may be more now.
    `gap`: events after the position that was asked for cannot be had any more; `Gap(None, None, …)`: the tape has lost
    its end, which is before that position, and goes on from `next`.
    """

    records: list[JobRecord]
    next: Position
    more: bool
    gap: Gap | None = None

    def __iter__(self) -> Iterator[JobRecord]:
        return iter(self.records)

    def __len__(self) -> int:
        return len(self.records)


class Found(NamedTuple):
    """A hit of a search."""

    job_id: str
    record: JobRecord


class JobReader:
    """Reads what `RedisStreamPublisher`, `Jobs` and plain Redis clients wrote. Safe for concurrent tasks of one loop.

    `archive`: a log that an `Archiver` fills; what the first log does not have any more is read there. Nothing is
    closed by this object, except with `open`.

    Beside what is said there, every method that reads raises:

    - ChannelError: an id that cannot stand in a channel, or an `after` that is no position, id or offset.
    - LogUnavailableError: the log cannot be reached (`follow` waits for it once it has begun).
    - DecryptionError: an encrypted log has not the key.
    """

    def __init__(
        self,
        log: EventLog,
        bus: Bus,
        *,
        archive: EventLog | None = None,
        groups: ConsumerGroups | None = None,
        clock: Clock | None = None,
        sleep: Sleep = asyncio.sleep,
        options: FollowOptions = DEFAULT_OPTIONS,
        metrics: Metrics | None = None,
    ) -> None:
        self._log = log if archive is None else ArchivedLog(log, archive)
        self._bus = bus
        self._groups = groups
        self._clock = clock or SystemClock()
        self._sleep = sleep
        self._options = options
        self._metrics = metrics

    @classmethod
    def of(cls, backend: Backend, *, archive: EventLog | None = None, metrics: Metrics | None = None) -> JobReader:
        """On the ports of a backend, which stays the caller's.

        Raises:
            ConfigError: there is nothing durable behind it.
        """
        if backend.log is None:
            raise ConfigError("there is nothing durable behind this", fix="use redis://… or sqlite:///…")
        return cls(backend.log, backend.bus, archive=archive, groups=backend.groups, metrics=metrics)

    @classmethod
    @asynccontextmanager
    async def open(
        cls, url: str, *, archive: EventLog | None = None, metrics: Metrics | None = None
    ) -> AsyncIterator[JobReader]:
        """On what the URL names (see `livetape.events.open`), closed at the end of the block."""
        backend = open_backend(url, metrics=metrics)
        try:
            yield cls.of(backend, archive=archive, metrics=metrics)
        finally:
            await backend.close()

    async def info(self, job_id: str) -> JobInfo | None:
        """What is known of the job's events; None when there are none."""
        tape = await self._log.describe(job_tape(job_id))
        if tape is None:
            return None
        return JobInfo(
            job_id,
            tape.owner,
            await length_of(self._log, tape),
            tape.first_offset,
            tape.offset,
            tape.epoch,
            tape.final,
            tape.mixed,
        )

    async def length(self, job_id: str) -> int:
        """How many events can be read now; 0 when there are none."""
        tape = await self._log.describe(job_tape(job_id))
        return 0 if tape is None else await length_of(self._log, tape)

    async def read(
        self,
        job_id: str,
        after: After = None,
        limit: int = 100,
        types: Collection[str] | None = None,
        where: Where | None = None,
    ) -> JobPage:
        """Up to `limit` events that match, of the next 10,000.

        Raises:
            PositionLostError: `after` has another epoch than the tape (and no archive knows it).
        """
        tape, position = await self._resolve(job_id, after)
        if tape is None:
            return JobPage([], position, more=False)
        if _is_beyond(tape, position):
            return JobPage([], tape.position, more=False, gap=Gap(None, None, tape.epoch))
        matcher = Matcher(types, where)
        pace = Pace(MAX_READ, CHUNK_BYTES)
        records: list[JobRecord] = []
        gap: Gap | None = None
        scanned, reached = 0, position.offset
        while scanned < MAX_SCANNED and len(records) < limit:
            wanted = min(pace.limit, limit - len(records) if matcher.is_open else MAX_SCANNED - scanned)
            entries = await self._log.read(tape.name, reached, limit=wanted, epoch=position.epoch)
            pace.saw(entries)
            if after is not None and gap is None:
                gap = _hole(tape, position.epoch, reached, entries)
            for entry in entries:
                reached = entry.offset
                scanned += 1
                if matcher.may(entry):
                    records += filter(matcher, decode((entry,), position.epoch))
                    if len(records) >= limit:
                        break
            else:
                if len(entries) < wanted:
                    return JobPage(records, Position(position.epoch, reached), more=False, gap=gap)
        return JobPage(records, Position(position.epoch, reached), more=True, gap=gap)

    async def follow(
        self,
        job_id: str,
        after: After = None,
        types: Collection[str] | None = None,
        *,
        until_final: bool = False,
    ) -> AsyncGenerator[JobRecord | Gap, None]:
        """What there is after a position, then what comes (see `livetape.events.follow`).

        `after`: "latest" is from now on. `until_final`: the last event of the job ends it.
        """
        start: Start
        if after is None:
            start = "earliest"
        elif after == LATEST:
            start = None
        elif isinstance(after, Position):
            start = _checked(after)
        else:
            _, start = await self._resolve(job_id, after)
        wanted = Matcher(types)
        items = follow(
            self._log,
            self._bus,
            job_tape(job_id),
            job_channel(job_id),
            after=start,
            until_final=until_final,
            options=self._options,
            sleep=self._sleep,
            metrics=self._metrics,
        )
        try:
            async for item in items:
                if isinstance(item, Gap):
                    yield item
                    continue
                at_us = item.at_us or int(self._clock.now().timestamp() * 1_000_000)
                entry = Entry(item.offset or 0, item.event_type, item.payload, item.final, at_us)
                if wanted.may(entry):
                    for record in decode((entry,), item.epoch or ""):
                        yield record
        finally:
            await items.aclose()

    async def search(
        self,
        text: str | None = None,
        *,
        job_id: str | None = None,
        owner: str | None = None,
        types: Collection[str] | None = None,
        where: Where | None = None,
        limit: int = 100,
    ) -> AsyncGenerator[Found, None]:
        """Events that match all conditions: up to `limit`, in the order of their job, jobs in no order.

        `text` stands in any string of the data, whatever the case. `job_id`: of this job only. `owner`: of jobs of
        this user only. Reads what it searches, page by page; stop iterating to stop it.
        """
        names = _one(job_tape(job_id)) if job_id is not None else self._log.tapes(job_tape("x")[:-1])
        matcher = Matcher(types, where, text)
        left = limit
        async for name in names:
            tape = await self._log.describe(name)
            if tape is None or (owner is not None and tape.owner != owner):
                continue
            _, identity = split_tape(name)
            async with aclosing(self._pages(tape, Position(tape.epoch, tape.first_offset - 1))) as pages:
                async for page, _ in pages:
                    for record in decode(filter(matcher.may, page), tape.epoch):
                        if matcher(record):
                            yield Found(identity, record)
                            left -= 1
                            if left <= 0:
                                return

    def group(self, job_id: str, name: str) -> JobGroup:
        """The consumer group of this name on the job's events; `create` makes it.

        Raises:
            ConfigError: the backend has no consumer groups.
        """
        if self._groups is None:
            raise ConfigError("there are no consumer groups behind this", fix="give groups=…")
        return JobGroup(self._groups, self._log, job_id, name)

    def replay(
        self,
        job_id: str,
        speed: float = 1.0,
        *,
        max_pause_s: float | None = None,
        after: After = None,
        types: Collection[str] | None = None,
    ) -> AsyncGenerator[JobRecord | Gap, None]:
        """The events there are, as far apart as they happened, divided by `speed`; 0 or `inf`: at once.

        No pause is longer than `max_pause_s` seconds. A `Gap` stands where events were trimmed or the end was lost.

        Raises:
            ConfigError: a negative speed.
            PositionLostError: `after` has another epoch, or the tape was lost meanwhile.
        """
        at_once = is_at_once(speed)
        records = self._replayed(job_id, after, Matcher(types))
        if at_once:
            return records
        return in_time(records, speed, max_pause_s=max_pause_s, clock=self._clock, sleep=self._sleep)

    async def _replayed(self, job_id: str, after: After, matcher: Matcher) -> AsyncGenerator[JobRecord | Gap, None]:
        tape, position = await self._resolve(job_id, after)
        if tape is None:
            return
        if _is_beyond(tape, position):
            yield Gap(None, None, tape.epoch)
            return
        pages = self._pages(tape, position)
        try:
            async for page, gap in pages:
                if gap is not None:
                    yield gap
                for record in decode(page if matcher.is_open else filter(matcher.may, page), position.epoch):
                    yield record
        finally:
            await pages.aclose()

    async def _pages(self, tape: Tape, position: Position) -> AsyncGenerator[tuple[Sequence[Entry], Gap | None], None]:
        """All that can be read now, the next page on its way while one is used."""
        pace = Pace(MAX_READ, CHUNK_BYTES)
        reached = position.offset
        coming = asyncio.ensure_future(self._log.read(tape.name, reached, limit=pace.limit, epoch=position.epoch))
        try:
            while True:
                asked = pace.limit
                page = await coming
                gap = _hole(tape, position.epoch, reached, page)
                if not page:
                    if gap is not None:
                        yield page, gap
                    return
                reached = page[-1].offset
                pace.saw(page)
                is_last = len(page) < asked and reached >= tape.offset
                if not is_last:
                    coming = asyncio.ensure_future(
                        self._log.read(tape.name, reached, limit=pace.limit, epoch=position.epoch)
                    )
                yield page, gap
                if is_last:
                    return
        finally:
            coming.cancel()
            with suppress(asyncio.CancelledError, Exception):
                await coming

    async def _resolve(self, job_id: str, after: After) -> tuple[Tape | None, Position]:
        tape = await self._log.describe(job_tape(job_id))
        epoch = "" if tape is None else tape.epoch
        if after is None:
            return tape, Position(epoch, 0 if tape is None else tape.first_offset - 1)
        if after == LATEST:
            return tape, Position(epoch, 0 if tape is None else tape.offset)
        if isinstance(after, int):
            return tape, _checked(Position(epoch, after))
        if isinstance(after, str):
            offset = None if after.startswith(f"{epoch}-") else offset_of(after)
            if offset is not None:
                return tape, _checked(Position(epoch, offset))
            try:
                after = Position.parse(after)
            except PositionLostError:
                raise ChannelError(_NO_POSITION, after=str(after)[:100]) from None
        return tape, _checked(after)


def _checked(position: object) -> Position:
    """It, or the largest that a log can be asked for.

    Raises:
        ChannelError: a mistake of the caller's, whatever the tape holds.
    """
    if not isinstance(position, Position) or type(position.offset) is not int or position.offset < 0:
        raise ChannelError(_NO_POSITION, after=str(position)[:100])
    return position if position.offset <= MAX_OFFSET else Position(position.epoch, MAX_OFFSET)


async def _one(name: str) -> AsyncGenerator[str, None]:
    yield name


def _is_beyond(tape: Tape, position: Position) -> bool:
    """Whether the tape ends before a position of its epoch: its log has lost what was there."""
    return position.epoch == tape.epoch and position.offset > tape.offset


def _hole(tape: Tape, epoch: str, reached: int, page: Sequence[Entry]) -> Gap | None:
    """What was trimmed between an offset and the page that was read after it."""
    if tape.mixed or (not page and epoch != tape.epoch):
        return None
    following = page[0].offset if page else tape.offset + 1
    return Gap(reached + 1, following - 1, epoch) if following > reached + 1 else None
