"""Who calls, as the handshake of a socket tells it. Pure, the same for every server."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final
from urllib.parse import parse_qs

from livetape.auth import ConnectionFacts

BEARER: Final = "bearer."


def facts_of(scope: Mapping[str, Any]) -> ConnectionFacts:
    """From an ASGI scope: a ticket from `?ticket=`, a token from `?token=` or from the offered subprotocols
    `livetape.v1, bearer.<token>`."""
    headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}
    client = scope.get("client")
    query = scope.get("query_string", b"")
    token = query_value(query, "token")
    if token is None:
        offered = scope.get("subprotocols", ())
        token = next((name.removeprefix(BEARER) for name in offered if name.startswith(BEARER)), None)
    ticket = query_value(query, "ticket")
    return ConnectionFacts.of(headers, client[0] if client else None, token, ticket=ticket)


def query_value(query: bytes, name: str) -> str | None:
    """The first value of a query parameter; None when it is absent, empty, or the query is absurd."""
    try:
        return next(iter(parse_qs(query.decode("latin-1"), max_num_fields=100).get(name, ())), None)
    except ValueError:
        return None
