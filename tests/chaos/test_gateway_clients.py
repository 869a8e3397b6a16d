"""Clients that are slow, hostile or too many: they pay for it themselves, and nobody else notices."""

from __future__ import annotations

import asyncio
import json
import os
import random
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from chaos import faults
from chaos.rawsocket import CLOSE, HANDSHAKE, TEXT, Parser, connect, frame
from chaos.site import Site, whole
from chaos.sources import JobSource
from chaos.watchers import Subject, until
from livetape.auth import DEFAULT_USER_ID
from livetape.events.streams import RedisStreamPublisher

pytestmark = [pytest.mark.slow, pytest.mark.serial, pytest.mark.needs("redis"), pytest.mark.timeout(120)]

MIB = 1024 * 1024


class SlowReader:
    """Takes so many bytes a second from a socket with a small buffer, and answers nothing."""

    def __init__(self, port: int, texts: list[str], *, bytes_per_second: int) -> None:
        self._port = port
        self._texts = texts
        self._rate = bytes_per_second
        self.messages = 0
        self.close_code: int | None = None
        self.ended = False

    async def run(self) -> None:
        loop = asyncio.get_running_loop()
        with socket.socket() as link:
            link.setblocking(False)
            link.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            await loop.sock_connect(link, ("127.0.0.1", self._port))
            await loop.sock_sendall(link, HANDSHAKE.format(path="/ws", port=self._port, more="").encode())
            head = b""
            while b"\r\n\r\n" not in head:
                head += await loop.sock_recv(link, 1)
            for text in self._texts:
                await loop.sock_sendall(link, frame(TEXT, text.encode()))
            parser = Parser()
            while not self.ended:
                await asyncio.sleep(1)
                try:
                    data = await loop.sock_recv(link, self._rate) if self._rate else b"?"
                except OSError:
                    data = b""
                self.ended = not data
                for opcode, payload in parser.feed(data if self._rate else b""):
                    self.messages += opcode == TEXT
                    if opcode == CLOSE:
                        self.close_code = int.from_bytes(payload[:2], "big")


async def test_a_reader_of_a_kilobyte_a_second_among_five_hundred_fast_ones(tmp_path: Path) -> None:
    async with Site(tmp_path, outbox_max_bytes=128 * 1024, slow_seconds=4, close_seconds=2) as site:
        await site.publish(jobs=1, executions=0, pause_s=0.04, filler=2500)
        await site.watch(500)
        for watcher in site.watchers[:20]:
            watcher.lags, watcher.began = [], site.sources[0].began
        # The system takes some megabytes for a client that does not read: history fills that, so that live events wait.
        async with RedisStreamPublisher(url=site.url, user_id=DEFAULT_USER_ID) as publisher:
            for _ in range(100):
                await publisher.publish_event("history", {"event_type": "task_progress", "text": "x" * 64 * 1024})
        # A socket that is behind is not read: what is live comes first, or its subscribe would not be heard.
        texts = [site.sources[0].subject.subscribe("earliest"), Subject("job", "history").subscribe("earliest")]
        slow = SlowReader(site.gateway.port, texts, bytes_per_second=1024)
        task = asyncio.create_task(slow.run())
        try:
            async with site.fault("somebody read slowly"):
                await until(lambda: site.gateway.metric("gateway_closed_total", code="4008") == 1, "4008", within_s=25)
            assert site.gateway.metric("gateway_resyncs_total") >= 1
            await site.goes_on()
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        whole(site)
        assert all(watcher.connections == 1 for watcher in site.watchers)
        lags = sorted(lag for watcher in site.watchers for lag in watcher.lags or ())
        assert lags[len(lags) * 99 // 100] < 1.0, f"p99 of the fast ones: {lags[len(lags) * 99 // 100]:.3f} s"


async def test_fifty_megabytes_for_one_that_does_not_read(tmp_path: Path) -> None:
    """What it does not take stays in the log, not in the gateway's memory."""
    async with Site(tmp_path, durable=False, slow_seconds=3, close_seconds=1) as site:
        await site.publish(jobs=1, executions=0, pause_s=0, filler=64 * 1024)
        source = site.sources[0]
        await site.watch(1)
        deaf = SlowReader(site.gateway.port, [source.subject.subscribe("latest")], bytes_per_second=0)
        task = asyncio.create_task(deaf.run())
        await until(lambda: source.acknowledged > 30, "warm")
        before = most = site.gateway.rss_bytes()
        try:
            async with site.fault("somebody did not read"):
                while source.acknowledged < 830:
                    await asyncio.sleep(0.05)
                    most = max(most, site.gateway.rss_bytes())
            await site.settle()
            await until(lambda: site.gateway.metric("gateway_closed_total", code="4008") == 1, "4008", within_s=15)
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        whole(site)
        assert site.gateway.metric("gateway_resyncs_total") >= 1
        assert source.truth.offset * 64 * 1024 > 50 * MIB
        assert most - before < 40 * MIB, f"the gateway grew by {(most - before) / MIB:.1f} MiB"


async def test_thirty_three_megabytes_do_not_end_a_socket(tmp_path: Path) -> None:
    """The event is on the tape; on the bus stands the notice, and the socket is sent it shortened, and told so."""
    async with Site(tmp_path, durable=False) as site:
        await site.busy(10, jobs=1, executions=0)
        source = site.sources[0]
        assert isinstance(source, JobSource)
        async with site.fault("somebody published 33 MB"):
            large = await source.record({"event_type": "task_progress", "n": "large", "text": "x" * 33 * MIB})
        await site.some_are_acknowledged()
        late = len(site.watchers)
        await site.watch(2)
        await site.goes_on()
        truth, where = source.truth, (large.epoch, large.offset)
        for watcher in site.watchers:
            chain = watcher.chain
            assert chain.too_large == [where], "told once, with its place"
            assert chain.losses == [f"{chain.name}: too large: {large.epoch} {large.offset}"]
            assert list(truth.judge(chain, may_lose=True)) == []
            assert [(s.first, s.last) for s in chain.stretches] == [
                (1, large.offset - 1), (large.offset + 1, truth.offset),
            ]  # fmt: skip
        assert all(watcher.connections == 1 for watcher in site.watchers[:late])
        assert site.gateway.tracebacks() == []


async def test_rubbish_disturbs_nobody_else(tmp_path: Path) -> None:
    async with Site(tmp_path, messages_per_second=1e6, message_burst=10**6) as site:
        await site.busy(60)
        async with site.fault("rubbish was sent"):
            for seed in range(4):
                await faults.fuzzed(site, random.Random(seed), sockets=40, frames=60)
        await site.goes_on()
        whole(site)
        assert all(watcher.connections == 1 for watcher in site.watchers)
        await until(lambda: site.gateway.metric("websocket_connections_total") == 60, "the others are gone")


async def test_ten_thousand_subscriptions_leave_nothing(tmp_path: Path) -> None:
    """Subscribed and given back, or left with the socket, ten at a time: no upstream channel stays, and no memory."""
    async with Site(tmp_path, messages_per_second=1e6, message_burst=10**6) as site:
        await site.busy(4, jobs=2, executions=2)
        channels = upstream(site)
        grown: list[int] = []
        async with site.fault("many subscribed and went"):
            for part in range(5):
                await asyncio.gather(*(cycles(site.gateway.port, f"p{part}s{n}", 200) for n in range(10)))
                grown.append(site.gateway.rss_bytes())
        await until(lambda: site.gateway.metric("websocket_connections_total") == 4, "all are gone")
        await until(lambda: upstream(site) == channels, f"upstream there is {channels} again, not {upstream(site)}")
        await site.goes_on()
        whole(site)
        assert grown[-1] - grown[1] < 6 * MIB, f"it grows: {[round(size / MIB, 1) for size in grown]}"


def upstream(site: Site) -> set[str]:
    """What is subscribed in Redis, exactly or by pattern."""
    import redis

    with redis.Redis.from_url(site.url) as client:
        exact = {name.decode() for name in client.pubsub_channels() if not name.startswith(b"livetape_probe/")}
        return exact | {f"{client.pubsub_numpat()} patterns"}


async def cycles(port: int, name: str, count: int) -> None:
    """One socket that subscribes to one thing after the other; every reply is awaited."""
    answers: asyncio.Queue[bytes] = asyncio.Queue()
    link = await connect(port, answers.put_nowait)
    try:
        for number in range(count):
            job = f"{name}n{number}"
            method, key = ("subscribe_graph_execution", "graph_exec_id") if number % 2 else ("subscribe_job", "job_id")
            link.send(json.dumps({"method": method, "data": {key: job}}))
            link.send(json.dumps({"method": "unsubscribe", "data": {key: job}}))
            async with asyncio.timeout(10):
                first, second = await answers.get(), await answers.get()
            assert json.loads(first)["success"] is True
            assert json.loads(second)["channel"] is not None
        for number in range(20):  # and goes without giving these back
            link.send(json.dumps({"method": "subscribe_job", "data": {"job_id": f"{name}left{number}"}}))
            async with asyncio.timeout(10):
                await answers.get()
    finally:
        link.cut()
        await link.gone


CROWD, TAPES, BEHIND = 5000, 50, 50


@pytest.mark.timeout(180)
async def test_five_thousand_come_back_at_once(tmp_path: Path) -> None:
    """Each with a position that is fifty events behind. How often the log was read is written down."""
    async with Site(tmp_path, durable=False, max_sockets=20_000) as site:
        await site.publish(jobs=TAPES, executions=0, pause_s=0)
        await asyncio.gather(*(reach(source, BEHIND + 50) for source in site.sources))
        await site.settle()
        before = commands(site)
        since = time.monotonic()
        crowds = [
            await asyncio.create_subprocess_exec(
                sys.executable, "-m", "chaos.crowd", json.dumps(crowd(site, part)),
                stdout=subprocess.PIPE, env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
            )
            for part in range(2)
        ]  # fmt: skip
        answers = [json.loads((await process.communicate())[0] or b"null") for process in crowds]
        seconds = time.monotonic() - since
        for answer in answers:
            assert answer is not None, "the crowd did not end well"
            assert answer["problems"] == []
            assert answer["complete"] == CROWD // 2
            for tape, digests in answer["digests"].items():
                truth = next(s.truth for s in site.sources if s.subject.tape == tape)
                assert digests == [truth.digest(truth.epoch, truth.offset - BEHIND + 1, truth.offset)]
        assert site.gateway.tracebacks() == []
        reads = commands(site) - before
        figures = {key: [answer[key] for answer in answers] for key in ("slowest_s", "median_s", "asked_to_retry")}
        print(
            f"{CROWD} sockets complete after {seconds:.1f} s (processes included), {reads} reads of the log, {figures}"
        )
        assert reads < CROWD, "those who want the same share one read"


async def reach(source: JobSource | object, count: int) -> None:
    """Until its tape has so many events; then it stops."""
    assert isinstance(source, JobSource)
    while source.acknowledged < count:
        await asyncio.sleep(0.02)
    source.stop()


def crowd(site: Site, part: int) -> dict[str, object]:
    """What one process of the crowd is told."""
    tapes = [
        {"job": s.subject.id, "epoch": s.truth.epoch, "after": s.truth.offset - BEHIND, "end": s.truth.offset}
        for s in site.sources
    ]
    return {"port": site.gateway.port, "sockets": CROWD // 2, "tapes": tapes, "part": part}


def commands(site: Site) -> int:
    """How many times streams were read since Redis was started."""
    import redis

    with redis.Redis.from_url(site.url) as client:
        stats = client.info("commandstats")
        return sum(int(stats.get(f"cmdstat_{name}", {}).get("calls", 0)) for name in ("xrange", "xread", "evalsha"))
