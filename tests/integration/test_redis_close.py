"""Closing at any moment, also in the middle of connecting, leaves nothing open and does not take long."""

from __future__ import annotations

import asyncio
import gc
import time
from pathlib import Path

import pytest

from livetape.adapters.redis import stop
from livetape.events.open import open_backend
from servers import RedisServer, guarded_pair

pytestmark = [pytest.mark.needs("redis"), pytest.mark.slow]


async def close_after(url: str, delay_s: float) -> None:
    backend = open_backend(url)
    asking = [
        asyncio.ensure_future(backend.bus.subscribe("x/a")),
        asyncio.ensure_future(backend.bus.publish("x/a", b"")),
    ]
    await asyncio.sleep(delay_s)
    await backend.close()
    await asyncio.wait(asking)
    for one in asking:
        one.exception()


def test_a_cluster_that_is_being_asked_for_its_nodes(
    redis_cluster: list[RedisServer], monkeypatch: pytest.MonkeyPatch
) -> None:
    # As on a busy machine, where cleaning up takes longer than the patience of who stops it.
    monkeypatch.setattr(stop, "_AGAIN_S", 0.0003)
    url = "redis+cluster://" + ",".join(f"127.0.0.1:{node.port}" for node in redis_cluster)
    gc.collect()
    gc.freeze()  # what other tests have made need not be looked at again and again
    try:
        for number in range(60):
            asyncio.run(close_after(url, number * 0.0003))
            gc.collect()  # complains about what was left open
    finally:
        gc.unfreeze()


@pytest.mark.serial
def test_a_sentinel_that_is_being_asked_for_the_master(tmp_path: Path) -> None:
    with guarded_pair(tmp_path) as (_, _, port):
        begun = time.monotonic()
        for number in range(60):
            asyncio.run(
                close_after(f"redis+sentinel://127.0.0.1:{port}/svc/0?sentinel_password=guard", number * 0.0003)
            )
        assert time.monotonic() - begun < 5 * stop._AGAIN_S, "a cancellation that was swallowed does no harm"
