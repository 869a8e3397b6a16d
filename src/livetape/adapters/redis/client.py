"""Commands through redis-py: a caller's own client, and clusters, whose slots redis-py knows how to follow."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from typing import Any, Final

from redis.asyncio.cluster import ClusterNode, RedisCluster
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.client import NEVER_DECODE
from redis.exceptions import (
    AuthenticationError,
    MaxConnectionsError,
    RedisClusterException,
    RedisError,
    ResponseError,
    SlotNotCoveredError,
)

from livetape.adapters.redis.commands import Commands, LoginRefusedError, RedisLinkError, RedisReplyError, Word
from livetape.adapters.redis.endpoint import Address, Endpoint
from livetape.adapters.redis.turns import Turns

PARALLEL: Final = 32
AVOID_S: Final = 5.0
"""So long nothing is published through a node of a cluster that did not answer."""
_UNDECODED: Final[dict[str, Any]] = {NEVER_DECODE: True}


class ClientCommands:
    """The `Commands` of a caller's `redis.asyncio.Redis`: its pool, its time-outs, its retries. Never closes it.

    Commands with the same key wait for each other, because a pool gives each its own connection. A client that is set
    to repeat commands after a broken connection may publish a message twice.
    """

    def __init__(self, client: Any) -> None:
        self._client = client
        self._turns = Turns(PARALLEL, _closed)

    def send(self, words: Sequence[Word], key: str = "") -> Awaitable[Any]:
        return self._turns.add(key, lambda: self._execute(words))

    async def masters(self) -> Sequence[Commands]:
        return (self,)

    async def close(self) -> None:
        await self._turns.close()

    async def _execute(self, words: Sequence[Word]) -> Any:
        try:
            return await self._client.execute_command(*as_it_is(self._client.response_callbacks, words), **_UNDECODED)
        except (RedisError, RedisClusterException, OSError) as error:
            raise translated(error) from error


class ClusterCommands:
    """The `Commands` of a cluster. Those with a key go to the master of its slot, the others to any master.

    redis-py follows the slots when they move; a command whose node is gone is not repeated, the next one goes to
    whoever took its place. Closes the client when it is `owned`.
    """

    def __init__(self, cluster: RedisCluster, *, owned: bool) -> None:
        self._cluster = cluster
        self._owned = owned
        self._turns = Turns(PARALLEL, _closed)
        self._starting = asyncio.Lock()
        self.listens_at: Callable[[], Sequence[Address]] = tuple
        """The node that a bus listens at, under any of its names; what is published goes there first."""
        self._avoided: dict[str, float] = {}  # node -> until when, by the loop's clock

    @classmethod
    def at(cls, endpoint: Endpoint) -> ClusterCommands:
        """With a client of its own. Connects nothing yet."""
        return cls(
            RedisCluster(
                startup_nodes=[ClusterNode(address.host, address.port) for address in endpoint.addresses],
                credential_provider=endpoint.login,
                client_name=endpoint.client_name,
                socket_timeout=endpoint.reply_s,
                socket_connect_timeout=endpoint.connect_s,
                retry=Retry(NoBackoff(), 0),
                require_full_coverage=False,
                **({} if endpoint.tls is None else endpoint.tls.options()),
            ),
            owned=True,
        )

    def send(self, words: Sequence[Word], key: str = "") -> Awaitable[Any]:
        return self._turns.add(key, lambda: self._execute(words, key))

    async def masters(self) -> Sequence[Commands]:
        await self._start()
        return [_NodeCommands(self, node.name) for node in self._cluster.get_primaries()]

    async def close(self) -> None:
        await self._turns.close()
        if self._owned:
            await self._cluster.aclose()
            # A client that was still asking for the nodes, or asking again, takes itself for one that has no
            # connections yet.
            for nodes in ("nodes_cache", "startup_nodes"):
                await self._cluster.nodes_manager.aclose(nodes)

    def known(self) -> Iterable[Address]:
        """The nodes that it has learnt of."""
        return [Address(str(node.host), int(node.port)) for node in self._cluster.get_nodes()]

    async def _start(self) -> None:
        async with self._starting:  # many at once would each ask every node
            try:
                await self._cluster.initialize()
            except (RedisError, RedisClusterException, OSError) as error:
                raise RedisLinkError(f"the cluster cannot be reached: {type(error).__name__}", sent=False) from error

    async def _execute(self, words: Sequence[Word], key: str, node_name: str = "") -> Any:
        await self._start()
        cluster = self._cluster
        publishes = words[0] == "PUBLISH"
        try:
            if node_name:
                node = cluster.get_node(node_name=node_name)
            elif publishes:
                node = self._publisher(key)
            else:
                node = cluster.get_node_from_key(key) if key else cluster.get_random_primary_node()
        except (RedisClusterException, IndexError) as error:
            raise RedisReplyError("CLUSTERDOWN no node serves this key") from error
        if node is None:
            raise RedisLinkError("the node has left the cluster", sent=False)
        try:
            return await cluster.execute_command(
                *as_it_is(cluster.response_callbacks, words), target_nodes=node, **_UNDECODED
            )
        except (RedisError, RedisClusterException, OSError) as error:
            problem = translated(error)
            if publishes and isinstance(problem, RedisLinkError):
                self._avoided[node.name] = asyncio.get_running_loop().time() + AVOID_S
            raise problem from error

    async def publish_from_afar(self, channel: str, data: bytes) -> int:
        """Through another node than the one that a bus listens at, if there is one: does the cluster hold together?

        Raises:
            RedisLinkError: it could not be sent.
        """
        return int(await self._turns.add(channel, lambda: self._execute_afar(("PUBLISH", channel, data), channel)))

    async def _execute_afar(self, words: Sequence[Word], key: str) -> Any:
        await self._start()
        near = {node.name for node in self._near()}
        far = [node.name for node in self._cluster.get_primaries() if node.name not in near]
        return await self._execute(words, key, random.choice(far) if far else "")  # noqa: S311

    def _near(self) -> list[ClusterNode]:
        found = [self._cluster.get_node(address.host, address.port) for address in self.listens_at()]
        return [node for node in found if node is not None]

    def _publisher(self, channel: str) -> ClusterNode:
        """Every node passes messages on to all others; one channel stays with one node, for the sake of its order."""
        now = asyncio.get_running_loop().time()
        cluster = self._cluster
        for near in self._near():
            if self._avoided.get(near.name, 0.0) <= now:
                return near
        masters = sorted(cluster.get_primaries(), key=lambda node: str(node.name))
        serving = [node for node in masters if self._avoided.get(node.name, 0.0) <= now] or masters
        return serving[cluster.keyslot(channel) % len(serving)]

    def send_to(self, node_name: str, words: Sequence[Word], key: str) -> Awaitable[Any]:
        """Like `send`, to this node."""
        return self._turns.add(f"{node_name} {key}", lambda: self._execute(words, key, node_name))


class _NodeCommands:
    """One master of a cluster. Lives as long as the commands of the cluster."""

    def __init__(self, cluster: ClusterCommands, node_name: str) -> None:
        self._cluster = cluster
        self._node_name = node_name

    def send(self, words: Sequence[Word], key: str = "") -> Awaitable[Any]:
        return self._cluster.send_to(self._node_name, words, key)

    async def masters(self) -> Sequence[Commands]:
        return (self,)

    async def close(self) -> None:
        """Nothing here is its own."""


def as_it_is(callbacks: Mapping[str, Any], words: Sequence[Word]) -> tuple[Word, ...]:
    """The words so that redis-py neither decodes the reply nor turns it into something else.

    It knows what to do with a reply by the command's name; a blank after it, which redis-py drops when it sends the
    command, makes it a name that it does not know.
    """
    name = words[0].decode() if isinstance(words[0], bytes) else str(words[0])
    return (f"{name} " if name in callbacks else name, *words[1:])


def translated(error: Exception) -> RedisLinkError | RedisReplyError:
    """What redis-py raised, as `Commands` says it."""
    text = str(error)
    if isinstance(error, SlotNotCoveredError):
        return RedisReplyError(f"CLUSTERDOWN {text}")
    code: str | None = getattr(error, "status_code", None)
    if isinstance(error, ResponseError) or code == "LOADING":
        return RedisReplyError(f"{code} {text}" if code else text)
    if isinstance(error, AuthenticationError):
        return LoginRefusedError(f"the server refused the login: {text}")
    if isinstance(error, MaxConnectionsError | RedisClusterException):
        return RedisLinkError(text or type(error).__name__, sent=False)
    return RedisLinkError(text or type(error).__name__, sent=True)


def _closed() -> RedisLinkError:
    return RedisLinkError("the connection is closed", sent=True)
