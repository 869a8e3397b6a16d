"""Commands tried again while that may help."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final

from livetape.adapters.redis.commands import RedisReplyError
from livetape.adapters.redis.failures import as_log_error, passes
from livetape.errors import LogUnavailableError
from livetape.events.answer_limit import AnswerLimit

FIRST_PAUSE_S: Final = 0.02
LONGEST_PAUSE_S: Final = 1.0


def pause(attempt: int) -> float:
    """Seconds before the next attempt: doubled each time, and never two clients in step."""
    return min(LONGEST_PAUSE_S, FIRST_PAUSE_S * 2.0 ** min(attempt, 10)) * random.uniform(0.5, 1.0)  # noqa: S311


async def persist(attempt: Callable[[], Awaitable[Any]], *, timeout_s: float) -> Any:
    """The result of `attempt`, repeated with growing pauses while its error passes, for `timeout_s` seconds.

    That the loop was too busy to read an answer is not taken for silence.

    Raises:
        LogUnavailableError: it did not help.
        LogError: it would not help.
    """
    loop = asyncio.get_running_loop()
    deadline = loop.time() + timeout_s
    attempts = 0
    while True:
        try:
            async with AnswerLimit(deadline - loop.time()):
                return await attempt()
        except TimeoutError as error:
            raise LogUnavailableError("the event log did not answer in time") from error
        except Exception as error:
            left = deadline - loop.time()
            if not passes(error) or left <= 0:
                raise as_log_error(error) from error
            known_now = isinstance(error, RedisReplyError) and error.code == "NOSCRIPT" and attempts == 0
            await asyncio.sleep(0 if known_now else min(pause(attempts), left))
            attempts += 1


async def gathered(replies: Sequence[Awaitable[Any]]) -> list[Any]:
    """All replies to commands that were handed over together; or the first error, when all have come."""
    results = await asyncio.gather(*replies, return_exceptions=True)
    for result in results:
        if isinstance(result, BaseException):
            raise result
    return results
