"""The route class of the whole REST interface: a body is strict JSON."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any

from fastapi.routing import APIRoute
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope

from livetape.api.limits import read_json


class JsonRequest(Request):
    """A request whose body has been read as strict JSON."""

    def __init__(self, scope: Scope, receive: Receive, value: Any, raw: bytes) -> None:
        super().__init__(scope, receive)
        self._value = value
        self._raw = raw

    async def body(self) -> bytes:
        return self._raw

    async def json(self) -> Any:
        return self._value


class JsonRoute(APIRoute):
    """A route whose body, if it takes one, must be JSON and say so."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        answer = super().get_route_handler()
        if self.body_field is None:
            return answer

        async def handler(request: Request) -> Response:
            raw, value = await read_json(request)
            return await answer(JsonRequest(request.scope, request.receive, value, raw) if raw else request)

        return handler
