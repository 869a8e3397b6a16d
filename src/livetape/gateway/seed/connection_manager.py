"""The sockets of an application that has its own endpoint: who they are, what they watch, and sending to them."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterable
from typing import Annotated, Any, Final, Protocol, TypeAlias

from fastapi import Depends
from pydantic import BaseModel
from pydantic_core import to_json
from starlette.applications import Starlette
from starlette.requests import HTTPConnection
from starlette.websockets import WebSocket, WebSocketState

from livetape.events.event import CommunicationErrorEvent
from livetape.events.executions import GraphExecutionEvent, NodeExecutionEvent, NodeOutputEvent
from livetape.events.tape_event import TapeEvent
from livetape.gateway import messages
from livetape.gateway.close_codes import CloseCode
from livetape.gateway.forms import SocketForm
from livetape.gateway.messages import WSMessage, WSMethod
from livetape.gateway.options import GatewayOptions
from livetape.gateway.subjects import Kind, Subject
from livetape.gateway.transports.asgi import SUBPROTOCOL
from livetape.observability import get_logger

logger = get_logger(__name__)

PROMPT_SECONDS: Final = 0.05
"""A socket that does not take a message within this time is not waited for until it has caught up."""

Update: TypeAlias = GraphExecutionEvent | NodeExecutionEvent | NodeOutputEvent | CommunicationErrorEvent


class WSMessageHandler(Protocol):
    """Handles the messages of one method."""

    async def __call__(
        self, connection_manager: ConnectionManager, websocket: WebSocket, user_id: str, message: WSMessage
    ) -> None: ...


class _Watchers(dict[str, set[WebSocket]]):
    """By channel. One that nobody watches is not kept, and asking for it gives an empty set all the same."""

    def __missing__(self, channel: str) -> set[WebSocket]:
        return set()


class ConnectionManager:
    """The open sockets of one process, for the tasks of one event loop.

    `connection` is where `event_broadcaster` listens: a URL, a client of redis-py or a `Backend`. Of the `options` the
    limits of what may wait for a socket count.

    A subscription is bound to its user: it can only ever deliver that user's events. Nothing that a client does holds
    up another: what it does not take waits, and who stays behind for too long is closed (4008).
    """

    def __init__(self, connection: object | None = None, *, options: GatewayOptions | None = None) -> None:
        self.connection = connection
        self.options = options or GatewayOptions()
        self.active_connections: set[WebSocket] = set()
        self.subscriptions: dict[str, set[WebSocket]] = _Watchers()
        self.user_connections: dict[str, set[WebSocket]] = {}
        self._lines: dict[WebSocket, _Line] = {}

    # ---- sockets ---------------------------------------------------------------------------------------------------

    async def connect_socket(self, websocket: WebSocket, *, user_id: str) -> None:
        """Accept it (unless it was) and remember it."""
        if websocket.application_state is WebSocketState.CONNECTING:
            offered = websocket.scope.get("subprotocols", ())
            await websocket.accept(SUBPROTOCOL if SUBPROTOCOL in offered else None)
        self.active_connections.add(websocket)
        self.user_connections.setdefault(user_id, set()).add(websocket)
        self._lines[websocket] = _Line(
            websocket, user_id, self.options, lambda: self.disconnect_socket(websocket, user_id=user_id)
        )

    def disconnect_socket(self, websocket: WebSocket, *, user_id: str) -> None:
        """Forget it, with everything that it watches and what waits for it. Idempotent."""
        self.active_connections.discard(websocket)
        for watchers in self.subscriptions.values():
            watchers.discard(websocket)
        for name in [name for name, watchers in self.subscriptions.items() if not watchers]:
            del self.subscriptions[name]
        sockets = self.user_connections.get(user_id, set())
        sockets.discard(websocket)
        if not sockets:
            self.user_connections.pop(user_id, None)
        line = self._lines.pop(websocket, None)
        if line is not None:
            line.end()

    # ---- subscriptions ---------------------------------------------------------------------------------------------

    async def subscribe_graph_exec(self, *, user_id: str, graph_exec_id: str, websocket: WebSocket) -> str:
        """Watch one execution; returns the name of the channel."""
        return self._subscribe(Subject(Kind.EXECUTION, graph_exec_id), user_id, websocket)

    async def subscribe_graph_execs(self, *, user_id: str, graph_id: str, websocket: WebSocket) -> str:
        """Watch the graph events of all executions of a graph; returns the name of the channel."""
        return self._subscribe(Subject(Kind.GRAPH, graph_id), user_id, websocket)

    async def unsubscribe_graph_exec(self, *, user_id: str, graph_exec_id: str, websocket: WebSocket) -> str | None:
        """Watch it no more; returns the name of the channel, None when it was not watched."""
        return self._unsubscribe(Subject(Kind.EXECUTION, graph_exec_id), user_id, websocket)

    async def unsubscribe_graph_execs(self, *, user_id: str, graph_id: str, websocket: WebSocket) -> str | None:
        """The same for a graph."""
        return self._unsubscribe(Subject(Kind.GRAPH, graph_id), user_id, websocket)

    def _subscribe(self, subject: Subject, user_id: str, websocket: WebSocket) -> str:
        channel = subject.client_channel(user_id)
        self.subscriptions.setdefault(channel, set()).add(websocket)
        return channel

    def _unsubscribe(self, subject: Subject, user_id: str, websocket: WebSocket) -> str | None:
        channel = subject.client_channel(user_id)
        watchers = self.subscriptions.get(channel, set())
        if websocket not in watchers:
            return None
        watchers.discard(websocket)
        if not watchers:
            del self.subscriptions[channel]
        return channel

    # ---- sending ---------------------------------------------------------------------------------------------------

    async def send_execution_update(self, exec_event: Update) -> int:
        """To those who watch this execution, and (a graph event) its graph; returns to how many sockets.

        Returns when they have taken it, or are known to be slow. Who watches both gets it once for each. In place of
        an event that was too large comes the error that says so; single outputs are left out.
        """
        sent = 0
        fresh: list[asyncio.Task[None]] = []
        for subject, user_id in _concerned(exec_event):
            channel = subject.client_channel(user_id)
            watchers = self.subscriptions.get(channel)
            if watchers:
                text = _update(exec_event, channel)
                sent += self._put(watchers, user_id, text, fresh)
        await _settle(fresh)
        return sent

    async def send_notification(self, *, user_id: str, payload: BaseModel | dict[str, Any]) -> int:
        """To every socket of the user; returns to how many."""
        text = messages.message(WSMethod.NOTIFICATION, data=to_json(payload)).decode()
        fresh: list[asyncio.Task[None]] = []
        sent = self._put(self.user_connections.get(user_id, ()), user_id, text, fresh)
        await _settle(fresh)
        return sent

    def _put(self, websockets: Iterable[WebSocket], user_id: str, text: str, fresh: list[asyncio.Task[None]]) -> int:
        sent = 0
        for websocket in tuple(websockets):
            line = self._lines.get(websocket)
            # The name of a channel may hold any character; whose events a socket may see is never read from it.
            if line is not None and line.user_id == user_id and line.put(text, fresh):
                sent += 1
        return sent


class _Line:
    """What waits for one socket, in order. Its task lives only while something waits."""

    def __init__(self, websocket: WebSocket, user_id: str, options: GatewayOptions, dead: Callable[[], None]) -> None:
        self.user_id = user_id
        self._websocket = websocket
        self._options = options
        self._dead = dead
        self._waiting: deque[str] = deque()
        self._chars = 0
        self._task: asyncio.Task[None] | None = None
        self._ended = False

    def put(self, text: str, fresh: list[asyncio.Task[None]]) -> bool:
        """False when it takes no more. A task that began with this message is added to `fresh`."""
        if self._ended:
            return False
        room = self._chars + len(text) <= self._options.outbox_max_bytes or not self._waiting
        if not room or len(self._waiting) >= self._options.outbox_max_messages:
            self._close(CloseCode.TOO_SLOW)
            return False
        self._waiting.append(text)
        self._chars += len(text)
        if self._task is None:
            self._task = asyncio.create_task(self._send(), name="socket line")
            fresh.append(self._task)
        return True

    def end(self) -> None:
        """Nothing else is sent."""
        self._ended = True
        self._waiting.clear()
        if self._task is not None and self._task is not asyncio.current_task():
            self._task.cancel()

    async def _send(self) -> None:
        try:
            while self._waiting:
                text = self._waiting.popleft()
                self._chars -= len(text)
                async with asyncio.timeout(self._options.slow_seconds):
                    await self._websocket.send_text(text)
        except TimeoutError:
            self._task = None
            self._close(CloseCode.TOO_SLOW)
        except Exception as error:  # whatever the server raises for a client that is gone
            logger.debug("a socket is gone: %s", error, extra={"action": "socket_gone"})
            self._dead()
        finally:
            self._task = None

    def _close(self, code: CloseCode) -> None:
        self._dead()
        self._closing = asyncio.create_task(self._say_goodbye(code), name="socket goodbye")

    async def _say_goodbye(self, code: CloseCode) -> None:
        try:
            async with asyncio.timeout(self._options.close_seconds):
                await self._websocket.close(int(code), code.reason)
        except Exception as error:
            logger.debug("a socket took no goodbye: %s", error, extra={"action": "socket_gone"})


async def _settle(tasks: list[asyncio.Task[None]]) -> None:
    if tasks:
        await asyncio.wait(tasks, timeout=PROMPT_SECONDS)


def _concerned(event: Update) -> list[tuple[Subject, str]]:
    if isinstance(event, GraphExecutionEvent):
        return [
            (Subject(Kind.EXECUTION, event.id), event.user_id),
            (Subject(Kind.GRAPH, event.graph_id), event.user_id),
        ]
    if isinstance(event, NodeExecutionEvent):
        return [(Subject(Kind.EXECUTION, event.graph_exec_id), event.user_id)]
    if isinstance(event, CommunicationErrorEvent) and len(event.key) == 3:
        user_id, _, graph_exec_id = event.key
        return [(Subject(Kind.EXECUTION, graph_exec_id), user_id)]
    return []


def _update(event: Update, channel: str) -> str:
    form = SocketForm.of(channel, is_job=False)
    if isinstance(event, CommunicationErrorEvent):
        return form.too_large(None, None).decode()
    push = form.event(TapeEvent(event.event_type, event.model_dump_json().encode(), None, None))
    assert push is not None  # these types are all pushed
    return push.decode()


# ---- where it is -----------------------------------------------------------------------------------------------------


def _app_of(connection: HTTPConnection) -> Starlette:
    app: Starlette = connection.app
    return app


def get_connection_manager(app: Annotated[Starlette, Depends(_app_of)]) -> ConnectionManager:
    """The manager of an application, in `app.state.connection_manager`; made when there is none yet.

    As a dependency, `Depends(get_connection_manager)`; elsewhere `get_connection_manager(app)`.
    """
    manager = getattr(app.state, "connection_manager", None)
    if not isinstance(manager, ConnectionManager):
        manager = app.state.connection_manager = ConnectionManager()
    return manager
