"""The text of a language model on a tape: few events instead of one for each token, and the text so far at hand.

Four events, told apart from others on the same tape by `stream_id`:

    token_delta       {"stream_id", "run", "index", "text"}                    what was added
    token_checkpoint  {"stream_id", "run", "index", "text"}                    the whole text so far
    token_end         {"stream_id", "run", "index", "text", "finish_reason"}   the whole text
    token_abort       {"stream_id", "run", "index", "text", "error"}           the text as far as it came

`index` counts the events of a stream from 0 without a hole. `run` is when the writing began, in milliseconds since
1970: a task that is run again writes the same stream anew, and the newest run is the text.

A long text is cut into segments. Then `text` is that of the present segment alone, whose number is `segment` (absent:
0); the last checkpoint of a segment says `"sealed": true`, and those of later ones name its offset in `previous`. So
no event grows without bound, and neither does what a writer keeps in memory.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterable, Awaitable, Callable, Mapping
from types import TracebackType
from typing import Any, Final, Protocol, Self

from livetape.clock import Clock, SystemClock, new_id
from livetape.errors import ClosedError, ConfigError, LivetapeError
from livetape.events.backoff import Backoff
from livetape.events.log import Position
from livetape.events.result import Published
from livetape.observability import get_logger

logger = get_logger(__name__)

DELTA: Final = "token_delta"
CHECKPOINT: Final = "token_checkpoint"
END: Final = "token_end"
ABORT: Final = "token_abort"

MIN_SEGMENT_BYTES: Final = 256
EVENT_WEIGHT: Final = 128
"""About what an event takes on a tape beside its text, in bytes."""
_WIDEST: Final = 4
"""Bytes of the widest character in UTF-8."""
_SOON: Final = 1e-6


class PublishEvent(Protocol):
    """Puts an event on a tape: `onto_job(publisher, job_id)` makes one.

    What it returns may be a `Position`, or have one as `position`. An error that is `retryable` is tried again with the
    same key.
    """

    async def __call__(self, event_type: str, data: dict[str, Any], /, *, idempotency_key: str) -> object: ...


class JobWriter(Protocol):
    """What `RedisStreamPublisher` has."""

    async def record(self, job_id: str, event_data: Mapping[str, Any], *, idempotency_key: str | None = None) -> object:
        """Put one event onto the tape of the job; a repetition of the key writes nothing."""
        ...


def onto_job(publisher: JobWriter, job_id: str) -> PublishEvent:
    """Publishes onto the tape of this job: `TokenStream(onto_job(publisher, "job-1"))`."""

    async def publish(event_type: str, data: dict[str, Any], /, *, idempotency_key: str) -> object:
        return await publisher.record(job_id, {"event_type": event_type, **data}, idempotency_key=idempotency_key)

    return publish


class TokenStream:
    """Writes one text: `async with TokenStream(publish) as stream: await stream.write("token")`.

    Tokens are collected, at most `max_tokens` of them and for at most `max_delay_s` seconds; then they are published as
    one event. A checkpoint follows when the deltas since the last one weigh as much as it does, and at least
    `checkpoint_every` bytes: a reader who joins reads no more deltas than that, and the tape takes at most about three
    times what the deltas take. A segment has at most `segment_bytes` of UTF-8.

    When the block ends the rest and `token_end` are published; after an exception or a cancellation, the rest and
    `token_abort`. One task writes at a time. An error of the publisher that is not overcome in `tries` tries is raised
    by the next `write`, or at the end.

    Raises:
        ConfigError: segments of less than 256 bytes.
    """

    def __init__(
        self,
        publish: PublishEvent,
        *,
        stream_id: str | None = None,
        max_delay_s: float = 0.05,
        max_tokens: int = 20,
        checkpoint_every: int = 2048,
        segment_bytes: int = 65_536,
        tries: int = 5,
        abort_timeout_s: float = 5.0,
        clock: Clock | None = None,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        if segment_bytes < MIN_SEGMENT_BYTES:
            raise ConfigError(
                f"a segment of a text has at least {MIN_SEGMENT_BYTES} bytes", segment_bytes=segment_bytes
            )
        self.stream_id = new_id() if stream_id is None else stream_id
        self.finish_reason = "stop"
        """What `token_end` says when the block ends without an exception; set it to what the model gave."""
        self._publish = publish
        self._max_delay_s = max_delay_s
        self._max_tokens = max_tokens
        self._checkpoint_every = checkpoint_every
        self._segment_bytes = segment_bytes
        self._tries = tries
        self._abort_timeout_s = abort_timeout_s
        self._clock = clock or SystemClock()
        self._sleep = sleep
        self._run = int(self._clock.now().timestamp() * 1000)
        self._index = 0
        self._waiting: list[str] = []
        self._since = 0.0  # when the oldest of what waits came
        self._arrived = asyncio.Event()
        self._flushing = asyncio.Lock()
        self._flusher: asyncio.Task[None] | None = None
        self._error: Exception | None = None
        self._closed = False
        # The present segment: its text, the bytes of it, and what the deltas since its last checkpoint weigh.
        self._text: list[str] = []
        self._bytes = 0
        self._weight = 0
        self._segment = 0
        self._previous: int | None = None

    async def write(self, token: str) -> None:
        """Add to the text. Waits only when enough has come to be published at once.

        Raises:
            ClosedError: after the end.
            LivetapeError: what was written before could not be published.
        """
        if self._closed or self._flusher is None:
            raise ClosedError("this stream of tokens is not open")
        if self._error is not None:
            raise self._error
        if not token:
            return
        if not self._waiting:
            self._since = self._clock.monotonic()
            self._arrived.set()
        self._waiting.append(token)
        if len(self._waiting) >= self._max_tokens:
            await self._flush()

    async def feed(self, tokens: AsyncIterable[str]) -> None:
        """Write all of them as they come. Raises what `write` and the source raise."""
        async for token in tokens:
            await self.write(token)

    async def finish(self, reason: str | None = None) -> None:
        """Publish the rest and `token_end`. Nothing can be written any more. Idempotent.

        Raises:
            LivetapeError: it could not be published; `token_abort` was tried.
        """
        if self._closed:
            return
        self._closed = True
        try:
            await self._flush()
            await self._stop()
            await self._send(END, self._whole(finish_reason=reason or self.finish_reason))
        except BaseException as error:
            await self._abort(error)
            raise

    async def __aenter__(self) -> Self:
        self._flusher = asyncio.create_task(self._flush_in_time())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            await self.finish()
        elif not self._closed:
            self._closed = True
            await self._abort(error)

    async def _flush_in_time(self) -> None:
        while True:
            await self._arrived.wait()
            left = self._since + self._max_delay_s - self._clock.monotonic()
            if left > _SOON:
                await self._sleep(left)  # meanwhile it may have been published, and other tokens have come
                continue
            try:
                await self._flush()
            except Exception:  # kept: the writer raises it
                return

    async def _flush(self) -> None:
        """Publish what waits."""
        async with self._flushing:
            if self._error is not None:
                raise self._error
            text, self._waiting = _utf8("".join(self._waiting)), []
            self._arrived.clear()
            done = 0
            try:
                while done < len(text):
                    start, done = done, _cut(text, done, self._segment_bytes - self._bytes)
                    await self._add(text[start:done])
            except BaseException as error:
                if isinstance(error, Exception):
                    self._error = error
                if done < len(text):
                    self._waiting.insert(0, text[done:].decode())
                raise

    async def _add(self, encoded: bytes) -> None:
        # First into the segment: when it is unknown whether the delta was written, `token_abort` has its text.
        piece = encoded.decode()
        self._text.append(piece)
        self._bytes += len(encoded)
        self._weight += len(encoded) + EVENT_WEIGHT
        await self._send(DELTA, {"text": piece})
        if self._bytes > self._segment_bytes - _WIDEST:
            sealing = await self._send(CHECKPOINT, self._whole(sealed=True))
            self._previous, self._segment = _offset(sealing), self._segment + 1
            self._text, self._bytes, self._weight = [], 0, 0
        elif self._weight >= max(self._checkpoint_every, self._bytes):
            await self._send(CHECKPOINT, self._whole())
            self._weight = 0

    def _whole(self, **more: object) -> dict[str, Any]:
        self._text = ["".join(self._text)]
        data: dict[str, Any] = {"text": self._text[0], **more}
        if self._segment:
            data["segment"] = self._segment
            if self._previous is not None:
                data["previous"] = self._previous
        return data

    async def _send(self, event_type: str, data: dict[str, Any]) -> object:
        index = self._index
        self._index += 1  # a number that may have been written is never used for another event
        event = {"stream_id": self.stream_id, "run": self._run, "index": index, **data}
        key = f"{self.stream_id}/{self._run}/{index}"
        backoff = Backoff()
        while True:
            try:
                result = await self._publish(event_type, event, idempotency_key=key)
                if isinstance(result, Published) and result.position is None and result.error is not None:
                    raise result.error
                return result
            except LivetapeError as error:
                if not error.retryable or backoff.tries + 1 >= self._tries:
                    raise
            await self._sleep(backoff.next())

    async def _abort(self, reason: BaseException) -> None:
        """Publish the rest and `token_abort`, if that can be done soon."""
        await self._stop()
        try:
            async with asyncio.timeout(self._abort_timeout_s):
                try:
                    await self._flush()
                except Exception:
                    logger.debug("the rest of a text could not be published", exc_info=True)
                await self._send(ABORT, self._whole(error=type(reason).__name__))
        except Exception as error:  # the reason is what the caller gets
            logger.warning(
                "the end of a stream of tokens could not be published: %s",
                error,
                extra={"action": "token_abort_failed", "stream_id": self.stream_id},
            )

    async def _stop(self) -> None:
        if self._flusher is not None:
            self._flusher.cancel()
            await asyncio.gather(self._flusher, return_exceptions=True)


def _utf8(text: str) -> bytes:
    """A lone surrogate becomes literal backslash text, as everywhere on the wire."""
    return text.encode("utf-8", "backslashreplace")


def _cut(text: bytes, start: int, most: int) -> int:
    """Where a piece of at most so many bytes ends, between two characters."""
    end = start + most
    if end >= len(text):
        return len(text)
    while text[end] & 0xC0 == 0x80:  # in the middle of a character
        end -= 1
    return end


def _offset(result: object) -> int | None:
    position = result if isinstance(result, Position) else getattr(result, "position", None)
    return position.offset if isinstance(position, Position) else None
