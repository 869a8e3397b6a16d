"""The language model block against endpoints that stream well, break off, lie and keep silent."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from email.utils import format_datetime
from pathlib import Path
from typing import Any

import pytest

from livetape.clock import SystemClock
from livetape.engine.block import BlockContext, PinValue
from livetape.engine.blocks.language_model import LanguageModelBlock
from livetape.engine.blocks.options import ModelOptions
from livetape.engine.runner import Attempt, Outcome, run_to_end
from raw_http import Answering, RawRequest, RawServer, answer, raw_server, stream_head

KEY = "sk-very-secret"


class Kept:
    def __init__(self) -> None:
        self.outputs: list[PinValue] = []
        self.first = asyncio.Event()

    def give(self, name: str, value: Any, size: int = 0) -> None:
        self.outputs.append((name, value))
        self.first.set()

    async def room(self) -> None:
        await asyncio.sleep(0)


class Pauses:
    def __init__(self) -> None:
        self.asked: list[float] = []

    async def __call__(self, seconds: float) -> None:
        self.asked.append(seconds)
        await asyncio.sleep(0)


def delta(text: str | None = None, finish: str | None = None, **more: Any) -> bytes:
    event = {"choices": [{"index": 0, "delta": {"content": text}, "finish_reason": finish}], **more}
    return b"data: " + json.dumps(event).encode() + b"\n\n"


DONE = b"data: [DONE]\n\n"
USAGE = b'data: {"choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}}\n\n'


def always(*parts: bytes) -> Answering:
    async def answering(request: RawRequest, writer: asyncio.StreamWriter) -> None:
        for part in parts:
            writer.write(part)
            await writer.drain()

    return answering


def in_turn(*answers: Answering) -> Answering:
    left = list(answers)

    async def answering(request: RawRequest, writer: asyncio.StreamWriter) -> None:
        await left.pop(0)(request, writer)

    return answering


def block_for(server: RawServer, **options: Any) -> LanguageModelBlock:
    base = f"http://127.0.0.1:{server.port}/v1/"
    return LanguageModelBlock(ModelOptions(**{"base_url": base, "api_key": KEY, "silence_s": 5, **options}))


async def ask(
    block: LanguageModelBlock,
    kept: Kept,
    pauses: Callable[[float], Awaitable[None]] | None = None,
    tries: list[Attempt] | None = None,
    /,
    **pins: Any,
) -> Outcome:
    ctx = BlockContext(
        user_id="u", graph_id="g", graph_version=1, graph_exec_id="e", node_id="n", node_exec_id="ne",
        files=Path("none"), clock=SystemClock(), sleep=pauses or Pauses(),
    )  # fmt: skip
    tried = (tries if tries is not None else []).append
    with ThreadPoolExecutor(1) as threads:
        return await run_to_end(block, {"prompt": "Hi", **pins}, ctx, kept, threads, tried=tried)


def failure(outcome: Outcome) -> str:
    assert outcome.failure is not None
    assert KEY not in outcome.failure.message
    return outcome.failure.message


async def test_tokens_come_as_they_are_sent_then_the_whole(caplog: pytest.LogCaptureFixture) -> None:
    go_on = asyncio.Event()

    async def answering(request: RawRequest, writer: asyncio.StreamWriter) -> None:
        writer.write(stream_head() + b": a comment\n\n" + delta("", role="assistant") + delta("Hel"))
        await writer.drain()
        await go_on.wait()
        rest = delta("lo é") + delta(None, "length") + USAGE + DONE
        for place in range(0, len(rest), 7):  # cut anywhere, in the middle of characters, too
            writer.write(rest[place : place + 7])
            await writer.drain()

    async with raw_server(answering) as server:
        kept = Kept()
        running = asyncio.create_task(
            ask(block_for(server, model="small"), kept, system="Be brief.", temperature=0, parameters={"top_p": 1})
        )
        async with asyncio.timeout(5):
            await kept.first.wait()
        assert kept.outputs == [("token", "Hel")]
        go_on.set()
        outcome = await running
    assert outcome.failure is None
    usage = {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}
    assert kept.outputs[1:] == [
        ("token", "lo é"),
        ("response", "Hello é"),
        ("finish_reason", "length"),
        ("usage", usage),
    ]
    assert outcome.stats.usage == usage
    (request,) = server.requests
    assert request.target == "/v1/chat/completions"
    assert request.headers["authorization"] == f"Bearer {KEY}"
    assert request.headers["idempotency-key"] == "ne"
    assert request.json() == {
        "model": "small",
        "messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}],
        "temperature": 0,
        "top_p": 1,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    assert KEY not in caplog.text
    assert KEY not in repr(ModelOptions(api_key=KEY))


async def test_an_endpoint_that_does_not_stream_is_understood() -> None:
    body = {"choices": [{"message": {"content": "Hello"}, "finish_reason": "stop"}], "usage": {"total_tokens": 2}}
    sent = answer(200, json.dumps(body), {"content-type": "application/json; charset=utf-8"})
    async with raw_server(always(sent)) as server:
        kept = Kept()
        assert (await ask(block_for(server), kept)).failure is None
    assert kept.outputs == [
        ("token", "Hello"),
        ("response", "Hello"),
        ("finish_reason", "stop"),
        ("usage", {"total_tokens": 2}),
    ]


async def test_a_stream_without_an_end_mark_is_whole_when_it_said_why_it_ended() -> None:
    async with raw_server(always(stream_head(), delta("a").replace(b"\n", b"\r\n"), delta("b", "stop"))) as server:
        kept = Kept()
        assert (await ask(block_for(server), kept)).failure is None
    assert ("response", "ab") in kept.outputs
    assert ("usage", {}) in kept.outputs


async def test_a_busy_endpoint_is_asked_again_after_as_long_as_it_says() -> None:
    def busy(status: int, after: str | None = None) -> Answering:
        return always(answer(status, "busy", {"retry-after": after} if after else {}))

    soon = format_datetime(SystemClock().now() + timedelta(seconds=30), usegmt=True)
    answers = in_turn(busy(429, "7"), busy(503, soon), busy(500, "nonsense"), always(stream_head(), delta("x"), DONE))
    async with raw_server(answers) as server:
        kept, pauses, tries = Kept(), Pauses(), list[Attempt]()
        outcome = await ask(block_for(server), kept, pauses, tries)
    assert outcome.failure is None
    assert outcome.stats.attempts == 4
    assert kept.outputs[:2] == [("token", "x"), ("response", "x")]
    assert pauses.asked[0] == 7
    assert 25 < pauses.asked[1] <= 30
    assert 2 <= pauses.asked[2] <= 4
    assert [attempt.failure.message for attempt in tries] == [
        f"the language model is busy (HTTP {status})" for status in (429, 503, 500)
    ]
    assert {request.headers["idempotency-key"] for request in server.requests} == {"ne"}


async def test_it_gives_up_in_the_end_and_says_why() -> None:
    async with raw_server(always(answer(503, "busy", {"retry-after": "-5"}))) as server:
        outcome = await ask(block_for(server), Kept())
    assert failure(outcome) == "the language model is busy (HTTP 503)"
    assert len(server.requests) == 4


@pytest.mark.parametrize(
    ("status", "body", "said"),
    [
        (401, f'{{"error": {{"message": "Incorrect API key: {KEY}"}}}}', "refuses the key (HTTP 401): see llm.api_key"),
        (400, '{"error": {"message": "no such\\n model"}}', "refuses the request (HTTP 400): no such model"),
        (400, '{"error": "short"}', "refuses the request (HTTP 400): short"),
        (404, "<html>", "refuses the request (HTTP 404)"),
        (302, "", "refuses the request (HTTP 302)"),
        (400, '{"error": {"message": "' + "x" * 1000 + '"}}', "HTTP 400): " + "x" * 300),
    ],
)
async def test_a_refusal_is_told_and_not_tried_again(status: int, body: str, said: str) -> None:
    async with raw_server(always(answer(status, body, {"location": "http://evil.test/"}))) as server:
        outcome = await ask(block_for(server), Kept())
    assert failure(outcome) in {said, f"the language model {said}"} or failure(outcome).endswith(said)
    assert len(server.requests) == 1


@pytest.mark.parametrize(
    ("sent", "said"),
    [
        ([delta("a"), b"data: {not json}\n\n"], "something that is not JSON"),
        ([delta("a"), b"data: [1]\n\n"], "something that is not JSON"),
        ([delta("a"), b"data: \xff\xfe\n\n"], "something that is not JSON"),
        ([delta("a"), b"data: " + b"[" * 100_000 + b"\n\n"], "something that is not JSON"),
        ([delta("a"), b'data: {"error": {"message": "overloaded"}}\n\n'], "the language model failed: overloaded"),
        ([delta("a"), b'data: {"error": 5}\n\n'], "the language model failed: no reason given"),
        ([delta("a")], "the stream of the language model broke off"),
        ([delta("a"), b"data: {half"], "the stream of the language model broke off"),
        ([delta("a"), b"data: " + b"x" * 1_100_000], "a line that is too long"),
    ],
)
async def test_a_stream_that_goes_wrong_is_an_error_after_what_had_come(sent: list[bytes], said: str) -> None:
    async with raw_server(always(stream_head(), *sent)) as server:
        kept = Kept()
        outcome = await ask(block_for(server), kept)
    assert said in failure(outcome)
    assert kept.outputs == [("token", "a")]
    assert len(server.requests) == 1


async def test_a_chunked_stream_that_is_cut_is_an_error_and_before_the_first_token_tried_again() -> None:
    head = stream_head({"transfer-encoding": "chunked"})

    def chunk(content: bytes) -> bytes:
        return f"{len(content):x}\r\n".encode() + content + b"\r\n"

    async with raw_server(always(head, chunk(delta("a")))) as server:
        kept = Kept()
        assert failure(await ask(block_for(server), kept)) == "the stream of the language model broke off"
        assert kept.outputs == [("token", "a")]
    whole = always(head, chunk(delta("a")), chunk(DONE), b"0\r\n\r\n")
    async with raw_server(in_turn(always(head), always(b""), whole)) as server:
        kept = Kept()
        outcome = await ask(block_for(server), kept)
        assert outcome.failure is None
        assert outcome.stats.attempts == 3
        assert kept.outputs[0] == ("token", "a")


async def test_shapes_that_nobody_promised_give_no_text_and_no_crash() -> None:
    odd: list[Any] = [
        {},
        {"choices": None},
        {"choices": [None]},
        {"choices": [{"delta": None}]},
        {"choices": [{"delta": {"content": [1]}}]},
        {"choices": [{"delta": {"content": "x"}, "finish_reason": 5}]},
        {"usage": "much"},
        {"choices": {"0": 1}},
    ]
    sent = [b"data:" + json.dumps(event).encode() + b"\n\n" for event in odd]
    noise = b"event: ping\nid: 1\nretry: 5\n\n\n\n:\n"
    async with raw_server(always(stream_head(), noise, *sent, DONE)) as server:
        kept = Kept()
        assert (await ask(block_for(server), kept)).failure is None
    assert kept.outputs == [("token", "x"), ("response", "x"), ("finish_reason", "stop"), ("usage", {})]


@pytest.mark.slow
async def test_an_answer_without_end_is_cut_off() -> None:
    async def endless(request: RawRequest, writer: asyncio.StreamWriter) -> None:
        writer.write(stream_head())
        part = delta("x" * 500_000)
        while True:
            writer.write(part)
            await writer.drain()

    async with raw_server(endless) as server:
        outcome = await ask(block_for(server), Kept())
    assert failure(outcome) == "the answer of the language model is too long"


async def test_silence_has_a_limit_before_and_after_the_first_token() -> None:
    async def silent(request: RawRequest, writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(5)

    async def half(request: RawRequest, writer: asyncio.StreamWriter) -> None:
        writer.write(stream_head() + delta("a"))
        await writer.drain()
        await asyncio.sleep(5)

    async with raw_server(silent) as server:
        outcome = await ask(block_for(server, silence_s=0.05), Kept())
        assert failure(outcome) == "the language model cannot be reached: ReadTimeout"
        assert outcome.stats.attempts == 4
    async with raw_server(half) as server:
        outcome = await ask(block_for(server, silence_s=0.1), Kept())
        assert failure(outcome) == "the stream of the language model said nothing for too long"


async def test_cancelling_closes_the_connection() -> None:
    gone = asyncio.Event()

    async def answering(request: RawRequest, writer: asyncio.StreamWriter) -> None:
        writer.write(stream_head() + delta("a"))
        await writer.drain()
        try:
            while True:
                writer.write(b": still here\n\n")
                await writer.drain()
                await asyncio.sleep(0.01)
        finally:
            gone.set()

    async with raw_server(answering) as server:
        kept = Kept()
        running = asyncio.create_task(ask(block_for(server), kept))
        async with asyncio.timeout(5):
            await kept.first.wait()
            running.cancel()
            with pytest.raises(asyncio.CancelledError):
                await running
            await gone.wait()


async def test_an_endpoint_that_is_not_there_or_no_url() -> None:
    async with raw_server(always()) as server:
        pass
    outcome = await ask(block_for(server), Kept())
    assert failure(outcome) == "the language model cannot be reached: ConnectError"
    outcome = await ask(LanguageModelBlock(ModelOptions(base_url="http://[bad")), Kept())
    assert failure(outcome) in {"llm.base_url is not a URL", "the language model cannot be reached: ConnectError"}
