"""Every code with which the gateway closes a socket: its reason on the wire, and what the client should do."""

from __future__ import annotations

from enum import IntEnum
from typing import Final

from livetape.errors import AuthError


class CloseCode(IntEnum):
    """4000 and above are ours; the others have their meaning of RFC 6455 and its registry."""

    MESSAGE_TOO_BIG = 1009
    INTERNAL_ERROR = 1011
    SERVICE_RESTART = 1012
    TRY_AGAIN_LATER = 1013
    MISSING_TOKEN = 4001
    NO_USER = 4002
    INVALID_TOKEN = 4003
    TOO_SLOW = 4008
    NO_SIGN_OF_LIFE = 4009
    TOO_MANY = 4029

    @property
    def reason(self) -> str:
        """The text in the close frame; exact for the three of the seed."""
        return _REASONS[self][0]

    @property
    def advice(self) -> str:
        """What the client should do."""
        return _REASONS[self][1]


_REASONS: Final = {
    CloseCode.MESSAGE_TOO_BIG: ("Message too big", "send smaller messages"),
    CloseCode.INTERNAL_ERROR: ("Internal error", "reconnect with positions"),
    CloseCode.SERVICE_RESTART: ("Service restart", "reconnect with positions"),
    CloseCode.TRY_AGAIN_LATER: ("Try again later", "reconnect after some seconds"),
    CloseCode.MISSING_TOKEN: ("Missing authentication token", "get a token"),
    CloseCode.NO_USER: ("Invalid token", "get a token of a user"),
    CloseCode.INVALID_TOKEN: ("Invalid token", "get a new token"),
    CloseCode.TOO_SLOW: ("Too slow", "reconnect with positions"),
    CloseCode.NO_SIGN_OF_LIFE: ("No sign of life", "reconnect with positions"),
    CloseCode.TOO_MANY: ("Too many", "wait as long as retry_after in the error before it says"),
}


def close_code_of(error: AuthError) -> CloseCode:
    """How a connection that was not let in is closed."""
    match error.context.get("reason"):
        case "missing":
            return CloseCode.MISSING_TOKEN
        case "no_user":
            return CloseCode.NO_USER
        case _:
            return CloseCode.INVALID_TOKEN
