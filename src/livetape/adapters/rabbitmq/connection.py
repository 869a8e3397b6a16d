"""One connection to RabbitMQ: made when it is needed, made again when it broke."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from typing import Final

from aiormq.abc import AbstractChannel, AbstractConnection
from aiormq.connection import Connection
from aiormq.exceptions import AMQPError
from pamqp.exceptions import PAMQPException
from yarl import URL

from livetape.adapters.rabbitmq.topology import Topology, declare
from livetape.errors import ClosedError, ConfigError, QueueUnavailableError
from livetape.observability import get_logger

logger = get_logger(__name__)

PATIENCE_S: Final = 5.0
"""How long an answer of the broker may take."""

HEARTBEAT_S: Final = 10
CLOSE_S: Final = 3.0


@contextmanager
def broker_errors(doing: str) -> Iterator[None]:
    """What the driver raises becomes QueueUnavailableError. Put `asyncio.timeout` inside, not outside."""
    try:
        yield
    except asyncio.CancelledError as error:
        task = asyncio.current_task()
        if task is None or task.cancelling():
            raise
        # The driver says so to those who wait for an answer when the connection is closed.
        raise QueueUnavailableError(f"{doing}: the connection to RabbitMQ was closed") from error
    except TimeoutError as error:
        raise QueueUnavailableError(f"{doing}: RabbitMQ does not answer") from error
    except (AMQPError, PAMQPException, OSError, RuntimeError, EOFError, StopAsyncIteration) as error:
        raise QueueUnavailableError(f"{doing}: {str(error) or type(error).__name__}") from error


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
        self, url: str, *, name: str, topology: Topology | None = None, patience_s: float = PATIENCE_S
    ) -> None:
        self._url = checked_url(url)
        self._name = name
        self.topology = topology or Topology()
        self.patience_s = patience_s
        self._connection: AbstractConnection | None = None
        self._connecting: asyncio.Task[AbstractConnection] | None = None
        self._closing: set[asyncio.Task[None]] = set()
        self._closed = False

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
            task.exception()  # whoever waits has it; there may be nobody left

    async def _connect(self) -> AbstractConnection:
        with broker_errors("cannot connect"):
            connection = Connection(self._url, client_properties={"connection_name": self._name})
            try:
                async with asyncio.timeout(self.patience_s):
                    await connection.connect()
                async with asyncio.timeout(self.patience_s):
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

    def drop(self) -> None:
        """It does not answer: the next one who asks makes another."""
        if self._connection is not None:
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
        """Idempotent. Returns when nothing of it is left."""
        self._closed = True
        if self._connecting is not None:
            self._connecting.cancel()
            await asyncio.wait({self._connecting})
        self.drop()
        if self._closing:
            await asyncio.wait(set(self._closing))


async def _close(connection: AbstractConnection) -> None:
    with suppress(AMQPError, OSError, RuntimeError, TimeoutError):
        async with asyncio.timeout(CLOSE_S):
            await connection.close(None)
