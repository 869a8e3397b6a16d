"""What a log forgets by itself is chosen when it is opened."""

from __future__ import annotations

import asyncio
import math
from pathlib import Path
from typing import Any

import pytest
import redis.asyncio

from livetape.adapters.redis.retention import words
from livetape.errors import ConfigError
from livetape.events.channel import job_tape
from livetape.events.log import NewEvent
from livetape.events.open import Backend, open_backend, open_client
from livetape.events.tape_retention import TapeRetention

RETENTION = TapeRetention(keep_s=600, job_keep_s=60, meta_extra_s=100, max_entries=200)
JOB = job_tape("j1")


def said(number: int, *, final: bool = False) -> NewEvent:
    return NewEvent("said", b'{"event_type":"said","number":%d}' % number, final=final)


async def record(backend: Backend, tape: str, count: int) -> None:
    """By the recorder and by the log, half each."""
    recorder, log = backend.recorder, backend.log
    assert recorder is not None
    assert log is not None
    await asyncio.gather(*(recorder.record(tape, "c/x", said(number)) for number in range(count // 2)))
    await asyncio.gather(*(log.append(tape, said(number)) for number in range(count // 2, count)))


async def kept(backend: Backend, tape: str) -> int:
    assert backend.log is not None
    described = await backend.log.describe(tape)
    assert described is not None
    assert described.offset == 2000
    return described.offset - described.first_offset + 1


async def left_s(client: Any, key: str) -> float:
    return float(await client.pttl(key)) / 1000


@pytest.mark.parametrize("through", ["url", "client"])
async def test_redis_forgets_what_it_was_told_to(redis_url: str, through: str) -> None:
    async with redis.asyncio.Redis.from_url(redis_url) as client:
        if through == "url":
            backend = open_backend(redis_url, retention=RETENTION)
        else:
            backend = open_client(client, retention=RETENTION)
        async with backend:
            await record(backend, "t", 2000)
            assert 200 <= await kept(backend, "t") < 1000
            assert 600 <= await left_s(client, "t") <= 630
            assert 700 <= await left_s(client, "{t}:meta") <= 730
            assert backend.log is not None
            await backend.log.append(JOB, said(1))
            assert 600 <= await left_s(client, JOB) <= 630
            await backend.log.append(JOB, said(2, final=True))
            assert 60 <= await left_s(client, JOB) <= 90


async def test_without_it_redis_keeps_all_for_a_month(redis_url: str) -> None:
    async with redis.asyncio.Redis.from_url(redis_url) as client, open_backend(redis_url) as backend:
        await record(backend, "t", 2000)
        assert await kept(backend, "t") == 2000
        assert 30 * 86_400 <= await left_s(client, "t") <= 30 * 86_400 + 30


async def test_elsewhere_appending_forgets_nothing(tmp_path: Path) -> None:
    async with open_backend(f"sqlite:///{tmp_path}/tapes.db", retention=RETENTION) as backend:
        await record(backend, "t", 2000)
        assert await kept(backend, "t") == 2000
    async with open_backend("memory://", retention=RETENTION) as backend:
        assert backend.log is None


@pytest.mark.parametrize(
    "wrong",
    [
        {"keep_s": 0},
        {"keep_s": -1},
        {"keep_s": math.inf},
        {"keep_s": math.nan},
        {"job_keep_s": 0},
        {"meta_extra_s": -1},
        {"max_entries": 0},
        {"max_entries": -5},
    ],
)
def test_what_cannot_be_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(wrong))) as caught:
        TapeRetention(**wrong)
    assert caught.value.fix


def test_a_job_that_is_over_is_not_kept_longer_than_others() -> None:
    short = TapeRetention(keep_s=10, job_keep_s=100, meta_extra_s=0.5)
    assert words(short, JOB) == words(short, "t") == ("40000 40000 500", 0)
    assert words(RETENTION, JOB) == ("630000 90000 100000", 200)


async def test_a_tape_that_grows_is_kept_however_short_the_time(redis_url: str) -> None:
    """The time to live is not renewed with each event."""
    async with (
        redis.asyncio.Redis.from_url(redis_url) as client,
        open_backend(redis_url, retention=TapeRetention(keep_s=0.001, meta_extra_s=0)) as backend,
    ):
        assert backend.log is not None
        await backend.log.append("t", said(1))
        await asyncio.sleep(0.05)
        assert (await backend.log.append("t", said(2))).offset == 2
        assert await left_s(client, "t") > 20
