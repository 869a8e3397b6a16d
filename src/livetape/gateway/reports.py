"""What clients say that went wrong on their side, for the log: they can say it as often as they like."""

from __future__ import annotations

from typing import Final

from livetape.clock import Clock
from livetape.gateway.rate import TokenBucket
from livetape.observability import get_logger

logger = get_logger(__name__)

MAX_LOGGED_CHARS: Final = 500

REPORTS_PER_SECOND: Final = 1.0
REPORTS_AT_ONCE: Final = 60
"""Of all clients of a process together."""


class ClientReports:
    """Writes them down; when there are too many, how many were left out stands in the next one that is written."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._bucket = TokenBucket(REPORTS_PER_SECOND, REPORTS_AT_ONCE, clock.monotonic())
        self._left_out = 0

    def tell(self, text: str) -> None:
        """A client reports this."""
        if not self._bucket.spare(self._clock.monotonic()):
            self._left_out += 1
            return
        left_out, self._left_out = self._left_out, 0
        extra = {"action": "client_error"} | ({"left_out": left_out} if left_out else {})
        logger.info("a client reports: %s", text[:MAX_LOGGED_CHARS], extra=extra)
