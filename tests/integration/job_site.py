"""An application of somebody else with the job router, on uvicorn over real sockets, and how to talk to it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any

import httpx2
import pytest
from fastapi import Depends, FastAPI, Header, HTTPException

from livetape.auth import Principal
from livetape.errors import ClosedError
from livetape.gateway.fastapi import JobEvents, create_job_router
from livetape.gateway.options import GatewayOptions
from serving import serving

PATIENCE_S = 10.0
SSE = {"accept": "text/event-stream"}
LINES = {"accept": "application/x-ndjson"}


def authenticate(authorization: Annotated[str, Header()] = "") -> Principal:
    """Their application's own way: `Authorization: <user> [<role> [<seconds until it expires>]]`."""
    user_id, role, seconds, *_ = [*authorization.split(" "), "", ""]
    if not user_id:
        raise HTTPException(401, "Who are you?")
    expires = datetime.now(UTC) + timedelta(seconds=float(seconds)) if seconds else None
    return Principal(user_id, role=role, expires_at=expires)


@dataclass
class Site:
    """An application that is served: its job events, and how to talk to it."""

    events: JobEvents
    http: httpx2.AsyncClient
    port: int

    async def publish(self, event_type: str, job: str = "J", *, user: str | None = "U", **data: Any) -> None:
        """As a worker does."""
        await self.events.publisher.publish_event(job, {"event_type": event_type, **data}, user_id=user)

    async def get(self, job: str = "J", user: str = "U", headers: dict[str, str] | None = None, **query: Any) -> Any:
        return await self.http.get(
            f"/api/jobs/{job}/events", params=query, headers={"authorization": user, **(headers or {})}
        )

    async def post(self, body: Any, job: str = "J", user: str = "U") -> Any:
        return await self.http.post(f"/api/jobs/{job}/events", json=body, headers={"authorization": user})

    @asynccontextmanager
    async def stream(self, job: str = "J", user: str = "U", **options: Any) -> AsyncIterator[Any]:
        headers = {"authorization": user, **SSE, **options.pop("headers", {})}
        async with self.http.stream("GET", f"/api/jobs/{job}/events", headers=headers, **options) as answer:
            yield answer

    async def settled(self) -> None:
        """Nothing is sent or watched any more."""
        async with asyncio.timeout(PATIENCE_S):
            while self.events.open_streams or self.events._opened.streams.hub.topics():
                await asyncio.sleep(0.01)


@asynccontextmanager
async def served(url: str, *, jobs_unowned: Any = "admin", **options: Any) -> AsyncIterator[Site]:
    events = JobEvents(url, options=GatewayOptions(**options))
    app = FastAPI()
    app.include_router(create_job_router(events, authenticate=authenticate, jobs_unowned=jobs_unowned, prefix="/api"))

    @app.post("/reports/{report}")
    async def report(report: str, job_events: JobEvents = Depends(events)) -> str:  # noqa: B008
        await job_events.create(report, "U")
        await job_events.publisher.publish_task_started(report, "report", user_id="U")
        return report

    async with serving(app, lifespan="on", timeout_graceful_shutdown=5) as port:
        try:
            address = f"http://127.0.0.1:{port}"
            async with httpx2.AsyncClient(base_url=address, timeout=PATIENCE_S, trust_env=False) as http:
                site = Site(events, http, port)
                yield site
            await site.settled()
        finally:
            events.end_streams()
    with pytest.raises(ClosedError):
        _ = events.publisher


async def blocks(answer: Any) -> AsyncIterator[dict[str, str]]:
    """The events of a stream: their fields by name; comments under the empty name."""
    found: dict[str, str] = {}
    async for line in answer.aiter_lines():
        if line:
            name, _, value = line.partition(":")
            found[name] = value.removeprefix(" ")
        elif found:
            yield found
            found = {}


async def events_of(answer: Any) -> list[dict[str, str]]:
    """All to the end of the stream, without the first block, which only says when to come back."""
    async with asyncio.timeout(PATIENCE_S):
        found = [block async for block in blocks(answer)]
    assert set(found[0]) == {"retry"}
    return found[1:]
