"""The blocks that graphs are made of."""

from __future__ import annotations

from fastapi import Response
from starlette.requests import Request

from livetape.api.deps import BlockListDep, signed_in_router
from livetape.api.models import BlockInfo

router = signed_in_router("/api/blocks", "blocks")


@router.get("", summary="List available blocks", response_model=list[BlockInfo])
async def list_blocks(request: Request, blocks: BlockListDep) -> Response:
    """Every installed block with its schemas. Answers 304 to an `If-None-Match` with the present `ETag`."""
    headers = {"ETag": blocks.etag, "Cache-Control": "private, no-cache", "Vary": "Authorization"}
    if _matches(request.headers.get("if-none-match", ""), blocks.etag):
        return Response(status_code=304, headers=headers)
    return Response(blocks.body, media_type="application/json", headers=headers)


def _matches(header: str, etag: str) -> bool:
    tags = [tag.strip() for tag in header.split(",")]
    return "*" in tags or etag.removeprefix("W/") in (tag.removeprefix("W/") for tag in tags)
