"""Rules that notice what is wrong with a job by its events. Pure: they are fed events and told the time.

`now` is seconds of any clock that never goes backwards; only differences matter. Memory is bounded: of more than
`max_jobs` jobs the ones that were heard of longest ago are forgotten.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Final, Protocol, TypeVar

from livetape.errors import ConfigError

DEFAULT_MAX_JOBS: Final = 10_000

V = TypeVar("V")


@dataclass(frozen=True, slots=True)
class JobSeen:
    """An event of a job, as far as rules look at it."""

    job_id: str
    event_type: str
    final: bool = False


@dataclass(frozen=True, slots=True)
class Alert:
    """Something is wrong with a job. `rule` is the rule's name, `message` says what, in one sentence.

    `suppressed`: so many alerts of this rule for this job were held back since the one before. `owner`: the job's
    user, when it is known.
    """

    rule: str
    job_id: str
    message: str
    event_type: str | None = None
    suppressed: int = 0
    owner: str | None = None


class Rule(Protocol):
    """Decides which events, and which silences, are alerts."""

    @property
    def name(self) -> str:
        """How its alerts are told from others."""
        ...

    def feed(self, event: JobSeen, now: float) -> Sequence[Alert]:
        """An event has come."""
        ...

    def tick(self, now: float) -> Sequence[Alert]:
        """Nothing has come, but time has passed."""
        ...


class Failed:
    """An event of one of these types came. At most one alert per job in `cooldown_s` seconds."""

    def __init__(
        self,
        types: Collection[str] = ("task_failed",),
        *,
        name: str = "failed",
        cooldown_s: float = 60.0,
        max_jobs: int = DEFAULT_MAX_JOBS,
    ) -> None:
        self.name = name
        self._types = frozenset(types)
        self._cooldown = _Cooldown(cooldown_s, max_jobs)

    def feed(self, event: JobSeen, now: float) -> Sequence[Alert]:
        """An alert when it is of these types."""
        if event.event_type not in self._types:
            return ()
        held_back = self._cooldown.start(event.job_id, now)
        if held_back is None:
            return ()
        message = f"job {event.job_id}: {event.event_type}"
        return (Alert(self.name, event.job_id, message, event.event_type, held_back),)

    def tick(self, now: float) -> Sequence[Alert]:
        """Never."""
        return ()


class Silent:
    """A job has begun, is not over, and for so many seconds there was no event of it. Once per silence.

    `after`: the types that begin a job; None: its first event that is seen, whatever it is.

    Raises:
        ConfigError: 0 seconds or less.
    """

    def __init__(
        self,
        seconds: float,
        *,
        after: Collection[str] | None = None,
        name: str = "silent",
        cooldown_s: float = 0.0,
        max_jobs: int = DEFAULT_MAX_JOBS,
    ) -> None:
        if seconds <= 0:
            raise ConfigError("a silence lasts longer than 0 seconds", seconds=seconds)
        self.name = name
        self.forgotten = 0
        """How many jobs were forgotten before they were silent long enough, because there were too many."""
        self._seconds = seconds
        self._after = None if after is None else frozenset(after)
        self._cooldown = _Cooldown(cooldown_s, max_jobs)
        self._max_jobs = max_jobs
        self._now = float("-inf")
        self._heard: OrderedDict[str, float] = OrderedDict()  # by rising time
        self._told: OrderedDict[str, bool] = OrderedDict()  # silent and alerted, until they are heard again

    def feed(self, event: JobSeen, now: float) -> Sequence[Alert]:
        """Never; but from now on its silence counts."""
        job_id = event.job_id
        has_begun = self._heard.pop(job_id, None) is not None
        has_begun = self._told.pop(job_id, False) or has_begun
        if event.final or not (has_begun or self._after is None or event.event_type in self._after):
            return ()
        self._now = max(self._now, now)  # what is read later may be older: the order must stay
        self._heard[job_id] = self._now
        if len(self._heard) > self._max_jobs:
            self._heard.popitem(last=False)
            self.forgotten += 1
        return ()

    def tick(self, now: float) -> Sequence[Alert]:
        """Alerts for those that are silent."""
        self._now = max(self._now, now)
        alerts = []
        while self._heard:
            job_id, heard = next(iter(self._heard.items()))
            if self._now - heard < self._seconds:
                break
            del self._heard[job_id]
            _keep(self._told, job_id, self._max_jobs, True)
            held_back = self._cooldown.start(job_id, self._now)
            if held_back is not None:
                message = f"job {job_id}: no event for {self._seconds:g} s"
                alerts.append(Alert(self.name, job_id, message, suppressed=held_back))
        return alerts


class TooFrequent:
    """`count` events of these types (None: of any) came within `per_s` seconds.

    Counted for each job, or with `per_job=False` for all together; then the alert names the last one. At most one
    alert in `cooldown_s` seconds (by default `per_s`).

    Raises:
        ConfigError: less than one event, or 0 seconds or less.
    """

    def __init__(
        self,
        types: Collection[str] | None,
        count: int,
        per_s: float,
        *,
        per_job: bool = True,
        name: str = "too_frequent",
        cooldown_s: float | None = None,
        max_jobs: int = DEFAULT_MAX_JOBS,
    ) -> None:
        if count < 1 or per_s <= 0:
            raise ConfigError("a rate is at least 1 event in more than 0 seconds", count=count, per_s=per_s)
        self.name = name
        self._types = None if types is None else frozenset(types)
        self._count = count
        self._per_s = per_s
        self._per_job = per_job
        self._cooldown = _Cooldown(per_s if cooldown_s is None else cooldown_s, max_jobs)
        self._max_jobs = max_jobs
        self._times: OrderedDict[str, deque[float]] = OrderedDict()

    def feed(self, event: JobSeen, now: float) -> Sequence[Alert]:
        """An alert when it is one too many."""
        if self._types is not None and event.event_type not in self._types:
            return ()
        key = event.job_id if self._per_job else ""
        times = self._times.get(key)
        if times is None:
            times = deque(maxlen=self._count)
        times.append(now)
        if event.final and self._per_job:
            self._times.pop(key, None)
        else:
            _keep(self._times, key, self._max_jobs, times)
        if len(times) < self._count or now - times[0] > self._per_s:
            return ()
        times.clear()
        held_back = self._cooldown.start(key, now)
        if held_back is None:
            return ()
        subject = f"job {event.job_id}" if self._per_job else "all jobs"
        message = f"{subject}: {self._count} events in {self._per_s:g} s, the last one {event.event_type}"
        return (Alert(self.name, event.job_id, message, event.event_type, held_back),)

    def tick(self, now: float) -> Sequence[Alert]:
        """Never."""
        return ()


class _Cooldown:
    """After an alert there is none for a while."""

    def __init__(self, seconds: float, max_keys: int) -> None:
        self._seconds = seconds
        self._max_keys = max_keys
        self._until: OrderedDict[str, tuple[float, int]] = OrderedDict()

    def start(self, key: str, now: float) -> int | None:
        """How many were held back before this one; None: this one is held back, too."""
        until, held_back = self._until.get(key, (now, 0))
        if now < until:
            self._until[key] = (until, held_back + 1)
            return None
        _keep(self._until, key, self._max_keys, (now + self._seconds, 0))
        return held_back


def _keep(kept: OrderedDict[str, V], key: str, most: int, value: V) -> None:
    kept[key] = value
    kept.move_to_end(key)
    while len(kept) > most:
        kept.popitem(last=False)
