"""The WebSocket server under the names that older servers know: thin faces of the gateway's own parts.

An application that has its own `/ws` endpoint keeps it, with its own loop and handlers; what is sent to its clients is
built by the same functions as in the gateway. It delivers at most once: there is no log, no `since` and no replay.
For these, mount the gateway (`livetape.gateway.mount`).
"""

from livetape.gateway.messages import (
    WSMessage,
    WSMethod,
    WSSubscribeGraphExecutionRequest,
    WSSubscribeGraphExecutionsRequest,
    WSUnsubscribeRequest,
)
from livetape.gateway.seed.broadcast import continuous_retry, event_broadcaster
from livetape.gateway.seed.connection_manager import ConnectionManager, WSMessageHandler, get_connection_manager
from livetape.gateway.seed.cors import build_cors_params
from livetape.gateway.seed.door import authenticate_websocket
from livetape.gateway.seed.server import WebsocketServer

__all__ = [
    "ConnectionManager",
    "WSMessage",
    "WSMessageHandler",
    "WSMethod",
    "WSSubscribeGraphExecutionRequest",
    "WSSubscribeGraphExecutionsRequest",
    "WSUnsubscribeRequest",
    "WebsocketServer",
    "authenticate_websocket",
    "build_cors_params",
    "continuous_retry",
    "event_broadcaster",
    "get_connection_manager",
]
