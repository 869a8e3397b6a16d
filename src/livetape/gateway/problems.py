"""Errors over HTTP of a gateway without the REST interface, with the same bodies (wire contract, section 5)."""

from __future__ import annotations

import json
from collections.abc import Mapping
from secrets import token_hex
from typing import Any, Final

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from livetape import errors as tree
from livetape.observability import get_logger

logger = get_logger(__name__)

STATUSES: Final[Mapping[type[tree.LivetapeError], int]] = {
    tree.BusUnavailableError: 503,
    tree.LogUnavailableError: 503,
    tree.StoreUnavailableError: 503,
    tree.ClosedError: 503,
    tree.NotFoundError: 404,
    tree.ChannelError: 400,
    tree.UnauthenticatedError: 401,
    tree.AuthError: 403,
    tree.RateLimitedError: 429,
    tree.LivetapeError: 500,
}
"""The first that fits."""

_TITLES: Final = {
    400: ("bad_request", "Bad request"),
    401: ("unauthenticated", "Not signed in"),
    403: ("not_authorized", "Not allowed"),
    404: ("not_found", "Not found"),
    405: ("method_not_allowed", "Method not allowed"),
    408: ("timeout", "Request timed out"),
    413: ("too_large", "Request too large"),
    415: ("unsupported_media_type", "Unsupported content type"),
    422: ("invalid_request", "Invalid request"),
    429: ("rate_limited", "Too many requests"),
    500: ("internal", "Internal error"),
    503: ("unavailable", "Temporarily unavailable"),
}
_HINTS: Final = {
    401: "Send a valid token in the header `Authorization: Bearer <token>`.",
    403: "Use an account that may do this.",
    429: "Slow down and retry after the time in `Retry-After`.",
    500: "Check server logs and dependent services.",
    503: "Retry in a moment; nothing is known to be lost.",
}


async def answer_error(request: Request, error: Exception) -> Response:
    """The exception handler. What the text of an error on our side says stays in the log."""
    instance = token_hex(16)
    headers: dict[str, str] = {}
    if isinstance(error, HTTPException):
        status, detail, headers = error.status_code, error.detail, dict(error.headers or {})
        code = _TITLES.get(status, _TITLES[400])[0]
    elif isinstance(error, tree.LivetapeError):
        status = next(number for kind, number in STATUSES.items() if isinstance(error, kind))
        code, detail = error.code, error.message
        if status == 401:
            headers["WWW-Authenticate"] = "Bearer"
        if status in (429, 503):
            after = error.context.get("retry_after")
            headers["Retry-After"] = str(max(1, round(after))) if isinstance(after, int | float) else "1"
    else:
        raise error
    if status >= 500 and not isinstance(error, HTTPException):  # those are meant, and may be many
        logger.warning("%s: %s", code, error, extra={"action": "http_failed", "instance": instance})
        detail = (type(error).__doc__ or "").strip().partition("\n")[0] if status == 503 else "Internal error"
    body: dict[str, Any] = {
        "message": f"Failed to process {request.method} {request.url.path[:500]}",
        "detail": detail,
        "hint": _HINTS.get(status, "Adjust the request and retry."),
        "type": f"urn:livetape:error:{code}",
        "title": _TITLES.get(status, _TITLES[500 if status >= 500 else 400])[1],
        "status": status,
        "instance": f"urn:livetape:request:{instance}",
        "code": code,
        "errors": [],
    }
    as_problem = "application/problem+json" in request.headers.get("accept", "")
    return Response(
        json.dumps(body, separators=(",", ":")),
        status,
        headers,
        "application/problem+json" if as_problem else "application/json",
    )


ERROR_HANDLERS: Final[Mapping[Any, Any]] = {HTTPException: answer_error, tree.LivetapeError: answer_error}
"""For `Starlette(exception_handlers=…)`."""
