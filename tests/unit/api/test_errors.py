"""One shape for everything that goes wrong."""

from __future__ import annotations

import inspect
import json
import logging
from datetime import timedelta
from typing import Any

import httpx2
import pytest
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.routing import Route

from livetape import errors
from livetape.api.bodies import ErrorBody
from livetape.api.errors import RULES, problem_of
from unit.api.fakes import World, bearer, graph

Client = httpx2.AsyncClient

KEYS = ["message", "detail", "hint", "type", "title", "status", "instance", "code", "errors"]

CLASSES = [cls for _, cls in inspect.getmembers(errors, inspect.isclass) if issubclass(cls, errors.LivetapeError)]


def check_shape(answer: httpx2.Response, status: int) -> dict[str, Any]:
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/json"
    body: dict[str, Any] = answer.json()
    assert list(body) == KEYS
    ErrorBody.model_validate(body, strict=True)
    assert body["status"] == status
    assert body["type"] == f"urn:livetape:error:{body['code']}"
    assert body["instance"] == f"urn:livetape:request:{answer.headers['x-request-id']}"
    assert all(body[name] for name in ("message", "detail", "hint", "title", "code"))
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["cache-control"].startswith("no-store")
    return body


def test_every_class_of_the_tree_has_a_rule() -> None:
    assert set(CLASSES) == set(RULES)


def test_a_class_of_an_extension_is_answered_as_its_parent() -> None:
    class AppError(errors.ConflictError):
        """Mine."""

    problem = problem_of(AppError())
    assert problem is not None
    assert (problem.status, problem.code) == (409, "conflict")


@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)
async def test_the_shape_of_every_class(cls: type[errors.LivetapeError], client: Client, world: World) -> None:
    world.graphs.broken = cls("connection to db.internal:5432 failed", retry_after=7)
    rule = RULES[cls]
    body = check_shape(answer := await client.get("/api/graphs"), rule.status)
    assert body["hint"] == rule.hint
    if rule.status >= 500:
        assert "db.internal" not in answer.text
    assert answer.headers.get("retry-after") == ("7" if rule.status in {429, 503} else None)
    assert answer.headers.get("www-authenticate") == ("Bearer" if rule.status == 401 else None)


ROUTES: list[tuple[str, str, dict[str, Any], int, str]] = [
    ("GET", "/nothing", {}, 404, "not_found"),
    ("GET", "/api/nothing", {}, 404, "not_found"),
    ("GET", "/api/graphs/", {}, 404, "not_found"),
    ("GET", "/docs", {}, 404, "not_found"),
    ("GET", "/metrics", {}, 404, "not_found"),
    ("PATCH", "/api/graphs", {}, 405, "method_not_allowed"),
    ("DELETE", "/livez", {}, 405, "method_not_allowed"),
    ("FOO", "/api/blocks", {}, 405, "method_not_allowed"),
    ("GET", "/api/graphs/x", {}, 404, "not_found"),
    ("GET", "/api/graphs/x?version=a", {}, 422, "invalid_request"),
    ("GET", "/api/graphs/a%00b", {}, 422, "invalid_request"),
    ("GET", f"/api/graphs/{'x' * 201}", {}, 422, "invalid_request"),
    ("GET", f"/api/jobs/{'x' * 5000}/events", {}, 422, "invalid_request"),
    ("GET", "/api/jobs//events", {}, 422, "invalid_request"),
    ("GET", "/api/jobs/a*/events", {}, 400, "channel"),
    ("POST", "/api/graphs", {}, 422, "invalid_request"),
    ("POST", "/api/graphs", {"json": []}, 422, "invalid_request"),
    ("POST", "/api/graphs", {"json": graph("invalid")}, 400, "graph_validation"),
    ("POST", "/api/graphs", {"content": b"graph=1"}, 415, "unsupported_media_type"),
    ("POST", "/api/graphs", {"content": b"x" * 2_000_000}, 413, "too_large"),
    ("POST", "/api/graphs/g/execute/1", {"headers": {"Idempotency-Key": ""}}, 422, "invalid_request"),
    ("PUT", "/api/graphs/g", {"json": {"id": "h", "name": "n"}}, 400, "graph_id_mismatch"),
    ("POST", "/api/graphs/g/executions/e/stop?wait=99", {}, 422, "invalid_request"),
    ("GET", "/api/graphs/g/executions/e/events", {}, 404, "not_found"),
]


@pytest.mark.parametrize(("method", "path", "extra", "status", "code"), ROUTES)
async def test_the_shape_of_every_fault(
    client: Client, method: str, path: str, extra: dict[str, Any], status: int, code: str
) -> None:
    body = check_shape(await client.request(method, path, **extra), status)
    assert body["code"] == code
    verb = "Invalid data for" if status == 422 else "Failed to process"
    assert body["message"].startswith(f"{verb} {method} /")


async def test_every_signed_in_route_has_the_shape_without_a_token(stranger: Client, world: World) -> None:
    checked = 0
    for path, methods in world.app.openapi()["paths"].items():
        for method, operation in methods.items():
            if "security" not in operation:
                assert not path.startswith("/api/"), path
                continue
            answer = await stranger.request(method, path.replace("{", "").replace("}", ""), content=b"\xff not read")
            body = check_shape(answer, 401)
            assert body["detail"] == "Authorization header is missing"
            assert answer.headers["www-authenticate"] == "Bearer"
            checked += 1
    assert checked >= 18


async def test_a_method_that_is_not_there_is_told_which_are(client: Client) -> None:
    assert (await client.patch("/api/graphs")).headers["allow"] == "GET, POST"
    assert (await client.patch("/api/graphs/x")).headers["allow"] == "DELETE, GET, PUT"
    assert (await client.post("/livez")).headers["allow"] == "GET, HEAD"


class TestValidation:
    async def test_the_detail_is_the_list_of_the_seed(self, client: Client) -> None:
        answer = await client.post("/api/graphs", json={"graph": {"nodes": [{"id": 7, "block_id": "b"}]}})
        body = check_shape(answer, 422)
        assert body["detail"] == [
            {"type": "missing", "loc": ["body", "graph", "name"], "msg": "Field required"},
            {
                "type": "string_type",
                "loc": ["body", "graph", "nodes", 0, "id"],
                "msg": "Input should be a valid string",
                "input": 7,
            },
        ]
        assert body["errors"] == [
            {"location": "body", "pointer": "/graph/name", "detail": "Field required", "code": "missing"},
            {
                "location": "body",
                "pointer": "/graph/nodes/0/id",
                "detail": "Input should be a valid string",
                "code": "string_type",
            },
        ]

    async def test_many_faults_do_not_make_a_large_answer(self, client: Client) -> None:
        nodes = [{"id": "x" * 300, "block_id": 1} for _ in range(1000)]
        answer = await client.post("/api/graphs", json=graph(nodes=nodes))
        body = check_shape(answer, 422)
        assert len(body["detail"]) == 101
        assert body["detail"][-1]["msg"] == "and 1900 more"
        assert len(answer.content) < 60_000
        assert "x" * 300 not in answer.text

    async def test_a_huge_key_does_not_come_back(self, client: Client) -> None:
        content = json.dumps({"event_type": {"k" * 10_000: 1}}).encode()
        answer = await client.post("/api/jobs/j/events", content=content, headers={"Content-Type": "application/json"})
        assert len(answer.content) < 2_000

    async def test_pointers_are_escaped(self) -> None:
        error = errors.GraphValidationError(node_errors={"a/b": {"c~d": "x"}})
        problem = problem_of(error)
        assert problem is not None
        assert problem.errors[0].pointer == "/nodes/a~1b/c~0d"
        assert isinstance(problem.detail, dict)
        assert problem.detail["message"] == "Graph validation failed: 1 issue on 1 node"


class TestProblemJson:
    @pytest.mark.parametrize(
        ("method", "path", "extra", "sentence"),
        [
            ("GET", "/api/graphs/x", {}, "Graph #x not found."),
            ("POST", "/api/graphs", {"json": graph("invalid")}, "Graph validation failed: 3 issues on 2 nodes"),
            ("POST", "/api/graphs", {"json": {}}, "body/graph: Field required"),
        ],
    )
    async def test_the_detail_is_a_string(
        self, client: Client, method: str, path: str, extra: dict[str, Any], sentence: str
    ) -> None:
        answer = await client.request(method, path, headers={"Accept": "application/problem+json"}, **extra)
        assert answer.headers["content-type"] == "application/problem+json"
        assert list(answer.json()) == KEYS
        assert answer.json()["detail"] == sentence

    async def test_many_faults_are_a_short_sentence(self, client: Client) -> None:
        nodes = [{} for _ in range(20)]
        answer = await client.post(
            "/api/graphs", json=graph(nodes=nodes), headers={"Accept": "application/problem+json"}
        )
        assert answer.json()["detail"].endswith("; and 35 more")

    @pytest.mark.parametrize("accept", ["*/*", "application/*", "application/problem+json;q=0", ""])
    async def test_only_for_those_who_ask(self, client: Client, accept: str) -> None:
        answer = await client.get("/api/graphs/x", headers={"Accept": accept})
        assert answer.headers["content-type"] == "application/json"


class TestUnexpected:
    async def test_it_is_logged_once_and_told_to_nobody(
        self, client: Client, world: World, caplog: pytest.LogCaptureFixture
    ) -> None:
        world.graphs.broken = RuntimeError("the password is hunter2")
        with caplog.at_level(logging.INFO):
            answer = await client.get("/api/graphs", headers={"X-Request-ID": "abc-1"})
        body = check_shape(answer, 500)
        assert "hunter2" not in answer.text
        assert "abc-1" in body["detail"]
        (record,) = (r for r in caplog.records if r.levelno >= logging.WARNING)
        assert record.exc_info is not None
        assert "abc-1" in record.getMessage()

    async def test_a_foreign_page_still_sees_nothing_and_ours_still_sees_the_error(self, connected: Any) -> None:
        world = World(cors_origins=("http://localhost:3000",))
        world.graphs.broken = RuntimeError()
        async with connected(world, headers=bearer()) as client:
            answer = await client.get("/api/graphs", headers={"Origin": "http://localhost:3000"})
            assert answer.headers["access-control-allow-origin"] == "http://localhost:3000"
            answer = await client.get("/api/graphs", headers={"Origin": "http://evil.example"})
            assert "access-control-allow-origin" not in answer.headers

    async def test_a_lone_surrogate_in_a_message(self, client: Client, world: World) -> None:
        world.graphs.broken = errors.NotFoundError("no \ud800 here")
        assert check_shape(await client.get("/api/graphs"), 404)["detail"] == "no \ud800 here"

    async def test_errors_of_added_routes_have_the_shape(self, connected: Any) -> None:
        async def ticket(request: Request) -> Any:
            raise {"tree": errors.NotAuthorizedError("no"), "http": HTTPException(402, "pay"), "bug": KeyError("x")}[
                request.query_params["error"]
            ]

        world = World(routes=[Route("/api/ws-tickets", ticket, methods=["POST"])])
        async with connected(world) as client:
            check_shape(await client.post("/api/ws-tickets?error=tree"), 403)
            check_shape(await client.post("/api/ws-tickets?error=http"), 402)
            check_shape(await client.post("/api/ws-tickets?error=bug"), 500)
            answer = await client.get("/api/ws-tickets")
            check_shape(answer, 405)
            assert answer.headers["allow"] == "POST"


async def test_tokens_are_refused_in_the_words_of_the_seed(stranger: Client) -> None:
    async def detail(header: str) -> str:
        answer = await stranger.get("/api/graphs", headers={"Authorization": header})
        assert answer.headers["www-authenticate"] == "Bearer"
        return str(check_shape(answer, 401)["detail"])

    assert await detail("Basic eDp5") == "Authorization header is missing"
    assert await detail("Bearer") == "Authorization header is missing"
    assert await detail(bearer(ttl=timedelta(hours=-1))["Authorization"]) == "Token has expired"
    assert (await detail("Bearer x.y.z")).startswith("Invalid token: ")
    assert await detail(bearer("")["Authorization"]) == "User ID not found in token"
