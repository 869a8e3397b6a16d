"""The EventLog on Redis Streams."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from livetape.adapters.redis.appends import NO_CLAIM
from livetape.adapters.redis.attempts import gathered, persist
from livetape.adapters.redis.commands import Commands, Word
from livetape.adapters.redis.copier import put, put_words
from livetape.adapters.redis.entries import entries_of
from livetape.adapters.redis.epochs import Epochs
from livetape.adapters.redis.keys import (
    FIRST_TIME,
    escaped,
    id_after,
    id_of,
    is_job_tape,
    keys_of,
    meta_pattern,
    offset_of,
    score_of,
    tape_of_meta,
)
from livetape.adapters.redis.lanes import Lanes
from livetape.adapters.redis.recorder import CLOSE_S, TIMEOUT_S
from livetape.adapters.redis.retention import words as retention_words
from livetape.adapters.redis.scripts import Scripts
from livetape.clock import Clock, SystemClock
from livetape.errors import LogError, PositionLostError
from livetape.events.channel import job_channel, split_tape
from livetape.events.event import JOB_FINAL_TYPES
from livetape.events.log import MAX_READ, Entry, EventLog, NewEvent, Position, PutResult, Tape
from livetape.events.tape_retention import TapeRetention

READ_TIMEOUT_S: Final = 2.0
SCANNED: Final = 500

_UNIX_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND: Final = timedelta(microseconds=1)


class RedisLog(EventLog):
    """One stream a tape; for one event loop.

    A stream of a plain Redis client is a tape too: without owner, `mixed`, with an epoch from the first `describe`.
    What can be lost with a restart of the server is up to its settings; whenever that may have happened, the next
    `append` to a tape begins a new epoch (unless the tape is filled by `put`). `commands` stays open.
    """

    def __init__(
        self,
        commands: Commands,
        *,
        clock: Clock | None = None,
        retention: TapeRetention | None = None,
        timeout_s: float = TIMEOUT_S,
    ) -> None:
        self._commands = commands
        self._clock = clock or SystemClock()
        self._retention = retention or TapeRetention()
        self._timeout_s = timeout_s
        self._read_timeout_s = min(timeout_s, READ_TIMEOUT_S)
        self._scripts = Scripts(commands)
        self._epochs = Epochs()
        self._lanes = Lanes(commands, self._scripts, clock=self._clock, retention=self._retention, timeout_s=timeout_s)

    async def create(
        self,
        tape: str,
        *,
        owner: str | None,
        channel: str,
        graph_id: str | None = None,
        epoch: str | None = None,
    ) -> Tape:
        keys = keys_of(tape)
        words = (
            epoch or self._epochs.new(),
            self._now(),
            channel,
            "" if owner is None else "=" + owner,
            "" if graph_id is None else "=" + graph_id,
            retention_words(self._retention, tape)[0],
        )
        await self._scripts.run("create", tape, keys[:2], words, timeout_s=self._timeout_s)
        made = await self._describe(tape, self._timeout_s)
        if made is None:
            raise LogError("the tape was deleted while it was made", tape=tape)
        return made

    async def append(self, tape: str, event: NewEvent, *, idempotency_key: str | None = None) -> Position:
        recorded = await self._lanes.add(tape, NO_CLAIM, event, idempotency_key=idempotency_key)
        return recorded.position

    async def put(self, tape: str, position: Position, event: NewEvent) -> PutResult:
        return await put(
            self._scripts, tape, put_words(tape, position, event, self._now(), self._retention), self._timeout_s
        )

    async def read(
        self, tape: str, after: int = 0, *, limit: int = MAX_READ, epoch: str | None = None
    ) -> Sequence[Entry]:
        meta = keys_of(tape)[1]
        count = max(0, min(limit, MAX_READ))
        page: tuple[Word, ...] = ("XRANGE", tape, id_after(after), "+", "COUNT", max(1, count))
        if epoch is None and not is_job_tape(tape):
            rows = await self._reply(page, tape)
            return entries_of(tape, rows)[:count]
        # The epoch is asked after the page: it was the same all the time before.
        rows, meta = await self._replies(tape, page, ("HMGET", meta, "epoch", "born"))
        now = None if meta[0] is None else meta[0].decode()
        if epoch is not None and now != epoch:
            raise PositionLostError("the tape has another epoch", tape=tape, epoch=now)
        return entries_of(tape, rows, int(meta[1] or 0))[:count]

    async def describe(self, tape: str) -> Tape | None:
        return await self._describe(tape, self._read_timeout_s)

    async def _describe(self, tape: str, timeout_s: float) -> Tape | None:
        keys = keys_of(tape)
        job = is_job_tape(tape)
        words = (
            self._epochs.new(),
            self._now(),
            job_channel(split_tape(tape)[1]) if job else "",
            int(self._retention.meta_extra_s * 1000),
            *(JOB_FINAL_TYPES if job else ()),
        )
        answer = await self._scripts.run("describe", tape, keys[:2], words, timeout_s=timeout_s)
        if not answer:
            return None
        owner, graph_id, channel, epoch, newest, oldest, final, mixed = answer
        offset = offset_of(newest)
        return Tape(
            name=tape,
            owner=None if owner is None else owner.decode(),
            graph_id=None if graph_id is None else graph_id.decode(),
            channel=channel.decode(),
            epoch=epoch.decode(),
            offset=offset,
            first_offset=offset + 1 if oldest is None else offset_of(oldest),
            final=final == 1,
            mixed=mixed == 1,
        )

    async def tapes(self, prefix: str = "") -> AsyncIterator[str]:
        # A scan may find a key twice, and most tapes have two keys that tell of them.
        seen: set[str] = set()
        for server in await self._masters():
            for pattern in (meta_pattern(prefix), escaped(prefix) + "*"):
                more: tuple[Word, ...] = () if pattern.startswith("{") else ("TYPE", "stream")
                async for name in self._scan(server, pattern, more):
                    tape = name if more else tape_of_meta(name)
                    if tape not in seen and tape.startswith(prefix) and not _braces(tape):
                        seen.add(tape)
                        yield tape

    async def trim(self, tape: str, *, keep_after: int) -> int:
        stream, _, keys, times = keys_of(tape)
        if keep_after <= 0:
            return 0
        gone: int = await self._scripts.run(
            "trim",
            tape,
            (stream, keys, times),
            (id_after(keep_after), score_of(keep_after)),
            timeout_s=self._timeout_s,
        )
        return gone

    async def offset_at(self, tape: str, time: datetime) -> int:
        """As the port says; on a tape that the log numbers it may be half a minute behind."""
        _, meta, _, times = keys_of(tape)
        moment = (time - _UNIX_EPOCH) // _MICROSECOND
        (at, newest, mixed), known, foreign = await self._replies(
            tape,
            ("HMGET", meta, "at", "offset", "mixed"),
            ("ZRANGE", times, moment, "-inf", "BYSCORE", "REV", "LIMIT", 0, 1),
            # Ids of the server are times themselves. There are none on a tape that the log numbers.
            ("XREVRANGE", tape, max(FIRST_TIME, moment // 1000), id_of(FIRST_TIME << 20), "COUNT", 1),
        )
        found = [offset_of(entry_id) for entry_id, _ in foreign]
        if at is not None and int(at) <= moment and mixed is None:
            found.append(offset_of(newest))
        found += [int(offset) for offset in known]
        return max(found, default=0)

    async def close(self) -> None:
        """Appends on their way have two seconds to arrive."""
        await self._lanes.close(within_s=CLOSE_S)

    def _now(self) -> int:
        return (self._clock.now() - _UNIX_EPOCH) // _MICROSECOND

    async def _reply(self, words: Sequence[Word], tape: str) -> Any:
        async def attempt() -> Any:
            return await self._commands.send(words, tape)

        return await persist(attempt, timeout_s=self._read_timeout_s)

    async def _replies(self, tape: str, *commands: Sequence[Word]) -> list[Any]:
        """Replies to commands that were sent together."""

        async def attempt() -> list[Any]:
            return await gathered([self._commands.send(words, tape) for words in commands])

        replies: list[Any] = await persist(attempt, timeout_s=self._read_timeout_s)
        return replies

    async def _masters(self) -> Sequence[Commands]:
        masters: Sequence[Commands] = await persist(self._commands.masters, timeout_s=self._read_timeout_s)
        return masters

    async def _scan(self, server: Commands, pattern: str, more: Sequence[Word]) -> AsyncIterator[str]:
        cursor = b"0"
        while True:
            words = ("SCAN", cursor, "MATCH", pattern, "COUNT", SCANNED, *more)

            async def attempt(words: Sequence[Word] = words) -> Any:
                return await server.send(words)

            cursor, names = await persist(attempt, timeout_s=self._read_timeout_s)
            for name in names:
                yield name.decode("utf-8", "backslashreplace")
            if cursor == b"0":
                return


def _braces(tape: str) -> bool:
    return "{" in tape or "}" in tape
