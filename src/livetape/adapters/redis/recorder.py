"""The Recorder on Redis: the append and the push are one script call."""

from __future__ import annotations

from typing import Final

from livetape.adapters.redis.appends import claim_of
from livetape.adapters.redis.commands import Commands
from livetape.adapters.redis.lanes import Lanes
from livetape.adapters.redis.scripts import Scripts
from livetape.clock import Clock, SystemClock
from livetape.events.log import NewEvent
from livetape.events.recorder import AS_RECORDED, Live, Recorded, Recorder, counted
from livetape.events.tally import Tally
from livetape.events.tape_retention import TapeRetention
from livetape.observability import Metrics

TIMEOUT_S: Final = 10.0
CLOSE_S: Final = 2.0


class RedisRecorder(Recorder):
    """Writes and pushes in one atomic step on the server; for one event loop.

    Calls that overlap for one tape share script calls. While the server is away or refuses (out of memory, a replica,
    starting), a call is repeated for `timeout_s` seconds. At most 64 MiB of events wait: more fail at once with
    LogUnavailableError. `commands` stays open.
    """

    def __init__(
        self,
        commands: Commands,
        *,
        clock: Clock | None = None,
        retention: TapeRetention | None = None,
        timeout_s: float = TIMEOUT_S,
        metrics: Metrics | None = None,
    ) -> None:
        self._tally = Tally.of_recorder(metrics)
        self._lanes = Lanes(
            commands,
            Scripts(commands),
            clock=clock or SystemClock(),
            retention=retention or TapeRetention(),
            timeout_s=timeout_s,
        )

    async def record(
        self,
        tape: str,
        channel: str,
        event: NewEvent,
        *,
        live: Live = AS_RECORDED,
        owner: str | None = None,
        any_owner: bool = False,
        idempotency_key: str | None = None,
    ) -> Recorded:
        claim = claim_of(channel, owner, any_owner=any_owner)
        answer = self._lanes.add(tape, claim, event, live, idempotency_key)
        return await answer if self._tally is None else await counted(self._tally, answer, event)

    async def close(self) -> None:
        """What is on its way has two seconds to arrive."""
        await self._lanes.close(within_s=CLOSE_S)
        if self._tally is not None:
            self._tally.hand_on()
