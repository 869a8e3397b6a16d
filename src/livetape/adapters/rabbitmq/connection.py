"""One connection to RabbitMQ: made when it is needed, made again when it broke."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from typing import Any, Final

from aiormq.abc import AbstractChannel, AbstractConnection
from aiormq.connection import Connection
from aiormq.exceptions import AMQPError, ConnectionClosed
from pamqp.exceptions import PAMQPException
from yarl import URL

from livetape.adapters.rabbitmq.topology import Topology, declare
from livetape.errors import ClosedError, ConfigError, LivetapeError, QueueUnavailableError
from livetape.observability import Metrics, NoMetrics, get_logger

logger = get_logger(__name__)

PATIENCE_S: Final = 5.0
"""How long an answer of the broker may take."""

AGAIN_S: Final = 1.0
"""The driver may catch a cancellation and wait on, to tell a broker that is away; a second one it lets pass."""

HEARTBEAT_S: Final = 10
CLOSE_S: Final = 3.0
CLOSINGS: Final = 3
"""So often a connection is told to close. The first time it takes leave; each more cuts a wait of that short."""

KEEP_S: Final = 2.0
"""So often a connection that is kept is looked at."""

_FORESEEN: Final = (AMQPError, PAMQPException, OSError, RuntimeError, EOFError, StopAsyncIteration)


@contextmanager
def broker_errors(doing: str, metrics: Metrics | None = None) -> Iterator[None]:
    """Whatever the driver raises becomes QueueUnavailableError. Put `in_time` inside, not outside.

    A task that was cancelled meanwhile stays so, even where the driver made another error of it.
    """
    task = asyncio.current_task()
    before = 0 if task is None else task.cancelling()
    try:
        yield
    except asyncio.CancelledError as error:
        if task is None or task.cancelling() > before:
            raise
        # The driver says so to those who wait for an answer when the connection is closed.
        raise QueueUnavailableError(f"{doing}: the connection to RabbitMQ was closed") from error
    except Exception as error:
        if task is not None and task.cancelling() > before:
            raise asyncio.CancelledError from error
        if isinstance(error, LivetapeError):
            raise
        if isinstance(error, TimeoutError):
            raise QueueUnavailableError(f"{doing}: RabbitMQ does not answer") from error
        # A bare Exception is what it says to those who wait on a connection that ended without a reason.
        if not isinstance(error, _FORESEEN) and type(error) is not Exception:
            logger.exception("the driver of RabbitMQ failed", extra={"action": "rabbitmq_driver_failed"})
            (metrics or NoMetrics()).count("internal_errors_total", part="rabbitmq")
        raise QueueUnavailableError(f"{doing}: {str(error) or type(error).__name__}") from error


@asynccontextmanager
async def in_time(seconds: float) -> AsyncIterator[None]:
    """As `asyncio.timeout`, for calls of the driver: they end, at most `AGAIN_S` later."""
    async with asyncio.timeout(seconds + AGAIN_S), asyncio.timeout(seconds):
        yield


def checked_url(url: str) -> URL:
    """The URL with what we want of every connection.

    Raises:
        ConfigError: it is not `amqp://` or `amqps://` with a host.
    """
    try:
        parsed = URL(url)
        usable = parsed.scheme in ("amqp", "amqps") and bool(parsed.host) and (parsed.port or 0) >= 0
    except ValueError:
        usable = False
    if not usable:
        raise ConfigError(
            "this is no URL of a RabbitMQ",
            because="it is amqp://user:password@host:5672/vhost, or amqps:// for TLS",
            set_by="queue",
            fix="correct LIVETAPE_QUEUE; special characters of a password are written as %XX",
        )
    if "heartbeat" not in parsed.query:
        parsed = parsed.update_query(heartbeat=HEARTBEAT_S)
    return parsed


class RabbitConnection:
    """At most one connection at a time, with the topology declared. In one event loop.

    `name` is what the broker's operator sees. The broker stops reading from connections that publish when its memory
    or disk runs low; so those that publish and those that take are different ones.
    """

    def __init__(
        self,
        url: str,
        *,
        name: str,
        topology: Topology | None = None,
        patience_s: float = PATIENCE_S,
        metrics: Metrics | None = None,
    ) -> None:
        self._url = checked_url(url)
        self._name = name
        self.topology = topology or Topology()
        self.patience_s = patience_s
        self._metrics = metrics or NoMetrics()
        self._connection: AbstractConnection | None = None
        self._connecting: asyncio.Task[AbstractConnection] | None = None
        self._keeping: asyncio.Task[None] | None = None
        self._closing: set[asyncio.Task[None]] = set()
        self._closed = False
        self.problem = ""
        """Why it cannot be had, in words; empty when it can, or when nobody has tried."""

    @property
    def current(self) -> AbstractConnection | None:
        """The connection, if there is one now."""
        connection = self._connection
        return None if connection is None or connection.is_closed else connection

    async def get(self) -> AbstractConnection:
        """The connection; one attempt to make it if there is none, which those who ask meanwhile share.

        Raises:
            QueueUnavailableError: within twice the patience.
            ClosedError
        """
        if self._closed:
            raise ClosedError("the queue is closed")
        connection = self.current
        if connection is not None:
            return connection
        if self._connecting is None:
            self._connecting = asyncio.create_task(self._connect(), name=f"{self._name} connects to RabbitMQ")
            self._connecting.add_done_callback(self._connected)
        try:
            return await asyncio.shield(self._connecting)
        except asyncio.CancelledError:
            if self._closed:
                raise ClosedError("the queue is closed") from None
            raise

    def _connected(self, task: asyncio.Task[AbstractConnection]) -> None:
        self._connecting = None
        if not task.cancelled():
            error = task.exception()  # whoever waits has it; there may be nobody left
            self.problem = "" if error is None else str(error)

    def keep(self) -> None:
        """Make it now, and again whenever it broke, until it is closed: so that `problem` says how it is."""
        if self._keeping is None:
            self._keeping = asyncio.create_task(self._keep(), name=f"{self._name} keeps RabbitMQ")

    async def _keep(self) -> None:
        while not self._closed:
            try:
                await self.get()
            except QueueUnavailableError as error:
                logger.debug("%s", error)
            except ClosedError:
                return
            await asyncio.sleep(KEEP_S)

    async def _connect(self) -> AbstractConnection:
        with broker_errors("cannot connect", self._metrics):
            connection = Connection(self._url, client_properties={"connection_name": self._name})
            try:
                async with in_time(self.patience_s):
                    await connection.connect()
                async with in_time(self.patience_s):
                    await declare(connection, self.topology)
            except BaseException:
                self._put_away(connection)
                raise
        if self._connection is not None:
            self._put_away(self._connection)
        self._connection = connection
        return connection

    @asynccontextmanager
    async def _channel_of(self, connection: AbstractConnection) -> AsyncIterator[AbstractChannel]:
        channel = await connection.channel(publisher_confirms=False)
        try:
            yield channel
        finally:
            if not channel.is_closed:
                with suppress(AMQPError, RuntimeError):
                    await channel.close()

    @asynccontextmanager
    async def brief_channel(self) -> AsyncIterator[AbstractChannel]:
        """A channel for a question. Raises as `get`, and what the driver raises."""
        async with self._channel_of(await self.get()) as channel:
            yield channel

    def drop(self, connection: AbstractConnection | None = None) -> None:
        """It does not answer: the next one who asks makes another. `connection`: only if it is still this one."""
        if self._connection is not None and connection in (None, self._connection):
            self._put_away(self._connection)
            self._connection = None

    async def is_blocked(self) -> bool:
        """Whether the broker said that it takes no messages now (an alarm: memory or disk)."""
        connection = self.current
        if connection is None:
            return False
        try:
            async with asyncio.timeout(0):
                await connection.ready()
        except TimeoutError:
            return True
        return False

    def _put_away(self, connection: AbstractConnection) -> None:
        if connection.is_closed:
            return
        task = asyncio.create_task(_close(connection), name=f"{self._name} leaves RabbitMQ")
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)

    async def close(self) -> None:
        """Idempotent. Returns when nothing of it is left, or when what is left does not answer."""
        self._closed = True
        await ended(task for task in (self._keeping, self._connecting) if task is not None)
        self.drop()
        if self._closing:
            await asyncio.wait(set(self._closing))


async def ended(tasks: Iterable[asyncio.Task[Any]]) -> None:
    """Cancel them until they are over: the driver may catch a cancellation and make another error of it."""
    left = set(tasks)
    while left:
        for task in left:
            task.cancel()
        _, left = await asyncio.wait(left, timeout=AGAIN_S)


async def _close(connection: AbstractConnection) -> None:
    """Take leave, and tell whoever waits for an answer that none will come. Always comes to an end."""
    for patience_s in (CLOSE_S, *[AGAIN_S] * (CLOSINGS - 1)):
        if connection.is_closed:
            return
        # With a reason: those who wait are told it. In a task of its own: it may wait on although it is cancelled.
        reason = ConnectionClosed(0, "put away")
        closing = asyncio.ensure_future(connection.close(reason))
        _, late = await asyncio.wait({closing}, timeout=patience_s)
        await ended(late)
        if not closing.cancelled():
            closing.exception()  # it is over in any case


async def greet(url: str, *, patience_s: float = PATIENCE_S) -> str:
    """Which broker answers there, for instance "RabbitMQ 3.13.7". It makes and changes nothing.

    Raises:
        ConfigError: the URL cannot be used.
        QueueUnavailableError: nobody answers, or who does refuses this user or this virtual host.
    """
    checked = checked_url(url)
    with broker_errors("cannot connect"):
        connection = Connection(checked, client_properties={"connection_name": "livetape looks"})
        try:
            async with in_time(patience_s):
                await connection.connect()
            told = connection.server_properties or {}
            return f"{_text(told.get('product'))} {_text(told.get('version'))}".strip()
        finally:
            await _close(connection)


def _text(value: object) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes | bytearray) else str(value or "")
