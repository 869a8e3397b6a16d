"""Middleware that protects browsers: security headers, and the check of `Host`. Pure ASGI."""

from __future__ import annotations

from collections.abc import Collection
from typing import Final

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from livetape.api.errors import ApiError, error_response, problem_of_http
from livetape.auth import host_name

SECURITY_HEADERS: Final = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "X-XSS-Protection": "1; mode=block",
    "Referrer-Policy": "strict-origin-when-cross-origin",
}

UNCACHED: Final = {
    "Cache-Control": "no-store, no-cache, must-revalidate, private",
    "Pragma": "no-cache",
    "Expires": "0",
}

CACHEABLE_FOLDERS: Final = ("/static/", "/_next/static/", "/assets/", "/images/", "/css/", "/js/", "/fonts/")

CACHEABLE_PATHS: Final = frozenset(
    {
        "/api/health",
        "/api/v1/health",
        "/api/status",
        "/api/blocks",
        "/api/v1/blocks",
        "/api/store/agents",
        "/api/v1/store/agents",
        "/api/store/categories",
        "/api/v1/store/categories",
        "/api/store/featured",
        "/api/v1/store/featured",
        "/api/graphs/templates",
        "/api/v1/graphs/templates",
        "/api/docs",
        "/api/v1/docs",
        "/docs",
        "/swagger",
        "/openapi.json",
        "/favicon.ico",
        "/manifest.json",
        "/robots.txt",
        "/sitemap.xml",
    }
)
"""The seed's list, but compared as a whole: as a prefix, `/api/blocks` would also let `/api/blocks/{id}/execute` be
cached."""


def is_cacheable_path(path: str) -> bool:
    """Whether a cache may keep answers for this path."""
    return path in CACHEABLE_PATHS or path.startswith(CACHEABLE_FOLDERS)


class SecurityHeadersMiddleware:
    """Adds security headers to every HTTP answer, and forbids caches where nothing is said of them."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        path: str = scope["path"]

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in SECURITY_HEADERS.items():
                    headers[name] = value
                if "/public/shared" in path:
                    headers["X-Robots-Tag"] = "noindex, nofollow"
                # What says itself how it may be kept (the console, by ETag) is left to say so.
                unsaid = "cache-control" not in headers and not is_cacheable_path(path)
                if unsaid or message["status"] >= 400:
                    for name, value in UNCACHED.items():
                        headers[name] = value
            await send(message)

        await self.app(scope, receive, send_with_headers)


class HostGuard:
    """Refuses requests for a host name that is not the server's own.

    A page whose name was made to point at this machine (DNS rebinding) still sends that name in `Host`. What a page of
    another site may do without a token, the `Authenticator` decides by `Origin`. None: any name is taken.
    """

    def __init__(self, app: ASGIApp, *, allowed_hosts: Collection[str] | None) -> None:
        self.app = app
        self.allowed_hosts = None if allowed_hosts is None else {host.lower().strip("[]") for host in allowed_hosts}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and self.allowed_hosts is not None:
            name = host_name(Headers(scope=scope).get("host"))
            if name not in self.allowed_hosts:
                refusal = ApiError(
                    403,
                    "This server does not answer to that host name",
                    code="host_not_allowed",
                    hint="Open it by one of its own names, or add the name to the allowed hosts of the server.",
                )
                await error_response(scope, problem_of_http(refusal))(scope, receive, send)
                return
        await self.app(scope, receive, send)
