"""A live socket whose client negotiated permessage-deflate: what is sent is compressed for it alone."""

from __future__ import annotations

import asyncio

from websockets.protocol import Protocol as Parser
from websockets.protocol import State

from livetape.gateway.frames import valid_text
from livetape.gateway.messages import Push
from livetape.gateway.transports.inbound import Inbound, max_frame_bytes
from livetape.gateway.transports.live_socket import Handshake, LiveSocket


class CompressedSocket(LiveSocket):
    """Every part of a push is compressed with the connection's own context: no frame is shared with anybody.

    It costs memory (the context, some 20 KB and more) and processor time for each recipient.
    """

    __slots__ = ("_context",)

    def __init__(
        self, handshake: Handshake, loop: asyncio.AbstractEventLoop, context: Parser, *, max_size: int | None
    ) -> None:
        super().__init__(handshake, loop, max_size=max_size)
        self._context = context
        if max_size is not None:
            context.max_message_size = max_frame_bytes(max_size)
        self._inbound = Inbound(max_size, context)

    @property
    def writer(self) -> None:
        """There is none: what it sends is compressed for it alone."""
        return None

    def send(self, push: Push) -> None:
        # It has heard of the client's close before this socket has come to it.
        if self._context.state is State.OPEN:
            for part in push.parts:
                self._context.send_text(valid_text(part.data))
            self._write(b"".join(self._context.data_to_send()))
