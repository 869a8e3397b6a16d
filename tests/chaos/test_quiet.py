"""The short form of scripts/quiet-channel: longer than the time-outs that are set in it."""

from __future__ import annotations

import pytest

from chaos.quiet import stay_quiet
from servers import RedisServer


@pytest.mark.slow
@pytest.mark.needs("redis")
async def test_a_quiet_channel_still_delivers_after_many_time_outs(own_redis: RedisServer) -> None:
    report = await stay_quiet(own_redis, 7)
    assert report["passed"], report
    assert report["receivers"] == 4, "three listeners by URL share a link and count each; one has a client's settings"
