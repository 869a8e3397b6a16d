"""What a request body may be: how large, how deep, and JSON."""

from __future__ import annotations

from typing import Any

from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from livetape.api.errors import ApiError, InvalidRequestError, error_response, problem_of_http
from livetape.errors import CodecError
from livetape.events import strict


class BodyLimit:
    """Refuses bodies over the limit with 413: by their announced length, or while they are being read."""

    def __init__(self, app: ASGIApp, *, max_bytes: int) -> None:
        self.app = app
        self.max_bytes = max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        announced = Headers(scope=scope).get("content-length", "")
        if announced.isdecimal() and int(announced[:20]) > self.max_bytes:
            problem = problem_of_http(too_large(self.max_bytes))
            await error_response(scope, problem)(scope, receive, send)
            return
        taken = 0

        async def receive_within_limit() -> Message:
            nonlocal taken
            message = await receive()
            if message["type"] == "http.request":
                taken += len(message.get("body", b""))
                if taken > self.max_bytes:
                    raise too_large(self.max_bytes)
            return message

        await self.app(scope, receive_within_limit, send)


def too_large(max_bytes: int) -> ApiError:
    return ApiError(
        413,
        f"The body is larger than {max_bytes} bytes",
        hint="Send less, or put large values in a file and send its name.",
        headers={"Connection": "close"},  # what is left of the body is not read
    )


async def read_json(request: Request) -> tuple[bytes, Any]:
    """The body, which must be JSON and say so, and its value; no bytes when there is none.

    Raises:
        ApiError: it does not say so.
        InvalidRequestError: as `parse_json`.
    """
    raw = await request.body()
    if not raw:
        return raw, None
    if not _is_json(request.headers.get("content-type", "")):
        raise ApiError(
            415,
            "The body must be JSON",
            hint="Send the header `Content-Type: application/json`.",
            headers={"Accept-Post": "application/json"} if request.method == "POST" else None,
        )
    return raw, parse_json(raw)


def parse_json(raw: bytes) -> Any:
    """The value of a request body.

    What is taken: see `strict.parse_json`.

    Raises:
        InvalidRequestError: with the place of the fault.
    """
    try:
        return strict.parse_json(raw)
    except CodecError as error:
        raise InvalidRequestError(
            [{"type": "json_invalid", "loc": ("body",), "msg": f"JSON decode error: {error.message}"}]
        ) from None


def _is_json(content_type: str) -> bool:
    media_type = content_type.partition(";")[0].strip().lower()
    return media_type == "application/json" or (media_type.startswith("application/") and media_type.endswith("+json"))
