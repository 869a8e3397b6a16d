"""From the event buses to the sockets of a `ConnectionManager`."""

from __future__ import annotations

import asyncio
import functools
import inspect
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, Final, ParamSpec, TypeVar

from livetape.errors import ConfigError
from livetape.events.backoff import Backoff
from livetape.events.buses import AsyncRedisExecutionEventBus, AsyncRedisNotificationEventBus
from livetape.events.event import CommunicationErrorEvent
from livetape.events.open import Backend
from livetape.events.options import Options
from livetape.gateway.seed.connection_manager import ConnectionManager
from livetape.observability import get_logger

logger = get_logger(__name__)

LONGEST_DELAY_S: Final = 30.0

P = ParamSpec("P")
T = TypeVar("T")


def continuous_retry(
    *, retry_delay: float = 1.0, sleep: Callable[[float], Awaitable[None]] = asyncio.sleep
) -> Callable[[Callable[P, Coroutine[Any, Any, T]]], Callable[P, Coroutine[Any, Any, T]]]:
    """Calls a coroutine function again when it raised, until it returns or is cancelled.

    Waits `retry_delay` seconds, then twice as long each time up to half a minute, from the beginning again after a try
    that lasted longer than that.

    Raises:
        ConfigError: what is decorated is no coroutine function.
    """

    def decorate(function: Callable[P, Coroutine[Any, Any, T]]) -> Callable[P, Coroutine[Any, Any, T]]:
        if not inspect.iscoroutinefunction(function):
            raise ConfigError("only coroutine functions can be retried so", fix="async def …")

        @functools.wraps(function)
        async def again(*args: P.args, **kwargs: P.kwargs) -> T:
            backoff = Backoff(first=retry_delay, longest=max(retry_delay, LONGEST_DELAY_S), jitter=lambda: 1.0)
            clock = asyncio.get_running_loop().time
            while True:
                begun = clock()
                try:
                    return await function(*args, **kwargs)
                except Exception as error:
                    if clock() - begun > LONGEST_DELAY_S:
                        backoff.reset()
                    delay = backoff.next()
                    logger.exception(
                        "%s failed, again in %g s: %s", function.__name__, delay, error, extra={"action": "retry"}
                    )
                    await sleep(delay)

        return again

    return decorate


@continuous_retry()
async def event_broadcaster(manager: ConnectionManager, *, connection: object | None = None) -> None:
    """Forward all execution events and notifications to the manager's sockets, until cancelled.

    It listens at `connection` (a URL, a client of redis-py or a `Backend`; that of the manager when left out) to
    everybody's events, those included that nobody here watches: the gateway listens to what is watched alone.

    Without any connection it fails, and again and again, with a ConfigError in the log.
    """
    options = _options(connection if connection is not None else manager.connection)
    executions = AsyncRedisExecutionEventBus(**options)
    notifications = AsyncRedisNotificationEventBus(**options)

    async def forward_executions() -> None:
        async for event in executions.listen("*"):
            await manager.send_execution_update(event)

    async def forward_notifications() -> None:
        async for event in notifications.listen("*"):
            if not isinstance(event, CommunicationErrorEvent):
                await manager.send_notification(user_id=event.user_id, payload=event.payload)

    try:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(forward_executions())
            tasks.create_task(forward_notifications())
    finally:
        await executions.close()
        await notifications.close()


def _options(connection: object) -> Options:
    if isinstance(connection, str):
        return {"url": connection}
    if isinstance(connection, Backend):
        return {"backend": connection}
    if connection is None:
        raise ConfigError("the event broadcaster does not know where to listen", fix='ConnectionManager("redis://…")')
    return {"client": connection}
