"""The gateway inside a FastAPI application of somebody else, on any ASGI server: opened and closed with it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from importlib.metadata import version as package_version
from typing import Any, Final, Self

from fastapi import APIRouter, Depends, FastAPI
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import WebSocketRoute

from livetape.auth import Authenticator, ConnectionFacts, OriginPolicy, Principal, TokenOptions, TokenVerifier
from livetape.clock import Clock
from livetape.errors import ConfigError, NotFoundError
from livetape.events.jobs import UnownedJobs
from livetape.events.log import EventLog, Tape
from livetape.events.open import Backend
from livetape.gateway.access import Access, AccessCheck, OwnerAccess
from livetape.gateway.app import Gateway
from livetape.gateway.asyncapi import asyncapi_route
from livetape.gateway.doorkeeper import Doorkeeper
from livetape.gateway.fastapi import READ, ErrorRoute, JobEvents, Serving, create_job_router, principal_of
from livetape.gateway.options import GatewayOptions
from livetape.gateway.stopper import Stopper
from livetape.gateway.subjects import Kind, Subject
from livetape.gateway.transports.asgi import AsgiTransport, Receive, Scope, Send
from livetape.observability import Metrics

READY_SECONDS: Final = 2.0
"""A start waits so long for the bus. Without it the application starts as well, and sockets are refused (503)."""


class MountedGateway(JobEvents):
    """The gateway of an application: everything that `JobEvents` is, and a socket.

        gateway = MountedGateway("redis://localhost:6379/0", authenticator=authenticator)
        gateway.mount(app)

    or in one line `mount_gateway(app, "redis://localhost:6379/0", key=…)`. It is open while the application runs: from
    before the application's own lifespan begins until after it has ended.

    Raises:
        ConfigError: not exactly one of `url` and `client`.
    """

    def __init__(
        self,
        url: str | None = None,
        *,
        authenticator: Authenticator,
        client: object | None = None,
        doorkeeper: Doorkeeper | None = None,
        check: AccessCheck | None = None,
        options: GatewayOptions | None = None,
        metrics: Metrics | None = None,
        clock: Clock | None = None,
    ) -> None:
        super().__init__(url, client=client, options=options, metrics=metrics, clock=clock)
        self.authenticator = authenticator
        self._doorkeeper = doorkeeper
        self._check = check or OwnerAccess(self._options.jobs_unowned)
        self._gateway: Gateway | None = None

    # ---- life ------------------------------------------------------------------------------------------------------

    async def __aenter__(self) -> Self:
        await super().__aenter__()
        if self._gateway is not None:
            with suppress(TimeoutError):
                async with asyncio.timeout(READY_SECONDS):
                    await self._gateway.ready.wait()
        return self

    @property
    def gateway(self) -> Gateway:
        """While the application runs.

        Raises:
            ClosedError: it does not.
        """
        self._get()
        assert self._gateway is not None  # made when it was opened
        return self._gateway

    def drain(self) -> None:
        """Let nobody in any more, close every socket (1012), end every stream: the server is about to stop."""
        self.end_streams()

    def _serving(self, backend: Backend, log: EventLog) -> Serving:
        made = self._gateway = Gateway(
            self._options,
            backend.bus,
            log,
            self.authenticator,
            doorkeeper=self._doorkeeper,
            check=self._check,
            stopping=Stopper(backend.bus),
            metrics=self._metrics,
            clock=self._clock,
        )
        return Serving(made.streams, run=made.run, end=made.drain, left=lambda: made.sockets + made.streams.open)

    # ---- use -------------------------------------------------------------------------------------------------------

    def mount(
        self,
        app: FastAPI,
        *,
        path: str = "/ws",
        prefix: str = "/api",
        authenticate: Callable[..., Any] | None = None,
    ) -> None:
        """Add the socket, the routes of events and `/asyncapi.json`; open and close it with the application.

        `authenticate` is a dependency that gives the caller's user id (or a `Principal` or `User`) to the routes;
        without one they take the same tokens as the socket, as `Authorization: Bearer …`.
        """
        sign_in = authenticate or self.sign_in
        app.router.routes.append(WebSocketRoute(path, _Endpoint(self), name="ws"))
        app.router.routes.append(asyncapi_route(self._options, version=package_version("livetape"), path=path))
        jobs = create_job_router(self, authenticate=sign_in, jobs_unowned=self._options.jobs_unowned, prefix=prefix)
        app.include_router(jobs)
        app.include_router(self._execution_router(sign_in, prefix))
        self._live_with(app)

    async def sign_in(self, request: Request) -> Principal:
        """The caller of a route, by its token: a dependency."""
        peer = request.client.host if request.client else None
        return self.authenticator.authenticate(ConnectionFacts.of(request.headers, peer))

    async def visible(self, job_id: str, principal: Principal, jobs_unowned: UnownedJobs = "admin") -> Tape:
        subject = Subject(Kind.JOB, job_id)
        return await self._visible(subject, principal, f"Job #{job_id} not found.")

    async def _visible(self, subject: Subject, principal: Principal, otherwise: str) -> Tape:
        tape = await self.log.describe(subject.tape)
        if tape is None or self._check(principal, subject, tape) is not Access.GRANTED:
            raise NotFoundError(otherwise)
        return tape

    def _execution_router(self, sign_in: Callable[..., Any], prefix: str) -> APIRouter:
        router = APIRouter(prefix=prefix, tags=["executions"], route_class=ErrorRoute)
        caller: Any = Depends(sign_in)

        @router.get(
            "/graphs/{graph_id}/executions/{graph_exec_id}/events",
            summary="Read execution events",
            response_model=None,
            **READ,
        )
        async def read_events(graph_id: str, graph_exec_id: str, request: Request, by: Any = caller) -> Response:
            """The events of an execution: a page of JSON, or by `Accept` a stream that ends after the final event."""
            principal = principal_of(by)
            otherwise = f"Graph execution #{graph_exec_id} not found."
            tape = await self._visible(Subject(Kind.EXECUTION, graph_exec_id), principal, otherwise)
            if tape.graph_id != graph_id:
                raise NotFoundError(otherwise)
            return await self.respond(request, tape, until=principal.expires_at, reader=principal)

        return router

    def _live_with(self, app: FastAPI) -> None:
        own = app.router.lifespan_context

        @asynccontextmanager
        async def lifespan(running: Any) -> AsyncIterator[Any]:
            async with self, own(running) as state:
                yield state

        app.router.lifespan_context = lifespan


class _Endpoint:
    """The socket's place in the application, whether the gateway is open or not."""

    def __init__(self, mounted: MountedGateway) -> None:
        self._mounted = mounted

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        gateway = self._mounted._gateway
        if gateway is None:
            await AsgiTransport(scope, receive, send).reject(503, "Try again later")
        else:
            await gateway.websocket_endpoint(scope, receive, send)


def mount_gateway(
    app: FastAPI,
    url: str | None = None,
    *,
    key: str | None = None,
    authenticator: Authenticator | None = None,
    origins: Sequence[str] = (),
    authenticate: Callable[..., Any] | None = None,
    path: str = "/ws",
    prefix: str = "/api",
    client: object | None = None,
    doorkeeper: Doorkeeper | None = None,
    check: AccessCheck | None = None,
    options: GatewayOptions | None = None,
    metrics: Metrics | None = None,
    clock: Clock | None = None,
) -> MountedGateway:
    """Give an application live events, in one line: the socket at `path`, and below `prefix` the events of jobs and
    executions over HTTP. Returns what the application publishes with.

    `key` checks tokens (HS256; for everything else give an `authenticator`). `origins` are the pages of other sites
    that may open sockets; pages of the application's own host always may. The rest is that of `MountedGateway`.

    Raises:
        ConfigError: not exactly one of `key` and `authenticator`, or a URL that cannot be used.
    """
    if (key is None) == (authenticator is None):
        raise ConfigError("the gateway does not know who may come in", fix="mount_gateway(…, key=<the key of tokens>)")
    if authenticator is None:
        verifier = TokenVerifier(TokenOptions(verify_key=key or ""))
        authenticator = Authenticator(verifier, origins=OriginPolicy(origins))
    mounted = MountedGateway(
        url,
        authenticator=authenticator,
        client=client,
        doorkeeper=doorkeeper,
        check=check,
        options=options,
        metrics=metrics,
        clock=clock,
    )
    mounted.mount(app, path=path, prefix=prefix, authenticate=authenticate)
    return mounted
