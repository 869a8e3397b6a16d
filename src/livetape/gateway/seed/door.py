"""Who opens a socket of an application that has its own endpoint."""

from __future__ import annotations

import asyncio
import inspect
import random
from collections.abc import Awaitable
from typing import Protocol

from starlette.websockets import WebSocket

from livetape.auth import READ_GRAPH, ConnectionFacts, OriginPolicy, Principal
from livetape.errors import AuthError, ChannelError, ConfigError, NotAuthorizedError
from livetape.events.channel import notification_channel
from livetape.gateway.close_codes import CloseCode, close_code_of
from livetape.gateway.seed.connection_manager import get_connection_manager
from livetape.gateway.transports.facts import facts_of


class Door(Protocol):
    """Decides who may come in: an `Authenticator`, or the gateway's `Doorkeeper`."""

    @property
    def origins(self) -> OriginPolicy: ...

    def authenticate(self, facts: ConnectionFacts, /) -> Principal | Awaitable[Principal]: ...


async def authenticate_websocket(websocket: WebSocket, *, authenticator: Door | None = None) -> str:
    """The user id of the caller; "" when it was refused, and then the socket is closed already.

    The token is that of `?token=`, or of the subprotocols `livetape.v1, bearer.<token>`. A refused socket is accepted
    first, so that browsers see the code (4001 no token, 4002 no user, 4003 a bad one), and closed only after some
    seconds, because old clients come back every second. A page of a foreign origin gets HTTP 403.

    The authenticator is that of the application's state (`app.state.authenticator`) when none is given.

    Raises:
        ConfigError: there is none.
    """
    door: Door | None = authenticator or getattr(websocket.app.state, "authenticator", None)
    if door is None:
        raise ConfigError("nobody decides who may come in", fix="app.state.authenticator = Authenticator(…)")
    facts = facts_of(websocket.scope)
    if not door.origins.permits(facts.origin, facts.host):
        await websocket.close()  # before it was accepted: HTTP 403
        return ""
    try:
        found = door.authenticate(facts)
        principal = await found if inspect.isawaitable(found) else found
        notification_channel(principal.user_id)
    except NotAuthorizedError:
        await websocket.close()
        return ""
    except AuthError as error:
        return await _refuse(websocket, close_code_of(error))
    except ChannelError:  # a user id that cannot be part of a channel name is none
        return await _refuse(websocket, CloseCode.NO_USER)
    if not principal.may(READ_GRAPH):  # a guest, or a key for other things: nothing here looks at single rights
        return await _refuse(websocket, CloseCode.INVALID_TOKEN)
    return principal.user_id


async def _refuse(websocket: WebSocket, code: CloseCode) -> str:
    options = get_connection_manager(websocket.app).options
    await websocket.accept()
    delay = random.uniform(  # noqa: S311 - only so that they do not all come back at once
        options.refuse_delay_min_seconds, options.refuse_delay_max_seconds
    )
    await asyncio.sleep(delay)
    await websocket.close(int(code), code.reason)
    return ""
