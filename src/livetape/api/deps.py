"""What the routes ask for, and the route class that lets nobody in without signing in."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Annotated, Any, Final

from fastapi import APIRouter, Depends
from fastapi.routing import APIRoute
from fastapi.security import HTTPBearer
from starlette.requests import Request
from starlette.responses import Response

from livetape.api.bodies import ErrorBody
from livetape.api.json_route import JsonRoute
from livetape.api.ports import EventStreams, Executions, Graphs, Jobs, QueueControl, Reviews, Tapes
from livetape.api.services import ApiOptions, BlockList, Services
from livetape.auth import ConnectionFacts, Principal
from livetape.engine.block import BlockRegistry
from livetape.errors import NotAuthorizedError

# Only describes the header in OpenAPI: `SignedInRoute` reads it.
BEARER: Final = HTTPBearer(scheme_name="HTTPBearerJWT", bearerFormat="JWT", auto_error=False)

ERRORS: Final[dict[int | str, dict[str, Any]]] = {"default": {"model": ErrorBody, "description": "Error"}}


class SignedInRoute(JsonRoute):
    """A route for known callers. They are asked who they are before a byte of the body is read.

    A caller that is less than its user (a key with scopes) is refused: no route here says which scope it needs.
    The caller stands in `request.state.principal`.
    """

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        answer = super().get_route_handler()

        async def handler(request: Request) -> Response:
            services = services_of(request)
            peer = request.client.host if request.client else None
            principal = services.authenticator.authenticate(ConnectionFacts.of(request.headers, peer))
            if services.revocations is not None:
                await services.revocations.check(principal)
            if principal.is_limited:
                raise NotAuthorizedError("This key may not do this")
            request.state.principal = principal
            return await answer(request)

        return handler


def operation_id(route: APIRoute) -> str:
    """`{method}{Tag}{Summary}`, for instance `getV1ListUserGraphs`: names of functions in generated clients."""
    method = min(route.methods or {"get"}).lower()
    words = f"{route.tags[0] if route.tags else ''} {route.summary or route.name}".replace("_", " ").split()
    return method + "".join(word.capitalize() for word in words)


def open_router(tag: str) -> APIRouter:
    """A router for everybody."""
    return APIRouter(tags=[tag], responses=ERRORS, generate_unique_id_function=operation_id)


def signed_in_router(prefix: str, tag: str) -> APIRouter:
    """A router for those who are signed in."""
    return APIRouter(
        prefix=prefix,
        tags=["v1", tag],
        responses=ERRORS,
        generate_unique_id_function=operation_id,
        dependencies=[Depends(BEARER)],
        route_class=SignedInRoute,
    )


def services_of(request: Request) -> Services:
    """The services of the application that answers this request."""
    services: Services = request.app.state.services
    return services


# All of them `async`: FastAPI would run plain functions in a thread.


async def get_services(request: Request) -> Services:
    return services_of(request)


async def get_principal(request: Request) -> Principal:
    """The caller, whom `SignedInRoute` has asked."""
    principal: Principal = request.state.principal
    return principal


async def get_user_id(principal: Annotated[Principal, Depends(get_principal)]) -> str:
    return principal.user_id


async def get_admin(principal: Annotated[Principal, Depends(get_principal)]) -> Principal:
    """The caller, who is an administrator."""
    if not principal.is_admin:
        raise NotAuthorizedError("Admin access required")
    return principal


async def get_options(request: Request) -> ApiOptions:
    return services_of(request).options


async def get_graphs(request: Request) -> Graphs:
    return services_of(request).graphs


async def get_executions(request: Request) -> Executions:
    return services_of(request).executions


async def get_blocks(request: Request) -> BlockRegistry:
    return services_of(request).blocks


async def get_block_list(request: Request) -> BlockList:
    return services_of(request).block_list


async def get_reviews(request: Request) -> Reviews:
    return services_of(request).reviews


async def get_queue(request: Request) -> QueueControl:
    return services_of(request).queue


async def get_jobs(request: Request) -> Jobs:
    return services_of(request).jobs


async def get_tapes(request: Request) -> Tapes:
    return services_of(request).tapes


async def get_event_streams(request: Request) -> EventStreams:
    return services_of(request).event_streams


ServicesDep = Annotated[Services, Depends(get_services)]
OptionsDep = Annotated[ApiOptions, Depends(get_options)]
PrincipalDep = Annotated[Principal, Depends(get_principal)]
AdminDep = Annotated[Principal, Depends(get_admin)]
UserId = Annotated[str, Depends(get_user_id)]
GraphsDep = Annotated[Graphs, Depends(get_graphs)]
ExecutionsDep = Annotated[Executions, Depends(get_executions)]
BlocksDep = Annotated[BlockRegistry, Depends(get_blocks)]
BlockListDep = Annotated[BlockList, Depends(get_block_list)]
ReviewsDep = Annotated[Reviews, Depends(get_reviews)]
QueueDep = Annotated[QueueControl, Depends(get_queue)]
JobsDep = Annotated[Jobs, Depends(get_jobs)]
TapesDep = Annotated[Tapes, Depends(get_tapes)]
EventStreamsDep = Annotated[EventStreams, Depends(get_event_streams)]
