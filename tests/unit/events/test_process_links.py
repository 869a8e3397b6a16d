"""Events from code that is not asynchronous, in a process and in those that fork from it."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from livetape.errors import ChannelError, CodecError, ConfigError
from livetape.events.process_links import ProcessLinks
from livetape.events.reader import JobReader
from livetape.observability import NoMetrics
from servers import RedisServer


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/tapes.db"


@pytest.fixture
def links(url: str) -> Iterator[ProcessLinks]:
    made = ProcessLinks(url, 5, NoMetrics())
    yield made
    made.close()


def types(url: str, job: str) -> list[str]:
    async def read() -> list[str]:
        async with JobReader.open(url) as reader:
            return [record.event_type for record in await reader.read(job)]

    return asyncio.run(read())


def threads() -> int:
    return sum(thread.name.startswith("livetape") for thread in threading.enumerate())


def test_events_are_durable_when_it_returns(links: ProcessLinks, url: str) -> None:
    assert links.publish("J", None, "task_started", {}) == "1-0"
    assert links.publish("J", None, "task_progress", {"event_type": "forged"}) == "2-0"
    links.close()
    assert types(url, "J") == ["task_started", "task_progress"]
    assert links.publish("J", None, "task_completed", {}) == "3-0"
    assert links.lost == 0


def test_what_is_wrong_with_the_event_is_raised(links: ProcessLinks) -> None:
    with pytest.raises(CodecError):
        links.publish("J", None, "x", {"value": object()})
    with pytest.raises(ChannelError):
        links.publish("a*", None, "x", {})
    with pytest.raises(ConfigError):
        ProcessLinks("memory://", 1, NoMetrics()).publish("J", None, "x", {})
    assert links.lost == 0


def test_a_job_of_somebody_else_is_counted(links: ProcessLinks) -> None:
    assert links.publish("J", "U", "x", {}) == "1-0"
    assert links.publish("J", "V", "x", {}) is None
    assert links.lost == 1
    links.close()
    assert links.lost == 1


def test_a_key_is_written_once(links: ProcessLinks) -> None:
    assert [links.publish("J", None, "x", {}, idempotency_key="k") for _ in range(2)] == ["1-0", "1-0"]


def test_nothing_is_left_open(links: ProcessLinks) -> None:
    before = threads()
    links.publish("J", None, "x", {})
    assert threads() > before
    links.close()
    links.close()
    assert threads() == before


def test_many_threads_share_one_link(links: ProcessLinks, url: str) -> None:
    def work(job: str) -> None:
        for number in range(20):
            assert links.publish(job, None, f"e{number}", {}) == f"{number + 1}-0"

    working = [threading.Thread(target=work, args=(f"J{number}",)) for number in range(8)]
    for thread in working:
        thread.start()
    for thread in working:
        thread.join()
    links.close()
    for number in range(8):
        assert types(url, f"J{number}") == [f"e{number}" for number in range(20)]


@pytest.mark.slow
@pytest.mark.needs("redis")
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_who_forks_shares_nothing(own_redis: RedisServer) -> None:
    links = ProcessLinks(own_redis.url(), 5, NoMetrics())
    try:
        assert links.publish("J", None, "parent", {}) == "1-0"
        child = os.fork()
        if child == 0:
            code = 1
            try:
                code = 0 if links.publish("J", None, "child", {}) == "2-0" else 2
                links.close()
            finally:
                os._exit(code)
        _, status = os.waitpid(child, 0)
        assert os.waitstatus_to_exitcode(status) == 0
        assert links.publish("J", None, "parent", {}) == "3-0"
    finally:
        links.close()


@pytest.mark.slow
@pytest.mark.serial
@pytest.mark.needs("redis")
def test_while_nothing_works_only_the_end_is_waited_for(own_redis: RedisServer) -> None:
    links = ProcessLinks(own_redis.url(), 0.5, NoMetrics())
    try:
        assert links.publish("J", None, "task_started", {}) == "1-0"
        own_redis.pause()
        taken = []
        for event_type in ("task_progress", "task_progress", "task_completed"):
            began = time.monotonic()
            assert links.publish("J", None, event_type, {}) is None
            taken.append(time.monotonic() - began)
        assert taken[0] >= 0.5
        assert taken[1] < 0.45
        assert taken[2] >= 0.5
        assert links.lost == 3
        own_redis.resume()
        deadline = time.monotonic() + 10
        while links.publish("J", None, "task_completed", {}) is None:
            assert time.monotonic() < deadline
    finally:
        own_redis.resume()
        links.close()
