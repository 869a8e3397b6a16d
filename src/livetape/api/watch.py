"""The HTTP side of a process that only watches: event streams, jobs, health. It asks no database.

Whose a tape is, stands in the tape's metadata; the paths, bodies and errors are those of the whole REST interface. So
few routes need no framework: FastAPI would be a third of a gateway's start.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Final, Literal, Protocol, TypeVar

from pydantic import BaseModel, TypeAdapter, ValidationError
from pydantic_core import to_json
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Match, Route
from starlette.types import Scope

from livetape.api.bodies import ErrorItem, Health, JobInfo, JobPosition, Name, PublishJobEvent, Version
from livetape.api.errors import ApiError, InvalidRequestError, error_response, problem_of
from livetape.api.limits import read_json
from livetape.api.middleware import HttpOptions, layers
from livetape.api.watch_document import watch_document
from livetape.auth import Authenticator, ConnectionFacts, Principal
from livetape.clock import Clock, IdFactory, SystemClock, new_id
from livetape.errors import LivetapeError, NotAuthorizedError, NotFoundError
from livetape.events.channel import execution_tape, job_tape
from livetape.events.jobs import Jobs, writer_of
from livetape.events.log import Tape
from livetape.observability import Metrics, NoMetrics

_NAME: Final[TypeAdapter[str]] = TypeAdapter(Name)
_Model = TypeVar("_Model", bound=BaseModel)


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


class _Route(Route):
    """Answers these methods and no others, and is named in the metrics."""

    def __init__(self, path: str, answer: Callable[[Request], Awaitable[Response]], methods: Collection[str]) -> None:
        super().__init__(path, answer, methods=list(methods))
        self.methods = set(methods)  # without the HEAD that a GET brings

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        match, found = super().matches(scope)
        return match, {**found, "route": self}


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
        execution, job = "/api/graphs/{graph_id}/executions/{graph_exec_id}/events", "/api/jobs/{job_id:path}"
        get, often = ("GET",), ("GET", "HEAD")
        return [
            _Route(execution, self.read_execution, get),
            _Route(f"{job}/events", self.read_job, get),
            _Route(f"{job}/events", self.publish, ("POST",)),
            _Route(job, self.get_job, get),
            _Route("/", self.root, often),
            _Route("/health", self.health, often),
            _Route("/livez", self.livez, often),
            _Route("/readyz", self.readyz, often),
            _Route("/version", self.version, get),
            _Route("/metrics", self.metrics, get),
            _Route("/openapi.json", self.openapi, often),
        ]

    async def sign_in(self, request: Request) -> Principal:
        """Who asks: before a byte of the body is read.

        Raises:
            AuthError: nobody who may.
        """
        peer = request.client.host if request.client else None
        principal = self._authenticator.authenticate(ConnectionFacts.of(request.headers, peer))
        if self._revocations is not None:
            await self._revocations.check(principal)
        if principal.is_limited:
            raise NotAuthorizedError("This key may not do this")
        return principal

    # ---- tapes -----------------------------------------------------------------------------------------------------

    async def read_execution(self, request: Request) -> Response:
        """The events of an execution: a page of JSON, or by `Accept` a stream that ends after the final event."""
        principal = await self.sign_in(request)
        graph_id, graph_exec_id = _names(request, "graph_id", "graph_exec_id")
        tape = await self._log.describe(execution_tape(graph_exec_id))
        if tape is None or tape.owner != principal.user_id or tape.graph_id != graph_id:
            raise NotFoundError(f"Graph execution #{graph_exec_id} not found.")
        return await self._event_streams(request, tape)

    async def read_job(self, request: Request) -> Response:
        """The events of a job: a page of JSON, or by `Accept` a stream that ends after the final event."""
        principal = await self.sign_in(request)
        (job_id,) = _names(request, "job_id")
        return await self._event_streams(request, await self._visible(job_id, principal))

    async def get_job(self, request: Request) -> Response:
        """What is known of the job's tape."""
        principal = await self.sign_in(request)
        (job_id,) = _names(request, "job_id")
        return _answer(JobInfo.of(job_id, await self._visible(job_id, principal)))

    async def publish(self, request: Request) -> Response:
        """Appends one event to the tape of the job; the first to publish owns it. Answers when the event is durable."""
        principal = await self.sign_in(request)
        raw, value = await read_json(request)
        faults = _Faults()
        job_id = faults.name(request, "job_id")
        body = faults.body(PublishJobEvent, raw, value)
        if job_id is None or body is None:
            raise InvalidRequestError(faults.found)
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
        return _answer(JobPosition.of(recorded), status=201)

    async def _visible(self, job_id: str, principal: Principal) -> Tape:
        tape = await self._log.describe(job_tape(job_id))
        if tape is not None:
            if tape.owner == principal.user_id:
                return tape
            if tape.owner is None and (principal.is_admin or self.options.jobs_unowned == "any_user"):
                return tape
        raise _no_job(job_id)

    # ---- health ----------------------------------------------------------------------------------------------------

    async def root(self, _request: Request) -> Response:
        """The process answers."""
        return _answer(Health(status="healthy"))

    async def livez(self, _request: Request) -> Response:
        """The process answers."""
        return _answer(Health(status="alive"))

    async def health(self, _request: Request) -> Response:
        """As `readyz`, by the seed's path."""
        await self._require_ready()
        return _answer(Health(status="healthy"))

    async def readyz(self, _request: Request) -> Response:
        """Whether it can serve; 503 names what is down."""
        await self._require_ready()
        return _answer(Health(status="ready"))

    async def version(self, _request: Request) -> Response:
        """What runs here."""
        return _answer(Version(name="livetape", version=self.options.version))

    async def metrics(self, _request: Request) -> Response:
        """The figures of this process for Prometheus, where they are switched on."""
        if self._metrics_text is None:
            raise HTTPException(404)
        body, content_type = self._metrics_text()
        return Response(body, headers={"Content-Type": content_type})

    async def openapi(self, _request: Request) -> Response:
        """What is answered here, as OpenAPI."""
        return Response(_document(self.options.version), media_type="application/json")

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
) -> Starlette:
    """The application, ready to be served. `routes` are answered before ours and stand behind the same middleware."""
    app = Starlette(
        routes=[*routes, *watching.routes()],
        middleware=layers(watching.options.http, metrics=metrics or NoMetrics(), clock=clock or SystemClock(), ids=ids),
        exception_handlers={
            HTTPException: answer_error,
            InvalidRequestError: answer_error,
            LivetapeError: answer_error,
        },
    )
    app.router.redirect_slashes = False
    return app


async def answer_error(request: Request, error: Exception) -> Response:
    """The exception handler for everything foreseen."""
    problem = problem_of(error)
    if problem is None:
        raise error  # to the request tracker, which logs it
    return error_response(request.scope, problem)


class _Faults:
    """What is wrong with a request, all of it."""

    def __init__(self) -> None:
        self.found: list[dict[str, Any]] = []

    def name(self, request: Request, parameter: str) -> str | None:
        """A part of the path; None when it cannot be one, which is a fault."""
        try:
            return _NAME.validate_python(request.path_params[parameter])
        except ValidationError as error:
            self._add(error, "path", parameter)
            return None

    def body(self, model: type[_Model], raw: bytes, value: Any) -> _Model | None:
        """The value of the body as this; None when it does not fit, which is a fault."""
        if not raw:
            self.found.append({"type": "missing", "loc": ("body",), "msg": "Field required", "input": None})
            return None
        try:
            return model.model_validate(value, from_attributes=True)
        except ValidationError as error:
            self._add(error, "body")
            return None

    def _add(self, error: ValidationError, *place: str) -> None:
        for fault in error.errors(include_url=False):
            self.found.append({**fault, "loc": (*place, *fault["loc"])})


def _names(request: Request, *parameters: str) -> list[str]:
    """These parts of the path.

    Raises:
        InvalidRequestError: they cannot be what they stand for.
    """
    faults = _Faults()
    names = [name for parameter in parameters if (name := faults.name(request, parameter)) is not None]
    if faults.found:
        raise InvalidRequestError(faults.found)
    return names


def _answer(body: BaseModel, *, status: int = 200) -> Response:
    return Response(body.model_dump_json(exclude_none=True), status_code=status, media_type="application/json")


@cache  # asked for seldom, and then by many
def _document(version: str) -> bytes:
    return to_json(watch_document(version))


def _no_job(job_id: str) -> NotFoundError:
    return NotFoundError(f"Job #{job_id} not found.")
