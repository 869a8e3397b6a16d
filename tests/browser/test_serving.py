"""The console as an ASGI app: what it answers, with which headers. No browser."""

from __future__ import annotations

from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Mount, Route

from livetape.console import CONTENT_SECURITY_POLICY, create_console


async def get(
    app: Any, path: str, *, method: str = "GET", root_path: str = "", **headers: str
) -> tuple[int, dict[str, str], bytes]:
    """One request without a server: status, headers, body."""
    scope = {
        "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": method, "scheme": "http",
        "path": path, "raw_path": path.encode(), "query_string": b"", "root_path": root_path,
        "headers": [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()],
        "client": ("127.0.0.1", 1), "server": ("127.0.0.1", 80), "state": {}, "extensions": {},
    }  # fmt: skip
    sent: list[dict[str, Any]] = []

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Any) -> None:
        sent.append(message)

    await app(scope, receive, send)
    found = {name.decode(): value.decode() for name, value in sent[0]["headers"]}
    return sent[0]["status"], found, b"".join(message.get("body", b"") for message in sent[1:])


async def test_page() -> None:
    status, headers, body = await get(create_console(), "/")
    assert (status, headers["content-type"]) == (200, "text/html; charset=utf-8")
    assert headers["content-security-policy"] == CONTENT_SECURITY_POLICY
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["cache-control"] == "no-cache"
    assert headers["vary"] == "Accept"
    assert body.startswith(b"<!doctype html>")


def test_policy_allows_nothing_inline_and_nothing_from_elsewhere() -> None:
    assert CONTENT_SECURITY_POLICY.startswith("default-src 'self';")
    assert "unsafe" not in CONTENT_SECURITY_POLICY
    assert "http" not in CONTENT_SECURITY_POLICY


@pytest.mark.parametrize(
    ("path", "media_type"),
    [
        ("/console/console.css", "text/css; charset=utf-8"),
        ("/console/js/main.js", "text/javascript; charset=utf-8"),
        ("/console/favicon.svg", "image/svg+xml"),
    ],
)
async def test_assets(path: str, media_type: str) -> None:
    status, headers, body = await get(create_console(), path)
    assert (status, headers["content-type"]) == (200, media_type)
    assert headers["content-length"] == str(len(body))
    assert headers["x-content-type-options"] == "nosniff"


async def test_unchanged_files_cost_nothing() -> None:
    console = create_console()
    _, headers, _ = await get(console, "/console/console.css")
    for known in (headers["etag"], f'"other", W/{headers["etag"]}', "*"):
        status, again, body = await get(console, "/console/console.css", if_none_match=known)
        assert (status, body, again["etag"]) == (304, b"", headers["etag"])
    status, _, _ = await get(console, "/console/console.css", if_none_match='"other"')
    assert status == 200


@pytest.mark.parametrize(
    "path",
    [
        "/console/nothing.js", "/console/../__init__.py", "/console/index.html", "/console/js", "/console/js/",
        "/console//etc/passwd", "/etc/passwd", "/index.html", "/console/__init__.py", "/favicon.ico",
    ],
)  # fmt: skip
async def test_nothing_else_is_served(path: str) -> None:
    status, _, _ = await get(create_console(), path)
    assert status == 404


async def test_only_reading() -> None:
    status, headers, _ = await get(create_console(), "/", method="POST")
    assert (status, headers["allow"]) == (405, "GET, HEAD")


@pytest.mark.parametrize(("path", "location"), [("/console", "./"), ("/console/", "../")])
async def test_folder_leads_to_the_page(path: str, location: str) -> None:
    status, headers, _ = await get(create_console(), path)
    assert (status, headers["location"]) == (307, location)


async def test_behind_a_prefix() -> None:
    console = create_console()
    assert (await get(console, "/tape/", root_path="/tape"))[0] == 200
    assert (await get(console, "/tape/console/js/main.js", root_path="/tape"))[0] == 200
    assert (await get(console, "/tape/other", root_path="/tape"))[0] == 404


async def test_mounted_errors_are_those_of_the_application() -> None:
    async def refused(_: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, HTTPException)
        return JSONResponse({"detail": "ours"}, status_code=error.status_code)

    app = Starlette(
        routes=[Mount("/console", create_console()), Route("/x", lambda _: JSONResponse({}))],
        exception_handlers={HTTPException: refused},
    )
    status, _, body = await get(app, "/console/nothing.js")
    assert (status, body) == (404, b'{"detail":"ours"}')
    assert (await get(app, "/console/js/main.js"))[0] == 200


async def test_page_names_only_files_that_are_served() -> None:
    console = create_console()
    _, _, page = await get(console, "/")
    names = [part.split(b'"')[0].decode() for part in page.split(b'="console/')[1:]]
    assert "js/main.js" in names
    for name in names:
        assert (await get(console, f"/console/{name}"))[0] == 200
    assert b"<style" not in page
    assert b" style=" not in page
    assert b"onload" not in page


async def test_a_socket_is_closed() -> None:
    sent = []

    async def send(message: Any) -> None:
        sent.append(message["type"])

    await create_console()({"type": "websocket", "path": "/"}, None, send)  # type: ignore[arg-type]
    assert sent == ["websocket.close"]
