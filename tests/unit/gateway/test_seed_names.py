"""The names of the seed's WebSocket server: what each of them does by itself. `tests/integration/test_seed_server.py`
has them together."""

from __future__ import annotations

import asyncio
import re
from typing import Any

import pytest
import uvicorn
from starlette.applications import Starlette
from starlette.requests import HTTPConnection
from starlette.websockets import WebSocket, WebSocketDisconnect

from livetape.auth import READ_GRAPH, ConnectionFacts, OriginPolicy, Principal
from livetape.errors import ConfigError
from livetape.events.event import CommunicationErrorEvent
from livetape.events.executions import ExecutionStatus, GraphExecutionEvent, NodeOutputEvent
from livetape.events.open import open_backend
from livetape.gateway import messages, seed
from livetape.gateway.options import GatewayOptions
from livetape.gateway.seed import (
    ConnectionManager,
    WebsocketServer,
    authenticate_websocket,
    build_cors_params,
    continuous_retry,
    event_broadcaster,
    get_connection_manager,
)


def test_all_names_are_there() -> None:
    for name in seed.__all__:
        assert getattr(seed, name).__name__ == name
    for name in ("WSMethod", "WSMessage", "WSUnsubscribeRequest"):
        assert getattr(seed, name) is getattr(messages, name)


# ---- origins ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("origins", "exact", "regex"),
    [
        ([], [], None),
        (["https://a.example", " https://A.example/ "], ["https://a.example"], None),
        (["http://localhost:3000"], ["http://localhost:3000", "http://127.0.0.1:3000"], None),
        (["https://127.0.0.1:1"], ["https://127.0.0.1:1", "https://localhost:1"], None),
        (["http://[::1]:3000"], ["http://[::1]:3000"], None),
        (["regex:https://.*\\.a\\.example"], [], "^(?:https://.*\\.a\\.example)$"),
        (["regex:a", "https://b.example", "regex:c|d"], ["https://b.example"], "^(?:(?:a)|(?:c|d))$"),
    ],
)
def test_origins(origins: list[str], exact: list[str], regex: str | None) -> None:
    assert build_cors_params(origins, "local") == {"allow_origins": exact, "allow_origin_regex": regex}


def test_a_pattern_matches_a_whole_origin() -> None:
    regex = build_cors_params(["regex:https://a", "regex:https://b"], "prod")["allow_origin_regex"]
    assert regex is not None
    for origin, fits in {"https://a": True, "https://b": True, "https://a.evil": False, "x https://b": False}.items():
        assert (re.fullmatch(regex, origin) is not None) == fits


@pytest.mark.parametrize(
    "entry",
    [
        "*",
        "",
        "a.example",
        "ftp://a.example",
        "https://",
        "https://a.example/page",
        "https://*.example",
        "https://user@a.example",
        "https://a.example:port",
        "http://localhost",
        "regex:",
        "regex:(",
    ],
)
def test_what_is_no_origin_is_refused(entry: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        build_cors_params([entry], "local")


@pytest.mark.parametrize(
    "entry",
    [
        "http://localhost:3000",
        "https://127.0.0.1:443",
        "http://[::1]:3000",
        "regex:http://localhost:\\d+",
        "regex:http://127\\.0\\.0\\.1:\\d+",
        "regex:.*",
        "regex:https?://[a-z]+:3000",
    ],
)
def test_production_lets_in_no_page_of_this_machine(entry: str) -> None:
    assert build_cors_params([entry], "local")
    for name in ("prod", "PRODUCTION"):
        with pytest.raises(ConfigError):
            build_cors_params([entry], name)
    assert build_cors_params(["https://a.example", "regex:https://[a-z]+\\.a\\.example"], "prod")


# ---- trying again ----------------------------------------------------------------------------------------------------


async def test_it_is_tried_until_it_returns() -> None:
    waited: list[float] = []

    async def sleep(seconds: float) -> None:
        waited.append(seconds)

    tries = iter(range(9))

    @continuous_retry(sleep=sleep)
    async def work(what: str, *, more: int) -> str:
        """Does it."""
        if next(tries) < 8:
            raise OSError("not yet")
        return f"{what} {more}"

    assert await work("done", more=1) == "done 1"
    assert waited == [1, 2, 4, 8, 16, 30, 30, 30]
    assert (work.__name__, work.__doc__) == ("work", "Does it.")


async def test_who_cancels_it_is_heard() -> None:
    @continuous_retry()
    async def work() -> None:
        raise asyncio.CancelledError

    with pytest.raises(asyncio.CancelledError):
        await work()


def test_only_coroutine_functions_are_tried_again() -> None:
    def work() -> None: ...

    decorate: Any = continuous_retry()
    with pytest.raises(ConfigError):
        decorate(work)


@pytest.mark.parametrize("connection", [None, "nonsense://x", object()])
async def test_a_broadcaster_that_cannot_listen_says_so(connection: object, caplog: pytest.LogCaptureFixture) -> None:
    task = asyncio.create_task(event_broadcaster(ConnectionManager(connection)))
    async with asyncio.timeout(5):
        while not caplog.records:
            await asyncio.sleep(0)
    task.cancel()
    await asyncio.wait({task})
    assert "event_broadcaster failed" in caplog.text


# ---- the manager -----------------------------------------------------------------------------------------------------


class Socket:
    """A server's side of one socket, as far as Starlette needs it."""

    def __init__(self) -> None:
        self.sent: list[dict[str, Any]] = []
        self.fails: Exception | None = None
        self.open = asyncio.Event()
        self.open.set()
        scope = {"type": "websocket", "headers": [], "subprotocols": ["livetape.v1"], "query_string": b"", "path": "/"}
        self.websocket = WebSocket(scope, self._receive, self._send)

    async def _receive(self) -> dict[str, Any]:
        return {"type": "websocket.connect"}

    async def _send(self, message: Any) -> None:
        await self.open.wait()
        if self.fails is not None:
            raise self.fails
        self.sent.append(message)

    @property
    def texts(self) -> list[str]:
        return [message["text"] for message in self.sent if message["type"] == "websocket.send"]


EVENT = GraphExecutionEvent(id="E", user_id="U", graph_id="G", graph_version=1, status=ExecutionStatus.RUNNING)


async def watching(manager: ConnectionManager, **options: Any) -> Socket:
    socket = Socket()
    await manager.connect_socket(socket.websocket, user_id="U")
    await manager.subscribe_graph_exec(user_id="U", graph_exec_id="E", websocket=socket.websocket)
    return socket


async def test_what_is_sent_is_there_when_it_returns() -> None:
    manager = ConnectionManager()
    one, other = await watching(manager), await watching(manager)
    assert one.sent[0] == {"type": "websocket.accept", "subprotocol": "livetape.v1", "headers": []}
    assert await manager.send_execution_update(EVENT) == 2
    assert one.texts == other.texts
    await manager.subscribe_graph_execs(user_id="U", graph_id="G", websocket=one.websocket)
    assert await manager.send_execution_update(EVENT) == 3
    assert len(one.texts) == 3
    left = {"user_id": "U", "graph_id": "G", "websocket": one.websocket}
    assert await manager.unsubscribe_graph_execs(**left) == "U|graph#G|executions"
    assert await manager.unsubscribe_graph_execs(**left) is None


async def test_single_outputs_are_left_out_and_lost_events_are_told() -> None:
    manager = ConnectionManager()
    socket = await watching(manager)
    names = {"user_id": "U", "graph_id": "G", "graph_exec_id": "E", "node_exec_id": "X", "node_id": "N"}
    assert await manager.send_execution_update(NodeOutputEvent(index=0, name="out", value=1, **names)) == 0
    lost = CommunicationErrorEvent(error="too large", original_size_bytes=9, max_size_bytes=8)
    assert await manager.send_execution_update(lost) == 0
    placed = CommunicationErrorEvent.received(lost.model_dump_json().encode(), "execution_event/U/G/E")
    assert await manager.send_execution_update(placed) == 1
    assert socket.texts == [
        '{"method":"error","data":null,"success":false,"channel":"U|graph_exec#E","error":"Event too large",'
        '"code":"payload_too_large","retry":false}'
    ]


@pytest.mark.parametrize("error", [WebSocketDisconnect(1006), RuntimeError("closed"), OSError()])
async def test_a_socket_that_is_gone_is_forgotten(error: Exception) -> None:
    manager = ConnectionManager()
    gone, there = await watching(manager), await watching(manager)
    gone.fails = error
    assert await manager.send_execution_update(EVENT) == 2
    assert await manager.send_execution_update(EVENT) == 1
    assert manager.active_connections == {there.websocket}
    assert len(there.texts) == 2


async def test_what_waits_for_a_slow_socket_is_sent_in_order() -> None:
    manager = ConnectionManager()
    slow, fast = await watching(manager), await watching(manager)
    slow.open.clear()
    for number in range(5):
        await manager.send_notification(user_id="U", payload={"type": "t", "event": str(number)})
        assert len(fast.texts) == number + 1
    assert slow.texts == []
    slow.open.set()
    await manager.send_execution_update(EVENT)
    async with asyncio.timeout(5):
        while len(slow.texts) < 6:
            await asyncio.sleep(0)
    assert slow.texts == fast.texts


@pytest.mark.parametrize("limits", [{"outbox_max_messages": 2}, {"outbox_max_bytes": 300}, {"slow_seconds": 0.01}])
async def test_who_stays_behind_is_closed(limits: dict[str, Any]) -> None:
    manager = ConnectionManager(options=GatewayOptions(close_seconds=5, **limits))
    slow = await watching(manager)
    slow.open.clear()
    async with asyncio.timeout(5):
        while manager.active_connections:
            await manager.send_execution_update(EVENT)
    slow.open.set()
    async with asyncio.timeout(5):
        while slow.sent[-1]["type"] != "websocket.close":
            await asyncio.sleep(0)
    assert (slow.sent[-1]["code"], slow.sent[-1]["reason"]) == (4008, "Too slow")


# ---- where it is -----------------------------------------------------------------------------------------------------


async def test_every_application_has_its_own_manager() -> None:
    one, other = Starlette(), Starlette()
    assert get_connection_manager(one) is get_connection_manager(one)
    assert get_connection_manager(one) is not get_connection_manager(other)
    mine = ConnectionManager("redis://localhost/0")
    other.state.connection_manager = mine
    assert get_connection_manager(other) is mine


async def test_nobody_comes_in_where_nobody_decides() -> None:
    scope = {"type": "websocket", "headers": [], "query_string": b"", "path": "/", "app": Starlette()}
    socket = Socket()
    with pytest.raises(ConfigError):
        await authenticate_websocket(WebSocket(scope, socket._receive, socket._send))
    assert HTTPConnection(scope).app is scope["app"]


class SlowDoor:
    """Has to ask somebody, as the gateway's own does."""

    origins = OriginPolicy()

    def __init__(self, principal: Principal) -> None:
        self._principal = principal

    async def authenticate(self, facts: ConnectionFacts) -> Principal:
        await asyncio.sleep(0)
        return self._principal


@pytest.mark.parametrize(
    ("principal", "user_id", "code"),
    [
        (Principal("U"), "U", None),
        (Principal("U", scopes=frozenset({READ_GRAPH})), "U", None),
        (Principal("U", scopes=frozenset()), "", 4003),
        (Principal("share:1", shares=frozenset({"tape"})), "", 4003),
        (Principal("x" * 300), "", 4002),
    ],
)
async def test_only_who_may_see_everything_of_its_user_comes_in(
    principal: Principal, user_id: str, code: int | None
) -> None:
    app = Starlette()
    app.state.connection_manager = ConnectionManager(
        options=GatewayOptions(refuse_delay_min_seconds=0, refuse_delay_max_seconds=0)
    )
    socket = Socket()
    scope = {**socket.websocket.scope, "app": app}
    websocket = WebSocket(scope, socket._receive, socket._send)
    assert await authenticate_websocket(websocket, authenticator=SlowDoor(principal)) == user_id
    assert [message.get("code") for message in socket.sent] == ([] if code is None else [None, code])


def test_the_server_runs_on_uvicorn(monkeypatch: pytest.MonkeyPatch) -> None:
    called: dict[str, Any] = {}
    monkeypatch.setattr(uvicorn, "run", lambda app, **options: called.update(app=app, **options))
    server = WebsocketServer(Starlette(), port=1, cors_allow_origins=["https://a.example"], app_env="prod")
    assert server.service_name == "WebsocketServer"
    server.run()
    assert called.pop("app") is server.app
    assert called == {"host": "127.0.0.1", "port": 1, "ws": "websockets-sansio", "log_config": None}
    with pytest.raises(ConfigError):
        WebsocketServer(Starlette(), app_env="prod")


async def test_a_backend_is_listened_to() -> None:
    async with open_backend("memory://") as backend:
        task = asyncio.create_task(event_broadcaster(ConnectionManager(), connection=backend))
        async with asyncio.timeout(5):
            while not await backend.bus.publish("notification_event/U", b"{}"):
                await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait({task})
