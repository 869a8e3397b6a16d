"""Headers, hosts, origins, compression, request ids and figures."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import httpx2
import pytest
from starlette.applications import Starlette
from starlette.responses import HTMLResponse
from starlette.routing import Route

from livetape.api.deps import get_admin
from livetape.api.negotiation import asks_for, prefers_html, quality
from livetape.api.security import is_cacheable_path
from livetape.auth import DEFAULT_USER_ID, Principal
from livetape.engine.block import BlockRegistry
from livetape.errors import NotAuthorizedError
from livetape.events.channel import job_tape
from unit.api.fakes import Adder, World, bearer, graph, tape

Client = httpx2.AsyncClient
Connect = Callable[..., Client]


class TestHeaders:
    @pytest.mark.parametrize("path", ["/", "/health", "/api/graphs", "/nothing", "/api/public/shared/x"])
    async def test_every_answer_has_them(self, client: Client, path: str) -> None:
        headers = (await client.get(path)).headers
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["x-frame-options"] == "DENY"
        assert headers["x-xss-protection"] == "1; mode=block"
        assert headers["referrer-policy"] == "strict-origin-when-cross-origin"
        assert headers["cache-control"] == "no-store, no-cache, must-revalidate, private"
        assert (headers["pragma"], headers["expires"]) == ("no-cache", "0")
        assert headers.get("x-robots-tag") == ("noindex, nofollow" if "shared" in path else None)

    @pytest.mark.parametrize(
        ("path", "cacheable"),
        [
            ("/api/blocks", True),
            ("/api/blocks/x/execute", False),
            ("/api/blocksx", False),
            ("/docs", True),
            ("/docsecret", False),
            ("/static/app.js", True),
            ("/static", False),
            ("/staticx/y", False),
            ("/openapi.json", True),
            ("/api/graphs", False),
        ],
    )
    def test_only_listed_paths_may_be_cached(self, path: str, cacheable: bool) -> None:
        assert is_cacheable_path(path) is cacheable

    async def test_an_error_on_such_a_path_may_not(self, stranger: Client) -> None:
        answer = await stranger.get("/api/blocks")
        assert answer.status_code == 401
        assert answer.headers["cache-control"].startswith("no-store")


class TestDevelopmentUser:
    """On a developer's machine no token is needed. No page of another site may make use of that."""

    @pytest.fixture
    def world(self) -> World:
        return World(
            dev_user=True,
            allowed_hosts=("localhost", "127.0.0.1", "::1"),
            cors_origins=("http://localhost:3000",),
            origins=("http://localhost:3000",),
        )

    async def start(self, client: Client, **headers: str) -> httpx2.Response:
        return await client.post("/api/graphs", json=graph(), headers=headers)

    @pytest.mark.parametrize("host", ["localhost:8420", "127.0.0.1:8420", "[::1]:8420", "LOCALHOST"])
    async def test_on_this_machine_nothing_is_asked(self, stranger: Client, world: World, host: str) -> None:
        answer = await self.start(stranger, Host=host)
        assert answer.json()["user_id"] == DEFAULT_USER_ID

    @pytest.mark.parametrize("origin", ["http://evil.example", "null", "http://localhost:9999", "http://localhost"])
    async def test_a_page_of_another_site_may_not(self, stranger: Client, world: World, origin: str) -> None:
        answer = await self.start(stranger, Origin=origin)
        assert (answer.status_code, answer.json()["code"]) == (403, "not_authorized")
        assert world.graphs.stored == {}

    @pytest.mark.parametrize("origin", ["http://localhost:8420", "http://localhost:3000"])
    async def test_our_own_pages_may(self, stranger: Client, origin: str) -> None:
        assert (await self.start(stranger, Origin=origin)).status_code == 200

    @pytest.mark.parametrize("host", ["evil.example", "evil.example:8420", "localhost.evil.example", "", "[x", "a@b"])
    @pytest.mark.parametrize("path", ["/api/graphs", "/version", "/"])
    async def test_a_name_that_was_made_to_point_here_does_not_help(
        self, stranger: Client, host: str, path: str
    ) -> None:
        answer = await stranger.get(path, headers={"Host": host, "Origin": f"http://{host}"})
        assert (answer.status_code, answer.json()["code"]) == (403, "host_not_allowed")

    async def test_somebody_from_outside_needs_a_token(self, world: World, connected: Connect) -> None:
        async with connected(world, peer="192.0.2.7") as client:
            assert (await client.get("/api/graphs")).status_code == 401
            assert (await client.get("/api/graphs", headers=bearer())).status_code == 200

    async def test_so_does_somebody_behind_a_proxy(self, stranger: Client) -> None:
        assert (await stranger.get("/api/graphs", headers={"X-Forwarded-For": "192.0.2.7"})).status_code == 401


async def test_only_an_administrator_is_one() -> None:
    root = Principal("root", role="admin")
    assert await get_admin(root) is root
    with pytest.raises(NotAuthorizedError, match="Admin access required"):
        await get_admin(Principal("alice"))


class TestCors:
    @pytest.fixture
    def world(self) -> World:
        return World(cors_origins=("http://localhost:3000",), cors_origin_regex=r"^(?:https://.*\.example\.org)$")

    async def preflight(self, client: Client, origin: str) -> httpx2.Response:
        headers = {
            "Origin": origin,
            "Access-Control-Request-Method": "POST",
            "Access-Control-Request-Headers": "authorization,content-type,idempotency-key",
        }
        return await client.options("/api/graphs", headers=headers)

    @pytest.mark.parametrize("origin", ["http://localhost:3000", "https://a.example.org"])
    async def test_allowed(self, stranger: Client, origin: str) -> None:
        answer = await self.preflight(stranger, origin)
        assert answer.status_code == 200
        assert answer.headers["access-control-allow-origin"] == origin
        assert answer.headers["access-control-allow-credentials"] == "true"
        answer = await stranger.get("/livez", headers={"Origin": origin})
        assert "X-Stream-Position" in answer.headers["access-control-expose-headers"]

    @pytest.mark.parametrize("origin", ["http://evil.example", "https://a.example.org.evil.example"])
    async def test_not_allowed(self, stranger: Client, origin: str) -> None:
        answer = await self.preflight(stranger, origin)
        assert answer.status_code == 400
        assert "access-control-allow-origin" not in answer.headers


class TestCompression:
    @pytest.fixture
    def world(self) -> World:
        return World(blocks=BlockRegistry([type(f"Adder{n}", (Adder,), {"id": f"b{n}"})() for n in range(100)]))

    async def test_a_large_answer(self, client: Client) -> None:
        answer = await client.get("/api/blocks", headers={"Accept-Encoding": "gzip"})
        assert answer.headers["content-encoding"] == "gzip"
        assert len(answer.json()) == 100
        plain = await client.get("/api/blocks", headers={"Accept-Encoding": "identity"})
        assert "content-encoding" not in plain.headers
        assert plain.content == answer.content

    async def test_not_a_small_one(self, client: Client) -> None:
        assert "content-encoding" not in (await client.get("/version")).headers

    @pytest.mark.parametrize("media_type", ["text/event-stream", "application/x-ndjson"])
    async def test_never_a_stream(self, client: Client, world: World, media_type: str) -> None:
        world.tapes.put(tape(job_tape("j"), "alice"))
        answer = await client.get("/api/jobs/j/events", headers={"Accept": media_type, "Accept-Encoding": "gzip"})
        assert answer.headers["content-type"].startswith(media_type)
        assert "content-encoding" not in answer.headers
        assert len(answer.content) == 180_000


class TestTracking:
    async def test_the_id_of_the_client_comes_back(self, client: Client) -> None:
        assert (await client.get("/livez", headers={"X-Request-ID": "abc-123"})).headers["x-request-id"] == "abc-123"

    @pytest.mark.parametrize("sent", [None, "", "x" * 129, "a b", "a\xe9", '"><script>'])
    async def test_any_other_request_gets_one(self, client: Client, sent: str | None) -> None:
        headers = {} if sent is None else {"X-Request-ID": sent.encode("latin-1")}
        first = (await client.get("/livez", headers=headers)).headers["x-request-id"]
        second = (await client.get("/livez", headers=headers)).headers["x-request-id"]
        assert first != second
        assert len(first) == 36

    async def test_figures_name_templates_never_ids(self, client: Client, world: World) -> None:
        await client.get("/api/graphs/secret-id")
        await client.get("/nothing/secret-id")
        await client.request("BREW", "/api/blocks")
        await client.get("/readyz")
        assert world.figures.counts == [
            (
                "rest_api_http_requests_total",
                {"handler": "/api/graphs/{graph_id}", "method": "GET", "status": "4xx"},
            ),
            ("rest_api_http_requests_total", {"handler": "none", "method": "GET", "status": "4xx"}),
            ("rest_api_http_requests_total", {"handler": "/api/blocks", "method": "other", "status": "4xx"}),
        ]
        assert [labels for _, _, labels in world.figures.durations] == [
            {name: value for name, value in labels.items() if name != "status"} for _, labels in world.figures.counts
        ]
        assert all(seconds >= 0 for _, seconds, _ in world.figures.durations)


class TestHealth:
    @pytest.mark.parametrize(
        ("path", "status"), [("/", "healthy"), ("/health", "healthy"), ("/livez", "alive"), ("/readyz", "ready")]
    )
    async def test_well(self, stranger: Client, path: str, status: str) -> None:
        answer = await stranger.get(path)
        assert answer.text == f'{{"status":"{status}"}}'
        assert (await stranger.head(path)).status_code == 200

    async def test_not_ready_says_what_is_missing(self, stranger: Client, world: World) -> None:
        world.missing = ["worker", "gateway"]
        for path in ("/readyz", "/health"):
            answer = await stranger.get(path)
            assert answer.status_code == 503
            assert answer.json()["detail"] == "Not ready: worker, gateway missing"
            assert [e["pointer"] for e in answer.json()["errors"]] == ["/worker", "/gateway"]
            assert answer.headers["retry-after"] == "1"
        assert (await stranger.get("/livez")).status_code == 200
        assert (await stranger.get("/")).status_code == 200

    async def test_what_only_delays_is_told_and_stops_nobody(self, stranger: Client, world: World) -> None:
        world.degraded = ["queue"]
        assert (await stranger.get("/readyz")).text == '{"status":"ready","degraded":["queue"]}'
        assert (await stranger.get("/health")).text == '{"status":"healthy","degraded":["queue"]}'
        assert (await stranger.get("/livez")).text == '{"status":"alive"}'

    async def test_a_check_that_hangs_is_not_ready(self, connected: Connect, monkeypatch: pytest.MonkeyPatch) -> None:
        async def hang(self: World) -> list[str]:
            await asyncio.sleep(60)
            return []

        monkeypatch.setattr(World, "ready", hang)
        async with connected(World(ready_timeout=0.01)) as client:
            assert (await client.get("/readyz")).status_code == 503

    async def test_version(self, stranger: Client) -> None:
        assert (await stranger.get("/version")).json() == {"name": "livetape", "version": "1.2.3"}

    async def test_docs_and_metrics_only_when_switched_on(self, stranger: Client, connected: Connect) -> None:
        assert (await stranger.get("/docs")).status_code == 404
        assert (await stranger.get("/metrics")).status_code == 404
        world = World(docs_enabled=True, metrics_text=lambda: (b"up 1\n", "text/plain; version=0.0.4"))
        async with connected(world) as client:
            assert (await client.get("/docs")).status_code == 200
            answer = await client.get("/metrics")
            assert (answer.text, answer.headers["content-type"]) == ("up 1\n", "text/plain; version=0.0.4")


BROWSER = {"Accept": "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"}


class TestConsole:
    @pytest.fixture
    def world(self) -> World:
        async def page(request: Any) -> HTMLResponse:
            return HTMLResponse(f"console {request.url.path}")

        return World(console=Starlette(routes=[Route("/", page), Route("/{rest:path}", page)]))

    async def test_browsers_get_it_and_programs_do_not(self, stranger: Client) -> None:
        answer = await stranger.get("/", headers=BROWSER)
        assert (answer.text, answer.headers["x-frame-options"]) == ("console /", "DENY")
        for accept in ("*/*", "application/json", "", "text/html;q=0.1,application/json"):
            assert (await stranger.get("/", headers={"Accept": accept})).json() == {"status": "healthy"}

    async def test_its_files(self, stranger: Client) -> None:
        answer = await stranger.get("/assets/app.js")
        assert answer.text == "console /assets/app.js"
        assert "cache-control" not in answer.headers

    @pytest.mark.parametrize(("method", "path"), [("GET", "/api/nothing"), ("POST", "/somewhere"), ("GET", "/ws")])
    async def test_it_takes_nothing_else(self, stranger: Client, method: str, path: str) -> None:
        answer = await stranger.request(method, path, headers=BROWSER)
        assert (answer.status_code, answer.json()["code"]) == (404, "not_found")

    async def test_our_own_paths_stay_ours(self, stranger: Client) -> None:
        assert (await stranger.get("/livez", headers=BROWSER)).json() == {"status": "alive"}
        assert (await stranger.get("/openapi.json", headers=BROWSER)).json()["openapi"].startswith("3.1")


@pytest.mark.parametrize(
    ("accept", "media_type", "value"),
    [
        ("*/*", "a/b", 1),
        ("a/*;q=0.5,*/*", "a/b", 0.5),
        ("a/b;q=0,a/*", "a/b", 0),
        ("A/B ; Q=0.3", "a/b", 0.3),
        ("a/b;level=1;q=0.2", "a/b", 0.2),
        ("a/b;q=x", "a/b", 0),
        ("a/b;q=9", "a/b", 1),
        (",,;", "a/b", 0),
    ],
)
def test_accept(accept: str, media_type: str, value: float) -> None:
    assert quality(accept, media_type) == value
    assert asks_for(accept, media_type) is (value > 0 and "a/b" in accept.lower())
    assert not prefers_html(accept)
