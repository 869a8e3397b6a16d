"""Transports that break one promise each, around a sound one. `TransportSuite` must fail every one of them."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Final

from livetape.auth import ConnectionFacts
from livetape.gateway.messages import Push
from livetape.gateway.transport import Receiver, Transport
from livetape.testing.transport_site import Scope


class WrappedTransport(Transport):
    """A sound transport, and its receiver: itself, with seams where the broken ones differ."""

    def __init__(self, inner: Transport, scope: Scope) -> None:
        self.inner = inner
        self.scope = scope
        self.outer: Receiver | None = None

    @property
    def told(self) -> Receiver:
        assert self.outer is not None
        return self.outer

    # the transport

    @property
    def facts(self) -> ConnectionFacts:
        return self.inner.facts

    async def reject(self, status: int, text: str) -> None:
        await self.inner.reject(status, text)

    async def accept(self, receiver: Receiver) -> None:
        self.outer = receiver
        await self.inner.accept(self)

    async def run(self) -> None:
        await self.inner.run()

    def send(self, push: Push) -> None:
        self.inner.send(push)

    def pause(self) -> None:
        self.inner.pause()

    def resume(self) -> None:
        self.inner.resume()

    def close(self, code: int, reason: str, *, within: float, drop: bool = False) -> None:
        self.inner.close(code, reason, within=within, drop=drop)

    @property
    def heard_at(self) -> float | None:
        return self.inner.heard_at

    def ping(self) -> None:
        self.inner.ping()

    # the receiver

    def received(self, data: str | bytes) -> None:
        self.told.received(data)

    def congested(self) -> None:
        self.told.congested()

    def drained(self) -> None:
        self.told.drained()

    def ponged(self) -> None:
        self.told.ponged()

    def lost(self, *, clean: bool, left: bool = False) -> None:
        self.told.lost(clean=clean, left=left)


class KnowsNobody(WrappedTransport):
    """Forgets who called."""

    @property
    def facts(self) -> ConnectionFacts:
        return ConnectionFacts()


class AlwaysForbids(WrappedTransport):
    """One status for every refusal."""

    async def reject(self, status: int, text: str) -> None:
        await super().reject(403, text)


class ChoosesNone(WrappedTransport):
    """Never a subprotocol."""

    async def accept(self, receiver: Receiver) -> None:
        self.scope["subprotocols"].clear()
        await super().accept(receiver)


class ChoosesItsOwn(WrappedTransport):
    """The subprotocol whether it was offered or not."""

    async def accept(self, receiver: Receiver) -> None:
        self.scope["subprotocols"].append("livetape.v1")
        await super().accept(receiver)


class AcceptsTheDead(WrappedTransport):
    """Does not say that a client has gone."""

    async def accept(self, receiver: Receiver) -> None:
        try:
            await super().accept(receiver)
        except Exception:
            return


class SwapsTwo(WrappedTransport):
    """Every second message overtakes the first."""

    waiting: Push | None = None

    def send(self, push: Push) -> None:
        if self.waiting is None:
            self.waiting = push
            asyncio.get_running_loop().call_soon(self.flush)
        else:
            super().send(push)
            self.flush()

    def flush(self) -> None:
        if self.waiting is not None:
            super().send(self.waiting)
            self.waiting = None


class JoinsParts(WrappedTransport):
    """Several messages as one."""

    def send(self, push: Push) -> None:
        super().send(Push(push.data))


class LosesBigOnes(WrappedTransport):
    """As if there were a limit."""

    def send(self, push: Push) -> None:
        if push.size < 1 << 20:
            super().send(push)


class AsciiOnly(WrappedTransport):
    """Replaces too much."""

    def send(self, push: Push) -> None:
        super().send(Push.joined([Push(part.data.decode("ascii", "replace").encode()) for part in push.parts]))


class NeverCongested(WrappedTransport):
    """Buffers, and says nothing."""

    def congested(self) -> None: ...

    def drained(self) -> None: ...


class NeverDrained(WrappedTransport):
    """Says that it is behind, and never that it is not."""

    def drained(self) -> None: ...


class LosesWhenCongested(WrappedTransport):
    """What comes while the client is behind is thrown away."""

    is_behind = False

    def congested(self) -> None:
        self.is_behind = True
        super().congested()

    def drained(self) -> None:
        self.is_behind = False
        super().drained()

    def send(self, push: Push) -> None:
        if not self.is_behind:
            super().send(push)


class RaisesAfterTheEnd(WrappedTransport):
    """Sending to nobody is an error."""

    is_over = False

    def lost(self, *, clean: bool, left: bool = False) -> None:
        self.is_over = True
        super().lost(clean=clean, left=left)

    def send(self, push: Push) -> None:
        if self.is_over:
            raise RuntimeError("there is nobody")
        super().send(push)


class OneCode(WrappedTransport):
    """Every close is a normal one."""

    def close(self, code: int, reason: str, *, within: float, drop: bool = False) -> None:
        super().close(1000, reason, within=within, drop=drop)


class ShortReasons(WrappedTransport):
    """Cuts the reason of a close too early."""

    def close(self, code: int, reason: str, *, within: float, drop: bool = False) -> None:
        super().close(code, reason[:40], within=within, drop=drop)


class AlwaysDrops(WrappedTransport):
    """A close throws away what waits."""

    def close(self, code: int, reason: str, *, within: float, drop: bool = False) -> None:
        super().close(code, reason, within=within, drop=True)


class NeverDrops(WrappedTransport):
    """A close comes after everything."""

    def close(self, code: int, reason: str, *, within: float, drop: bool = False) -> None:
        super().close(code, reason, within=within)


class ClosesLater(WrappedTransport):
    """What is sent after a close still goes out."""

    def close(self, code: int, reason: str, *, within: float, drop: bool = False) -> None:
        later = asyncio.get_running_loop().call_soon
        later(lambda: super(ClosesLater, self).close(code, reason, within=within, drop=drop))


class WaitsForEver(WrappedTransport):
    """A close has no limit."""

    def close(self, code: int, reason: str, *, within: float, drop: bool = False) -> None:
        super().close(code, reason, within=3600, drop=drop)


class TellsTheEndTwice(WrappedTransport):
    """`lost` once more."""

    def lost(self, *, clean: bool, left: bool = False) -> None:
        super().lost(clean=clean, left=left)
        super().lost(clean=clean, left=left)


class AlwaysClean(WrappedTransport):
    """Every end was a good one."""

    def lost(self, *, clean: bool, left: bool = False) -> None:
        super().lost(clean=True, left=left)


class NeverClean(WrappedTransport):
    """No end was a good one."""

    def lost(self, *, clean: bool, left: bool = False) -> None:
        super().lost(clean=False, left=left)


class NobodyLeaves(WrappedTransport):
    """Every client may come back."""

    def lost(self, *, clean: bool, left: bool = False) -> None:
        super().lost(clean=clean)


class EverybodyLeaves(WrappedTransport):
    """No client comes back."""

    def lost(self, *, clean: bool, left: bool = False) -> None:
        super().lost(clean=clean, left=True)


class BytesOnly(WrappedTransport):
    """Text and bytes are one."""

    def received(self, data: str | bytes) -> None:
        super().received(data.encode() if isinstance(data, str) else data)


class IgnoresPause(WrappedTransport):
    """Reads on."""

    def pause(self) -> None: ...


class LosesWhilePaused(WrappedTransport):
    """Reads on, and throws away."""

    is_paused = False

    def pause(self) -> None:
        self.is_paused = True

    def resume(self) -> None:
        self.is_paused = False

    def received(self, data: str | bytes) -> None:
        if not self.is_paused:
            super().received(data)


class NeverPings(WrappedTransport):
    """Promises signs of life and asks for none."""

    def ping(self) -> None: ...


class PongsForAnything(WrappedTransport):
    """Takes each message for an answered ping."""

    def received(self, data: str | bytes) -> None:
        super().ponged()
        super().received(data)


BROKEN_TRANSPORTS: Final[Mapping[type[WrappedTransport], str]] = {
    KnowsNobody: "test_facts_tell_who_calls",
    AlwaysForbids: "test_a_rejected_client_gets_status_and_text",
    ChoosesNone: "test_the_subprotocol_is_chosen_when_it_is_offered",
    ChoosesItsOwn: "test_no_subprotocol_is_chosen_when_it_is_not_offered",
    AcceptsTheDead: "test_a_client_that_goes_before_it_is_let_in_raises_or_is_lost",
    SwapsTwo: "test_messages_arrive_in_the_order_of_sending",
    JoinsParts: "test_each_part_of_a_joined_push_is_a_message",
    LosesBigOnes: "test_messages_of_every_size_arrive_whole",
    AsciiOnly: "test_text_that_is_not_utf8_is_made_so",
    NeverCongested: "test_a_client_that_does_not_read_is_reported",
    NeverDrained: "test_a_client_that_reads_again_is_reported",
    LosesWhenCongested: "test_nothing_is_lost_while_a_client_does_not_read",
    RaisesAfterTheEnd: "test_sending_to_a_client_that_is_gone_does_nothing",
    OneCode: "test_code_and_reason_of_a_close_arrive",
    ShortReasons: "test_a_reason_that_is_too_long_is_cut",
    AlwaysDrops: "test_a_close_comes_after_what_was_sent",
    NeverDrops: "test_a_dropping_close_leaves_out_what_waits",
    ClosesLater: "test_nothing_is_sent_after_a_close",
    WaitsForEver: "test_a_client_that_does_not_answer_a_close_is_cut_off",
    TellsTheEndTwice: "test_the_end_is_told_once",
    AlwaysClean: "test_an_end_is_clean_only_when_all_has_arrived",
    NeverClean: "test_an_answered_close_is_clean",
    NobodyLeaves: "test_who_means_to_leave_is_known",
    EverybodyLeaves: "test_who_means_to_leave_is_known",
    BytesOnly: "test_messages_of_the_client_arrive_whole",
    IgnoresPause: "test_a_paused_client_is_not_heard",
    LosesWhilePaused: "test_a_resumed_client_is_heard_in_order",
    NeverPings: "test_a_ping_asks_for_a_sign_of_life",
    PongsForAnything: "test_a_ping_asks_for_a_sign_of_life",
}
"""Each with the case that is there for it. Answering pings and the largest message are below what can be wrapped."""
