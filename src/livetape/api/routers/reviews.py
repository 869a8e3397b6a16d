"""Reviews: what executions ask people."""

from __future__ import annotations

from typing import Annotated

from fastapi import Query

from livetape.api.bodies import Name
from livetape.api.control_models import PendingHumanReviewModel, ReviewRequest, ReviewResponse
from livetape.api.deps import ReviewsDep, UserId, signed_in_router
from livetape.api.models import MAX_VERSION
from livetape.errors import ConflictError, LimitError, NotFoundError

router = signed_in_router("/api/review", "review")


@router.get("/pending", summary="Get Pending Reviews")
async def list_pending(
    user_id: UserId,
    reviews: ReviewsDep,
    page: Annotated[int, Query(ge=1, le=MAX_VERSION)] = 1,
    page_size: Annotated[int, Query(ge=1, le=100)] = 25,
) -> list[PendingHumanReviewModel]:
    """What waits for the caller's decision, oldest first."""
    found = await reviews.waiting(user_id, page=page, page_size=page_size)
    return [PendingHumanReviewModel.of(review) for review in found]


@router.get("/execution/{graph_exec_id}", summary="Get Pending Reviews for Execution")
async def list_pending_of_execution(
    graph_exec_id: Name, user_id: UserId, reviews: ReviewsDep
) -> list[PendingHumanReviewModel]:
    """What waits for a decision in one execution."""
    return [PendingHumanReviewModel.of(review) for review in await reviews.of_execution(user_id, graph_exec_id)]


@router.post("/action", summary="Process Review Action")
async def process_action(body: ReviewRequest, user_id: UserId, reviews: ReviewsDep) -> ReviewResponse:
    """Takes decisions; the executions go on. Each is taken for itself, and may be sent again."""
    counts = {True: 0, False: 0}
    failed: list[str] = []
    for item in body.reviews:
        try:
            await reviews.decide(
                user_id,
                item.node_exec_id,
                approved=item.approved,
                message=item.message or "",
                edited=item.reviewed_data,
                is_edited="reviewed_data" in item.model_fields_set,
            )
            counts[item.approved] += 1
        except (NotFoundError, ConflictError, LimitError) as error:
            failed.append(f"{item.node_exec_id}: {error.message}")
    return ReviewResponse(
        approved_count=counts[True],
        rejected_count=counts[False],
        failed_count=len(failed),
        error=failed[0] if failed else None,
    )
