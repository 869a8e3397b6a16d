"""Job events in any FastAPI application: opened and closed with it, for its own routes and for ready-made ones."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from types import TracebackType
from typing import Any, Final, Literal, Self

from fastapi import APIRouter, Depends, HTTPException
from fastapi.routing import APIRoute
from pydantic import BaseModel, Field, ValidationError
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.types import Message, Receive, Scope, Send

from livetape.auth import Principal, User
from livetape.clock import Clock
from livetape.errors import (
    BusUnavailableError,
    ChannelError,
    ClosedError,
    CodecError,
    ConfigError,
    LivetapeError,
    LogUnavailableError,
    NotAuthorizedError,
    NotFoundError,
    UnauthenticatedError,
)
from livetape.events.channel import check_owner, job_channel, job_tape
from livetape.events.jobs import Jobs, UnownedJobs, writer_of
from livetape.events.log import EventLog, Tape
from livetape.events.open import Backend, open_backend, open_client
from livetape.events.reader import JobReader
from livetape.events.recorder import Recorded
from livetape.events.streams import RedisStreamPublisher
from livetape.events.strict import parse_json
from livetape.gateway.access import Access, OwnerAccess
from livetape.gateway.options import GatewayOptions
from livetape.gateway.shutdown import until_server_stops
from livetape.gateway.streams import TapeStreams
from livetape.gateway.subjects import Kind, Subject
from livetape.observability import Metrics, get_logger

logger = get_logger(__name__)

DEFAULT_MAX_BODY_BYTES: Final = 1024 * 1024
SLOW_BYTES: Final = 64 * 1024
CLOSE_SECONDS: Final = 2.0

STATUSES: Final[dict[type[LivetapeError], int]] = {
    NotFoundError: 404,
    UnauthenticatedError: 401,
    NotAuthorizedError: 403,
    ChannelError: 400,
    CodecError: 422,
    BusUnavailableError: 503,
    LogUnavailableError: 503,
    ClosedError: 503,
}
"""How the errors of this library are answered. The first that fits, any other is the application's to handle."""


class JobEventBody(BaseModel):
    """One event for the tape of a job. `timestamp` is ISO 8601; the server's time when it is left out."""

    event_type: str = Field(min_length=1, max_length=200, pattern=r"^[^\x00-\x1f\x7f]+$")
    data: Any = None
    timestamp: str | None = Field(None, max_length=64, pattern=r"^[^\x00-\x1f\x7f]*$")
    idempotency_key: str | None = Field(None, min_length=1, max_length=255, pattern=r"^[\x20-\x7e]+$")


class JobPosition(BaseModel):
    """A place on the tape of a job: after the event with this offset.

    `mixed`: somebody else writes to the tape too; its offsets are strings, JSON numbers do not carry them exactly.
    """

    offset: int | str
    epoch: str
    mixed: Literal[True] | None = None

    @classmethod
    def of(cls, recorded: Recorded) -> JobPosition:
        """Where an event was recorded."""
        epoch, offset = recorded.position.epoch, recorded.position.offset
        return cls(offset=str(offset), epoch=epoch, mixed=True) if recorded.mixed else cls(offset=offset, epoch=epoch)


class JobEvents:
    """The job events of one application.

        job_events = JobEvents("redis://localhost:6379/0")
        app = FastAPI(lifespan=job_events.lifespan)

        @app.post("/reports")
        async def report(events: Annotated[JobEvents, Depends(job_events)]) -> str:
            await events.publisher.publish_task_started("report-1", "report", user_id="user-1")
            ...

    What it opens, it opens when the application starts (in each of its processes) and closes when that stops; it may
    be opened again afterwards. Safe for concurrent use by tasks of the application's event loop.

    uvicorn waits for its connections before it lets an application stop. Where uvicorn was started in the usual ways,
    event streams see that it is about to stop and end; otherwise call `end_streams` then.

    Raises:
        ConfigError: not exactly one of `url` and `client`.
    """

    def __init__(
        self,
        url: str | None = None,
        *,
        client: object | None = None,
        options: GatewayOptions | None = None,
        metrics: Metrics | None = None,
        clock: Clock | None = None,
    ) -> None:
        if (url is None) == (client is None):
            raise ConfigError("job events need the URL of a log or a Redis client", fix='JobEvents("redis://…")')
        self._url = url
        self._client = client
        self._options = options or GatewayOptions()
        self._metrics = metrics
        self._clock = clock
        self._users = 0
        self._opened: _Opened | None = None

    # ---- life ------------------------------------------------------------------------------------------------------

    @asynccontextmanager
    async def lifespan(self, app: object = None) -> AsyncIterator[None]:
        """For `FastAPI(lifespan=…)`, or within a lifespan of your own: `async with job_events.lifespan():`."""
        async with self:
            yield

    async def __aenter__(self) -> Self:
        if self._opened is None:
            backend = self._open_backend()
            try:
                self._opened = _Opened(backend, self._serving, self._metrics, self._clock)
            except BaseException:
                await backend.close()
                raise
        self._users += 1
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        self._users -= 1
        if self._users == 0 and self._opened is not None:
            opened, self._opened = self._opened, None
            await opened.close()

    def end_streams(self) -> None:
        """End every event stream after what waits for it, and begin no more: the server is about to stop.

        Clients come back with their positions, to another process.
        """
        if self._opened is not None:
            self._opened.serving.end()

    def _open_backend(self) -> Backend:
        if self._url is not None:
            return open_backend(self._url, metrics=self._metrics)
        return open_client(self._client, metrics=self._metrics)

    def _serving(self, backend: Backend, log: EventLog) -> Serving:
        """What is to run on this backend."""
        streams = TapeStreams(self._options, backend.bus, log, metrics=self._metrics, clock=self._clock)
        return Serving(streams, run=streams.run, end=streams.end_all, left=lambda: streams.open)

    # ---- use -------------------------------------------------------------------------------------------------------

    async def __call__(self) -> Self:
        """As a dependency: `Depends(job_events)`."""
        self._get()
        return self

    @property
    def publisher(self) -> RedisStreamPublisher:
        """Publishes events of jobs, by the names that older code knows. While closed it raises ClosedError."""
        return self._get().publisher

    @property
    def reader(self) -> JobReader:
        """Reads and follows the events of jobs."""
        return self._get().reader

    @property
    def log(self) -> EventLog:
        """Where the tapes are."""
        return self._get().log

    @property
    def open_streams(self) -> int:
        """How many event streams are being sent."""
        return 0 if self._opened is None else self._opened.streams.open

    async def create(self, job_id: str, user_id: str) -> Tape:
        """Make the tape of a job that will run, with its owner, before anything is published to it.

        Its owner can watch it from now on, whoever publishes. Making it again changes nothing.

        Raises:
            NotFoundError: it belongs to somebody else.
            ChannelError: an id that cannot be part of a name, or own anything.
            LogUnavailableError: nothing is known about whether it was made; make it again.
        """
        tape = await self.log.create(job_tape(job_id), owner=check_owner(user_id), channel=job_channel(job_id))
        if tape.owner != user_id:
            raise _not_found(job_id)
        return tape

    async def visible(self, job_id: str, principal: Principal, jobs_unowned: UnownedJobs = "admin") -> Tape:
        """The tape of a job, if this principal may read it: its own, or without owner as `jobs_unowned` says.

        Raises:
            NotFoundError: there is none that it may read.
        """
        subject = Subject(Kind.JOB, job_id)
        tape = await self.log.describe(subject.tape)
        if tape is None or OwnerAccess(jobs_unowned)(principal, subject, tape) is not Access.GRANTED:
            raise _not_found(job_id)
        return tape

    async def respond(
        self, request: Request, tape: Tape, *, until: datetime | None = None, reader: Principal | None = None
    ) -> Response:
        """The events of a tape as the request asks (wire contract, section 4): page, server-sent events, or lines.

        The caller has checked that the tape may be read. `until`: when the reader's token expires; a stream ends
        `GatewayOptions.expiry_grace_seconds` later. `reader`: whose stream it is, for `max_streams_per_user`.

        Raises:
            ClosedError: the application stops.
        """
        return await self._get().streams.respond(request, tape, until=until, reader=reader)

    def _get(self) -> _Opened:
        if self._opened is None:
            raise ClosedError("the job events are not open: start the application with lifespan=job_events.lifespan")
        return self._opened


@dataclass(frozen=True, slots=True)
class Serving:
    """What serves between start and stop: `run` until cancelled; `end` lets nobody in any more and sends home who is
    there, of whom `left` says how many."""

    streams: TapeStreams
    run: Callable[[], Coroutine[Any, Any, None]]
    end: Callable[[], None]
    left: Callable[[], int]


class _Opened:
    """What is there between start and stop."""

    def __init__(
        self,
        backend: Backend,
        serving: Callable[[Backend, EventLog], Serving],
        metrics: Metrics | None,
        clock: Clock | None,
    ) -> None:
        if backend.log is None or backend.recorder is None:
            raise ConfigError("there is nothing durable behind this URL", fix="use redis://… or sqlite:///…")
        self.log: EventLog = backend.log
        self.jobs = Jobs(backend.recorder, clock=clock)
        self.publisher = RedisStreamPublisher(backend=backend, clock=clock, metrics=metrics)
        self.reader = JobReader.of(backend)
        self.serving = serving(backend, backend.log)
        self.streams = self.serving.streams
        self._backend = backend
        self._tasks = [
            asyncio.create_task(self.serving.run(), name="job events"),
            asyncio.create_task(until_server_stops(self.serving.end), name="job events: server"),
        ]
        for task in self._tasks:
            task.add_done_callback(_tell_failure)

    async def close(self) -> None:
        self.serving.end()
        with suppress(TimeoutError):  # those who are left lose their connection with the server
            async with asyncio.timeout(CLOSE_SECONDS):
                while self.serving.left():  # noqa: ASYNC110 - they do not say when they have ended
                    await asyncio.sleep(0.01)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._backend.close()


def _tell_failure(task: asyncio.Task[None]) -> None:
    if not task.cancelled() and task.exception() is not None:
        logger.error("the job events stopped", exc_info=task.exception(), extra={"action": "job_events_failed"})


# ---- routes --------------------------------------------------------------------------------------------------------


def create_job_router(
    events: JobEvents | str,
    *,
    authenticate: Callable[..., Any] | None = None,
    jobs_unowned: UnownedJobs = "admin",
    prefix: str = "",
    max_body_bytes: int = DEFAULT_MAX_BODY_BYTES,
) -> APIRouter:
    """`GET` and `POST {prefix}/jobs/{job_id}/events` (wire contract, sections 2 and 4), for `app.include_router`.

    `authenticate` is a dependency that gives the caller's user id (or a `Principal` or `User`, whose role may make it
    an administrator) and raises an `HTTPException` for who is not signed in. A job is its owner's: to others it does
    not exist. Jobs without an owner are for administrators, with `jobs_unowned="any_user"` for everybody signed in.

    The router opens `events` with the application that it is included in; a URL stands for `JobEvents(url)`.

    Raises:
        ConfigError: no `authenticate`: nobody would be kept out.
    """
    if authenticate is None:
        raise ConfigError(
            "the job router does not know who may read",
            because="it was given no authenticate",
            fix="create_job_router(…, authenticate=<a dependency that gives the user id of the caller>)",
        )
    held = JobEvents(events) if isinstance(events, str) else events
    router = APIRouter(prefix=prefix, tags=["jobs"], route_class=ErrorRoute, lifespan=held.lifespan)

    given: Any = Depends(authenticate)

    async def sign_in(caller: Any = given) -> Principal:
        return principal_of(caller)

    signed_in: Any = Depends(sign_in)

    @router.get("/jobs/{job_id:path}/events", summary="Read job events", response_model=None, **READ)
    async def read_events(job_id: str, request: Request, principal: Principal = signed_in) -> Response:
        """The events of a job: a page of JSON, or by `Accept` a stream that ends after the final event."""
        tape = await held.visible(job_id, principal, jobs_unowned)
        return await held.respond(request, tape, until=principal.expires_at, reader=principal)

    @router.post("/jobs/{job_id:path}/events", summary="Publish job event", status_code=201, **_PUBLISH)
    async def publish_event(job_id: str, request: Request, principal: Principal = signed_in) -> Response:
        """Appends one event to the tape of the job; the first to publish owns it. Answers when it is durable."""
        body = await _body(request, max_body_bytes, held._options.slow_seconds)
        tape = await held.log.describe(job_tape(job_id))
        try:
            writer = writer_of(tape, principal.user_id, is_admin=principal.is_admin, jobs_unowned=jobs_unowned)
        except NotFoundError:
            raise _not_found(job_id) from None
        recorded = await held._get().jobs.publish(
            writer,
            job_id,
            body.event_type,
            body.data,
            timestamp=body.timestamp,
            idempotency_key=body.idempotency_key,
            is_admin=principal.is_admin,
        )
        return JSONResponse(JobPosition.of(recorded).model_dump(exclude_none=True), 201)

    return router


class ErrorRoute(APIRoute):
    """Answers the errors of this library also in an application that does not know them."""

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        started = False

        async def watched(message: Message) -> None:
            nonlocal started
            started = True
            await send(message)

        try:
            await super().handle(scope, receive, watched)
        except LivetapeError as error:
            status = next((code for kind, code in STATUSES.items() if isinstance(error, kind)), None)
            if started or status is None:
                raise
            if status == 503:
                # its message may name hosts; the class says enough
                logger.warning("%s: %s", error.code, error.message, extra={"action": "job_events_unavailable"})
                text = (type(error).__doc__ or "").strip().partition("\n")[0]
                raise HTTPException(503, text, headers={"Retry-After": "1"}) from error
            headers = {"WWW-Authenticate": "Bearer"} if status == 401 else None
            raise HTTPException(status, error.message, headers=headers) from error


def principal_of(caller: object) -> Principal:
    """From what a dependency of the application gave."""
    if isinstance(caller, Principal):
        found = caller
    elif isinstance(caller, User):
        found = Principal(caller.user_id, role=caller.role)
    elif isinstance(caller, str):
        found = Principal(caller)
    elif caller is None:
        raise UnauthenticatedError
    else:
        raise ConfigError(f"authenticate gave a {type(caller).__name__}", fix="give a user id, or a Principal")
    if not found.user_id:
        raise UnauthenticatedError
    return found


async def _body(request: Request, max_bytes: int, slow_seconds: float) -> JobEventBody:
    """Read only now, after the caller is known; `SLOW_BYTES` of it, or the rest, are to come in `slow_seconds`."""
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media_type != "application/json":  # also what keeps a form on another site's page from sending one
        raise HTTPException(415, "The body must be JSON", headers={"Accept-Post": "application/json"})
    raw, looked_at = bytearray(), 0
    try:
        async with asyncio.timeout(slow_seconds) as limit:
            async for chunk in request.stream():
                raw += chunk
                if len(raw) > max_bytes:
                    text = f"The body is larger than {max_bytes} bytes"
                    raise HTTPException(413, text, headers={"Connection": "close"})
                if len(raw) - looked_at >= SLOW_BYTES:
                    looked_at = len(raw)
                    limit.reschedule(asyncio.get_running_loop().time() + slow_seconds)
    except TimeoutError:
        raise HTTPException(408, "The body did not come", headers={"Connection": "close"}) from None
    try:
        return JobEventBody.model_validate(parse_json(bytes(raw)))
    except CodecError as error:
        raise HTTPException(422, f"JSON decode error: {error.message}") from None
    except ValidationError as error:
        faults = error.errors(include_url=False, include_context=False, include_input=False)
        detail = [{**fault, "loc": ["body", *fault["loc"]]} for fault in faults]
        raise HTTPException(422, detail) from None


def _not_found(job_id: str) -> NotFoundError:
    return NotFoundError(f"Job #{job_id} not found.")


def _parameter(name: str, where: str, description: str, kind: str = "string") -> dict[str, Any]:
    return {"name": name, "in": where, "required": False, "description": description, "schema": {"type": kind}}


READ: Final[dict[str, Any]] = {
    "openapi_extra": {
        "parameters": [
            _parameter("after", "query", "Page: only events after this offset.", "integer"),
            _parameter("limit", "query", "Page: at most so many events, 1 to 1000.", "integer"),
            _parameter("types", "query", "Page: only events of these types, divided by commas."),
            _parameter("since", "query", "Stream: where to begin, `<epoch>-<offset>`, `earliest` or `latest`."),
            _parameter("Last-Event-ID", "header", "Stream: the id of the last event that was received."),
        ]
    },
    "responses": {
        200: {
            "description": "A page of events, or by `Accept` a stream of them. "
            "`X-Stream-Position` says where a stream really began.",
            "content": {
                "application/json": {"schema": {"type": "object"}},
                "text/event-stream": {"schema": {"type": "string"}},
                "application/x-ndjson": {"schema": {"type": "string"}},
            },
        },
        404: {"description": "There is no such job, or it is somebody else's."},
    },
}
_PUBLISH: Final[dict[str, Any]] = {
    "response_model": JobPosition,
    "openapi_extra": {
        "requestBody": {"required": True, "content": {"application/json": {"schema": JobEventBody.model_json_schema()}}}
    },
    "responses": {404: {"description": "The job is somebody else's."}},
}
