"""Who calls, as the handshake of a socket tells it. Pure, the same for every server."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final
from urllib.parse import parse_qs

from livetape.auth import ConnectionFacts

BEARER: Final = "bearer."
MAX_FIELDS: Final = 100


def facts_of(scope: Mapping[str, Any]) -> ConnectionFacts:
    """From an ASGI scope: a ticket from `?ticket=`, a token from `?token=` or from the offered subprotocols
    `livetape.v1, bearer.<token>`."""
    headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}
    client = scope.get("client")
    query = query_values(scope.get("query_string", b""))
    token = query.get("token")
    if token is None:
        offered = scope.get("subprotocols", ())
        token = next((name.removeprefix(BEARER) for name in offered if name.startswith(BEARER)), None)
    return ConnectionFacts.of(headers, client[0] if client else None, token, ticket=query.get("ticket"))


def query_values(query: bytes) -> dict[str, str]:
    """The first value of each parameter of a query that has one. None of an absurd query."""
    text = query.decode("latin-1")
    try:
        if "%" in text or "+" in text or text.count("&") >= MAX_FIELDS:
            return {name: values[0] for name, values in parse_qs(text, max_num_fields=MAX_FIELDS).items()}
    except ValueError:
        return {}
    values: dict[str, str] = {}
    for field in text.split("&"):  # as most are: what stands there is what is meant
        name, _, value = field.partition("=")
        if value:
            values.setdefault(name, value)
    return values


def query_value(query: bytes, name: str) -> str | None:
    """The first value of a query parameter; None when it is absent, empty, or the query is absurd."""
    return query_values(query).get(name)
