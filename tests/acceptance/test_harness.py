"""The harness itself, against small fakes: what it reports about a real server can be trusted."""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path
from typing import Any

import pytest
from websockets.asyncio.server import ServerConnection, serve

from acceptance.server import MakeServer, Server
from acceptance.watch import Watcher
from livetape_process import ServerError

FAKE = """
import http.server, signal, sys
mode = sys.argv[1]
port = int(sys.argv[sys.argv.index("--port") + 1])
print("fake server on", port, flush=True)
if mode == "broken":
    sys.exit("error[LT-E999]: it does not start")
if mode == "deaf":
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
else:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
class Handler(http.server.BaseHTTPRequestHandler):
    asked = 0
    def do_GET(self):
        Handler.asked += 1
        self.send_response(503 if mode == "never" or Handler.asked < 3 else 200)
        self.end_headers()
    def log_message(self, *_): pass
http.server.HTTPServer(("127.0.0.1", port), Handler).serve_forever()
"""


def fake(make_server: MakeServer, tmp_path: Path, mode: str) -> Server:
    script = tmp_path / "fake.py"
    script.write_text(FAKE)
    return make_server(command=[sys.executable, str(script), mode])


def test_a_server_starts_stops_and_is_killed(make_server: MakeServer, tmp_path: Path) -> None:
    server = fake(make_server, tmp_path, "good").start()
    assert server.running
    assert server in Server.live
    assert server.stop() == 0
    assert not server.running
    server.start()
    server.kill()
    assert server.process is not None
    assert server.process.returncode == -9
    assert server not in Server.live
    assert server.output().count("fake server on") == 2


def test_a_server_that_ends_at_once_is_told_with_its_output(make_server: MakeServer, tmp_path: Path) -> None:
    with pytest.raises(ServerError, match=r"(?s)ended with 1 .*LT-E999"):
        fake(make_server, tmp_path, "broken").start()


def test_a_server_that_is_never_ready_is_killed(make_server: MakeServer, tmp_path: Path) -> None:
    server = fake(make_server, tmp_path, "never")
    with pytest.raises(ServerError, match=r"(?s)not within 0.5 s.*fake server on"):
        server.start(timeout=0.5)
    assert not server.running


def test_a_server_that_does_not_hear_sigterm_is_killed(make_server: MakeServer, tmp_path: Path) -> None:
    server = fake(make_server, tmp_path, "deaf").start()
    with pytest.raises(ServerError, match="SIGTERM"):
        server.stop(timeout=0.3)
    assert not server.running


def push(offset: int, last: int) -> str:
    final = ',"final":true' if offset == last else ""
    return (
        '{"method":"node_execution_event","data":{"n": %d,  "x":1.50},"success":null,"channel":"c","error":null,'  # noqa: UP031
        '"offset":%d,"epoch":"e"%s}' % (offset, offset, final)
    )


async def test_a_watcher_comes_back_with_its_position_and_writes_down_every_byte() -> None:
    asked: list[Any] = []

    async def gateway(ws: ServerConnection) -> None:
        asked.append(json.loads(await ws.recv())["data"])
        since = asked[-1]["since"]
        at = 0 if since == "earliest" else since["offset"]
        await ws.send('{"method":"subscribe_graph_execution","data":{"recovered":true},"success":true}')
        for offset in range(at + 1, 11):
            await ws.send(push(offset, 10))
            if offset in (4, 7):
                await asyncio.sleep(0)
                ws.transport.abort()  # as a killed server does it
                return

    async with serve(gateway, "127.0.0.1", 0) as server:
        port = next(iter(server.sockets)).getsockname()[1]
        watcher = Watcher(f"ws://127.0.0.1:{port}", "E")
        async with asyncio.timeout(10):
            await watcher.run()
    assert [i.offset for i in watcher.items] == list(range(1, 11))
    assert {i.data for i in watcher.items} == {f'{{"n": {n},  "x":1.50}}' for n in range(1, 11)}
    assert asked[0] == {"graph_exec_id": "E", "since": "earliest", "outputs": "each"}
    assert all(a["since"]["epoch"] == "e" and a["since"]["offset"] <= 7 for a in asked[1:])
    assert watcher.connections == len(asked) >= 3
    assert watcher.complaints() == []
    watcher.take('{"method":"gap","data":{"from":3}}')
    watcher.take('{"method":"subscribe_graph_execution","data":{"recovered":false},"success":true}')
    assert len(watcher.complaints()) == 2
