"""Values of executions that are too large for a row or an event."""

from __future__ import annotations

from typing import Annotated

from fastapi import Path, Response

from livetape.api.bodies import Name
from livetape.api.deps import ExecutionsDep, UserId, signed_in_router

router = signed_in_router("/api/blobs", "graphs")


@router.get(
    "/{graph_exec_id}/{sha256}",
    summary="Read large value",
    response_class=Response,
    responses={200: {"content": {"application/json": {"schema": {}}}, "description": "The value"}},
)
async def read_blob(
    graph_exec_id: Name,
    sha256: Annotated[str, Path(pattern="^[0-9a-f]{64}$")],
    user_id: UserId,
    executions: ExecutionsDep,
) -> Response:
    """The value, as JSON, for which `{"$livetape.blob": {"sha256", "size"}}` stands in an execution and its events."""
    content = await executions.blob(user_id, graph_exec_id, sha256)
    # The same hash is the same value for ever; private, since it is the user's. Compressing 50 MB would hold up others.
    headers = {
        "Content-Encoding": "identity",
        "ETag": f'"{sha256}"',
        "Cache-Control": "private, max-age=31536000, immutable",
        "Vary": "Authorization",
    }
    return Response(content, media_type="application/json", headers=headers)
