"""Publishes the events of jobs onto their streams: the names, fields and results that older code knows.

publisher = RedisStreamPublisher(redis_client, user_id="user-1")
await publisher.publish_task_started("job_001", "outline_generation", task_prompt="…")
entry_id = await publisher.publish_event("job_001", {"event_type": "custom_event", "message": "…"})
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from datetime import date, datetime, time
from enum import Enum
from typing import Any, Final

from livetape.clock import Clock, SystemClock
from livetape.errors import CodecError, ConfigError
from livetape.events.channel import job_tape
from livetape.events.codec import DEFAULT_MAX_MESSAGE_BYTES
from livetape.events.job_recorder import JobRecorder
from livetape.events.log import EventLog
from livetape.events.open import Backend, open_backend, open_client
from livetape.events.recorder import Recorded, Recorder
from livetape.events.stream_info import stream_info, stream_length
from livetape.observability import Metrics

UNKNOWN: Final = "unknown"


class RedisStreamPublisher:
    """Puts the events of jobs on `job_events:<job_id>`, numbered, and pushes them to whoever watches, in one step.

    `redis_client` is a client of redis-py (`redis.asyncio.Redis` or `redis.Redis`); it stays the caller's, and nothing
    need be closed: one event loop per task with a client of its own is fine. Instead of a client: `url` (see
    `livetape.events.open`; then use `async with`, or `close`; a later event loop opens it again), `backend`, or
    `recorder` with `log`.

    A job belongs to the `user_id` that published its first event with one; to everybody else it does not exist. Every
    method takes `user_id=` for a job of somebody else than the publisher's. Without any the job has no owner.

    Methods return the id of the new entry, as a plain Redis client sees it, once the event is durable. They raise:

    - NotFoundError: the job belongs to another user.
    - ChannelError: an id that cannot stand in a channel, or a user id that cannot own anything (empty, or `*`).
    - CodecError: data that JSON cannot carry; nothing was written.
    - LogUnavailableError: it is not known to be written; `context["refused"]` if it certainly was not.

    Raises:
        ConfigError: none or several sources, one that cannot be opened, or one that keeps nothing.
    """

    def __init__(
        self,
        redis_client: object | None = None,
        *,
        user_id: str | None = None,
        url: str | None = None,
        backend: Backend | None = None,
        recorder: Recorder | None = None,
        log: EventLog | None = None,
        clock: Clock | None = None,
        metrics: Metrics | None = None,
        max_message_bytes: int = DEFAULT_MAX_MESSAGE_BYTES,
    ) -> None:
        if sum(source is not None for source in (redis_client, url, backend, recorder)) != 1:
            raise ConfigError("give one of redis_client, url, backend and recorder")
        self.redis_client = redis_client
        self.user_id = user_id
        self._own: Backend | None = None
        if redis_client is not None:
            backend = self._own = open_client(redis_client, metrics=metrics)
        elif url is not None:
            backend = self._own = open_backend(url, metrics=metrics)
        if backend is not None:
            recorder, log = backend.recorder, backend.log
        self._url, self._metrics = url, metrics
        self._limit = max_message_bytes
        self._use(recorder, log)
        self._clock = clock or SystemClock()
        self._loop: asyncio.AbstractEventLoop | None = None

    async def publish_event(
        self,
        job_id: str,
        event_data: Mapping[str, Any],
        *,
        user_id: str | None = None,
        idempotency_key: str | None = None,
    ) -> str:
        """Publish any event. `event_type` (default "unknown") and `timestamp` (default "") come from its data.

        The same `idempotency_key` again writes nothing and returns the first id.
        """
        return (await self.record(job_id, event_data, user_id=user_id, idempotency_key=idempotency_key)).entry_id

    async def publish_task_started(
        self, job_id: str, task_type: str, *, user_id: str | None = None, **kwargs: Any
    ) -> str:
        """Publish `task_started`. What else is given stands in the data."""
        return await self._publish("task_started", job_id, {"task_type": task_type}, kwargs, user_id)

    async def publish_task_progress(
        self, job_id: str, task_type: str, progress: Any, *, user_id: str | None = None, **kwargs: Any
    ) -> str:
        """Publish `task_progress`. What else is given stands in the data."""
        data = {"task_type": task_type, "progress": progress}
        return await self._publish("task_progress", job_id, data, kwargs, user_id)

    async def publish_task_completed(
        self, job_id: str, task_type: str, result: Any, *, user_id: str | None = None, **kwargs: Any
    ) -> str:
        """Publish `task_completed`: the job is over."""
        data = {"task_type": task_type, "result": result}
        return await self._publish("task_completed", job_id, data, kwargs, user_id)

    async def publish_task_failed(
        self, job_id: str, task_type: str, error: Any, *, user_id: str | None = None, **kwargs: Any
    ) -> str:
        """Publish `task_failed`: the job is over."""
        data = {"task_type": task_type, "error": str(error) if isinstance(error, BaseException) else error}
        return await self._publish("task_failed", job_id, data, kwargs, user_id)

    async def publish_outline_generated(self, job_id: str, outline: Any, *, user_id: str | None = None) -> str:
        """Publish `outline_generated`."""
        return await self._publish("outline_generated", job_id, {"outline": outline}, {}, user_id)

    async def publish_document_generated(self, job_id: str, document: Any, *, user_id: str | None = None) -> str:
        """Publish `document_generated`."""
        return await self._publish("document_generated", job_id, {"document": document}, {}, user_id)

    async def get_stream_info(self, job_id: str) -> dict[str, Any]:
        """What `stream_info` says of the job's stream; `{"length": 0}` when there is none.

        Raises:
            NotFoundError: this publisher has a user, and the job belongs to another.
            ChannelError: an id that cannot stand in a channel.
            LogUnavailableError: the log cannot be reached.
            ConfigError: this publisher has only a recorder.
        """
        return await stream_info(self._reading(), job_tape(job_id), reader=self.user_id)

    async def get_stream_length(self, job_id: str) -> int:
        """How many events can be read now; 0 when there is no stream.

        Raises:
            NotFoundError: this publisher has a user, and the job belongs to another.
            ChannelError: an id that cannot stand in a channel.
            LogUnavailableError: the log cannot be reached.
            ConfigError: this publisher has only a recorder.
        """
        return await stream_length(self._reading(), job_tape(job_id), reader=self.user_id)

    async def record(
        self,
        job_id: str,
        event_data: Mapping[str, Any],
        *,
        user_id: str | None = None,
        any_owner: bool = False,
        idempotency_key: str | None = None,
    ) -> Recorded:
        """As `publish_event`, and tells what became of it. `any_owner` writes onto jobs of others too.

        Raises:
            NotFoundError: the job belongs to another user.
            ChannelError: an id that cannot stand in a channel.
            CodecError: no dict, or data that JSON cannot carry; nothing was written.
            LogUnavailableError: it is not known to be written; `context["refused"]` if it certainly was not.
            ConfigError: with a URL, another event loop uses this publisher.
        """
        if not isinstance(event_data, Mapping):
            raise CodecError("the data of a job's event is a dict")
        event_type = _text_of(event_data.get("event_type"), UNKNOWN)
        data = event_data if isinstance(event_data, dict) else dict(event_data)
        return await self._here().record(
            job_id,
            event_type,
            _text_of(event_data.get("timestamp"), ""),
            data,
            owner=self.user_id if user_id is None else user_id,
            any_owner=any_owner,
            idempotency_key=idempotency_key,
        )

    async def close(self) -> None:
        """Give back what was opened for this publisher; a client and a backend that it was given stay open."""
        if self._own is not None:
            await self._own.close()

    async def __aenter__(self) -> RedisStreamPublisher:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    def _use(self, recorder: Recorder | None, log: EventLog | None) -> None:
        if recorder is None:
            raise ConfigError("there is nothing durable behind this", fix="use redis://… or sqlite:///…")
        self._jobs = JobRecorder(recorder, max_message_bytes=self._limit)
        self._log = log

    def _here(self) -> JobRecorder:
        """For the running loop: what a URL opened for another loop, which has ended, is left behind."""
        if self._url is not None:
            loop = asyncio.get_running_loop()
            if self._loop is not None and self._loop is not loop:
                if self._loop.is_running():
                    raise ConfigError("this publisher is in use by another event loop", fix="give each loop its own")
                self._own = open_backend(self._url, metrics=self._metrics)
                self._use(self._own.recorder, self._own.log)
            self._loop = loop
        return self._jobs

    def _reading(self) -> EventLog:
        self._here()
        if self._log is None:
            raise ConfigError("this publisher has no log to read", fix="give log=… beside recorder=…")
        return self._log

    async def _publish(
        self, event_type: str, job_id: str, fixed: dict[str, Any], more: dict[str, Any], user_id: str | None
    ) -> str:
        data = {
            "event_type": event_type,
            **fixed,
            "timestamp": self._clock.now().isoformat(),
            **more,
        }
        data["event_type"] = event_type
        return (await self.record(job_id, data, user_id=user_id)).entry_id


def _text_of(value: Any, default: str) -> str:
    if value is None:
        return default
    if isinstance(value, Enum):
        value = value.value
    if isinstance(value, datetime | date | time):
        return value.isoformat()
    # A lone surrogate becomes text, as in the data: it never costs the event.
    return str(value).encode("utf-8", "backslashreplace").decode()
