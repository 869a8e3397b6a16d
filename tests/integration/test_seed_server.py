"""A WebSocket server as older platforms have it, with an endpoint and handlers of its own, on the names of the seed.

The application below is what such a server looks like after its imports were changed; the golden lines are the
traffic that its clients know.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import pydantic
import pytest
from fastapi import Depends, FastAPI, WebSocket, WebSocketDisconnect
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import InvalidStatus

from conftest import RedisServers
from integration.job_site import PATIENCE_S
from integration.test_gateway import ask, close_code, receive
from livetape.auth import DEFAULT_USER_ID, Authenticator, OriginPolicy, TokenOptions, TokenVerifier, issue_token
from livetape.events import (
    AsyncRedisExecutionEventBus,
    AsyncRedisNotificationEventBus,
    ExecutionStatus,
    GraphExecutionEvent,
    NodeExecutionEvent,
    NotificationEvent,
    NotificationPayload,
    open_backend,
)
from livetape.events.open import Backend
from livetape.gateway.options import GatewayOptions
from livetape.gateway.seed import (
    ConnectionManager,
    WSMessage,
    WSMessageHandler,
    WSMethod,
    WSSubscribeGraphExecutionRequest,
    WSSubscribeGraphExecutionsRequest,
    WSUnsubscribeRequest,
    authenticate_websocket,
    event_broadcaster,
    get_connection_manager,
)
from serving import serving

KEY = "the key of an older platform, long enough to be one"
NOW = datetime(2030, 1, 1, tzinfo=UTC)
IDS = {"graph_id": "G", "graph_version": 1}

# ---- the application of an older platform ----------------------------------------------------------------------------


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    manager = get_connection_manager(app)
    broadcaster = asyncio.create_task(event_broadcaster(manager))
    yield
    broadcaster.cancel()
    await asyncio.wait({broadcaster})


async def send_error(websocket: WebSocket, text: str) -> None:
    message = WSMessage(method=WSMethod.ERROR, success=False, error=text)
    await websocket.send_text(message.model_dump_json())


async def handle_subscribe(
    connection_manager: ConnectionManager, websocket: WebSocket, user_id: str, message: WSMessage
) -> None:
    if not message.data:
        await send_error(websocket, "Subscription data missing")
        return
    if message.method == WSMethod.SUBSCRIBE_GRAPH_EXEC:
        one = WSSubscribeGraphExecutionRequest.model_validate(message.data)
        channel = await connection_manager.subscribe_graph_exec(
            user_id=user_id, graph_exec_id=one.graph_exec_id, websocket=websocket
        )
    else:
        many = WSSubscribeGraphExecutionsRequest.model_validate(message.data)
        channel = await connection_manager.subscribe_graph_execs(
            user_id=user_id, graph_id=many.graph_id, websocket=websocket
        )
    reply = WSMessage(method=message.method, success=True, channel=channel)
    await websocket.send_text(reply.model_dump_json())


async def handle_unsubscribe(
    connection_manager: ConnectionManager, websocket: WebSocket, user_id: str, message: WSMessage
) -> None:
    if not message.data:
        await send_error(websocket, "Subscription data missing")
        return
    wanted = WSUnsubscribeRequest.model_validate(message.data)
    channel = await connection_manager.unsubscribe_graph_exec(
        user_id=user_id, graph_exec_id=wanted.graph_exec_id or "", websocket=websocket
    )
    reply = WSMessage(method=WSMethod.UNSUBSCRIBE, success=True, channel=channel)
    await websocket.send_text(reply.model_dump_json())


async def handle_heartbeat(
    connection_manager: ConnectionManager, websocket: WebSocket, user_id: str, message: WSMessage
) -> None:
    await websocket.send_json({"method": WSMethod.HEARTBEAT.value, "data": "pong", "success": True})


HANDLERS: dict[WSMethod, WSMessageHandler] = {
    WSMethod.HEARTBEAT: handle_heartbeat,
    WSMethod.SUBSCRIBE_GRAPH_EXEC: handle_subscribe,
    WSMethod.SUBSCRIBE_GRAPH_EXECS: handle_subscribe,
    WSMethod.UNSUBSCRIBE: handle_unsubscribe,
}


def older_platform() -> FastAPI:
    app = FastAPI(lifespan=lifespan)

    @app.websocket("/ws")
    async def endpoint(
        websocket: WebSocket,
        manager: ConnectionManager = Depends(get_connection_manager),  # noqa: B008 - as it was written
    ) -> None:
        user_id = await authenticate_websocket(websocket)
        if not user_id:
            return
        await manager.connect_socket(websocket, user_id=user_id)
        try:
            while True:
                text = await websocket.receive_text()
                try:
                    message = WSMessage.model_validate_json(text)
                except pydantic.ValidationError:
                    await send_error(websocket, "Invalid message format. Review the schema and retry")
                    continue
                handler = HANDLERS.get(message.method)
                if handler is None:
                    await send_error(websocket, "Message type is not processed by the server")
                    continue
                try:
                    await handler(manager, websocket, user_id, message)
                except pydantic.ValidationError:
                    await send_error(websocket, "Invalid message data. Refer to the API schema")
        except WebSocketDisconnect:
            manager.disconnect_socket(websocket, user_id=user_id)

    return app


# ---- around it -------------------------------------------------------------------------------------------------------


@dataclass
class Platform:
    app: FastAPI
    backend: Backend
    port: int

    @property
    def manager(self) -> ConnectionManager:
        return get_connection_manager(self.app)

    def token(self, user: str = "U", *, ttl_s: float = 3600) -> str:
        return issue_token(KEY, user_id=user, now=datetime.now(UTC), ttl=timedelta(seconds=ttl_s))

    @asynccontextmanager
    async def socket(self, query: str | None = None, **options: Any) -> AsyncIterator[ClientConnection]:
        query = f"?token={self.token()}" if query is None else query
        async with connect(f"ws://127.0.0.1:{self.port}/ws{query}", proxy=None, close_timeout=1, **options) as ws:
            yield ws

    async def listening(self) -> None:
        """The broadcaster hears what is published."""
        notifications = AsyncRedisNotificationEventBus(backend=self.backend)
        executions = AsyncRedisExecutionEventBus(backend=self.backend)
        async with notifications, executions, asyncio.timeout(PATIENCE_S):
            probe = NotificationEvent(user_id="nobody", payload=NotificationPayload(type="t", event="e"))
            while not (await notifications.publish(probe)).receivers:
                await asyncio.sleep(0.01)
            while not (await executions.publish(graph("nobody"))).receivers:
                await asyncio.sleep(0.01)


def graph(user: str = "U", status: str = "RUNNING") -> GraphExecutionEvent:
    return GraphExecutionEvent(id="E", user_id=user, status=ExecutionStatus(status), **IDS)


def node(user: str = "U") -> NodeExecutionEvent:
    names = {"graph_exec_id": "E", "node_exec_id": "X", "node_id": "N", "block_id": "B"}
    pins: dict[str, Any] = {"input_data": {}, "output_data": {"out": [1]}}
    return NodeExecutionEvent(user_id=user, status=ExecutionStatus.RUNNING, add_time=NOW, **names, **pins, **IDS)


@asynccontextmanager
async def platform(url: str, *, enable_auth: bool = True, **options: Any) -> AsyncIterator[Platform]:
    verifier = TokenVerifier(TokenOptions(verify_key=KEY))
    async with open_backend(url) as backend:
        app = older_platform()
        app.state.authenticator = Authenticator(verifier, enable_auth=enable_auth, origins=OriginPolicy())
        limits = {"refuse_delay_min_seconds": 0, "refuse_delay_max_seconds": 0, "close_seconds": 0.2, **options}
        app.state.connection_manager = ConnectionManager(backend, options=GatewayOptions(**limits))
        async with serving(app, ws="websockets-sansio", lifespan="on") as port:
            made = Platform(app, backend, port)
            await made.listening()
            yield made


@pytest.fixture(params=["memory", pytest.param("redis", marks=pytest.mark.needs("redis"))])
async def older(request: pytest.FixtureRequest, redis_servers: RedisServers) -> AsyncIterator[Platform]:
    url = "memory://"
    if request.param == "redis":
        url = redis_servers.get("redis").url(redis_servers.new_db())
    async with platform(url) as made:
        yield made


# ---- what its clients see --------------------------------------------------------------------------------------------

GOLDEN = [
    (
        '{"method":"subscribe_graph_execution","data":{"graph_exec_id":"E"}}',
        '{"method":"subscribe_graph_execution","data":null,"success":true,"channel":"U|graph_exec#E","error":null}',
    ),
    (
        '{"method":"subscribe_graph_executions","data":{"graph_id":"G"}}',
        '{"method":"subscribe_graph_executions","data":null,"success":true,"channel":"U|graph#G|executions","error":null}',
    ),
    (
        '{"method":"heartbeat","data":"ping","success":true}',
        '{"method":"heartbeat","data":"pong","success":true}',
    ),
    (
        '{"method":"unsubscribe","data":{"graph_exec_id":"never"}}',
        '{"method":"unsubscribe","data":null,"success":true,"channel":null,"error":null}',
    ),
    (
        "no json",
        '{"method":"error","data":null,"success":false,"channel":null,'
        '"error":"Invalid message format. Review the schema and retry"}',
    ),
    (
        '{"method":"subscribe_graph_execution"}',
        '{"method":"error","data":null,"success":false,"channel":null,"error":"Subscription data missing"}',
    ),
    (
        '{"method":"subscribe_graph_execution","data":{"graph":1}}',
        '{"method":"error","data":null,"success":false,"channel":null,'
        '"error":"Invalid message data. Refer to the API schema"}',
    ),
    (
        '{"method":"notification"}',
        '{"method":"error","data":null,"success":false,"channel":null,'
        '"error":"Message type is not processed by the server"}',
    ),
]


async def test_golden_lines(older: Platform) -> None:
    executions = AsyncRedisExecutionEventBus(backend=older.backend)
    notifications = AsyncRedisNotificationEventBus(backend=older.backend)
    async with older.socket() as ws, executions, notifications:
        for said, heard in GOLDEN:
            assert await ask(ws, said) == heard
        await executions.publish(node())
        assert await receive(ws) == (
            '{"method":"node_execution_event","data":' + node().model_dump_json() + ',"success":null,'
            '"channel":"U|graph_exec#E","error":null}'
        )
        await executions.publish(graph())
        channels = [json.loads(await receive(ws))["channel"] for _ in range(2)]
        assert channels == ["U|graph_exec#E", "U|graph#G|executions"]
        payload = NotificationPayload(type="info", event="hey", more=1)
        await notifications.publish(NotificationEvent(user_id="U", payload=payload))
        assert await receive(ws) == (
            '{"method":"notification","data":{"type":"info","event":"hey","more":1},"success":null,"channel":null,'
            '"error":null}'
        )
        assert await ask(ws, '{"method":"unsubscribe","data":{"graph_exec_id":"E"}}') == (
            '{"method":"unsubscribe","data":null,"success":true,"channel":"U|graph_exec#E","error":null}'
        )
        await executions.publish(node())
        assert json.loads(await ask(ws, '{"method":"heartbeat"}'))["method"] == "heartbeat"


async def test_nobody_gets_what_is_somebody_elses(older: Platform) -> None:
    async with older.socket() as mine, older.socket(f"?token={older.token('V')}") as theirs:
        for ws in (mine, theirs):
            await ask(ws, '{"method":"subscribe_graph_execution","data":{"graph_exec_id":"E"}}')
        assert await older.manager.send_execution_update(node("V")) == 1
        assert json.loads(await receive(theirs))["channel"] == "V|graph_exec#E"
        # A user whose id and execution, put together, spell the channel of another.
        await older.manager.subscribe_graph_exec(
            user_id="a", graph_exec_id="b|graph_exec#c", websocket=next(iter(older.manager.user_connections["U"]))
        )
        sneaky = node("a|graph_exec#b").model_copy(update={"graph_exec_id": "c"})
        assert await older.manager.send_execution_update(sneaky) == 0
        assert json.loads(await ask(mine, '{"method":"heartbeat"}'))["method"] == "heartbeat"


async def test_sockets_come_and_go(older: Platform) -> None:
    manager = older.manager
    async with older.socket() as ws:
        await ask(ws, '{"method":"subscribe_graph_execution","data":{"graph_exec_id":"E"}}')
        (websocket,) = manager.active_connections
        assert manager.user_connections == {"U": {websocket}}
        assert manager.subscriptions == {"U|graph_exec#E": {websocket}}
    async with asyncio.timeout(PATIENCE_S):
        while manager.active_connections:
            await asyncio.sleep(0.01)
    assert (manager.user_connections, manager.subscriptions) == ({}, {})
    assert manager.subscriptions["U|graph_exec#E"] == set()
    manager.disconnect_socket(websocket, user_id="U")
    assert await manager.send_execution_update(graph()) == 0
    assert await manager.send_notification(user_id="U", payload={"type": "t", "event": "e"}) == 0


async def test_refused_connections_see_the_code(older: Platform) -> None:
    cases = {
        "": (4001, "Missing authentication token"),
        "?token=rubbish": (4003, "Invalid token"),
        f"?token={older.token(ttl_s=-60)}": (4003, "Invalid token"),
        f"?token={older.token('')}": (4002, "Invalid token"),
        f"?token={older.token('a*')}": (4002, "Invalid token"),
    }
    for query, expected in cases.items():
        async with older.socket(query) as ws:
            assert await close_code(ws) == expected
    with pytest.raises(InvalidStatus) as refused:
        async with older.socket(origin="https://evil.example"):
            pass
    assert refused.value.response.status_code == 403
    assert older.manager.active_connections == set()


async def test_without_auth_everybody_is_the_default_user() -> None:
    async with platform("memory://", enable_auth=False) as older, older.socket("") as ws:
        await ask(ws, '{"method":"heartbeat"}')
        assert list(older.manager.user_connections) == [DEFAULT_USER_ID]


async def test_a_client_that_reads_nothing_holds_up_nobody() -> None:
    """Far more is pushed than all buffers on the way can hold."""
    async with (
        platform("memory://", outbox_max_bytes=64 * 1024, slow_seconds=0.5) as older,
        older.socket(max_queue=1) as slow,
        older.socket(max_size=None) as fast,
    ):
        for ws in (slow, fast):
            await ask(ws, '{"method":"subscribe_graph_execution","data":{"graph_exec_id":"E"}}')
        big = node().model_copy(update={"output_data": {"out": ["x" * 500_000]}})
        for _ in range(40):
            await older.manager.send_execution_update(big)
            assert len(await receive(fast)) > 500_000
        async with asyncio.timeout(PATIENCE_S):
            while len(older.manager.active_connections) > 1:
                await asyncio.sleep(0.01)
        assert await older.manager.send_execution_update(node()) == 1
        slow.transport.abort()
