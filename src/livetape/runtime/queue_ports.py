"""The queue and the hints of one process, by the URL of the settings."""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass

from livetape.engine.cancel_hints import CancelHints, ProcessCancelHints
from livetape.engine.forwarder import Forwarder
from livetape.engine.queue import Queue
from livetape.errors import ConfigError
from livetape.observability import Metrics
from livetape.settings import Settings


@dataclass(frozen=True, slots=True)
class QueuePorts:
    """What doorbells and hints go through. Workers take from `queue`.

    `forwarder` runs in every process that writes doorbells into the database; None where workers take from there.
    `is_up`: whether doorbells come now.
    """

    queue: Queue
    hints: CancelHints
    forwarder: Forwarder | None = None
    is_up: Callable[[], bool] = lambda: True


def open_queue(
    stack: AsyncExitStack,
    settings: Settings,
    table: Queue,
    *,
    hints: CancelHints | None = None,
    name: str = "livetape",
    metrics: Metrics | None = None,
) -> QueuePorts:
    """The queue that the settings name; `table` is the one in the database, where doorbells are written in any case.

    `hints` are those of the database, or else of this process alone; a broker brings its own. Connects nothing yet: a
    RabbitMQ that is away now may come.

    Raises:
        ConfigError: the URL cannot be used, or the driver is not installed.
    """
    url = settings.broker_url
    if url is None:
        return QueuePorts(table, hints or ProcessCancelHints())
    try:
        from livetape.adapters.rabbitmq.open import from_url
    except ModuleNotFoundError as error:
        raise _no_driver(error) from error
    # Its driver tells every attempt that fails, as an error; we say once that it is away, and once that it is back.
    logging.getLogger("aiormq").setLevel(logging.CRITICAL)
    broker = from_url(url, name=name, metrics=metrics)
    stack.push_async_callback(broker.close)
    broker.publishing.keep()  # whether it is there is known before somebody starts something
    forwarder = Forwarder(table, broker.queue, metrics=metrics)
    return QueuePorts(broker.queue, broker.hints, forwarder, lambda: broker.is_up() and not forwarder.problem)


async def broker_report(url: str, *, within_s: float) -> str:
    """Which broker answers at this URL; it makes and changes nothing.

    Raises:
        ConfigError: the URL cannot be used, or the driver is not installed.
        QueueUnavailableError: it does not answer, or refuses this user.
    """
    try:
        from livetape.adapters.rabbitmq.connection import greet
    except ModuleNotFoundError as error:
        raise _no_driver(error) from error
    logging.getLogger("aiormq").setLevel(logging.CRITICAL)
    return await greet(url, patience_s=within_s)


def _no_driver(error: ModuleNotFoundError) -> ConfigError:
    return ConfigError(
        "RabbitMQ needs a driver that is not installed",
        because=str(error),
        set_by="queue",
        fix="pip install 'livetape[rabbitmq]'",
    )
