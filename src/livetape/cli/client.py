"""Talks REST to a server. Everything that it answers wrongly, or not at all, becomes a CommandError."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any, TypeVar
from urllib.parse import quote

import httpx2

from livetape.cli.discover import Server, require_server
from livetape.cli.errors import BY_KEY, CommandError, node_problems
from livetape.cli.options import App

T = TypeVar("T")

BY_STATUS: dict[int, str] = {
    400: "bad_input",
    401: "unauthenticated",
    403: "not_authorized",
    404: "not_found",
    408: "timeout",
    409: "conflict",
    410: "position_lost",
    413: "limit",
    422: "bad_input",
    428: "conflict",
    429: "rate_limited",
}
ATTEMPTS = 3
"""Tries of a request that may be repeated, when the connection fails."""


class Client:
    """Requests to one server. Use `open_client`."""

    def __init__(self, server: Server, http: httpx2.AsyncClient) -> None:
        self.server = server
        self._http = http

    async def get(self, path: str, **query: Any) -> Any:
        """GET; tried again when the connection fails."""
        return await self._send(
            "GET", path, attempts=ATTEMPTS, params={k: v for k, v in query.items() if v is not None}
        )

    async def post(self, path: str, body: Any = None, *, idempotency_key: str | None = None) -> Any:
        """POST; tried again only with an idempotency key."""
        headers = {"Idempotency-Key": idempotency_key} if idempotency_key else {}
        return await self._send("POST", path, attempts=ATTEMPTS if idempotency_key else 1, json=body, headers=headers)

    async def put(self, path: str, body: Any) -> Any:
        """PUT; tried again when the connection fails."""
        return await self._send("PUT", path, attempts=ATTEMPTS, json=body)

    async def delete(self, path: str) -> Any:
        """DELETE; tried again when the connection fails."""
        return await self._send("DELETE", path, attempts=ATTEMPTS)

    async def _send(self, method: str, path: str, *, attempts: int, **request: Any) -> Any:
        for attempt in range(1, attempts + 1):
            try:
                response = await self._http.request(method, path, **request)
                break
            except httpx2.TimeoutException as exc:
                error = self._unreachable("no answer in time", exc)
            except httpx2.TransportError as exc:
                error = self._unreachable(str(exc) or type(exc).__name__, exc)
            if attempt == attempts:
                raise error
            await asyncio.sleep(0.1 * 2**attempt)
        return _result(response, method, path)

    def _unreachable(self, because: str, cause: Exception) -> CommandError:
        error = CommandError(
            "connect", f"cannot reach the server at {self.server.url}", because=because, set_by=self.server.said_by
        )
        error.__cause__ = cause
        return error

    async def graph(self, graph_id: str, version: int | None = None) -> Any:
        """One graph with its nodes."""
        return await self.get(f"/api/graphs/{quote(graph_id, safe='')}", version=version)

    async def execution(self, graph_id: str, execution_id: str) -> Any:
        """One execution with its outputs."""
        return await self.get(f"/api/graphs/{quote(graph_id, safe='')}/executions/{quote(execution_id, safe='')}")

    async def find_execution(self, execution_id: str) -> dict[str, Any]:
        """An execution of this user by its id, or by the beginning of it that fits no other."""
        found = [item for item in await self.get("/api/executions") if str(item["id"]).startswith(execution_id)]
        exact = [item for item in found if item["id"] == execution_id]
        if len(exact or found) == 1:
            return dict((exact or found)[0])
        if found:
            raise CommandError(
                "ambiguous", f"{len(found)} executions begin with {execution_id}", fix="use the whole id"
            )
        raise CommandError("not_found", f"no execution {execution_id}", fix="see livetape executions list")


@asynccontextmanager
async def open_client(server: Server, *, timeout: float = 30.0) -> AsyncIterator[Client]:
    """A client with one connection pool, closed at the end."""
    headers = {"Accept": "application/json", "User-Agent": "livetape-cli"}
    if server.token:
        headers["Authorization"] = f"Bearer {server.token}"
    async with httpx2.AsyncClient(
        base_url=server.url,
        headers=headers,
        timeout=timeout,
        trust_env=not server.is_loopback,
        verify=server.url.startswith("https://"),  # without TLS: no certificates are loaded (0.1 s)
    ) as http:
        yield Client(server, http)


def with_client(app: App, work: Callable[[Client], Awaitable[T]]) -> T:
    """Run the work with a client of the server."""

    async def connected() -> T:
        async with open_client(require_server(app, os.environ)) as client:
            return await work(client)

    return asyncio.run(connected())


def _result(response: httpx2.Response, method: str, path: str) -> Any:
    try:
        body = response.json()
    except ValueError:
        body = None
    if response.is_success:
        if body is None and response.status_code != 204:
            raise CommandError(
                "bad_answer",
                f"{method} {path} was not answered with JSON",
                because=f"HTTP {response.status_code}, {response.headers.get('content-type', 'no content type')}",
                fix="is this a livetape server? correct --url",
            )
        return body
    raise _refused(response.status_code, body if isinstance(body, Mapping) else {}, method, path)


def _refused(status: int, body: Mapping[str, Any], method: str, path: str) -> CommandError:
    """The one error shape of the API as ours."""
    code = body.get("code")
    key = code if isinstance(code, str) and code in BY_KEY and code != "internal" else BY_STATUS.get(status, "server")
    detail = body.get("detail")
    if key == "unauthenticated" and isinstance(detail, str) and detail.startswith("Invalid token"):
        key = "bad_token"
    what = str(body.get("title") or body.get("message") or f"HTTP {status}")
    because: str | None = None
    if isinstance(detail, str):
        what = detail
    elif isinstance(detail, Mapping):
        what = str(detail.get("message") or what)
        because = node_problems(detail.get("node_errors"))
    elif isinstance(detail, list):
        because = "\n".join(_field_problem(item) for item in detail)
    hint = body.get("hint")
    instance = body.get("instance")
    said = f"{method} {path}: HTTP {status}" + (f", {instance}" if status >= 500 and instance else "")
    fix = hint if isinstance(hint, str) and key in {"server", "bad_input", "conflict", "limit"} else None
    return CommandError(key, what, because=because or said, fix=fix)


def _field_problem(item: Any) -> str:
    if not isinstance(item, Mapping):
        return str(item)
    place = ".".join(str(part) for part in item.get("loc", ()))
    return f"{place}: {item.get('msg', item)}"
