"""Publishes events of jobs from processes that fork and code that is not asynchronous, and never in vain for long."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Mapping
from concurrent.futures import CancelledError
from datetime import UTC, datetime
from typing import Any, Final
from uuid import uuid4

from livetape.errors import ChannelError, CodecError, ConfigError, LivetapeError
from livetape.events.event import JOB_FINAL_TYPES
from livetape.events.streams import RedisStreamPublisher
from livetape.events.sync import Portal
from livetape.observability import Metrics, get_logger

logger = get_logger(__name__)

PROBE_S: Final = 0.1
"""While nothing can be published, events that do not end a job wait only so long."""

CLOSE_S: Final = 2.0


class ProcessLinks:
    """One link to the log for each process, made with its first event. Safe for concurrent use by threads.

    What a process opened is never used by the processes that fork from it: they make their own.
    """

    def __init__(self, url: str, timeout: float, metrics: Metrics) -> None:
        self._url = url
        self._timeout = timeout
        self._metrics = metrics
        self._links: dict[int, _Link] = {}

    @property
    def lost(self) -> int:
        """How many events of this process are not known to be on their tapes."""
        return self._here().lost

    def publish(
        self,
        job_id: str,
        owner: str | None,
        event_type: str,
        data: Mapping[str, Any],
        *,
        idempotency_key: str | None = None,
    ) -> str | None:
        """Append and push one event; returns the id of its entry once it is durable.

        Waits for that as long as the time-out says, and less after one has passed in vain, except for events that end
        a job. None: it is not known to be on the tape, which is counted and logged. The events of one caller keep
        their order.

        Raises:
            ConfigError: an unusable URL.
            CodecError: data that JSON cannot carry.
            ChannelError: an id that cannot be part of a name.
        """
        link = self._here()
        is_final = event_type in JOB_FINAL_TYPES
        timeout = PROBE_S if link.away and not is_final else self._timeout
        # A key of its own: whatever is repeated on the way is written once.
        key = idempotency_key or uuid4().hex
        try:
            entry_id = link.publish(job_id, owner, event_type, data, key, timeout)
        except (ConfigError, CodecError, ChannelError):
            raise
        except (LivetapeError, TimeoutError, OSError, CancelledError) as error:  # cancelled: closed meanwhile
            self._lose(link, event_type, error)
            return None
        self._metrics.count("celery_events_total", event_type=event_type)
        if link.away:
            link.away = False
            logger.warning("events of tasks can be published again", extra={"action": "task_events_back"})
        return entry_id

    def close(self) -> None:
        """Close what this process opened; the next event opens it again. Returns within seconds."""
        link = self._links.pop(os.getpid(), None)
        if link is not None:
            link.close()
            if link.lost:
                self._here().lost = link.lost

    def _here(self) -> _Link:
        pid = os.getpid()
        link = self._links.get(pid)
        # Links of a parent stay referenced: closing them here would take them from the parent.
        return link if link is not None else self._links.setdefault(pid, _Link(self._url))

    def _lose(self, link: _Link, event_type: str, error: BaseException) -> None:
        link.lost += 1
        self._metrics.count("celery_events_lost_total", event_type=event_type)
        if not link.away:
            link.away = True
            reason = "no answer in time" if isinstance(error, TimeoutError) else str(error)
            logger.warning("events of tasks cannot be published: %s", reason, extra={"action": "task_events_away"})


class _Link:
    """What one process has open."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._lock = threading.Lock()
        self._portal: Portal | None = None
        self._publisher: RedisStreamPublisher | None = None
        self.away = False
        self.lost = 0

    def publish(
        self,
        job_id: str,
        owner: str | None,
        event_type: str,
        data: Mapping[str, Any],
        idempotency_key: str,
        timeout: float,
    ) -> str:
        told = {"event_type": event_type, **data, "timestamp": datetime.now(UTC).isoformat()}
        told["event_type"] = event_type
        return self._opened().call(self._publish(job_id, owner, told, idempotency_key, timeout))

    async def _publish(
        self, job_id: str, owner: str | None, told: dict[str, Any], idempotency_key: str, timeout: float
    ) -> str:
        publisher = self._publisher
        assert publisher is not None
        async with asyncio.timeout(timeout):
            return await publisher.publish_event(job_id, told, user_id=owner, idempotency_key=idempotency_key)

    def close(self) -> None:
        with self._lock:
            portal, publisher, self._portal, self._publisher = self._portal, self._publisher, None, None
        if portal is None:
            return
        try:
            if publisher is not None:
                portal.call(_closed(publisher))
        except (LivetapeError, TimeoutError, OSError) as error:
            logger.warning("the link did not close in order: %s", error, extra={"action": "task_events_close"})
        finally:
            portal.close()

    def _opened(self) -> Portal:
        with self._lock:
            if self._portal is None:
                portal = Portal()
                try:
                    self._publisher = portal.call(_opened(self._url))
                except BaseException:
                    portal.close()
                    raise
                self._portal = portal
            return self._portal


async def _opened(url: str) -> RedisStreamPublisher:
    """In the loop that will use it."""
    return RedisStreamPublisher(url=url)


async def _closed(publisher: RedisStreamPublisher) -> None:
    async with asyncio.timeout(CLOSE_S):
        await publisher.close()
