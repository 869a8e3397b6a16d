"""Each rule raises its alert at the right moment, once, and forgets jobs rather than grow."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from livetape.errors import ConfigError
from livetape.events.alerts import Alert, Failed, JobSeen, Silent, TooFrequent


def seen(event_type: str = "task_progress", job_id: str = "j", *, final: bool = False) -> JobSeen:
    return JobSeen(job_id, event_type, final)


def test_a_failure_is_an_alert_and_other_events_are_not():
    rule = Failed()
    assert rule.feed(seen(), 0) == ()
    assert rule.feed(seen("task_failed", final=True), 1) == (Alert("failed", "j", "job j: task_failed", "task_failed"),)
    assert rule.tick(1000) == ()


def test_failures_are_held_back_for_a_while_per_job_and_counted():
    rule = Failed(("a", "b"), name="bad", cooldown_s=10)
    assert len(rule.feed(seen("a"), 0)) == 1
    assert rule.feed(seen("b"), 5) == rule.feed(seen("a"), 9.9) == ()
    assert len(rule.feed(seen("a", "other"), 5)) == 1
    (alert,) = rule.feed(seen("a"), 10)
    assert (alert.rule, alert.suppressed) == ("bad", 2)
    assert rule.feed(seen("a"), 21)[0].suppressed == 0


def test_a_silence_is_told_once_and_again_after_the_next_event():
    rule = Silent(60)
    rule.feed(seen(), 0)
    assert rule.tick(59.9) == []
    (alert,) = rule.tick(60)
    assert (alert.rule, alert.job_id, alert.message) == ("silent", "j", "job j: no event for 60 s")
    assert rule.tick(1000) == []
    rule.feed(seen(), 1000)
    assert rule.tick(1059) == []
    assert len(rule.tick(1060)) == 1


def test_each_event_begins_the_silence_anew():
    rule = Silent(60)
    for now in range(0, 600, 50):
        assert list(rule.feed(seen(), now)) + list(rule.tick(now)) == []
    assert len(rule.tick(610)) == 1


def test_a_job_that_is_over_may_be_silent():
    rule = Silent(60)
    rule.feed(seen(), 0)
    rule.feed(seen("task_completed", final=True), 1)
    assert rule.tick(1000) == []
    rule.feed(seen(), 1000)
    rule.tick(1060)
    rule.feed(seen("task_completed", final=True), 1070)
    assert rule.tick(5000) == []


def test_only_a_job_that_has_begun_may_be_silent():
    rule = Silent(60, after=["task_started"], cooldown_s=1000)
    rule.feed(seen(), 0)
    assert rule.tick(100) == []
    rule.feed(seen("task_started"), 100)
    rule.feed(seen(), 130)
    assert rule.tick(189) == []
    assert len(rule.tick(190)) == 1
    rule.feed(seen(), 200)  # begun long ago
    assert rule.tick(300) == []  # held back
    rule.feed(seen(), 1200)
    assert rule.tick(1300)[0].suppressed == 1


def test_what_is_read_late_does_not_make_a_silence_of_the_past():
    rule = Silent(60)
    rule.feed(seen(job_id="a"), 100)
    rule.feed(seen(job_id="b"), 10)
    assert rule.tick(159) == []
    assert [alert.job_id for alert in rule.tick(160)] == ["a", "b"]


def test_too_many_events_are_an_alert_and_counting_begins_anew():
    rule = TooFrequent(["retry"], 3, 10)
    assert rule.feed(seen("retry"), 0) == rule.feed(seen("retry"), 4) == rule.feed(seen(), 5) == ()
    (alert,) = rule.feed(seen("retry"), 10)
    assert alert.message == "job j: 3 events in 10 s, the last one retry"
    assert rule.feed(seen("retry"), 11) == rule.feed(seen("retry"), 12) == rule.feed(seen("retry"), 13) == ()
    for now in (20.5, 21):
        assert rule.feed(seen("retry"), now) == ()
    assert rule.feed(seen("retry"), 22)[0].suppressed == 1
    assert rule.tick(23) == ()


def test_slow_enough_events_are_none():
    rule = TooFrequent(None, 3, 10)
    assert all(rule.feed(seen(), now) == () for now in range(0, 200, 6))


def test_a_rate_over_all_jobs_names_the_last_one():
    rule = TooFrequent(["task_failed"], 3, 60, per_job=False)
    alerts = [rule.feed(seen("task_failed", f"j{n}", final=True), n) for n in range(3)]
    assert alerts[2][0].job_id == "j2"
    assert alerts[2][0].message.startswith("all jobs: 3 events in 60 s")
    apart = TooFrequent(["task_failed"], 3, 60)
    assert all(apart.feed(seen("task_failed", f"j{n}", final=True), n) == () for n in range(9))


@pytest.mark.parametrize("make", [lambda: Silent(0), lambda: TooFrequent(None, 0, 1), lambda: TooFrequent(None, 1, 0)])
def test_rules_of_no_use_are_refused(make):
    with pytest.raises(ConfigError):
        make()


def test_memory_is_bounded():
    silent = Silent(60, max_jobs=10)
    rules = [silent, Failed(("e",), max_jobs=10), TooFrequent(None, 1, 1, max_jobs=10)]
    for n in range(1000):
        for rule in rules:
            rule.feed(seen("e", f"j{n}"), n / 1000)
    assert silent.forgotten == 990
    assert [alert.job_id for alert in silent.tick(100)] == [f"j{n}" for n in range(990, 1000)]
    for rule in rules:
        for value in [*vars(rule).values(), *vars(rule._cooldown).values()]:
            assert not hasattr(value, "__len__") or isinstance(value, str) or len(value) <= 10


@given(st.lists(st.tuples(st.floats(0, 30), st.sampled_from("abc"), st.booleans()), max_size=60))
def test_a_silence_is_told_exactly_when_there_was_one(steps):
    """Against a model that remembers everything."""
    rule, now, heard, told = Silent(20), 0.0, {}, set()
    for wait, job_id, final in steps:
        now += wait
        expected = {job for job, at in heard.items() if now - at >= 20 and job not in told}
        assert {alert.job_id for alert in rule.tick(now)} == expected
        told |= expected
        rule.feed(seen(job_id=job_id, final=final), now)
        told.discard(job_id)
        if final:
            heard.pop(job_id, None)
        else:
            heard[job_id] = now
