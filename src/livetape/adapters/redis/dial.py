"""From an Endpoint to a Connection that is logged in and speaks RESP3 (RESP2 with servers that refuse it)."""

from __future__ import annotations

import asyncio
import os
import socket
import ssl
from collections.abc import Callable
from typing import Any

from livetape.adapters.redis.commands import LoginRefusedError, RedisLinkError, RedisReplyError
from livetape.adapters.redis.connection import MAX_QUEUED_BYTES, Connection
from livetape.adapters.redis.endpoint import Address, Endpoint
from livetape.adapters.redis.locate import Locator, credentials
from livetape.events.answer_limit import AnswerLimit


class Dialer:
    """Makes connections to one endpoint."""

    def __init__(
        self, endpoint: Endpoint, locator: Locator, *, name: str = "", max_queued_bytes: int = MAX_QUEUED_BYTES
    ) -> None:
        self.endpoint = endpoint
        self._locator = locator
        self._name = name or endpoint.client_name
        self._max_queued_bytes = max_queued_bytes
        self._tls: ssl.SSLContext | None = None
        self.reached: tuple[Address, ...] = ()
        """Where the last connection led to: the address as it was given, and as the system knows it."""

    async def dial(
        self,
        *,
        on_pushes: Callable[[list[Any]], None] | None = None,
        on_end: Callable[[Connection], None] | None = None,
    ) -> Connection:
        """A new connection, ready for commands.

        Raises:
            RedisLinkError: not reached, not in time, or not let in (LoginRefusedError). Names the address, no secret.
            ConfigError: the TLS settings are unusable.
        """
        endpoint = self.endpoint
        address = await self._locator.locate()
        if endpoint.tls is not None and self._tls is None:
            self._tls = endpoint.tls.context()
        made: list[Connection] = []

        def make() -> Connection:
            connection = Connection(
                endpoint.reply_s, on_pushes=on_pushes, on_end=on_end, max_queued_bytes=self._max_queued_bytes
            )
            made.append(connection)
            return connection

        ready = False
        try:
            async with AnswerLimit(endpoint.connect_s):
                connection = await self._open(address, make)
                await self._greet(connection)
            peer = connection.peer
            self.reached = (address,) if peer is None else (address, peer)
            ready = True
            return connection
        except TimeoutError as error:
            raise RedisLinkError(f"{address} did not answer in {endpoint.connect_s:g} s", sent=False) from error
        except OSError as error:
            raise RedisLinkError(f"cannot connect to {address}: {_plain(error)}", sent=False) from error
        except RedisReplyError as error:
            if error.code in {"WRONGPASS", "NOAUTH", "NOPERM"} or "AUTH" in str(error):
                raise LoginRefusedError(f"{address} refused the login: {error}") from error
            if "DB index" in str(error):
                raise LoginRefusedError(f"{address} has no such database: {error}") from error
            raise RedisLinkError(f"{address} refused the connection: {error}", sent=False) from error
        except LoginRefusedError:
            raise
        except RedisLinkError as error:
            raise RedisLinkError(f"{address}: {error}", sent=False) from error
        finally:
            if not ready:
                for connection in made:
                    if connection.alive:
                        await connection.close("it was not ready in time")

    async def _open(self, address: Address, make: Callable[[], Connection]) -> Connection:
        loop = asyncio.get_running_loop()
        if address.path:
            _, connection = await loop.create_unix_connection(make, address.path, ssl=self._tls)
            return connection
        transport, connection = await loop.create_connection(make, address.host, address.port, ssl=self._tls)
        link = transport.get_extra_info("socket")
        if link is not None:
            link.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        return connection

    async def _greet(self, connection: Connection) -> None:
        username, password = await credentials(self.endpoint.login)
        login = ("AUTH", username or "default", password or "") if password is not None else ()
        hello = connection.call("HELLO", "3", *login, "SETNAME", self._name)
        try:
            await hello
        except RedisReplyError as error:
            if error.code in {"WRONGPASS", "LOADING"}:
                raise
            await self._greet_resp2(connection, username, password)
        if self.endpoint.db:
            await connection.call("SELECT", self.endpoint.db)
        if self.endpoint.kind == "sentinel":
            role = await connection.call("ROLE")
            if role[0] != b"master":
                raise RedisLinkError("it is no longer the master", sent=False)

    async def _greet_resp2(self, connection: Connection, username: str | None, password: str | None) -> None:
        """Servers before version 6, and those whose administrator forbids HELLO."""
        if password is not None:
            await connection.call("AUTH", *((username,) if username else ()), password)
        await connection.call("PING")  # would a command be refused for want of a login?
        connection.resp2 = True


def _plain(error: OSError) -> str:
    """What went wrong, without repeating the address."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"its certificate is not trusted ({error.verify_message})"
    if isinstance(error, ssl.SSLError):
        return f"TLS failed ({error.reason or 'no reason given'})"
    if error.errno is not None and error.errno > 0:
        return os.strerror(error.errno)
    return error.strerror or str(error) or type(error).__name__
