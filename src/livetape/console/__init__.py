"""The web console: static files and an ASGI app that serves them. No build step, nothing from outside.

`create_console()` answers `/` with the page and `/console/…` with its assets, wherever it is mounted:

    app.mount("/console", create_console())    # assets; `/console/` itself leads to the page at `/`
    …and `GET /` with `Accept: text/html` handed to the same app.

The page finds the API relative to its own address, so a prefix set by a proxy needs no setting.
"""

from __future__ import annotations

import hashlib
import mimetypes
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.responses import PlainTextResponse, Response
from starlette.types import ASGIApp, Receive, Scope, Send

__all__ = ["CONTENT_SECURITY_POLICY", "create_console"]

STATIC: Final = Path(__file__).parent / "static"

# Everything comes from the page's own origin (which includes its WebSocket), nothing is inline, and text from
# events cannot become markup: Trusted Types switch off innerHTML and its kin.
CONTENT_SECURITY_POLICY: Final = (
    "default-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; object-src 'none'; "
    "require-trusted-types-for 'script'; trusted-types 'none'"
)

_HEADERS: Final = {
    # Revalidated by ETag on each load: an upgrade is seen at once, and unchanged files cost a 304.
    "cache-control": "no-cache",
    "content-security-policy": CONTENT_SECURITY_POLICY,
    "cross-origin-opener-policy": "same-origin",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
}

_TYPES: Final = {
    ".css": "text/css; charset=utf-8",
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}


@dataclass(frozen=True, slots=True)
class _File:
    content: bytes
    media_type: str
    etag: str

    @classmethod
    def read(cls, path: Path) -> _File:
        content = path.read_bytes()
        media_type = _TYPES.get(path.suffix) or mimetypes.guess_type(path.name)[0] or "application/octet-stream"
        return cls(content, media_type, f'"{hashlib.sha256(content).hexdigest()[:32]}"')


def create_console() -> ASGIApp:
    """The console as an ASGI app. The files are read once, here: a request never touches the disk."""
    files = {
        path.relative_to(STATIC).as_posix(): _File.read(path) for path in sorted(STATIC.rglob("*")) if path.is_file()
    }
    return _Console(files)


class _Console:
    def __init__(self, files: dict[str, _File]) -> None:
        self._files = files

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1000})
            return
        if scope["type"] != "http":
            return
        try:
            response = self._answer(scope)
        except HTTPException as exc:
            if "app" in scope:  # mounted: the application answers in its own error shape
                raise
            response = PlainTextResponse(exc.detail, status_code=exc.status_code, headers=exc.headers)
        await response(scope, receive, send)

    def _answer(self, scope: Scope) -> Response:
        if scope["method"] not in {"GET", "HEAD"}:
            raise HTTPException(405, headers={"Allow": "GET, HEAD"})
        # The full path, whatever part of it a Mount has taken (an ASGI server may or may not leave it in `path`).
        path: str = scope["path"]
        prefix: str = scope.get("root_path", "")
        if prefix and not path.startswith(prefix):
            path = prefix + path
        _, at_console, asset = path.rpartition("/console/") if "/console/" in path else ("", "", "")
        if path.endswith("/console"):
            return Response(status_code=307, headers={**_HEADERS, "location": "./"})
        if at_console and not asset:
            return Response(status_code=307, headers={**_HEADERS, "location": "../"})
        name = asset if at_console else "index.html"
        if not at_console and path.removeprefix(prefix) not in {"", "/"}:
            raise HTTPException(404)
        file = self._files.get(name)
        if file is None or (at_console and name == "index.html"):
            raise HTTPException(404)
        headers = {**_HEADERS, "etag": file.etag}
        if not at_console:
            headers["vary"] = "Accept"
        if _matches(Headers(scope=scope).get("if-none-match", ""), file.etag):
            return Response(status_code=304, headers=headers)
        return Response(file.content, media_type=file.media_type, headers=headers)


def _matches(if_none_match: str, etag: str) -> bool:
    """Weak comparison (RFC 9110 13.1.2): a proxy that compresses turns our strong tag into a weak one."""
    tags = {tag.strip().removeprefix("W/") for tag in if_none_match.split(",")}
    return etag in tags or "*" in tags
