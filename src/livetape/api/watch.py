"""The HTTP side of a process that only watches: event streams, jobs, health. It asks no database.

Whose a tape is, stands in the tape's metadata; the paths, bodies and errors are those of the whole REST interface.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any, Literal, Protocol

from fastapi import APIRouter, FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute

from livetape.api.bodies import ErrorItem, Health, JobInfo, JobPosition, Name, PublishJobEvent, Version
from livetape.api.errors import ApiError, error_response, problem_of
from livetape.api.limits import JsonRoute
from livetape.api.middleware import HttpOptions, layers
from livetape.api.routers.streams import EVENTS_OPENAPI
from livetape.auth import Authenticator, ConnectionFacts, Principal
from livetape.clock import Clock, IdFactory, SystemClock, new_id
from livetape.errors import LivetapeError, NotAuthorizedError, NotFoundError
from livetape.events.channel import execution_tape, job_tape
from livetape.events.jobs import Jobs, writer_of
from livetape.events.log import Tape
from livetape.observability import Metrics, NoMetrics


class Tapes(Protocol):
    """The part of the log that is asked here."""

    async def describe(self, tape: str) -> Tape | None: ...


class Revocations(Protocol):
    """Knows the tokens that hold no longer before their time is over."""

    async def check(self, principal: Principal) -> None:
        """Raises UnauthenticatedError for who came with one."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class WatchOptions:
    """How it behaves. `jobs_unowned`: who may read jobs without an owner."""

    version: str
    http: HttpOptions
    jobs_unowned: Literal["admin", "any_user"] = "admin"
    ready_timeout: float = 2.0


class _SignedInRoute(JsonRoute):
    """They are asked who they are before a byte of the body is read."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        answer = super().get_route_handler()

        async def handler(request: Request) -> Response:
            watching: Watching = request.app.state.watching
            await watching.sign_in(request)
            return await answer(request)

        return handler


class Watching:
    """The answers. `event_streams` writes the events of a tape that may be read, `readiness` names what is down."""

    def __init__(
        self,
        options: WatchOptions,
        *,
        log: Tapes,
        jobs: Jobs,
        authenticator: Authenticator,
        revocations: Revocations | None,
        event_streams: Callable[[Request, Tape], Awaitable[Response]],
        readiness: Callable[[], Awaitable[Sequence[str]]],
        metrics_text: Callable[[], tuple[bytes, str]] | None,
    ) -> None:
        self.options = options
        self._log = log
        self._jobs = jobs
        self._authenticator = authenticator
        self._revocations = revocations
        self._event_streams = event_streams
        self._readiness = readiness
        self._metrics_text = metrics_text

    def routes(self) -> list[BaseRoute]:
        """All of them."""
        signed_in, everybody = APIRouter(route_class=_SignedInRoute), APIRouter()
        events, get = "/api/jobs/{job_id:path}/events", ["GET"]
        jobs: list[str | Enum] = ["v1", "jobs"]
        signed_in.add_api_route(
            "/api/graphs/{graph_id}/executions/{graph_exec_id}/events",
            self.read_execution,
            methods=get,
            tags=["v1", "graphs"],
            summary="Read execution events",
            response_model=None,
            **EVENTS_OPENAPI,
        )
        signed_in.add_api_route(
            events,
            self.read_job,
            methods=get,
            tags=jobs,
            summary="Read job events",
            response_model=None,
            **EVENTS_OPENAPI,
        )
        signed_in.add_api_route(
            events,
            self.publish,
            methods=["POST"],
            tags=jobs,
            summary="Publish job event",
            status_code=201,
            response_model_exclude_none=True,
        )
        signed_in.add_api_route("/api/jobs/{job_id:path}", self.get_job, methods=get, tags=jobs, summary="Get job")
        for path, answer in (
            ("/", self.root),
            ("/health", self.health),
            ("/livez", self.livez),
            ("/readyz", self.readyz),
        ):
            everybody.add_api_route(path, answer, methods=["GET", "HEAD"], include_in_schema=False)
        everybody.add_api_route("/version", self.version, methods=get, tags=["health"])
        everybody.add_api_route("/metrics", self.metrics, methods=get, include_in_schema=False)
        return [*signed_in.routes, *everybody.routes]

    async def sign_in(self, request: Request) -> None:
        """Who asks; stands in `request.state.principal` from here on.

        Raises:
            AuthError: nobody who may.
        """
        peer = request.client.host if request.client else None
        principal = self._authenticator.authenticate(ConnectionFacts.of(request.headers, peer))
        if self._revocations is not None:
            await self._revocations.check(principal)
        if principal.is_limited:
            raise NotAuthorizedError("This key may not do this")
        request.state.principal = principal

    # ---- tapes -----------------------------------------------------------------------------------------------------

    async def read_execution(self, graph_id: Name, graph_exec_id: Name, request: Request) -> Response:
        """The events of an execution: a page of JSON, or by `Accept` a stream that ends after the final event."""
        principal = _principal(request)
        tape = await self._log.describe(execution_tape(graph_exec_id))
        if tape is None or tape.owner != principal.user_id or tape.graph_id != graph_id:
            raise NotFoundError(f"Graph execution #{graph_exec_id} not found.")
        return await self._event_streams(request, tape)

    async def read_job(self, job_id: Name, request: Request) -> Response:
        """The events of a job: a page of JSON, or by `Accept` a stream that ends after the final event."""
        return await self._event_streams(request, await self._visible(job_id, _principal(request)))

    async def get_job(self, job_id: Name, request: Request) -> JobInfo:
        """What is known of the job's tape."""
        return JobInfo.of(job_id, await self._visible(job_id, _principal(request)))

    async def publish(self, job_id: Name, body: PublishJobEvent, request: Request) -> JobPosition:
        """Appends one event to the tape of the job; the first to publish owns it. Answers when the event is durable."""
        principal = _principal(request)
        unowned = self.options.jobs_unowned
        tape = await self._log.describe(job_tape(job_id))
        try:
            writer = writer_of(tape, principal.user_id, is_admin=principal.is_admin, jobs_unowned=unowned)
        except NotFoundError:
            raise _no_job(job_id) from None
        recorded = await self._jobs.publish(
            writer,
            job_id,
            body.event_type,
            body.data,
            timestamp=body.timestamp,
            idempotency_key=body.idempotency_key,
            is_admin=principal.is_admin,
        )
        return JobPosition.of(recorded)

    async def _visible(self, job_id: str, principal: Principal) -> Tape:
        tape = await self._log.describe(job_tape(job_id))
        if tape is not None:
            if tape.owner == principal.user_id:
                return tape
            if tape.owner is None and (principal.is_admin or self.options.jobs_unowned == "any_user"):
                return tape
        raise _no_job(job_id)

    # ---- health ----------------------------------------------------------------------------------------------------

    async def root(self) -> Health:
        """The process answers."""
        return Health(status="healthy")

    async def livez(self) -> Health:
        """The process answers."""
        return Health(status="alive")

    async def health(self) -> Health:
        """As `readyz`, by the seed's path."""
        await self._require_ready()
        return Health(status="healthy")

    async def readyz(self) -> Health:
        """Whether it can serve; 503 names what is down."""
        await self._require_ready()
        return Health(status="ready")

    async def version(self) -> Version:
        """What runs here."""
        return Version(name="livetape", version=self.options.version)

    async def metrics(self) -> Response:
        """The figures of this process for Prometheus, where they are switched on."""
        if self._metrics_text is None:
            raise HTTPException(404)
        body, content_type = self._metrics_text()
        return Response(body, headers={"Content-Type": content_type})

    async def _require_ready(self) -> None:
        try:
            async with asyncio.timeout(self.options.ready_timeout):
                missing = list(await self._readiness())
        except TimeoutError:
            missing = ["an answer to the readiness check"]
        if missing:
            raise not_ready(missing)


def not_ready(missing: Sequence[str]) -> ApiError:
    """The answer of `/readyz` while these are down."""
    return ApiError(
        503,
        f"Not ready: {', '.join(missing)} missing",
        code="not_ready",
        hint="Wait for the server to finish its start; if it stays like this, check its log.",
        headers={"Retry-After": "1"},
        errors=[
            ErrorItem(location="server", pointer=f"/{name}", detail=f"{name} is missing", code="missing")
            for name in missing
        ],
    )


def create_watch_api(
    watching: Watching,
    *,
    metrics: Metrics | None = None,
    clock: Clock | None = None,
    ids: IdFactory = new_id,
    routes: Sequence[BaseRoute] = (),
) -> FastAPI:
    """The application, ready to be served. `routes` are answered before ours and stand behind the same middleware."""
    app = FastAPI(
        title="livetape gateway",
        summary="Live events and replay of executions and jobs.",
        version=watching.options.version,
        openapi_url="/openapi.json",
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        middleware=layers(watching.options.http, metrics=metrics or NoMetrics(), clock=clock or SystemClock(), ids=ids),
        exception_handlers={
            HTTPException: answer_error,
            RequestValidationError: answer_error,
            LivetapeError: answer_error,
        },
    )
    app.router.routes.extend(routes)
    app.router.routes.extend(watching.routes())
    app.state.watching = watching
    return app


async def answer_error(request: Request, error: Exception) -> Response:
    """The exception handler for everything foreseen."""
    problem = problem_of(error)
    if problem is None:
        raise error  # to the request tracker, which logs it
    return error_response(request.scope, problem)


def _principal(request: Request) -> Principal:
    principal: Principal = request.state.principal
    return principal


def _no_job(job_id: str) -> NotFoundError:
    return NotFoundError(f"Job #{job_id} not found.")
