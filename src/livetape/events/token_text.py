"""The text so far of a stream of tokens, from the end of its tape: what a late joiner wants first, then the rest live.

A tape's offsets are consecutive, so the last page is read first, then the one before it, until the last checkpoint of
the stream is found; a writer keeps that near. The sealed segments before it are read by the offsets that name them.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Final, NamedTuple

from livetape.errors import PositionLostError
from livetape.events.job_record import JobRecord
from livetape.events.log import MAX_READ, Position
from livetape.events.reader import JobInfo, JobReader
from livetape.events.recovery import Gap
from livetape.events.text_assembler import TOKEN_EVENTS, TextAssembler, TokenRecord, token_record

FIRST_PAGE: Final = 128


@dataclass(frozen=True, slots=True)
class TokenText:
    """The text of a stream at a position of its tape.

    `position` is that of the tape's newest event, None when there is no tape. `started`: there are events of this
    stream. `finished`: nothing follows; `finish_reason` is what the model gave, or None and `error` is set after an
    abort. `complete`: nothing of the text so far is missing (its older events may have been trimmed).
    """

    text: str
    position: Position | None
    started: bool
    finished: bool
    complete: bool = True
    finish_reason: str | None = None
    error: str | None = None


class TextPart(NamedTuple):
    """The next piece of a text. With `replaces` it is the whole text, in place of all pieces before.

    So is the first one, and what follows when events were lost, or when the writing began anew. `finished` and the
    rest are as in `TokenText`.
    """

    text: str
    replaces: bool
    finished: bool
    complete: bool = True
    finish_reason: str | None = None
    error: str | None = None


async def read_text(reader: JobReader, job_id: str, stream_id: str) -> TokenText:
    """The text so far of a stream on the tape of this job.

    Raises:
        ChannelError: an id that cannot stand in a channel.
        LogUnavailableError: the log cannot be reached.
        DecryptionError: an encrypted log has not the key.
    """
    assembler, info = await _load(reader, job_id, stream_id)
    return TokenText(
        assembler.text,
        None if info is None else info.position,
        assembler.started,
        assembler.finished,
        assembler.complete,
        assembler.finish_reason,
        assembler.error,
    )


async def follow_text(reader: JobReader, job_id: str, stream_id: str) -> AsyncGenerator[TextPart, None]:
    """First the text so far, then what is added as it comes; ends with the stream, or with its job.

    The stream and the tape need not exist yet. When the last part does not say `finished`, the job has ended without
    the end of the stream.

    Raises:
        ChannelError: an id that cannot stand in a channel.
        LogUnavailableError: the log cannot be reached at the beginning; later it is waited for.
        DecryptionError: an encrypted log or bus has not the key.
        ClosedError: the log or the bus was closed.
    """
    assembler, info = await _load(reader, job_id, stream_id)
    yield _part(assembler, assembler.text, replaces=True)
    if assembler.finished or (info is not None and info.final):
        return
    after = None if info is None else info.position
    async with aclosing(reader.follow(job_id, after, TOKEN_EVENTS, until_final=True)) as items:
        async for item in items:
            if isinstance(item, Gap):
                fresh, _ = await _load(reader, job_id, stream_id)
                if fresh.text != assembler.text or fresh.complete != assembler.complete:
                    yield _part(fresh, fresh.text, replaces=True)
                assembler = fresh  # what comes next and is in it already is a repetition
            else:
                change = assembler.feed(item.event_type, item.data)
                if change is not None:
                    yield _part(assembler, change.added, replaces=change.replaces)
            if assembler.finished:
                return


def _part(assembler: TextAssembler, text: str, *, replaces: bool) -> TextPart:
    return TextPart(text, replaces, assembler.finished, assembler.complete, assembler.finish_reason, assembler.error)


async def _load(reader: JobReader, job_id: str, stream_id: str) -> tuple[TextAssembler, JobInfo | None]:
    """The stream as it stands at the end of the tape."""
    while True:
        assembler = TextAssembler(stream_id)
        info = await reader.info(job_id)
        if info is None:
            return assembler, None
        try:
            if info.mixed:
                await _read_forward(reader, info, assembler)
            else:
                await _Search(reader, info, assembler).run()
        except PositionLostError:
            await asyncio.sleep(0)  # it was lost and born again meanwhile
        else:
            return assembler, info


async def _read_forward(reader: JobReader, info: JobInfo, assembler: TextAssembler) -> None:
    """All of a tape whose offsets are not consecutive, up to where it ended when it was described."""
    after, more = Position(info.epoch, 0), True
    while more:
        page = await reader.read(info.job_id, after, MAX_READ, TOKEN_EVENTS)
        for record in page:
            if record.offset > info.offset:
                return
            assembler.feed(record.event_type, record.data)
        after, more = page.next, page.more


class _Search:
    """Goes back from the end of a tape to the last event that says the text of its segment, and to those before it."""

    def __init__(self, reader: JobReader, info: JobInfo, assembler: TextAssembler) -> None:
        self._reader = reader
        self._info = info
        self._assembler = assembler
        self._run = -1
        self._backwards: list[TokenRecord] = []
        self._before = info.offset
        """Up to here nothing has been looked at."""

    async def run(self) -> None:
        size = FIRST_PAGE
        while not self._take(await self._page(size)) and self._before >= self._info.first_offset:
            size = min(2 * size, MAX_READ)
        for record in reversed(self._backwards):
            self._assembler.take(record)
        if self._backwards:
            await self._know_segments(self._backwards[-1])

    async def _page(self, size: int) -> Sequence[JobRecord]:
        """So many events before those that were looked at."""
        start = max(self._info.first_offset - 1, self._before - size)
        if start >= self._before:
            return []
        return (await self._reader.read(self._info.job_id, self._at(start), self._before - start)).records

    def _at(self, offset: int) -> Position:
        return Position(self._info.epoch, offset)

    def _take(self, page: Sequence[JobRecord]) -> bool:
        """Collect from the end of the page; True when nothing before is needed."""
        for entry in reversed(page):
            self._before = entry.offset - 1
            record = token_record(entry.event_type, entry.data, self._assembler.stream_id)
            if record is None or record.run < self._run:
                continue
            if record.run > self._run:  # what was found is of an older run
                self._run, self._backwards = record.run, []
            self._backwards.append(record)
            if record.is_base:
                return True
        if not page:
            self._before = self._info.first_offset - 1
        return False

    async def _know_segments(self, later: TokenRecord) -> None:
        """Find the sealed segments before this one: by the offsets that name them, or by going on back."""
        for segment in range(later.segment - 1, -1, -1):
            sealed = await self._named(later, segment) or await self._found(segment)
            if sealed is None:
                return  # trimmed
            self._assembler.know(segment, sealed.text)
            later = sealed

    async def _named(self, later: TokenRecord, segment: int) -> TokenRecord | None:
        if not later.previous:
            return None
        page = await self._reader.read(self._info.job_id, self._at(later.previous - 1), 1)
        sealed = next((found for entry in page if (found := self._sealing(entry, segment))), None)
        if sealed is not None:
            self._before = min(self._before, later.previous - 1)
        return sealed

    async def _found(self, segment: int) -> TokenRecord | None:
        while self._before >= self._info.first_offset:
            page = await self._page(MAX_READ)
            for entry in reversed(page):
                self._before = entry.offset - 1
                sealed = self._sealing(entry, segment)
                if sealed is not None:
                    return sealed
            if not page:
                return None
        return None

    def _sealing(self, entry: JobRecord, segment: int) -> TokenRecord | None:
        record = token_record(entry.event_type, entry.data, self._assembler.stream_id)
        is_it = record is not None and record.sealed and record.segment == segment and record.run == self._run
        return record if is_it else None
