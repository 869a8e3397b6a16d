"""Asks the moderation. It has so long to answer, and whatever it does but answer None is a refusal."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import Final

from pydantic_core import from_json

from livetape.engine.hooks import Moderation
from livetape.engine.large_values import LargeValues
from livetape.observability import get_logger
from livetape.store.executions import ExecutionRow, ExecutionStore

logger = get_logger(__name__)

ANSWER_S: Final = 30.0
"""A judge that hangs must not hold an execution for ever: it could not even be stopped."""


async def answer_of(judge: Awaitable[str | None]) -> str | None:
    """Why it refuses; None: it does not."""
    try:
        async with asyncio.timeout(ANSWER_S):
            return await judge
    except Exception:  # any code may stand there
        logger.exception("the moderation failed", extra={"action": "moderation_failed"})
        return "the moderation cannot be asked"


async def refusal(
    judge: Moderation | None, row: ExecutionRow, store: ExecutionStore, values: LargeValues | None
) -> str | None:
    """Ask whether this execution may be begun, until a node of it has run; not for graphs within others."""
    if judge is None or row.parent_id is not None:
        return None
    if row.lease_no > 1:  # its worker may have been lost before the answer
        nodes = await store.nodes(row.id)
        # what it has taken over from another ran before it was made
        if any(node.start_time is not None and node.start_time >= row.created_at for node in nodes):
            return None

    async def judged() -> str | None:
        inputs = from_json(row.inputs)
        return await judge.start(row.user_id, row.graph_id, inputs if values is None else await values.whole(inputs))

    return await answer_of(judged())
