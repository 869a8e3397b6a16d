"""Clients that say nothing, or do not say it to the end: they are sent away, and nobody else notices."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from chaos import faults
from chaos.proxy import Proxy
from chaos.site import Site, whole
from chaos.watchers import until

pytestmark = [pytest.mark.slow, pytest.mark.needs("redis"), pytest.mark.timeout(120)]

HASTY: dict[str, Any] = {"ping_interval_seconds": 0.5, "ping_timeout_seconds": 3.0, "close_seconds": 1.0}


async def test_a_network_that_swallows_everything_is_noticed_by_both_sides(tmp_path: Path) -> None:
    """The server ends what does not answer its pings; a client that asks for a sign of life comes back."""
    async with (
        Site(tmp_path, **HASTY) as site,
        Proxy(site.gateway.port) as network,
    ):
        await site.busy(20, jobs=1, executions=1)
        direct = len(site.watchers)
        await site.watch(30, heartbeat_s=3, ports=[network.port])
        async with site.fault("the network was silent"):
            network.silent = True
            await until(lambda: site.gateway.metric("websocket_connections_total") == direct, "dead ones are ended")
        assert site.gateway.metric("gateway_closed_total", code="4009") == 30
        network.silent = False
        await until(lambda: all(watcher.is_live for watcher in site.watchers), "all are back", within_s=30)
        await site.goes_on()
        whole(site)
        assert all(watcher.connections == 1 for watcher in site.watchers[:direct]), "who answers stays"
        assert all(watcher.connections > 1 for watcher in site.watchers[direct:])


STOPPED = """
import sys
from websockets.sync.client import connect
from websockets.exceptions import ConnectionClosed
with connect(sys.argv[1], ping_interval=None, proxy=None) as ws:
    ws.send('{"method":"heartbeat"}')
    print(ws.recv(), flush=True)
    try:
        ws.recv()
    except ConnectionClosed as closed:
        print(closed.rcvd and closed.rcvd.code, flush=True)
"""


async def test_a_client_that_is_stopped_is_closed_and_reads_why(tmp_path: Path) -> None:
    async with Site(tmp_path, **HASTY) as site:
        await site.busy(10, jobs=1, executions=0)
        url = f"ws://127.0.0.1:{site.gateway.port}/ws"
        words = [sys.executable, "-c", STOPPED, url]
        with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as client:
            try:
                assert client.stdout is not None
                assert "pong" in await asyncio.to_thread(client.stdout.readline)
                async with site.fault("a client was stopped"):
                    os.kill(client.pid, signal.SIGSTOP)
                    await until(lambda: site.gateway.metric("websocket_connections_total") == 10, "it is ended")
                os.kill(client.pid, signal.SIGCONT)
                assert await asyncio.to_thread(client.stdout.readline) == "4009\n"
            finally:
                client.kill()
        await site.goes_on()
        whole(site)


async def test_half_handshakes_hold_nobody_up(tmp_path: Path) -> None:
    async with Site(tmp_path) as site:
        await site.busy(20, jobs=1, executions=0)
        rng = random.Random(1)
        async with site.fault("two hundred handshakes came a byte at a time"):
            slow = asyncio.create_task(faults.half_handshakes(site, rng, sockets=200, seconds=13))
            begun = time.monotonic()
            await asyncio.sleep(1)
            for _ in range(3):
                await site.watch(10)
            assert time.monotonic() - begun < 8, "others are let in while those have time left: they have ten seconds"
            assert await slow == 200, "they are ended in the end"
        await site.goes_on()
        whole(site)
        assert all(watcher.connections == 1 for watcher in site.watchers)
