"""Whether the server lives, is ready, and what it is. No sign-in."""

from __future__ import annotations

import asyncio

from starlette.exceptions import HTTPException
from starlette.responses import Response

from livetape.api.bodies import Health, Readiness, Version
from livetape.api.deps import OptionsDep, ServicesDep, open_router
from livetape.api.services import Services
from livetape.api.watch import not_ready

router = open_router("health")


@router.head("/", include_in_schema=False)
@router.get("/", summary="Root")
async def root() -> Health:
    """The seed's health answer. Browsers get the console here, where there is one."""
    return Health(status="healthy")


@router.head("/health", include_in_schema=False)
@router.get("/health", summary="Health", response_model_exclude_defaults=True)
async def health(services: ServicesDep) -> Readiness:
    """Whether everything that the server needs is there (the seed's path; the same check as `/readyz`)."""
    await _require_ready(services)
    return Readiness(status="healthy", degraded=list(services.degraded()))


@router.head("/livez", include_in_schema=False)
@router.get("/livez", summary="Liveness")
async def livez() -> Health:
    """The process answers."""
    return Health(status="alive")


@router.head("/readyz", include_in_schema=False)
@router.get("/readyz", summary="Readiness", response_model_exclude_defaults=True)
async def readyz(services: ServicesDep) -> Readiness:
    """Whether the server can serve; 503 names what is missing."""
    await _require_ready(services)
    return Readiness(status="ready", degraded=list(services.degraded()))


@router.get("/version", summary="Version")
async def version(options: OptionsDep) -> Version:
    """What runs here."""
    return Version(name="livetape", version=options.version)


@router.get("/metrics", include_in_schema=False)
async def metrics(services: ServicesDep) -> Response:
    """The figures of this process for Prometheus, where they are switched on."""
    if services.metrics_text is None:
        raise HTTPException(404)
    body, content_type = services.metrics_text()
    return Response(body, headers={"Content-Type": content_type})


async def _require_ready(services: Services) -> None:
    try:
        async with asyncio.timeout(services.options.ready_timeout):
            missing = list(await services.readiness())
    except TimeoutError:
        missing = ["an answer to the readiness check"]
    if missing:
        raise not_ready(missing)
