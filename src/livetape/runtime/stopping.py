"""The orderly stop of a process with sockets: it is not ready any more, then its sockets go elsewhere."""

from __future__ import annotations

from livetape.gateway.app import Gateway
from livetape.settings import Settings


class Stopping:
    """`drain` before the server stops. `within` seconds at most; over at once when there are no sockets."""

    def __init__(self, gateway: Gateway, within: float) -> None:
        self._gateway = gateway
        self._within = within
        self._begun = False

    def is_not(self) -> bool:
        """Whether it is to go on: what `/readyz` says from the first moment of a stop."""
        return not self._begun

    async def drain(self) -> None:
        """Let nobody in any more, and move those who are in."""
        self._begun = True
        await self._gateway.move_out(self._within)


def drain_time(settings: Settings, otherwise: float) -> float:
    """Seconds that a stop may take for sockets."""
    set_to = settings.gateway.drain_seconds
    return otherwise if set_to is None else set_to
