"""The ports of one event bus: where they come from, and whose they are."""

from __future__ import annotations

from typing import NamedTuple

from livetape.errors import ClosedError, ConfigError
from livetape.events.bus import Bus
from livetape.events.log import EventLog
from livetape.events.open import Backend, check_url, open_backend, open_client
from livetape.events.recorder import LogRecorder, Recorder
from livetape.observability import Metrics


class Ports(NamedTuple):
    """What publishing and listening need. `log` and `recorder` are there when the bus is durable."""

    bus: Bus
    log: EventLog | None
    recorder: Recorder | None


class Source:
    """Exactly one of a URL, a client of redis-py, a backend or a bus.

    Raises:
        ConfigError: none or several of them, an unusable URL, or a bus alone for durable events.
    """

    def __init__(
        self,
        *,
        url: str | None,
        bus: Bus | None,
        backend: Backend | None,
        client: object | None,
        durable: bool,
        metrics: Metrics,
    ) -> None:
        given = [
            name for name, value in (("url", url), ("bus", bus), ("backend", backend), ("client", client)) if value
        ]
        if len(given) != 1:
            raise ConfigError(
                f"an event bus needs one adapter, not {' and '.join(given) or 'none'}",
                fix="give url=, client=, backend= or bus=",
            )
        if durable and bus is not None:
            raise ConfigError("a durable event bus needs a log too", fix="give url= or backend=")
        if url is not None:
            check_url(url)
        self._url = url
        self._client = client
        self._given = Backend(bus) if bus is not None else backend
        self._durable = durable
        self._metrics = metrics
        self._opened: Backend | None = None
        self._ports: Ports | None = None

    @property
    def ports(self) -> Ports:
        """What `open` returned last."""
        if self._ports is None:
            raise ClosedError("the event bus is not open")
        return self._ports

    def open(self) -> Ports:
        """The ports for the running loop; what was opened for another loop, which has ended, is left behind.

        Raises:
            ConfigError: the adapter cannot be opened like this, or has no log although the bus is durable.
        """
        backend = self._given
        if backend is None:
            if self._url is not None:
                backend = open_backend(self._url, metrics=self._metrics)
            else:
                backend = open_client(self._client, metrics=self._metrics)
            self._opened = backend
        recorder: Recorder | None = None
        if self._durable:
            if backend.log is None:
                raise ConfigError(
                    "this adapter keeps nothing", fix="durable=False, or a URL with a log (redis, sqlite)"
                )
            recorder = backend.recorder or LogRecorder(backend.log, backend.bus, metrics=self._metrics)
        self._ports = Ports(backend.bus, backend.log, recorder)
        return self._ports

    async def close(self) -> None:
        """Close what was opened here. Idempotent."""
        opened, self._opened, self._ports = self._opened, None, None
        if opened is not None:
            await opened.close()
