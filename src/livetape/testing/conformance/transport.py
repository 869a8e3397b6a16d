"""What every Transport must do, on a real server with a real client.

Subclass it in a test module and give the fixture `site`: a `TransportSite` that is served on its `port`. Cases
about signs of life are for transports that know of them: where `heard_at` is None, the server looks after that.
"""

from __future__ import annotations

import asyncio
import base64
import random
from contextlib import suppress

from websockets.exceptions import InvalidStatus

from livetape.gateway.messages import Push
from livetape.gateway.transport import Transport, TransportClosedError
from livetape.testing.socket_client import SocketClient
from livetape.testing.transport_site import Met, Recorder, TransportSite

MEGABYTE = 1 << 20
SMALL_BUFFER = 8192
FAR_S = 30.0
"""A time limit that no case reaches."""


def numbered(count: int, size: int) -> list[Push]:
    """Messages that tell which they are, and that no compression makes much smaller."""
    noise = base64.b64encode(random.Random(1).randbytes(size))[: size - 8]
    return [Push(b"%08d" % number + noise) for number in range(count)]


def numbers(messages: list[str | bytes]) -> list[int]:
    return [int(message[:8]) for message in messages]


class TransportSuite:
    """Cases for the Transport port."""

    brief_s = 0.2
    """A time limit that a case waits for, and how long nothing must happen."""

    # ---- the handshake ---------------------------------------------------------------------------------------------

    async def test_facts_tell_who_calls(self, site: TransportSite) -> None:
        seen = []

        async def look(transport: Transport) -> None:
            seen.append(transport.facts)
            await transport.reject(403, "no")

        site.handler = look
        with suppress(InvalidStatus):
            await SocketClient.connect(site.port, "/?token=t%2Bt", origin="https://page.example")
        facts = seen[0]
        assert (facts.token, facts.origin, facts.peer) == ("t+t", "https://page.example", "127.0.0.1")
        assert facts.host == f"127.0.0.1:{site.port}"

    async def test_a_rejected_client_gets_status_and_text(self, site: TransportSite) -> None:
        async def refuse(transport: Transport) -> None:
            await transport.reject(503, "later, bitte schön")

        site.handler = refuse
        answers = []
        try:
            await SocketClient.connect(site.port)
        except InvalidStatus as refusal:
            answers.append((refusal.response.status_code, refusal.response.body.decode()))
        assert answers == [(503, "later, bitte schön")]

    async def test_the_subprotocol_is_chosen_when_it_is_offered(self, site: TransportSite) -> None:
        async with site.meet(subprotocols=["other", "livetape.v1", "bearer.abc"]) as met:
            assert met.client.subprotocol == "livetape.v1"

    async def test_no_subprotocol_is_chosen_when_it_is_not_offered(self, site: TransportSite) -> None:
        async with site.meet(subprotocols=["other"]) as met:
            assert met.client.subprotocol is None

    async def test_a_client_that_goes_before_it_is_let_in_raises_or_is_lost(self, site: TransportSite) -> None:
        recorder, gone, raised = Recorder(), asyncio.Event(), []

        async def accept_late(transport: Transport) -> None:
            await gone.wait()
            await asyncio.sleep(self.brief_s)
            try:
                await transport.accept(recorder)
            except TransportClosedError as error:
                raised.append(error)
            else:
                await transport.run()

        site.handler = accept_late
        connecting = asyncio.ensure_future(SocketClient.connect(site.port))
        await asyncio.sleep(self.brief_s)
        connecting.cancel()  # which resets the connection
        await asyncio.wait({connecting})
        gone.set()
        await asyncio.sleep(3 * self.brief_s)
        assert len(raised) + len(recorder.ends) == 1
        assert not any(recorder.ends)

    # ---- to the client ---------------------------------------------------------------------------------------------

    async def test_messages_arrive_in_the_order_of_sending(self, site: TransportSite) -> None:
        async with site.meet() as met:
            for push in numbered(500, 100):
                met.transport.send(push)
            assert numbers(await met.client.hear_many(500)) == list(range(500))

    async def test_each_part_of_a_joined_push_is_a_message(self, site: TransportSite) -> None:
        async with site.meet() as met:
            met.transport.send(Push.joined([Push(b"one"), Push.joined([Push(b""), Push(b"two")])]))
            met.transport.send(Push(b"three"))
            assert await met.client.hear_many(4) == ["one", "", "two", "three"]

    async def test_messages_of_every_size_arrive_whole(self, site: TransportSite) -> None:
        sizes = [0, 1, 125, 126, 127, 65_535, 65_536, 65_537, 3 * MEGABYTE]
        async with site.meet() as met:
            for size in sizes:
                met.transport.send(Push(b"x" * size))
            assert [len(message) for message in await met.client.hear_many(len(sizes))] == sizes

    async def test_text_that_is_not_utf8_is_made_so(self, site: TransportSite) -> None:
        async with site.meet() as met:
            for data in ("schön 🎉".encode(), b"bad \xff\xc3", b"\xed\xa0\x80 end"):
                met.transport.send(Push(data))
            heard = await met.client.hear_many(3)
            assert heard == ["schön 🎉", "bad \ufffd\ufffd", "\ufffd\ufffd\ufffd end"]
            assert met.client.fault is None

    async def test_a_client_that_does_not_read_is_reported(self, site: TransportSite) -> None:
        async with site.meet(receive_buffer=SMALL_BUFFER) as met:
            sent = await self._flood(met)
            assert met.recorder.is_congested
            assert met.recorder.count("congested") == met.recorder.count("drained") + 1, "they come in turns"
            assert sent

    async def test_nothing_is_lost_while_a_client_does_not_read(self, site: TransportSite) -> None:
        async with site.meet(receive_buffer=SMALL_BUFFER) as met:
            sent = await self._flood(met)
            assert numbers(await met.client.hear_many(sent)) == list(range(sent))

    async def test_a_client_that_reads_again_is_reported(self, site: TransportSite) -> None:
        async with site.meet(receive_buffer=SMALL_BUFFER) as met:
            await met.client.hear_many(await self._flood(met))
            await met.recorder.until(lambda told: not told.is_congested)
            met.transport.send(Push(b"after"))
            assert await met.client.hear() == "after"

    async def test_sending_to_a_client_that_is_gone_does_nothing(self, site: TransportSite) -> None:
        async with site.meet() as met:
            met.client.vanish()
            for _ in range(20):
                met.transport.send(Push(b"x"))
            await met.lost()
            met.transport.send(Push(b"x"))
            met.transport.ping()
            met.transport.pause()
            met.transport.resume()
            met.transport.close(1000, "", within=FAR_S)
            await asyncio.sleep(self.brief_s)
            assert len(met.recorder.ends) == 1

    # ---- closing ---------------------------------------------------------------------------------------------------

    async def test_code_and_reason_of_a_close_arrive(self, site: TransportSite) -> None:
        for code, reason in ((1000, ""), (4001, "Missing token"), (4008, "zu langsam, schön"), (1012, "r" * 123)):
            async with site.meet() as met:
                met.transport.close(code, reason, within=FAR_S)
                assert await met.client.read_to_end() == (code, reason)

    async def test_a_reason_that_is_too_long_is_cut(self, site: TransportSite) -> None:
        async with site.meet() as met:
            met.transport.close(4000, "x" + "ö" * 100, within=FAR_S)
            assert await met.client.read_to_end() == (4000, "x" + "ö" * 61)

    async def test_a_close_comes_after_what_was_sent(self, site: TransportSite) -> None:
        async with site.meet(receive_buffer=SMALL_BUFFER) as met:
            sent = await self._flood(met)
            met.transport.close(4000, "end", within=FAR_S)
            assert await met.client.read_to_end() == (4000, "end")
            assert numbers(list(met.client.messages)) == list(range(sent))

    async def test_a_dropping_close_leaves_out_what_waits(self, site: TransportSite) -> None:
        async with site.meet(receive_buffer=SMALL_BUFFER) as met:
            sent = await self._flood(met)
            met.transport.close(4008, "too slow", within=FAR_S, drop=True)
            assert await met.client.read_to_end() == (4008, "too slow")
            arrived = numbers(list(met.client.messages))
            assert arrived == list(range(len(arrived))), "what arrives is whole and in order"
            assert len(arrived) < sent

    async def test_nothing_is_sent_after_a_close(self, site: TransportSite) -> None:
        async with site.meet() as met:
            met.transport.send(Push(b"before"))
            met.transport.close(4000, "first", within=FAR_S)
            met.transport.send(Push(b"after"))
            met.transport.close(4001, "second", within=FAR_S)
            await met.client.ping(b"late")
            assert await met.client.read_to_end() == (4000, "first")
            assert list(met.client.messages) == ["before"]
            assert met.client.fault is None

    async def test_a_client_that_does_not_answer_a_close_is_cut_off(self, site: TransportSite) -> None:
        async with site.meet(receive_buffer=SMALL_BUFFER, answers=False) as met:
            await self._flood(met)
            begin = asyncio.get_running_loop().time()
            met.transport.close(4008, "too slow", within=self.brief_s)
            assert not await met.lost()
            assert self.brief_s * 0.9 < asyncio.get_running_loop().time() - begin < FAR_S

    async def test_the_end_is_told_once(self, site: TransportSite) -> None:
        async with site.meet() as met:  # the client says goodbye
            await met.client.close(1000)
            await met.client.read_to_end()
            await self._ended_once(met)
        async with site.meet() as met:  # the server does
            met.transport.close(1000, "", within=FAR_S)
            await met.client.read_to_end()
            await self._ended_once(met)
        async with site.meet() as met:  # nobody does
            met.client.vanish()
            await self._ended_once(met)

    async def test_an_end_is_clean_only_when_all_has_arrived(self, site: TransportSite) -> None:
        async with site.meet() as met:
            met.client.vanish()
            assert not await met.lost()
        async with site.meet(receive_buffer=SMALL_BUFFER) as met:  # goodbye, with a lot on the way
            await self._flood(met)
            await met.client.close(1000)
            await asyncio.sleep(self.brief_s)
            met.client.vanish()
            assert not await met.lost()
        async with site.meet(receive_buffer=SMALL_BUFFER, answers=False) as met:  # an answer to what was not read
            await self._flood(met)
            met.transport.close(4000, "", within=self.brief_s)
            await met.client.close(4000)
            assert not await met.lost()

    async def test_who_means_to_leave_is_known(self, site: TransportSite) -> None:
        for code, leaves in ((1000, True), (1001, True), (4000, False), (3000, False)):
            async with site.meet() as met:
                await met.client.close(code)
                await met.lost()
                assert met.recorder.left is leaves
        async with site.meet() as met:
            await met.client.write(b"\x88\x80\x00\x00\x00\x00")  # no code at all
            await met.lost()
            assert not met.recorder.left
        async with site.meet() as met:
            met.transport.close(1000, "", within=FAR_S)  # it is sent away
            await met.client.read_to_end()
            await met.lost()
            assert not met.recorder.left

    async def test_an_answered_close_is_clean(self, site: TransportSite) -> None:
        async with site.meet() as met:
            if met.transport.heard_at is not None:  # else the server keeps the answer for itself
                met.transport.send(Push(b"x"))
                met.transport.close(4000, "", within=FAR_S)
                await met.client.read_to_end()
                assert await met.lost()

    # ---- of the client ---------------------------------------------------------------------------------------------

    async def test_messages_of_the_client_arrive_whole(self, site: TransportSite) -> None:
        async with site.meet() as met:
            await met.client.say("text ö")
            await met.client.say(b"\xff bytes")
            await met.client.say("")
            await met.client.say_in_parts([b"a", b"", "ö".encode()[:1], "ö".encode()[1:] + b"z"])
            await met.client.say("x" * site.max_message_bytes)
            await met.recorder.until(lambda told: len(told.messages) == 5)
            assert met.recorder.told == ["text ö", b"\xff bytes", "", "aöz", "x" * site.max_message_bytes]

    async def test_a_paused_client_is_not_heard(self, site: TransportSite) -> None:
        async with site.meet() as met:
            met.transport.pause()
            met.transport.pause()
            for number in range(50):
                await met.client.say(f"{number}")
            await asyncio.sleep(self.brief_s)
            assert met.recorder.told == []
            met.transport.send(Push(b"it is spoken to"))
            assert await met.client.hear() == "it is spoken to"

    async def test_a_resumed_client_is_heard_in_order(self, site: TransportSite) -> None:
        async with site.meet() as met:
            await met.client.say("first")
            await met.recorder.until(lambda told: bool(told.messages))
            for step in range(3):
                met.transport.pause()
                for number in range(50):
                    await met.client.say(f"{step} {number}")
                await asyncio.sleep(self.brief_s / 4)
                met.transport.resume()
                met.transport.resume()
                await self._heard(met, 51 + step * 50)
            expected = [f"{step} {number}" for step in range(3) for number in range(50)]
            assert met.recorder.messages == ["first", *expected]

    async def test_pings_of_the_client_are_answered(self, site: TransportSite) -> None:
        async with site.meet() as met:
            await met.client.ping(b"are you there")
            while not met.client.pongs:
                await met.client.read()
            assert met.client.pongs == [b"are you there"]

    async def test_too_large_a_message_ends_with_1009(self, site: TransportSite) -> None:
        async with site.meet() as met:
            await met.client.say("x" * (site.max_message_bytes + 1))
            closed = await met.client.read_to_end()
            assert closed is not None
            assert closed[0] == 1009
            assert not await met.lost()
            assert met.recorder.messages == []

    async def test_a_ping_asks_for_a_sign_of_life(self, site: TransportSite) -> None:
        async with site.meet() as met:
            before = met.transport.heard_at
            if before is None:
                return
            await asyncio.sleep(self.brief_s)
            assert met.transport.heard_at == before
            met.transport.ping()
            met.transport.send(Push(b"x"))
            await met.client.hear()  # which answers the ping
            await met.recorder.until(lambda told: told.count("ponged") == 1)
            assert met.transport.heard_at > before
            await met.client.write(b"\x8a\x80\x00\x00\x00\x00")  # an answer that nobody asked for
            await met.client.say("end")
            await met.recorder.until(lambda told: bool(told.messages))
            assert met.recorder.count("ponged") == 1

    # ---- inside ----------------------------------------------------------------------------------------------------

    async def _flood(self, met: Met) -> int:
        """Send to a client that does not read until it stays congested, and a good deal more; how many messages."""
        sent = 0
        for push in numbered(48, MEGABYTE // 2):
            met.transport.send(push)
            sent += 1
            if not sent % 8:
                await asyncio.sleep(0.01)
        await met.recorder.until(lambda told: told.is_congested)
        await asyncio.sleep(0.05)
        return sent

    async def _heard(self, met: Met, count: int) -> None:
        await met.recorder.until(lambda told: len(told.messages) == count)

    async def _ended_once(self, met: Met) -> None:
        await met.lost()
        await asyncio.sleep(self.brief_s / 2)
        assert len(met.recorder.ends) == 1
        assert met.recorder.told[-1] == ("lost", met.recorder.ends[0], met.recorder.left)
