"""The queue of executions, for administrators."""

from __future__ import annotations

from livetape.api.control_models import PauseQueue, QueueState
from livetape.api.deps import AdminDep, QueueDep, signed_in_router
from livetape.api.ports import QueueControl

router = signed_in_router("/api/queue", "queue")


@router.get("", summary="Get queue state")
async def get_queue(_admin: AdminDep, queue: QueueDep) -> QueueState:
    """How much waits to be begun, and whether anything is."""
    return await _state(queue)


@router.put("/pause", summary="Pause queue")
async def pause_queue(body: PauseQueue, _admin: AdminDep, queue: QueueDep) -> QueueState:
    """From this answer on nothing new is begun; what runs goes on."""
    await queue.pause(body.reason)
    return await _state(queue)


@router.delete("/pause", summary="Resume queue")
async def resume_queue(_admin: AdminDep, queue: QueueDep) -> QueueState:
    """Executions are begun again."""
    await queue.resume()
    return await _state(queue)


async def _state(queue: QueueControl) -> QueueState:
    figures = await queue.figures()
    return QueueState(depth=figures.depth, oldest_seconds=figures.oldest_s, paused=await queue.paused())
