"""The way of events to their tapes: per tape one script call in flight, and what comes meanwhile is the next.

No task is made for a call: its answer calls back. A call whose answer did not come is made again with the same writer
and sequence, by which the script knows what it has done already.
"""

from __future__ import annotations

import asyncio
import itertools
import secrets
from collections import deque
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any, Final

from livetape.adapters.redis.appends import Claim, call_words, event_words, key_words
from livetape.adapters.redis.attempts import pause
from livetape.adapters.redis.commands import Commands, RedisLinkError, RedisReplyError, Word
from livetape.adapters.redis.epochs import Epochs
from livetape.adapters.redis.failures import as_log_error, passes
from livetape.adapters.redis.keys import id_of, is_job_tape, offset_of
from livetape.adapters.redis.retention import words as retention_words
from livetape.adapters.redis.scripts import Scripts
from livetape.clock import Clock
from livetape.errors import ClosedError, LogError, LogUnavailableError, NotFoundError
from livetape.events.channel import job_tape
from livetape.events.log import NewEvent, Position
from livetape.events.recorder import AS_RECORDED, Live, Recorded
from livetape.events.tape_retention import TapeRetention

MAX_BATCH: Final = 256
MAX_BATCH_BYTES: Final = 1 << 20
MAX_WAITING_BYTES: Final = 64 << 20
LOOK_S: Final = 0.25
"""How often waiting events are looked at whether their time is up."""

_UNIX_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND: Final = timedelta(microseconds=1)
_PER_EVENT_BYTES: Final = 200


class _Waiter:
    """An event on its way."""

    __slots__ = ("claim", "deadline", "future", "size", "words")

    def __init__(
        self, words: tuple[Word, ...], size: int, claim: Claim, deadline: float, future: asyncio.Future[Recorded]
    ) -> None:
        self.words = words
        self.size = size
        self.claim = claim
        self.deadline = deadline
        self.future = future


class _Lane:
    """The events for one tape. `batch` is in flight, `waiting` comes after it."""

    __slots__ = ("attempts", "batch", "digest", "keys", "refused", "sequence", "tape", "waiting")

    def __init__(self, tape: str, keys: tuple[str, ...]) -> None:
        self.tape = tape
        self.keys = keys
        self.waiting: deque[_Waiter] = deque()
        self.batch: list[_Waiter] = []
        self.sequence = 0
        self.attempts = 0
        self.digest: str | None = None
        self.refused: RedisReplyError | None = None
        """Why the server did not take the batch so far, when nothing else became of it."""


class Lanes:
    """Appends events through `commands`, in the order of the calls per tape. For one event loop."""

    def __init__(
        self, commands: Commands, scripts: Scripts, *, clock: Clock, retention: TapeRetention, timeout_s: float
    ) -> None:
        self._commands = commands
        self._scripts = scripts
        self._clock = clock
        self._of_jobs = retention_words(retention, job_tape("x"))
        self._of_others = retention_words(retention, "")
        self._timeout_s = timeout_s
        self._epochs = Epochs()
        self._writer = secrets.token_hex(6)
        self._sequences = itertools.count(1)
        self._lanes: dict[str, _Lane] = {}
        self._ready: list[_Lane] = []
        self._bytes = 0
        self._now_us: int | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._looking: asyncio.TimerHandle | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._closed = False
        self._empty: asyncio.Event | None = None

    def add(
        self,
        tape: str,
        claim: Claim,
        event: NewEvent,
        live: Live = AS_RECORDED,
        idempotency_key: str | None = None,
    ) -> asyncio.Future[Recorded]:
        """The future gets what became of the event.

        Raises:
            ClosedError: after `close`.
            LogUnavailableError: too much waits already. The future may raise what `Recorder.record` does.
        """
        if self._closed:
            raise ClosedError("the log is closed")
        words = event_words(tape, claim, event, live, idempotency_key)
        size = len(event.payload) + _PER_EVENT_BYTES
        if live.payload is not None:
            size += len(live.payload)
        if self._bytes and self._bytes + size > MAX_WAITING_BYTES:
            raise LogUnavailableError("too many events wait for the event log", waiting_bytes=self._bytes)
        loop = self._loop
        if loop is None:
            loop = self._loop = asyncio.get_running_loop()
        future: asyncio.Future[Recorded] = loop.create_future()
        waiter = _Waiter(words, size, claim, loop.time() + self._timeout_s, future)
        lane = self._lanes.get(tape)
        if lane is None:
            lane = _Lane(tape, key_words(tape, self._writer))
            self._lanes[tape] = lane
            if not self._ready:
                loop.call_soon(self._start)  # after everybody of this tick has come
            self._ready.append(lane)
            if self._looking is None:
                self._looking = loop.call_later(LOOK_S, self._look)
        lane.waiting.append(waiter)
        self._bytes += size
        return future

    async def close(self, *, within_s: float) -> None:
        """Take no more; wait so long for what is on its way. What is not done then fails. Idempotent."""
        self._closed = True
        if self._lanes:
            self._empty = asyncio.Event()
            try:
                async with asyncio.timeout(within_s):
                    await self._empty.wait()
            except TimeoutError:
                for lane in list(self._lanes.values()):
                    self._fail(lane.batch, LogUnavailableError("the log was closed before it answered"))
                    self._fail(lane.waiting, LogUnavailableError("the log was closed before"))
                    lane.waiting.clear()
        if self._looking is not None:
            self._looking.cancel()
            self._looking = None
        for task in self._tasks:
            task.cancel()

    # ---- out -------------------------------------------------------------------------------------------------------

    def _start(self) -> None:
        ready, self._ready = self._ready, []
        self._now_us = self._read_clock()  # once for all of them
        for lane in ready:
            self._next(lane)
        self._now_us = None

    def _next(self, lane: _Lane) -> None:
        """Take the next batch of what waits, and send it."""
        waiting = lane.waiting
        if not waiting:
            del self._lanes[lane.tape]
            if self._empty is not None and not self._lanes:
                self._empty.set()
            return
        first = waiting.popleft()
        batch = [first]
        size = first.size
        while waiting and len(batch) < MAX_BATCH:
            waiter = waiting[0]
            size += waiter.size
            if size > MAX_BATCH_BYTES or waiter.claim != first.claim:
                break
            batch.append(waiting.popleft())
        lane.batch = batch
        lane.sequence = next(self._sequences)
        lane.attempts = 0
        lane.refused = None
        self._send(lane)

    def _send(self, lane: _Lane) -> None:
        batch = lane.batch
        if lane.attempts and all(waiter.future.done() for waiter in batch):
            self._finish(lane)  # nobody waits for it any more
            return
        digest = lane.digest = self._scripts.digest("append", lane.tape)
        if digest is None:
            self._load(lane)
            return
        keep, most = self._of_jobs if is_job_tape(lane.tape) else self._of_others
        words = call_words(
            digest,
            lane.keys,
            batch[0].claim,
            [waiter.words for waiter in batch],
            sequence=lane.sequence,
            repeated=lane.attempts > 0,
            epoch=self._epochs.new(),
            now_us=self._now_us or self._read_clock(),
            keep=keep,
            most=most,
        )
        lane.attempts += 1
        try:
            reply = asyncio.ensure_future(self._commands.send(words, lane.tape))
        except (RedisLinkError, RedisReplyError) as error:
            self._failed(lane, error)
            return
        reply.add_done_callback(partial(self._answered, lane))

    def _read_clock(self) -> int:
        return (self._clock.now() - _UNIX_EPOCH) // _MICROSECOND

    # ---- back ------------------------------------------------------------------------------------------------------

    def _answered(self, lane: _Lane, reply: asyncio.Future[Any]) -> None:
        if reply.cancelled():
            self._failed(lane, RedisLinkError("the command was given up", sent=True))
            return
        error = reply.exception()
        if error is not None:
            self._failed(lane, error)
            return
        answer = reply.result()
        try:
            if answer[0] == 0:
                self._fail(lane.batch, NotFoundError(f"there is no tape {lane.tape}", tape=lane.tape))
            else:
                self._tell(lane.batch, answer)
        except (LookupError, TypeError, ValueError, AttributeError) as error:
            self._fail(lane.batch, LogError(f"the answer of the event log cannot be read: {error}"))
        self._finish(lane)

    def _tell(self, batch: list[_Waiter], answer: Any) -> None:
        """Everybody learns what became of the event; `answer` is that of the script."""
        if answer[0] == 1:
            epoch, mixed, results = answer[1].decode(), answer[2] == 1, answer[3:]
        else:  # the words of the first answer
            _, epoch, mark, *texts = answer[1].decode().split(" ")
            mixed = mark == "1"
            results = [text.encode() if "-" in text[1:] else int(text) for text in texts]
        at = 0
        for waiter in batch:
            entry_id, receivers = results[at], results[at + 1]
            at += 2
            if waiter.future.done():
                continue
            if type(entry_id) is int:
                offset, name = entry_id, f"{entry_id}-0"
            else:
                offset = offset_of(entry_id)
                name = id_of(offset)
            waiter.future.set_result(
                Recorded(Position(epoch, offset), name, receivers if receivers >= 0 else None, receivers == -1, mixed)
            )

    def _failed(self, lane: _Lane, error: BaseException) -> None:
        assert self._loop is not None
        if isinstance(error, RedisReplyError):
            lane.refused = error if lane.refused is not None or lane.attempts <= 1 else None
        elif not isinstance(error, RedisLinkError) or error.sent:
            lane.refused = None
        left = max((waiter.deadline for waiter in lane.batch), default=0.0) - self._loop.time()
        if self._closed or left <= 0 or not passes(error):
            known = lane.refused or error
            if isinstance(known, RedisReplyError) and passes(known) and lane.refused is None:
                # an earlier try of it may have been carried out
                self._fail(lane.batch, LogUnavailableError(f"the event log cannot be used: {error}"))
            else:
                self._fail(lane.batch, as_log_error(known if passes(error) else error))
            self._finish(lane)
        elif isinstance(error, RedisReplyError) and error.code == "NOSCRIPT":
            self._load(lane)
        else:
            self._loop.call_later(min(pause(lane.attempts), left), self._send, lane)

    def _load(self, lane: _Lane) -> None:
        task = asyncio.ensure_future(self._loaded(lane))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _loaded(self, lane: _Lane) -> None:
        try:
            await self._scripts.load("append", lane.tape, lane.digest)
        except Exception as error:  # whatever it is, nobody waits in vain
            lane.attempts += 1
            self._failed(lane, error)
        else:
            self._send(lane)

    def _finish(self, lane: _Lane) -> None:
        for waiter in lane.batch:
            self._bytes -= waiter.size
        lane.batch = []
        self._next(lane)

    def _fail(self, waiters: list[_Waiter] | deque[_Waiter], error: LogError | NotFoundError) -> None:
        for waiter in waiters:
            if not waiter.future.done():
                waiter.future.set_exception(_again(error))

    def _look(self) -> None:
        """Whose time is up gets to know it, even if no answer ever comes."""
        assert self._loop is not None
        if not self._lanes:
            self._looking = None
            return
        now = self._loop.time()
        for lane in self._lanes.values():
            late = [waiter for waiter in lane.batch if waiter.deadline <= now]
            while lane.batch and lane.waiting and lane.waiting[0].deadline <= now:
                waiter = lane.waiting.popleft()
                self._bytes -= waiter.size
                late.append(waiter)
            if late:
                # Refused until now is something else than without an answer: it is not written.
                refused = lane.refused
                silent = LogUnavailableError("the event log did not answer in time")
                self._fail(late, silent if refused is None else as_log_error(refused))
        self._looking = self._loop.call_later(LOOK_S, self._look)


def _again(error: LogError | NotFoundError) -> LogError | NotFoundError:
    """An exception of its own for everybody who waits: one that is raised twice collects both tracebacks."""
    return type(error)(error.message, **error.context)
