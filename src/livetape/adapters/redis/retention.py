"""How long tapes stay in Redis."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from livetape.adapters.redis.keys import is_job_tape

DAY_S: Final = 24 * 3600


@dataclass(frozen=True, slots=True)
class Retention:
    """Redis forgets a tape by itself when nothing was appended for a while.

    `keep_s` seconds after the last event the stream goes, `job_keep_s` seconds after the last event of a finished job.
    The tape's owner, epoch and number live `meta_extra_s` longer, so that a late event does not begin at 1 again.
    `max_entries`: about so many of the newest entries are kept while the tape grows; None keeps all.
    """

    keep_s: float = 30 * DAY_S
    job_keep_s: float = DAY_S
    meta_extra_s: float = 7 * DAY_S
    max_entries: int | None = None

    def words(self, tape: str) -> tuple[str, int]:
        """For the scripts: milliseconds to keep it, after its end, and its metadata beyond that; and the most entries.

        They are one word, since most calls do not look at them.
        """
        keep = int(self.keep_s * 1000)
        after_end = min(keep, int(self.job_keep_s * 1000)) if is_job_tape(tape) else keep
        return f"{keep} {after_end} {int(self.meta_extra_s * 1000)}", self.max_entries or 0
