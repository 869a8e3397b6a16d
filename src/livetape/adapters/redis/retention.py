"""How long tapes stay in Redis, as the scripts are told. Pure."""

from __future__ import annotations

from typing import Final

from livetape.adapters.redis.keys import is_job_tape
from livetape.events.tape_retention import TapeRetention

RENEWED_MS: Final = 30_000
"""The scripts renew the times to live so often only: without so much more a tape could end while it grows."""


def words(retention: TapeRetention, tape: str) -> tuple[str, int]:
    """For the scripts: milliseconds to keep it, after its end, and its metadata beyond that; and the most entries.

    They are one word, since most calls do not look at them. 0 entries: all.
    """
    keep_s = retention.keep_s
    after_end_s = min(keep_s, retention.job_keep_s) if is_job_tape(tape) else keep_s
    keep, after_end = (round(seconds * 1000) + RENEWED_MS for seconds in (keep_s, after_end_s))
    return f"{keep} {after_end} {round(retention.meta_extra_s * 1000)}", retention.max_entries or 0
