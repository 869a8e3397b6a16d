"""The seed's architecture, small: what a team writes first, and the yardstick for our figures.

FastAPI on uvicorn (websockets-sansio, uvloop, httptools), redis-py listening to a pattern, a model for every event, a
manager with a dict of sets, and one awaited `send_text` for each socket. Token checked, connections counted.

    python reference.py PORT REDIS_URL KEY
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import sys
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from datetime import datetime
from enum import StrEnum
from typing import Annotated, Any, Literal

import jwt
import redis.asyncio
import uvicorn
from fastapi import Depends, FastAPI, WebSocket, WebSocketDisconnect
from prometheus_client import Gauge
from pydantic import BaseModel, Field, ValidationError

logger = logging.getLogger(__name__)
PORT, REDIS_URL, KEY = int(sys.argv[1]), sys.argv[2], sys.argv[3]
CONNECTIONS = Gauge("websocket_connections", "Open sockets", ["user_id"])


class WSMethod(StrEnum):
    SUBSCRIBE_GRAPH_EXEC = "subscribe_graph_execution"
    HEARTBEAT = "heartbeat"
    GRAPH_EXECUTION_EVENT = "graph_execution_event"
    NODE_EXECUTION_EVENT = "node_execution_event"
    ERROR = "error"


class WSMessage(BaseModel):
    method: WSMethod
    data: dict[str, Any] | list[Any] | str | None = None
    success: bool | None = None
    channel: str | None = None
    error: str | None = None


class WSSubscribeGraphExecutionRequest(BaseModel):
    graph_exec_id: str


class NodeExecutionEvent(BaseModel):
    event_type: Literal["node_execution_update"] = "node_execution_update"
    user_id: str
    graph_id: str
    graph_version: int
    graph_exec_id: str
    node_exec_id: str
    node_id: str
    block_id: str
    status: str
    input_data: dict[str, Any]
    output_data: dict[str, list[Any]]
    add_time: datetime | None = None
    queue_time: datetime | None = None
    start_time: datetime | None = None
    end_time: datetime | None = None


class GraphExecutionEvent(BaseModel):
    event_type: Literal["graph_execution_update"] = "graph_execution_update"
    id: str
    user_id: str
    graph_id: str
    status: str
    inputs: dict[str, Any]
    outputs: dict[str, Any]


ExecutionEvent = Annotated[GraphExecutionEvent | NodeExecutionEvent, Field(discriminator="event_type")]


class EventPayloadWrapper(BaseModel):
    payload: ExecutionEvent


METHOD_OF_EVENT = {
    "graph_execution_update": WSMethod.GRAPH_EXECUTION_EVENT,
    "node_execution_update": WSMethod.NODE_EXECUTION_EVENT,
}


class ConnectionManager:
    def __init__(self) -> None:
        self.active_connections: set[WebSocket] = set()
        self.subscriptions: dict[str, set[WebSocket]] = {}

    async def connect_socket(self, websocket: WebSocket) -> None:
        await websocket.accept()
        self.active_connections.add(websocket)

    def disconnect_socket(self, websocket: WebSocket) -> None:
        self.active_connections.remove(websocket)
        for subscribers in self.subscriptions.values():
            subscribers.discard(websocket)

    async def subscribe_graph_exec(self, user_id: str, graph_exec_id: str, websocket: WebSocket) -> str:
        channel = f"{user_id}|graph_exec#{graph_exec_id}"
        self.subscriptions.setdefault(channel, set()).add(websocket)
        return channel

    async def send_execution_update(self, event: GraphExecutionEvent | NodeExecutionEvent) -> int:
        graph_exec_id = event.id if isinstance(event, GraphExecutionEvent) else event.graph_exec_id
        channels = {f"{event.user_id}|graph_exec#{graph_exec_id}"}
        if isinstance(event, GraphExecutionEvent):
            channels.add(f"{event.user_id}|graph#{event.graph_id}|executions")
        sent = 0
        for channel in channels.intersection(self.subscriptions.keys()):
            message = WSMessage(
                method=METHOD_OF_EVENT[event.event_type], channel=channel, data=event.model_dump()
            ).model_dump_json()
            for connection in tuple(self.subscriptions[channel]):
                await connection.send_text(message)
                sent += 1
        return sent


async def listen_events(pattern: str) -> AsyncGenerator[GraphExecutionEvent | NodeExecutionEvent, None]:
    client = redis.asyncio.Redis.from_url(REDIS_URL, decode_responses=True)
    pubsub = client.pubsub()
    await pubsub.psubscribe(pattern)
    async for message in pubsub.listen():
        if message["type"] != "pmessage":
            continue
        try:
            yield EventPayloadWrapper.model_validate_json(message["data"]).payload
        except ValidationError as error:
            logger.error("NoFiguresError to parse event result from Redis %s %s", message, error)


async def event_broadcaster(manager: ConnectionManager) -> None:
    async for event in listen_events("execution_event/*"):
        await manager.send_execution_update(event)


connection_manager = ConnectionManager()


def get_connection_manager() -> ConnectionManager:
    return connection_manager


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    task = asyncio.create_task(event_broadcaster(get_connection_manager()))
    yield
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task


app = FastAPI(lifespan=lifespan)


@app.websocket("/ws")
async def websocket_router(
    websocket: WebSocket, manager: Annotated[ConnectionManager, Depends(get_connection_manager)]
) -> None:
    try:
        claims = jwt.decode(
            websocket.query_params.get("token", ""), KEY, algorithms=["HS256"], audience="authenticated"
        )
    except jwt.InvalidTokenError:
        await websocket.close(code=4003, reason="Invalid token")
        return
    user_id = claims["sub"]
    await manager.connect_socket(websocket)
    CONNECTIONS.labels(user_id).inc()
    try:
        while True:
            message = WSMessage.model_validate_json(await websocket.receive_text())
            if message.method is WSMethod.HEARTBEAT:
                await websocket.send_json({"method": "heartbeat", "data": "pong", "success": True})
            elif message.method is WSMethod.SUBSCRIBE_GRAPH_EXEC:
                request = WSSubscribeGraphExecutionRequest.model_validate(message.data)
                channel = await manager.subscribe_graph_exec(user_id, request.graph_exec_id, websocket)
                answer = WSMessage(method=message.method, success=True, channel=channel)
                await websocket.send_text(answer.model_dump_json())
            else:
                error = "Message type is not processed by the server"
                await websocket.send_text(
                    WSMessage(method=WSMethod.ERROR, success=False, error=error).model_dump_json()
                )
    except WebSocketDisconnect:
        manager.disconnect_socket(websocket)
    finally:
        CONNECTIONS.labels(user_id).dec()


if __name__ == "__main__":
    uvicorn.run(
        app, host="127.0.0.1", port=PORT, ws="websockets-sansio", loop="uvloop", http="httptools", log_level="warning"
    )
