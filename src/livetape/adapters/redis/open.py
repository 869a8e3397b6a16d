"""Opener of `livetape.events.open` for Redis: joins the bus, the log, the recorder and the groups."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from redis.asyncio import Redis, RedisCluster

from livetape.adapters.redis.borrow import endpoint_of
from livetape.adapters.redis.bus import RedisBus
from livetape.adapters.redis.client import ClientCommands, ClusterCommands
from livetape.adapters.redis.commands import Commands
from livetape.adapters.redis.copier import RedisCopier
from livetape.adapters.redis.dial import Dialer
from livetape.adapters.redis.endpoint import Endpoint
from livetape.adapters.redis.ephemeral import RedisEphemeral
from livetape.adapters.redis.groups import RedisGroups
from livetape.adapters.redis.locate import locator_of
from livetape.adapters.redis.log import RedisLog
from livetape.adapters.redis.pipeline import PipelinedCommands
from livetape.adapters.redis.recorder import RedisRecorder
from livetape.events.open import Backend
from livetape.events.tape_retention import TapeRetention
from livetape.observability import Metrics


def from_url(url: str, *, metrics: Metrics, retention: TapeRetention | None = None) -> Backend:
    """Opener of `livetape.events.open`."""
    return at_endpoint(Endpoint.from_url(url), metrics=metrics, retention=retention)


def ephemeral_from_url(url: str) -> tuple[RedisEphemeral, Callable[[], Awaitable[None]]]:
    """The Ephemeral port on a connection of its own, and what closes that. Connects nothing yet."""
    endpoint = Endpoint.from_url(url)
    commands: Commands
    if endpoint.kind == "cluster":
        commands = ClusterCommands.at(endpoint)
    else:
        commands = PipelinedCommands(Dialer(endpoint, locator_of(endpoint)))
    return RedisEphemeral(commands), commands.close


def from_client(client: object, *, metrics: Metrics, retention: TapeRetention | None = None) -> Backend:
    """Opener of `livetape.events.open`."""
    endpoint = endpoint_of(client)
    if isinstance(client, RedisCluster):
        return _joined(endpoint, ClusterCommands(client, owned=False), metrics, retention)
    if isinstance(client, Redis):
        return _joined(endpoint, ClientCommands(client), metrics, retention)
    return at_endpoint(endpoint, metrics=metrics, retention=retention)


def at_endpoint(endpoint: Endpoint, *, metrics: Metrics, retention: TapeRetention | None = None) -> Backend:
    """With connections of its own."""
    if endpoint.kind == "cluster":
        return _joined(endpoint, ClusterCommands.at(endpoint), metrics, retention)
    return _joined(endpoint, PipelinedCommands(Dialer(endpoint, locator_of(endpoint))), metrics, retention)


def _joined(
    endpoint: Endpoint, commands: Commands, metrics: Metrics, retention: TapeRetention | None = None
) -> Backend:
    known = commands.known if isinstance(commands, ClusterCommands) else tuple
    link = Dialer(endpoint, locator_of(endpoint, known), name=f"{endpoint.client_name}-listen")
    bus = RedisBus(commands, link, metrics=metrics)
    log = RedisLog(commands, retention=retention)
    recorder = RedisRecorder(commands, retention=retention, metrics=metrics)
    groups = RedisGroups(commands)
    backend = Backend(bus, log, recorder, groups, RedisCopier(commands, retention=retention))
    backend.on_close += [commands.close, bus.close, log.close, groups.close, recorder.close]
    return backend
