"""A Redis, gateways, publishers and watchers together: what the fault tests break, and how they judge it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from chaos.sources import ExecutionSource, JobSource, Source, read_log
from chaos.watchers import Subject, Watcher, until
from gateway_process import GatewayProcess
from servers import RedisServer

DRAIN_S = 2
DURABLE = {"appendonly": "yes", "appendfsync": "always"}


@dataclass
class Window:
    """One fault: how long it lasted, and how many events were given to the library and acknowledged meanwhile."""

    name: str
    seconds: float = 0.0
    begun: int = 0
    acknowledged: int = 0


class Site:
    """`async with Site(folder, gateways=2) as site:`; everything that it started is ended with it."""

    def __init__(
        self,
        folder: Path,
        *,
        gateways: int = 1,
        durable: bool = True,
        **options: Any,
    ) -> None:
        self.redis = RedisServer("redis", folder / "redis", **(DURABLE if durable else {}))
        self.url = self.redis.url()
        options = {"drain_seconds": DRAIN_S, **options}
        self.gateways = [GatewayProcess(folder / f"gateway{number}", self.url, **options) for number in range(gateways)]
        self.sources: list[Source] = []
        self.watchers: list[Watcher] = []
        self.windows: list[Window] = []
        self._tasks: list[asyncio.Task[None]] = []
        self._publishing: list[asyncio.Task[None]] = []

    @property
    def gateway(self) -> GatewayProcess:
        return self.gateways[0]

    @property
    def ports(self) -> list[int]:
        return [gateway.port for gateway in self.gateways]

    async def __aenter__(self) -> Self:
        try:
            await asyncio.to_thread(self.redis.start)
            await asyncio.to_thread(self._start)
        except BaseException:
            await self.__aexit__()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        for task in (*self._tasks, *self._publishing):
            task.cancel()
        await asyncio.gather(*self._tasks, *self._publishing, return_exceptions=True)
        if self.redis.is_running:
            self.redis.resume()
        for source in self.sources:
            await source.close()
        await asyncio.to_thread(self._stop)

    def _start(self) -> None:
        for gateway in self.gateways:
            gateway.spawn()
        for gateway in self.gateways:
            gateway.wait_ready()

    def _stop(self) -> None:
        with contextlib.ExitStack() as stack:
            stack.callback(self.redis.stop)
            for gateway in self.gateways:
                stack.callback(gateway.stop)

    # ---- who publishes and who watches -----------------------------------------------------------------------------

    async def publish(self, *, jobs: int = 1, executions: int = 1, pause_s: float = 0.03, filler: int = 100) -> None:
        """So many tapes, published to from now on."""
        made: list[Source] = [JobSource(self.url, f"j{n}", pause_s=pause_s, filler=filler) for n in range(jobs)]
        made += [ExecutionSource(self.url, f"e{n}", pause_s=pause_s, filler=filler) for n in range(executions)]
        self.sources += made
        for source in made:
            await source.open()
            self._publishing.append(asyncio.create_task(source.run()))

    async def watch(self, count: int, *, heartbeat_s: float | None = None, ports: list[int] | None = None) -> None:
        """So many more watchers, spread over the tapes and the gateways. Returns when all are live."""
        made = []
        for number in range(count):
            source = self.sources[number % len(self.sources)]
            name = f"w{len(self.watchers)}/{source.subject.id}"
            made.append(
                Watcher(
                    name,
                    source.subject,
                    ports or self.ports,
                    at=number // len(self.sources),
                    seed=number,
                    heartbeat_s=heartbeat_s,
                    open_s=20.0 if heartbeat_s is None else heartbeat_s,
                    obeys=number % 2 == 0,
                )
            )
        self.watchers += made
        self._tasks += [asyncio.create_task(watcher.run()) for watcher in made]
        await until(lambda: all(watcher.is_live for watcher in made), "all watchers are live", within_s=60)

    async def busy(self, sockets: int, *, jobs: int = 2, executions: int = 2) -> None:
        """So many watch, all are live, and something has come."""
        await self.publish(jobs=jobs, executions=executions)
        await self.watch(sockets)
        await self.some_are_acknowledged(10)

    async def goes_on(self) -> None:
        """Some more events after the faults, then the end."""
        await self.some_are_acknowledged()
        await self.settle()

    def source_of(self, subject: Subject) -> Source:
        return next(source for source in self.sources if source.subject == subject)

    # ---- faults ----------------------------------------------------------------------------------------------------

    @contextlib.asynccontextmanager
    async def fault(self, name: str) -> AsyncIterator[Window]:
        """Counts what is published while the fault lasts. It is over only when something was."""
        window = Window(name)
        begun, acknowledged = self._begun(), self._acknowledged()
        since = time.monotonic()
        yield window
        await until(
            lambda: self._begun() > begun or self._acknowledged() > acknowledged, f"something is published while {name}"
        )
        window.seconds = time.monotonic() - since
        window.begun = self._begun() - begun
        window.acknowledged = self._acknowledged() - acknowledged
        self.windows.append(window)

    def _begun(self) -> int:
        return sum(source.begun for source in self.sources)

    def _acknowledged(self) -> int:
        return sum(source.acknowledged for source in self.sources)

    async def some_are_acknowledged(self, count: int = 5, *, within_s: float = 40) -> None:
        """So many more events of each source, so that all is well again."""
        wanted = [(source, source.acknowledged + count) for source in self.sources]
        await until(
            lambda: all(source.acknowledged >= number for source, number in wanted),
            "the publishers go on",
            within_s=within_s,
        )

    # ---- the judgement ---------------------------------------------------------------------------------------------

    async def settle(self, *, within_s: float = 60) -> None:
        """No more is published; returns when every watcher has reached the end of its tape, or is too late."""
        for source in self.sources:
            source.stop()
        await asyncio.gather(*self._publishing)
        for source in self.sources:
            epoch, entries = await asyncio.to_thread(read_log, self.url, source.subject.tape)
            source.complaints += source.truth.log(epoch, entries)
        deadline = time.monotonic() + within_s
        while self._behind() and time.monotonic() < deadline:
            await asyncio.sleep(0.02)

    def _behind(self) -> list[Watcher]:
        found = []
        for watcher in self.watchers:
            truth = self.source_of(watcher.subject).truth
            if (watcher.chain.epoch, watcher.chain.offset) != (truth.epoch, truth.offset):
                found.append(watcher)
        return found

    def judge(self, *, may_lose: bool = False) -> list[str]:
        """All that is wrong, a few words each; call `settle` first."""
        found = [complaint for source in self.sources for complaint in source.complaints]
        for watcher in self.watchers:
            found += self.source_of(watcher.subject).truth.judge(watcher.chain, may_lose=may_lose)
        for window in self.windows:
            if not window.begun + window.acknowledged:
                found.append(f"nothing was published while {window.name}")
        for gateway in self.gateways:
            found += [f"the gateway broke: {text}" for text in gateway.tracebacks()]
        return found

    def facts(self) -> dict[str, object]:
        """What happened, for reports."""
        return {
            "events": {source.subject.tape: source.truth.offset for source in self.sources},
            "repeated_by_publishers": sum(source.repeated for source in self.sources),
            "connections": sum(watcher.connections for watcher in self.watchers),
            "watchers": len(self.watchers),
            "windows": [
                {"fault": w.name, "s": round(w.seconds, 2), "begun": w.begun, "acknowledged": w.acknowledged}
                for w in self.windows
            ],
        }


def whole(site: Site, *, may_lose: bool = False) -> None:
    """The chain test, after `settle`; fails with what is wrong."""
    problems = site.judge(may_lose=may_lose)
    assert problems == [], json.dumps({"problems": problems[:20], "all": len(problems), **site.facts()}, indent=1)
    assert site.windows, "there was a fault"
    for source in site.sources:
        assert source.truth.offset > 10 or may_lose, "the tape is long enough to show something"


@contextlib.contextmanager
def many_files() -> Iterator[None]:
    """For tests with thousands of sockets, in this process and those that it starts."""
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
