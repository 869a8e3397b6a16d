"""Moves the sockets of a process that stops to others: who is told and closed when, and doing so.

Sockets are told in rounds (`reconnect`), and closed some seconds after they were told, so that clients that understand
it have moved on by themselves, those that do not come back over a span of time, and never all at once.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable, Sequence
from typing import Final, NamedTuple, Protocol

from livetape.clock import Clock
from livetape.gateway import messages
from livetape.gateway.close_codes import CloseCode
from livetape.gateway.messages import Push, WSMethod

MIN_ROUND: Final = 20
"""Sockets that may be told at the same moment, however many rounds there could be."""
SHORTEST_PAUSE_S: Final = 0.25
"""Between two rounds."""
TOLD_SHARE: Final = 0.6
"""Of the time that there is: in this part all are told."""
NOTICE_SHARE: Final = 0.2
"""So much later a round is closed; what is left is for what still waits for a client."""
LOOK_S: Final = 0.05


class Moving(Protocol):
    """A socket that is to go elsewhere. Both return at once; of a socket that is gone, both do nothing."""

    def tell(self, push: Push, /) -> None:
        """Send it, after what waits for it."""

    def close(self, code: CloseCode, /) -> None:
        """Close it after what waits for it."""


class Step(NamedTuple):
    """At `at` seconds after the beginning, the sockets with numbers `first` (included) to `last` (not) are told or
    closed."""

    at: float
    closes: bool
    first: int
    last: int


def schedule(count: int, within: float) -> list[Step]:
    """The steps for so many sockets, in the order of time. Each socket is told once and closed once, in this order.

    The last is closed at 4/5 of `within` seconds at the latest. Few sockets are one round, told at once.
    """
    if count <= 0:
        return []
    span = within * TOLD_SHARE
    rounds = max(1, min(math.ceil(count / MIN_ROUND), 1 + math.floor(span / SHORTEST_PAUSE_S)))
    pause = span / (rounds - 1) if rounds > 1 else 0.0
    notice = within * NOTICE_SHARE
    steps = []
    for number in range(rounds):
        first, last = number * count // rounds, (number + 1) * count // rounds
        steps.append(Step(number * pause, False, first, last))
        steps.append(Step(number * pause + notice, True, first, last))
    return sorted(steps, key=lambda step: (step.at, step.closes))


async def move(
    sockets: Sequence[Moving],
    left: Callable[[], int],
    *,
    within: float,
    clock: Clock,
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
) -> int:
    """Tell and close these sockets as `schedule` says, and wait until none is left; `within` seconds at most.

    `left` says how many are open. Returns that number at the end; over at once when it is 0.
    """
    begun = clock.monotonic()
    for step in schedule(len(sockets), within):
        if not await _wait(begun + step.at, left, clock, sleep):
            return 0
        part = sockets[step.first : step.last]
        for number, socket in enumerate(part):
            if step.closes:
                socket.close(CloseCode.SERVICE_RESTART)
            else:
                socket.tell(reconnect_push(within * NOTICE_SHARE / 2 * number / len(part)))
    await _wait(begun + within, left, clock, sleep)
    return left()


def reconnect_push(after: float) -> Push:
    """Tells a client to open another socket with its positions so many seconds later, and then to leave this one."""
    return Push(messages.message(WSMethod.RECONNECT, data=b'{"after_ms":%d}' % round(after * 1000)))


async def _wait(until: float, left: Callable[[], int], clock: Clock, sleep: Callable[[float], Awaitable[None]]) -> bool:
    """Whether any are left at that moment; sooner when none is."""
    while left():
        remaining = until - clock.monotonic()
        if remaining <= 0:
            return True
        await sleep(min(remaining, LOOK_S))
    return False
