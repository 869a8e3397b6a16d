"""Tapes of background jobs: any script can put its progress on one."""

from __future__ import annotations

from fastapi import Response
from starlette.requests import Request

from livetape.api.bodies import JobInfo, JobPosition, Name, PublishJobEvent
from livetape.api.deps import EventStreamsDep, JobsDep, OptionsDep, PrincipalDep, TapesDep, signed_in_router
from livetape.api.ports import Tapes
from livetape.api.routers.streams import EVENTS_OPENAPI
from livetape.api.services import ApiOptions
from livetape.auth import Principal
from livetape.errors import NotFoundError
from livetape.events.channel import job_tape
from livetape.events.jobs import writer_of
from livetape.events.log import Tape

# `:path`: an id may have a `/` in it, written as such or as %2F
router = signed_in_router("/api/jobs", "jobs")


@router.post("/{job_id:path}/events", summary="Publish job event", status_code=201, response_model_exclude_none=True)
async def publish_event(
    job_id: Name,
    body: PublishJobEvent,
    principal: PrincipalDep,
    tapes: TapesDep,
    options: OptionsDep,
    jobs: JobsDep,
) -> JobPosition:
    """Appends one event to the tape of the job; the first to publish owns it. Answers when the event is durable."""
    tape = await tapes.describe(job_tape(job_id))
    try:
        writer = writer_of(tape, principal.user_id, is_admin=principal.is_admin, jobs_unowned=options.jobs_unowned)
    except NotFoundError:
        raise _not_found(job_id) from None
    recorded = await jobs.publish(
        writer,
        job_id,
        body.event_type,
        body.data,
        timestamp=body.timestamp,
        idempotency_key=body.idempotency_key,
        is_admin=principal.is_admin,
    )
    return JobPosition.of(recorded)


@router.get("/{job_id:path}/events", summary="Read job events", response_model=None, **EVENTS_OPENAPI)
async def read_events(
    job_id: Name,
    request: Request,
    principal: PrincipalDep,
    tapes: TapesDep,
    options: OptionsDep,
    event_streams: EventStreamsDep,
) -> Response:
    """The events of a job: a page of JSON, or by `Accept` a stream that ends after the final event."""
    return await event_streams(request, await _visible_tape(job_id, principal, tapes, options))


@router.get("/{job_id:path}", summary="Get job")
async def get_job(job_id: Name, principal: PrincipalDep, tapes: TapesDep, options: OptionsDep) -> JobInfo:
    """What is known of the job's tape."""
    tape = await _visible_tape(job_id, principal, tapes, options)
    return JobInfo.of(job_id, tape)


async def _visible_tape(job_id: str, principal: Principal, tapes: Tapes, options: ApiOptions) -> Tape:
    tape = await tapes.describe(job_tape(job_id))
    if tape is not None:
        if tape.owner == principal.user_id:
            return tape
        if tape.owner is None and (principal.is_admin or options.jobs_unowned == "any_user"):
            return tape
    raise _not_found(job_id)


def _not_found(job_id: str) -> NotFoundError:
    return NotFoundError(f"Job #{job_id} not found.")
