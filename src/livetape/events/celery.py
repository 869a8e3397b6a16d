"""Celery tasks as jobs: the life of every task on a tape, and `self.progress(…)` in its body.

    app = Celery("reports", broker=url)
    setup_events(app, url)

    @app.task(bind=True, base=EventTask)
    def report(self, topic):
        self.progress("collecting", step=1)
        return {"pages": 12}

Whoever follows the job with the id of the task sees `task_started`, `task_progress`, `task_completed`. Works in the
pools prefork, threads and solo.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeAlias

from celery import signals

from livetape.errors import CodecError, ConfigError, LivetapeError
from livetape.events.blackout import black_out
from livetape.events.codec import encode_payload
from livetape.events.process_links import ProcessLinks
from livetape.observability import Metrics, NoMetrics, get_logger

if TYPE_CHECKING:

    class Task:
        """What is used of `celery.Task`, which has no types."""

        name: str
        app: Any
        request: Any

else:
    from celery import Task

logger = get_logger(__name__)

DEFAULT_TIMEOUT_S: Final = 5.0
DEFAULT_MAX_RESULT_BYTES: Final = 32 * 1024
MAX_ERROR_CHARS: Final = 1_000
MAX_TRACEBACK_CHARS: Final = 16_000
MAX_KNOWN: Final = 10_000


class TaskRun(NamedTuple):
    """One attempt at a task. `headers` are those that `apply_async(headers=…)` was given; `attempt` begins with 1."""

    task_id: str
    name: str
    args: Sequence[Any]
    kwargs: Mapping[str, Any]
    headers: Mapping[str, Any]
    attempt: int


Source: TypeAlias = str | Callable[[TaskRun], str | None] | None
"""Where a job's id or owner comes from: the header of this name, or else the keyword argument; or a function."""


def setup_events(
    app: Any,
    url: str,
    *,
    job_id: Source = None,
    owner: Source = None,
    tasks: Callable[[Any], bool] | None = None,
    timeout: float = DEFAULT_TIMEOUT_S,
    max_result_bytes: int = DEFAULT_MAX_RESULT_BYTES,
    tracebacks: bool = False,
    metrics: Metrics | None = None,
) -> CeleryEvents:
    """Publish the life of the tasks of this Celery application to the log at `url`. Opens nothing yet.

    - `job_id`: by default, and where the source has nothing, the id of the task.
    - `owner`: the user id that the job belongs to; by default, and where the source has nothing, nobody.
    - `tasks`: which ones, asked with the task; by default all but Celery's own. For those of our base class:
      `tasks=lambda task: isinstance(task, EventTask)`.
    - `timeout`: seconds that an event may take to become durable; then the task goes on without it.
    - `max_result_bytes`: a result is told when it is JSON of at most this size.
    - `tracebacks`: whether `task_failed` carries one. Its error text has passwords in URLs and the like blacked out,
      which is a courtesy and no protection: what an exception says is shown to the owner of the job.

    Called again for the same application it takes the place of the earlier call.
    """
    events = CeleryEvents(
        app,
        url,
        job_id=job_id,
        owner=owner,
        tasks=tasks,
        timeout=timeout,
        max_result_bytes=max_result_bytes,
        tracebacks=tracebacks,
        metrics=metrics or NoMetrics(),
    )
    earlier = getattr(app, "livetape_events", None)
    if isinstance(earlier, CeleryEvents):
        earlier.disconnect()
    app.livetape_events = events
    events.connect()
    return events


class EventTask(Task):
    """A base class for tasks that tell how far they are: `@app.task(bind=True, base=EventTask)`.

    No method makes a task fail because the log is away: what could not be published is counted and logged.
    """

    abstract = True

    @property
    def job_id(self) -> str:
        """The job that this task's events belong to."""
        return self._events.job_of(self)

    def progress(self, progress: str, **data: Any) -> str | None:
        """Publish `task_progress` with this text; the result is as that of `publish`."""
        return self.publish("task_progress", progress=progress, **data)

    def publish(self, event_type: str, **data: Any) -> str | None:
        """Publish an event of any type with this data, in order with the other events of this task.

        Returns the id of its entry once it is durable. None: it is not known to be on the tape.

        Raises:
            ConfigError: `setup_events` was not called for this application.
            CodecError: data that JSON cannot carry.
            ChannelError: a job id that cannot be part of a name.
        """
        return self._events.publish(self, event_type, data)

    @property
    def _events(self) -> CeleryEvents:
        events = getattr(self.app, "livetape_events", None)
        if not isinstance(events, CeleryEvents):
            raise ConfigError("this Celery application publishes no events", fix="call setup_events(app, url) first")
        return events


class CeleryEvents:
    """The publisher of one Celery application: listens to its signals. Made by `setup_events`.

    Every process has a link of its own, made with its first event: what was opened before a fork is never used after
    it. Safe for concurrent use by threads.
    """

    def __init__(
        self,
        app: Any,
        url: str,
        *,
        job_id: Source,
        owner: Source,
        tasks: Callable[[Any], bool] | None,
        timeout: float,
        max_result_bytes: int,
        tracebacks: bool,
        metrics: Metrics,
    ) -> None:
        self._app = app
        self._job_id = job_id
        self._owner = owner
        self._tasks = tasks or _is_no_internal
        self._max_result_bytes = max_result_bytes
        self._tracebacks = tracebacks
        self._links = ProcessLinks(url, timeout, metrics)
        self._forks = False
        self._received: OrderedDict[str, tuple[str, str | None]] = OrderedDict()
        self._failed: OrderedDict[str, None] = OrderedDict()
        self._receivers: dict[Any, Callable[..., None]] = {
            signals.worker_init: self._on_worker_init,
            signals.worker_process_init: self._on_process_init,
            signals.worker_process_shutdown: self._on_shutdown,
            signals.worker_shutdown: self._on_shutdown,
            signals.task_received: self._on_received,
            signals.task_prerun: self._on_started,
            signals.task_success: self._on_success,
            signals.task_failure: self._on_failure,
            signals.task_retry: self._on_retry,
            signals.task_revoked: self._on_revoked,
        }

    def connect(self) -> None:
        """Listen to the signals of Celery."""
        for signal, receiver in self._receivers.items():
            signal.connect(receiver, weak=False, dispatch_uid=(id(self), signal.name))

    def disconnect(self) -> None:
        """The twin of `connect`; also closes what this process opened."""
        for signal in self._receivers:
            signal.disconnect(dispatch_uid=(id(self), signal.name))
        self.close()

    def close(self) -> None:
        """Close what this process opened. The next event opens it again."""
        self._links.close()

    @property
    def lost(self) -> int:
        """How many events of this process are not known to be on their tapes."""
        return self._links.lost

    # ---- for tasks -------------------------------------------------------------------------------------------------

    def job_of(self, task: Any) -> str:
        """The job of a task that runs."""
        return self._identity(_run_of(task, task.request))[0]

    def publish(self, task: Any, event_type: str, data: Mapping[str, Any]) -> str | None:
        """See `EventTask.publish`."""
        job_id, owner = self._identity(_run_of(task, task.request))
        return self._links.publish(job_id, owner, event_type, {"task_type": task.name, **data})

    # ---- the life of a worker --------------------------------------------------------------------------------------

    def _on_worker_init(self, sender: Any = None, **_: Any) -> None:
        pool = getattr(sender, "pool_cls", None)
        self._forks = "prefork" in str(getattr(pool, "__module__", pool))

    def _on_process_init(self, **_: Any) -> None:
        self._forks = False
        self._received.clear()
        self._failed.clear()

    def _on_shutdown(self, **_: Any) -> None:
        self.close()

    # ---- the life of a task ----------------------------------------------------------------------------------------

    def _on_received(self, request: Any = None, **_: Any) -> None:
        """In the worker's main process, which alone can tell of tasks that it never ran, or whose process died."""
        task = request.task
        if not self._wants(task):
            return
        self._failed.pop(request.id, None)
        raw = request.request_dict
        run = TaskRun(
            request.id, task.name, request.args or (), request.kwargs or {}, raw, int(raw.get("retries") or 0) + 1
        )
        identity = self._identity(run)
        if identity != (request.id, None):
            _remember(self._received, request.id, identity)

    def _on_started(self, task: Any = None, task_id: str = "", **_: Any) -> None:
        if not self._wants(task):
            return
        run = _run_of(task, task.request)
        self._received.pop(task_id, None)
        if run.attempt > 1:  # it may begin before the attempt that asked for it has said so
            self._tell_retry(run._replace(attempt=run.attempt - 1))
        self._tell(run, "task_started", {"attempt": run.attempt})

    def _on_success(self, sender: Any = None, result: Any = None, **_: Any) -> None:
        if self._wants(sender):
            self._tell(_run_of(sender, sender.request), "task_completed", self._shown(result))

    def _on_failure(
        self,
        sender: Any = None,
        task_id: str = "",
        exception: Any = None,
        args: Any = None,
        kwargs: Any = None,
        einfo: Any = None,
        **_: Any,
    ) -> None:
        if not self._wants(sender):
            return
        data: dict[str, Any] = {"error": self._text(exception), "error_type": type(exception).__name__}
        if self._tracebacks and getattr(einfo, "traceback", None):
            data["traceback"] = black_out(str(einfo.traceback), MAX_TRACEBACK_CHARS)
        if not self._forks and sender.request.id == task_id:
            self._tell(_run_of(sender, sender.request), "task_failed", data)
            return
        # The process that ran it is gone, or its time was over. Celery may say so twice.
        if task_id not in self._failed:
            _remember(self._failed, task_id, None)
            self._tell_for_child(TaskRun(task_id, sender.name, args or (), kwargs or {}, {}, 1), "task_failed", data)

    def _on_retry(self, sender: Any = None, request: Any = None, reason: Any = None, **_: Any) -> None:
        if not self._wants(sender):
            return
        data: dict[str, Any] = {"reason": self._text(getattr(reason, "exc", None) or reason)}
        when = getattr(reason, "when", None)
        if isinstance(when, datetime):
            data["eta"] = when.isoformat()
        elif isinstance(when, int | float):
            data["countdown"] = when
        run = _run_of(sender, request)
        if self._forks:
            self._tell_for_child(run, "task_retried", {"attempt": run.attempt, **data})
        else:
            self._tell_retry(run, data)

    def _on_revoked(
        self, sender: Any = None, request: Any = None, terminated: bool = False, expired: bool = False, **_: Any
    ) -> None:
        if self._wants(sender):
            data = {"terminated": bool(terminated), "expired": bool(expired)}
            self._tell_for_child(_run_of(sender, request), "task_revoked", data)

    # ---- inside ----------------------------------------------------------------------------------------------------

    def _wants(self, task: Any) -> bool:
        return task is not None and task.app is self._app and self._tasks(task)

    def _identity(self, run: TaskRun) -> tuple[str, str | None]:
        """The job and its owner."""
        return _given(self._job_id, run) or run.task_id, _given(self._owner, run)

    def _tell_for_child(self, run: TaskRun, event_type: str, data: dict[str, Any]) -> None:
        """In the main process. One that forks keeps nothing open: what it had open its next child would inherit."""
        identity = self._received.pop(run.task_id, None) or self._identity(run)
        self._tell(run, event_type, data, identity=identity)
        if self._forks:
            self.close()

    def _tell_retry(self, run: TaskRun, data: Mapping[str, Any] | None = None) -> None:
        """Once for each attempt, whoever says it first."""
        key = f"{run.task_id}:{run.attempt}:retried"
        self._tell(run, "task_retried", {"attempt": run.attempt, **(data or {})}, idempotency_key=key)

    def _tell(
        self,
        run: TaskRun,
        event_type: str,
        data: Mapping[str, Any],
        *,
        identity: tuple[str, str | None] | None = None,
        idempotency_key: str | None = None,
    ) -> None:
        """Publish, and go on with the task whatever becomes of it."""
        job_id, owner = identity or self._identity(run)
        told = {"task_type": run.name, **data}
        try:
            self._links.publish(job_id, owner, event_type, told, idempotency_key=idempotency_key)
        except LivetapeError as error:  # an id that cannot be a name, for instance
            logger.error(
                "%s of %s cannot be published: %s", event_type, run.name, error, extra={"action": "event_refused"}
            )

    def _shown(self, result: Any) -> dict[str, Any]:
        try:
            payload, _ = encode_payload({"result": result})
        except CodecError:
            return {"result": None, "result_omitted": "not JSON"}
        if len(payload) > self._max_result_bytes:
            return {"result": None, "result_omitted": "too large"}
        return {"result": result}

    @staticmethod
    def _text(exception: object) -> str:
        return black_out(str(exception) or type(exception).__name__, MAX_ERROR_CHARS)


def _is_no_internal(task: Any) -> bool:
    return not str(task.name).startswith("celery.")


def _run_of(task: Any, request: Any) -> TaskRun:
    return TaskRun(
        str(request.id),
        task.name,
        request.args or (),
        request.kwargs or {},
        request.headers or {},
        int(request.retries or 0) + 1,
    )


def _given(source: Source, run: TaskRun) -> str | None:
    if source is None:
        return None
    if not isinstance(source, str):
        return source(run)
    value = run.headers.get(source)
    if value is None:
        value = run.kwargs.get(source)
    return str(value) if isinstance(value, str | int) and value != "" else None


def _remember(known: OrderedDict[str, Any], key: str, value: Any) -> None:
    known[key] = value
    known.move_to_end(key)
    while len(known) > MAX_KNOWN:
        known.popitem(last=False)
