"""What happens around every request: its id, its metrics, and the answer when nobody foresaw its error. Pure ASGI."""

from __future__ import annotations

import re
from typing import Any, Final

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from livetape.api.errors import error_response, unexpected
from livetape.clock import Clock, IdFactory
from livetape.observability import Metrics, get_logger

logger = get_logger(__name__)

REQUEST_ID_HEADER: Final = "X-Request-ID"
_REQUEST_ID = re.compile(r"[A-Za-z0-9._~:@|=+/-]{1,128}")

METHODS: Final = frozenset({"GET", "HEAD", "OPTIONS", "POST", "PUT", "PATCH", "DELETE"})
UNCOUNTED: Final = frozenset({"/", "/health", "/livez", "/readyz", "/metrics"})


class RequestTracker:
    """Gives every request an id (the client's own if it sent a sound one), counts it, and answers unexpected errors.

    An unexpected error is logged here, once, with the id; the client gets the id and no details. When the answer had
    begun, the connection is cut: half an answer must not look like a whole one.
    """

    def __init__(self, app: ASGIApp, *, metrics: Metrics, clock: Clock, new_id: IdFactory) -> None:
        self.app = app
        self.metrics = metrics
        self.clock = clock
        self.new_id = new_id

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        sent = Headers(scope=scope).get(REQUEST_ID_HEADER, "")
        request_id = sent if _REQUEST_ID.fullmatch(sent) else self.new_id()
        scope.setdefault("state", {})["request_id"] = request_id
        begun_at = self.clock.monotonic()
        status = 0

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)[REQUEST_ID_HEADER] = request_id
                # measured up to here: a stream of events stays open for as long as somebody watches
                self._count(scope, status, self.clock.monotonic() - begun_at)
            await send(message)

        try:
            await self.app(scope, receive, send_with_id)
        except ClientDisconnect:
            logger.debug("the client went away", extra={"action": "api.disconnected", "request_id": request_id})
        except Exception:
            logger.exception(
                "%s %r failed unexpectedly (%s)",
                scope["method"],
                scope["path"][:500],
                request_id,
                extra={"action": "api.unexpected", "request_id": request_id},
            )
            if not status:
                await error_response(scope, unexpected(request_id))(scope, receive, send_with_id)

    def _count(self, scope: Scope, status: int, seconds: float) -> None:
        if scope["path"] in UNCOUNTED:
            return
        handler = _handler(scope)
        method: str = scope["method"] if scope["method"] in METHODS else "other"
        self.metrics.count("rest_api_http_requests_total", handler=handler, method=method, status=f"{status // 100}xx")
        self.metrics.observe("rest_api_http_request_duration_seconds", seconds, handler=handler, method=method)


def _handler(scope: Scope) -> str:
    """The path template, never the path itself: ids must not become labels."""
    route: Any = scope.get("route")
    return str(getattr(route, "path", "none"))
