"""The REST application: a factory that is given everything. Nothing is read from the environment, nothing is global."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Match
from starlette.types import ASGIApp, Lifespan, Receive, Scope, Send

from livetape.api.errors import InvalidRequestError, error_response, problem_of
from livetape.api.middleware import HttpOptions, layers
from livetape.api.negotiation import prefers_html
from livetape.api.ports import (
    Degraded,
    EventStreams,
    Executions,
    Graphs,
    Jobs,
    MetricsText,
    QueueControl,
    Readiness,
    Reviews,
    Revocations,
    Tapes,
)
from livetape.api.routers import blobs as blob_routes
from livetape.api.routers import blocks as blocks_routes
from livetape.api.routers import control as control_routes
from livetape.api.routers import executions as execution_routes
from livetape.api.routers import graphs as graph_routes
from livetape.api.routers import health as health_routes
from livetape.api.routers import jobs as job_routes
from livetape.api.routers import queue as queue_routes
from livetape.api.routers import reviews as review_routes
from livetape.api.services import ApiOptions, BlockList, Services
from livetape.auth import Authenticator
from livetape.clock import Clock, IdFactory, SystemClock, new_id
from livetape.engine.block import BlockRegistry
from livetape.errors import LivetapeError
from livetape.observability import Metrics, NoMetrics

RESERVED: Final = ("/api/", "/ws")

OUR_ROUTES: Final = tuple(
    route
    for router in (
        graph_routes.router,
        execution_routes.router,
        blob_routes.router,
        control_routes.router,
        review_routes.router,
        queue_routes.router,
        job_routes.router,
        blocks_routes.router,
        health_routes.router,
    )
    for route in router.routes
    if isinstance(route, APIRoute)
)


async def always_ready() -> Sequence[str]:
    """For a process that has nothing to wait for."""
    return ()


def create_api(
    options: ApiOptions,
    *,
    graphs: Graphs,
    executions: Executions,
    reviews: Reviews,
    queue: QueueControl,
    blocks: BlockRegistry,
    log: Tapes,
    jobs: Jobs,
    authenticator: Authenticator,
    event_streams: EventStreams,
    revocations: Revocations | None = None,
    readiness: Readiness = always_ready,
    degraded: Degraded = tuple,
    metrics: Metrics | None = None,
    metrics_text: MetricsText | None = None,
    clock: Clock | None = None,
    ids: IdFactory = new_id,
    console: ASGIApp | None = None,
    routes: Sequence[BaseRoute] = (),
    lifespan: Lifespan[FastAPI] | None = None,
) -> FastAPI:
    """The application, ready to be served or mounted.

    `routes` are answered before ours (the socket endpoint, for instance) and stand behind the same middleware. They
    may raise any error of `livetape.errors` and get the same bodies. `console` answers browsers at `/` and every GET
    that no route takes and that is not below `/api/`. `revocations`: tokens that are refused before their end.
    """
    middleware = layers(
        HttpOptions(
            max_body_bytes=options.max_body_bytes,
            cors_origins=options.cors_origins,
            cors_origin_regex=options.cors_origin_regex,
            allowed_hosts=options.allowed_hosts,
            gzip_min_bytes=options.gzip_min_bytes,
        ),
        metrics=metrics or NoMetrics(),
        clock=clock or SystemClock(),
        ids=ids,
    )
    app = FastAPI(
        title="livetape",
        summary="Runs graphs of blocks and background jobs, and puts every step on a tape.",
        version=options.version,
        openapi_url="/openapi.json",
        docs_url="/docs" if options.docs_enabled else None,
        redoc_url=None,
        redirect_slashes=False,
        middleware=middleware,
        exception_handlers={
            HTTPException: answer_error,
            InvalidRequestError: answer_error,
            RequestValidationError: answer_error,
            LivetapeError: answer_error,
        },
        lifespan=lifespan,
    )
    app.state.services = Services(
        options=options,
        graphs=graphs,
        executions=executions,
        blocks=blocks,
        block_list=BlockList(blocks),
        reviews=reviews,
        queue=queue,
        jobs=jobs,
        tapes=log,
        authenticator=authenticator,
        revocations=revocations,
        event_streams=event_streams,
        readiness=readiness,
        degraded=degraded,
        metrics_text=metrics_text,
    )
    app.router.routes.extend(routes)
    if console is not None:
        app.router.routes.append(ConsoleRoute(console, _opens_page))
    # Not `include_router`: it would build every route a second time, at the first request.
    app.router.routes.extend(OUR_ROUTES)
    if console is not None:
        app.router.routes.append(ConsoleRoute(console, _is_left_over))
    return app


class ConsoleRoute(BaseRoute):
    """Hands requests to the console, an application of its own."""

    path = "console"  # its label in the metrics

    def __init__(self, app: ASGIApp, takes: Callable[[Scope], bool]) -> None:
        self.app = app
        self.takes = takes

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        if scope["type"] == "http" and scope["method"] in {"GET", "HEAD"} and self.takes(scope):
            return Match.FULL, {"route": self}
        return Match.NONE, {}

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self.app(scope, receive, send)


def _path(scope: Scope) -> str:
    path: str = scope["path"]
    return path.removeprefix(scope.get("root_path", ""))


def _opens_page(scope: Scope) -> bool:
    accept = b",".join(value for name, value in scope["headers"] if name == b"accept")
    return _path(scope) == "/" and prefers_html(accept.decode("latin-1"))


def _is_left_over(scope: Scope) -> bool:
    return not _path(scope).startswith(RESERVED)


async def answer_error(request: Request, error: Exception) -> Response:
    """The exception handler for everything foreseen."""
    if isinstance(error, RequestValidationError):
        error = InvalidRequestError(error.errors())
    problem = problem_of(error)
    if problem is None:
        raise error  # to the request tracker, which logs it
    if problem.status == 405:
        allowed = {name.strip() for name in problem.headers.get("Allow", "").split(",") if name}
        path = _path(request.scope)
        for route in OUR_ROUTES:  # the router names the methods of one route only
            if route.path_regex.match(path):
                allowed |= route.methods or set()
        problem = problem.with_headers(Allow=", ".join(sorted(allowed)))
    return error_response(request.scope, problem)
