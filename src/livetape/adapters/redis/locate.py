"""Which server to connect to now: the one, the master that Sentinels name, or any node of a cluster."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable, Iterable
from typing import Any, Protocol

from redis.asyncio.retry import Retry
from redis.asyncio.sentinel import Sentinel
from redis.backoff import NoBackoff
from redis.credentials import CredentialProvider
from redis.exceptions import RedisError

from livetape.adapters.redis.commands import RedisLinkError
from livetape.adapters.redis.endpoint import Address, Endpoint


class Locator(Protocol):
    """Asked before each attempt to connect."""

    async def locate(self) -> Address:
        """Raises:
        RedisLinkError: nobody knows.
        """
        ...


class FixedLocator:
    """Always the same."""

    def __init__(self, address: Address) -> None:
        self._address = address

    async def locate(self) -> Address:
        return self._address


class SentinelLocator:
    """The first Sentinel that answers and knows a healthy master."""

    def __init__(self, endpoint: Endpoint) -> None:
        self._endpoint = endpoint

    async def locate(self) -> Address:
        asking = asyncio.ensure_future(self._ask())
        try:
            return await asyncio.shield(asking)
        except asyncio.CancelledError:
            # A cancellation in the middle of its connecting would leave redis-py's socket open. It ends in time.
            await asyncio.wait({asking})
            if not asking.cancelled():
                asking.exception()
            raise

    async def _ask(self) -> Address:
        endpoint = self._endpoint
        options: dict[str, Any] = {
            "socket_timeout": endpoint.connect_s,
            "socket_connect_timeout": endpoint.connect_s,
            "credential_provider": endpoint.sentinel_login,
            "retry": Retry(NoBackoff(), 0),  # the next Sentinel is asked instead
        }
        if endpoint.sentinel_tls is not None:
            options |= endpoint.sentinel_tls.options()
        make: Any = Sentinel  # without types
        sentinel = make([(a.host, a.port) for a in endpoint.addresses], sentinel_kwargs=options)
        try:
            host, port = await sentinel.discover_master(endpoint.service)
        except (RedisError, OSError) as error:
            message = f"no Sentinel names a master of {endpoint.service}: {type(error).__name__}"
            raise RedisLinkError(message, sent=False) from error
        finally:
            await sentinel.aclose()
        return Address(str(host), int(port))


class ClusterLocator:
    """One node after the other: those that were named, and those that `known` has learnt of since."""

    def __init__(self, endpoint: Endpoint, known: Callable[[], Iterable[Address]] = tuple) -> None:
        self._endpoint = endpoint
        self._known = known
        self._turn = itertools.count()

    async def locate(self) -> Address:
        addresses = list(dict.fromkeys([*self._endpoint.addresses, *self._known()]))
        return addresses[next(self._turn) % len(addresses)]


def locator_of(endpoint: Endpoint, known: Callable[[], Iterable[Address]] = tuple) -> Locator:
    """The one for this kind of endpoint."""
    if endpoint.kind == "sentinel":
        return SentinelLocator(endpoint)
    if endpoint.kind == "cluster":
        return ClusterLocator(endpoint, known)
    return FixedLocator(endpoint.addresses[0])


async def credentials(login: CredentialProvider | None) -> tuple[str | None, str | None]:
    """User name and password, as the provider gives them now."""
    if login is None:
        return None, None
    found = await login.get_credentials_async()
    return (found[0], found[1]) if len(found) > 1 else (None, found[0])
