"""Follows a tape over the WebSocket: what was, then what comes. Connects again by itself, from its own position."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, Final

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidStatus, InvalidURI
from websockets.typing import Subprotocol

from livetape.cli.discover import Server
from livetape.cli.errors import CommandError
from livetape.cli.tape import EVENTS, Push, Topic

FIRST_WAIT: Final = 0.2
LONGEST_WAIT: Final = 5.0
GIVE_UP_AFTER: Final = 120.0
"""Seconds without a connection after which following ends with an error."""
REPLY_TIMEOUT: Final = 20.0
AUTH_CODES: Final = frozenset({4001, 4002, 4003})
MAX_MESSAGE_BYTES: Final = 64 * 1024 * 1024


class _ReconnectError(Exception):
    """This connection is of no more use."""

    def __init__(self, why: str, code: int | None = None) -> None:
        super().__init__(why)
        self.code = code


@dataclass
class _State:
    since: Any
    channel: str | None = None
    wait: float = FIRST_WAIT
    lost_at: float | None = None


async def follow(
    server: Server,
    topic: Topic,
    *,
    since: Any = "earliest",
    notice: Callable[[str], None] = lambda _text: None,
) -> AsyncGenerator[Push, None]:
    """Events in order, each once, up to the final one. Close it (`contextlib.aclosing`) when leaving early.

    `notice` is told what a reader should know: that the connection was lost, that events are missing.

    Raises:
        CommandError: refused, not found, or not reachable for `GIVE_UP_AFTER` seconds (at once if never reached).
    """
    loop = asyncio.get_running_loop()
    state = _State(since)
    while True:
        try:
            async with _open(server) as socket, aclosing(_events(socket, topic, state, notice)) as events:
                async for push in events:
                    yield push
                    if push.final:
                        return
        except (_ReconnectError, ConnectionClosed, OSError, TimeoutError, InvalidHandshake, InvalidURI) as exc:
            problem = _problem(exc)
            _raise_if_hopeless(exc, server, state.channel is not None)
        now = loop.time()
        if state.lost_at is None:
            state.lost_at = now
            notice(f"connection lost ({problem}); trying again")
        elif now - state.lost_at > GIVE_UP_AFTER:
            raise CommandError(
                "connection_lost",
                f"no connection to {server.url} for {now - state.lost_at:.0f} s",
                because=problem,
                set_by=server.said_by,
                fix="when the server is back: livetape tail ... --since POSITION goes on where this ended",
            )
        await asyncio.sleep(state.wait * random.uniform(0.5, 1.0))  # noqa: S311 - spreads reconnecting clients
        state.wait = min(state.wait * 2, LONGEST_WAIT)


def _open(server: Server) -> connect:
    url = "ws" + server.url.removeprefix("http") + "/ws"
    protocols = [Subprotocol("livetape.v1")]
    if server.token:
        protocols.append(Subprotocol(f"bearer.{server.token}"))
    return connect(
        url,
        subprotocols=protocols,
        max_size=MAX_MESSAGE_BYTES,
        open_timeout=15.0,
        proxy=None if server.is_loopback else True,
        user_agent_header="livetape-cli",
    )


async def _events(
    socket: ClientConnection, topic: Topic, state: _State, notice: Callable[[str], None]
) -> AsyncGenerator[Push, None]:
    await socket.send(json.dumps({"method": topic.method, "id": "1", "data": {**topic.data, "since": state.since}}))
    async with asyncio.timeout(REPLY_TIMEOUT):
        reply = await _reply(socket)
    if not reply.get("success"):
        raise _refusal(reply, topic)
    if state.lost_at is not None:
        notice("connected again")
    state.channel, state.wait, state.lost_at = str(reply.get("channel")), FIRST_WAIT, None
    data = reply.get("data")
    if isinstance(data, dict) and data.get("recovered") is False and state.since != "latest":
        notice("events before this point are not there any more")
    async for text in socket:
        message = json.loads(text)
        method = message.get("method")
        if method in {"gap", "unsubscribed", "error", "reconnect", "token_expiring"}:
            _told(method, message, notice)
            continue
        if method not in EVENTS or message.get("channel") not in {None, state.channel}:
            continue
        push = Push(
            method,
            message.get("data"),
            message.get("offset"),
            message.get("epoch"),
            bool(message.get("final")),
            bool(message.get("truncated")),
        )
        if push.offset is not None:
            state.since = {"epoch": push.epoch, "offset": push.offset}
        yield push
    raise _ReconnectError(f"closed {socket.close_code} {socket.close_reason or ''}".rstrip(), socket.close_code)


async def _reply(socket: ClientConnection) -> dict[str, Any]:
    while True:
        message = json.loads(await socket.recv())
        if isinstance(message, dict) and message.get("id") == "1":
            return message


def _told(method: str, message: dict[str, Any], notice: Callable[[str], None]) -> None:
    if method == "gap":
        notice(f"events are missing: {json.dumps(message.get('data'))}")
    elif method == "token_expiring":
        notice("the token expires soon; then this ends")
    elif method == "error":
        notice(f"the server says: {message.get('error')}")
    else:
        raise _ReconnectError(method)


def _refusal(reply: dict[str, Any], topic: Topic) -> Exception:
    text, code = str(reply.get("error")), reply.get("code")
    if reply.get("retry"):
        return _ReconnectError(text)
    if code == "not_found" or text == "Not found":
        return CommandError(
            "not_found",
            f"there is no {topic.name}, or this user may not see it",
            fix="see livetape executions list, livetape graphs list",
        )
    return CommandError("bad_input", f"the server does not follow {topic.name}", because=text)


def _problem(exc: BaseException) -> str:
    if isinstance(exc, TimeoutError):
        return "no answer in time"
    if isinstance(exc, ConnectionClosed) and exc.rcvd is not None:
        return f"closed {exc.rcvd.code} {exc.rcvd.reason}".rstrip()
    return str(exc) or type(exc).__name__


def _raise_if_hopeless(exc: Exception, server: Server, was_connected: bool) -> None:
    code = exc.rcvd.code if isinstance(exc, ConnectionClosed) and exc.rcvd is not None else None
    if isinstance(exc, _ReconnectError):
        code = exc.code
    if code in AUTH_CODES:
        key = "unauthenticated" if code == 4001 else "bad_token"
        raise CommandError(key, f"the server closed the connection: {_problem(exc)}") from exc
    if isinstance(exc, InvalidStatus) and exc.response.status_code in {401, 403}:
        raise CommandError("auth", f"the server refuses the socket: HTTP {exc.response.status_code}") from exc
    if not was_connected and code is None:
        raise CommandError(
            "connect", f"cannot reach {server.url}/ws", because=_problem(exc), set_by=server.said_by
        ) from exc
