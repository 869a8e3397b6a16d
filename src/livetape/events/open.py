"""From a URL, or somebody's Redis client, to the ports behind it.

The event library imports no driver: a scheme names a function that is imported when it is called for.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from importlib import import_module
from types import TracebackType
from typing import Any, Final, Self

from livetape.errors import ConfigError
from livetape.events.bus import Bus
from livetape.events.copier import Copier
from livetape.events.groups import ConsumerGroups
from livetape.events.log import EventLog
from livetape.events.recorder import Recorder
from livetape.events.tape_retention import TapeRetention
from livetape.observability import Metrics, NoMetrics

REDIS: Final = "livetape.adapters.redis.open:from_url"
_OPENERS: Final = {
    "memory": "livetape.adapters.memory.open:from_url",
    "sqlite": "livetape.adapters.sqlite.open:from_url",
    "redis": REDIS,
    "rediss": REDIS,
    "unix": REDIS,
    "redis+sentinel": REDIS,
    "rediss+sentinel": REDIS,
    "redis+cluster": REDIS,
    "rediss+cluster": REDIS,
}
_WITHOUT_BUS: Final = frozenset({"sqlite"})
"""These keep events and carry none: they get the bus of the process."""

_FROM_CLIENT: Final = "livetape.adapters.redis.open:from_client"


@dataclass(slots=True)
class Backend:
    """The ports of the event library, opened together; `close`, or leaving `async with`, closes what was opened for it.

    `log`, `recorder` and `groups` are None where there is nothing durable (`memory://`). `copier` is there where
    copying and publishing are one step (Redis); elsewhere `LogCopier(log, bus)` does it.
    """

    bus: Bus
    log: EventLog | None = None
    recorder: Recorder | None = None
    groups: ConsumerGroups | None = None
    copier: Copier | None = None
    on_close: list[Callable[[], Awaitable[None]]] = field(default_factory=list)

    async def close(self) -> None:
        """Idempotent; last opened, first closed."""
        while self.on_close:
            await self.on_close.pop()()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()


def open_backend(url: str, *, metrics: Metrics | None = None, retention: TapeRetention | None = None) -> Backend:
    """The adapter that the URL's scheme names. Connects nothing yet; use and close it in one event loop.

    | URL | what it is |
    | --- | --- |
    | `memory://` | the bus of this object alone, nothing durable |
    | `sqlite:///folder/file.db` (relative), `sqlite:////folder/file.db` | a bus inside this process, tapes in a file |
    | `redis://user:password@host:6379/0`, `rediss://…` (TLS), `unix:///path?db=0` | one Redis or Valkey |
    | `redis+sentinel://user:password@host:26379,host2:26379/service/0` | the master that the Sentinels name |
    | `redis+cluster://host:6379,host2:6379` | a Redis Cluster |

    `retention` is what Redis forgets by itself from each append on; everybody who appends to a tape should say the
    same. Nothing is forgotten by appending to the others, where it has no effect: there `livetape.events.Retention`
    trims.

    Raises:
        ConfigError: an unknown scheme, an unusable URL, or a driver that is not installed (says what to install).
    """
    scheme = url.partition(":")[0].lower()
    opener = _OPENERS.get(scheme)
    if opener is None:
        raise ConfigError(
            f"there is no event adapter for {scheme or 'a URL without a scheme'}",
            fix=f"use one of {', '.join(sorted(_OPENERS))}",
        )
    if scheme in _WITHOUT_BUS:
        process = _call(_OPENERS["memory"], "memory://", metrics)
        backend = _call(opener, url, metrics, bus=process.bus)
        backend.on_close[:0] = process.on_close
        return backend
    if opener == REDIS:
        return _call(opener, url, metrics, retention=retention)
    return _call(opener, url, metrics)


def check_url(url: str) -> None:
    """Whether `open_backend` would take this URL. Nothing is opened or connected.

    Raises:
        ConfigError: as `open_backend`.
    """
    open_backend(url)  # which makes objects and connects nothing


def open_client(client: object, *, metrics: Metrics | None = None, retention: TapeRetention | None = None) -> Backend:
    """The Redis adapter on a client of redis-py: `redis.asyncio.Redis` or `redis.Redis`, on Sentinel or a cluster too.

    Commands go through an asynchronous client itself, so that its pool and its life stay the caller's; what listens
    makes connections of its own with the client's settings. The client is not closed. `retention`: see `open_backend`.

    Raises:
        ConfigError: not such a client.
    """
    return _call(_FROM_CLIENT, client, metrics, retention=retention)


def _call(opener: str, source: object, metrics: Metrics | None, **more: object) -> Backend:
    module, _, name = opener.partition(":")
    try:
        function: Callable[..., Any] = getattr(import_module(module), name)
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in {"redis", "hiredis"}:
            raise
        raise ConfigError(
            "Redis needs a driver that is not installed", because=str(error), fix="pip install 'livetape[redis]'"
        ) from error
    backend: Backend = function(source, metrics=metrics or NoMetrics(), **more)
    return backend
