"""What a log forgets by itself, while events are appended and after the last one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from livetape.errors import ConfigError

DAY_S: Final = 24 * 3600.0
LONGEST_S: Final = 36_500 * DAY_S


@dataclass(frozen=True, slots=True)
class TapeRetention:
    """How long a server that forgets by itself (Redis) keeps a tape; times are seconds.

    `keep_s` after the last event its events go, all at once, and `job_keep_s` after the last event of a job that is
    over; never sooner, and up to half a minute later. Owner, epoch and number of the tape stay `meta_extra_s` longer,
    so that a late event does not begin at 1 again.

    `max_entries`: about so many of the newest events are kept while a tape grows (never fewer; some hundred more),
    whether or not consumer groups took the older ones; None keeps all.

    What lies further back than that, by the time of each event, is the matter of `livetape.events.Retention`.

    Raises:
        ConfigError: no time, more than a hundred years, or less than one event.
    """

    keep_s: float = 30 * DAY_S
    job_keep_s: float = DAY_S
    meta_extra_s: float = 7 * DAY_S
    max_entries: int | None = None

    def __post_init__(self) -> None:
        for name, seconds in (("keep_s", self.keep_s), ("job_keep_s", self.job_keep_s)):
            if not 0 < seconds <= LONGEST_S:
                raise ConfigError(f"{name} is {seconds:g}", fix=f"a number of seconds from above 0 to {LONGEST_S:.0f}")
        if not 0 <= self.meta_extra_s <= LONGEST_S:
            raise ConfigError(
                f"meta_extra_s is {self.meta_extra_s:g}", fix=f"a number of seconds from 0 to {LONGEST_S:.0f}"
            )
        if self.max_entries is not None and self.max_entries < 1:
            raise ConfigError(f"max_entries is {self.max_entries}", fix="1 or more, or None to keep all")
