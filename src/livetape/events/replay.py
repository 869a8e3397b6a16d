"""Plays recorded events again, with the pauses between them."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncGenerator
from typing import Final, TypeVar

from livetape.clock import Clock
from livetape.errors import ConfigError
from livetape.events.job_record import JobRecord
from livetape.events.listener import Sleep

T = TypeVar("T")

LATE_S: Final = 0.25
"""Who takes events slower than this after their time gets the next ones in their own rhythm, not in a burst."""


def is_at_once(speed: float) -> bool:
    """Whether this speed means without pauses: 0 or infinite.

    Raises:
        ConfigError: less than 0, or no number.
    """
    if speed < 0 or math.isnan(speed):
        raise ConfigError("the speed of a replay is 0 (at once) or more", speed=speed)
    return speed == 0 or math.isinf(speed)


async def in_time(
    items: AsyncGenerator[T, None],
    speed: float,
    *,
    max_pause_s: float | None = None,
    clock: Clock,
    sleep: Sleep = asyncio.sleep,
) -> AsyncGenerator[T, None]:
    """The same items, the records among them as far apart as they were recorded, divided by `speed`.

    No pause is longer than `max_pause_s`. Others pass when they come.
    """
    due = clock.monotonic()
    before: int | None = None
    try:
        async for item in items:
            if isinstance(item, JobRecord):
                pause = 0.0 if before is None else max(0, item.at_us - before) / 1_000_000 / speed
                due += pause if max_pause_s is None else min(pause, max_pause_s)
                before = item.at_us
                wait = due - clock.monotonic()
                if wait > 0:
                    await sleep(wait)
                elif wait < -LATE_S:
                    due = clock.monotonic()
            yield item
    finally:
        await items.aclose()
