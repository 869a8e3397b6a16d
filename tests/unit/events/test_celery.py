"""What of Celery needs no worker: where ids come from, which tasks are told of, what setting up does."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from celery import Celery, signals

from livetape.events.celery import CeleryEvents, EventTask, TaskRun, setup_events
from livetape.events.reader import JobInfo, JobReader

SetUp = Callable[..., CeleryEvents]


@pytest.fixture
def app() -> Iterator[Celery]:
    made = Celery("unit", set_as_current=False)
    made.conf.update(task_always_eager=True, task_store_eager_result=False)
    yield made
    made.close()


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/tapes.db"


@pytest.fixture
def set_up(app: Celery, url: str) -> Iterator[SetUp]:
    made: list[CeleryEvents] = []

    def call(**options: Any) -> CeleryEvents:
        made.append(setup_events(app, url, **options))
        return made[-1]

    yield call
    for events in made:
        events.disconnect()


def read(url: str, job: str) -> tuple[JobInfo | None, list[tuple[str, Any]]]:
    async def reading() -> tuple[JobInfo | None, list[tuple[str, Any]]]:
        async with JobReader.open(url) as reader:
            return await reader.info(job), [(record.event_type, record.data) for record in await reader.read(job)]

    return asyncio.run(reading())


def a_task(app: Celery, **options: Any) -> Any:
    @app.task(bind=True, name="unit.work", base=EventTask, **options)
    def work(self: Any, n: int = 0, user: str | None = None, fails: str | None = None) -> int:
        self.progress("going", n=n)
        if fails is not None:
            raise ValueError(fails) if fails else KeyError
        return n

    return work


@pytest.mark.parametrize(
    ("source", "call", "owner"),
    [
        (None, {"headers": {"user": "H"}}, None),
        ("user", {"headers": {"user": "H"}, "kwargs": {"user": "K"}}, "H"),
        ("user", {"kwargs": {"user": "K"}}, "K"),
        ("user", {"headers": {"user": 7}}, "7"),
        ("user", {"headers": {"user": ["H"]}}, None),
        ("user", {}, None),
        (lambda run: f"of {run.name} {run.kwargs['n']}", {"kwargs": {"n": 3}}, "of unit.work 3"),
    ],
)
def test_where_the_owner_comes_from(
    app: Celery, set_up: SetUp, url: str, source: Any, call: dict[str, Any], owner: str | None
) -> None:
    events = set_up(owner=source)
    result = a_task(app).apply_async(**call)
    events.close()
    info, tape = read(url, result.id)
    assert info is not None
    assert (info.owner, info.final) == (owner, True)
    assert [event_type for event_type, _ in tape] == ["task_started", "task_progress", "task_completed"]


def test_where_the_job_comes_from(app: Celery, set_up: SetUp, url: str) -> None:
    seen: list[TaskRun] = []

    def job_of(run: TaskRun) -> str:
        seen.append(run)
        return f"report-{run.kwargs['n']}"

    events = set_up(job_id=job_of)
    result = a_task(app).apply_async(kwargs={"n": 5})
    events.close()
    assert len(read(url, "report-5")[1]) == 3
    assert {(run.task_id, run.name, run.attempt) for run in seen} == {(result.id, "unit.work", 1)}


def test_which_tasks_are_told_of(app: Celery, set_up: SetUp, url: str) -> None:
    events = set_up(tasks=lambda task: isinstance(task, EventTask))

    @app.task(name="unit.plain")
    def plain() -> None: ...

    silent, told = plain.delay(), a_task(app).delay()
    events.close()
    assert read(url, silent.id) == (None, [])
    assert len(read(url, told.id)[1]) == 3


def test_other_applications_are_their_own(app: Celery, set_up: SetUp, url: str) -> None:
    events = set_up()
    other = Celery("other", set_as_current=False)
    other.conf.task_always_eager = True

    @other.task(name="other.plain")
    def plain() -> None: ...

    result = plain.delay()
    events.close()
    other.close()
    assert read(url, result.id) == (None, [])


def test_set_up_again_takes_the_place_of_the_first(app: Celery, set_up: SetUp, url: str) -> None:
    before = len(signals.task_prerun.receivers)
    set_up(owner=lambda run: "first")
    second = set_up(owner=lambda run: "second")
    assert len(signals.task_prerun.receivers) == before + 1
    result = a_task(app).delay()
    second.close()
    info, tape = read(url, result.id)
    assert info is not None
    assert (info.owner, len(tape)) == ("second", 3)


def test_a_failure_tells_as_much_as_it_should(app: Celery, set_up: SetUp, url: str) -> None:
    events = set_up(tracebacks=True)
    work = a_task(app)
    failed = work.apply_async(kwargs={"fails": "password=hunter2 at x"})
    silent = work.apply_async(kwargs={"fails": ""})
    events.close()
    data = read(url, failed.id)[1][-1][1]
    assert (data["error"], data["error_type"]) == ("password=*** at x", "ValueError")
    assert "Traceback" in data["traceback"]
    assert "hunter2" not in data["traceback"]
    assert read(url, silent.id)[1][-1][1]["error"] == "KeyError"


def test_a_job_of_somebody_else_does_not_make_the_task_fail(
    app: Celery, set_up: SetUp, url: str, caplog: pytest.LogCaptureFixture
) -> None:
    events = set_up(job_id="job", owner="user")
    work = a_task(app)
    with caplog.at_level(logging.WARNING, "livetape"):
        results = [work.apply_async(kwargs={"n": 1, "user": user}, headers={"job": "J"}) for user in ("U", "V")]
    assert [result.get() for result in results] == [1, 1]
    assert events.lost == 3
    assert "cannot be published" in caplog.text
    events.close()
    info, tape = read(url, "J")
    assert info is not None
    assert (info.owner, len(tape)) == ("U", 3)


def test_an_id_that_cannot_be_a_name_is_logged(app: Celery, set_up: SetUp, caplog: pytest.LogCaptureFixture) -> None:
    events = set_up(job_id="job")

    @app.task(name="unit.plain")
    def plain() -> int:
        return 1

    assert plain.apply_async(headers={"job": "a*"}).get() == 1
    assert caplog.text.count("cannot be published") == 2
    events.close()
