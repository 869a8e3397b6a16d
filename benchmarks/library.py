"""Figures of the event library: scripts/bench-library [--quick] [--only NAME,…] [--out FILE.json].

Medians of five runs; a run during which the host stole more than 3 % of the processors' time does not count. The
client has the first processor for itself and the server the second, so far as the system lets them. Beside each
figure of ours stands `redis-benchmark` on the same server, or redis-py, measured in the same run: the ratio is the
figure, the rest is for orientation.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

import redis.asyncio
import uvloop
from machine import facts, sample
from pydantic import BaseModel

from livetape.adapters.redis.appends import call_words, claim_of, event_words, key_words
from livetape.adapters.redis.client import ClientCommands
from livetape.adapters.redis.commands import Word
from livetape.adapters.redis.retention import words as retention_words
from livetape.adapters.redis.scripts import Scripts
from livetape.events.codec import Envelope, encode_payload
from livetape.events.log import MAX_READ, NewEvent
from livetape.events.open import Backend, open_backend
from livetape.events.reader import JobReader
from livetape.events.recorder import AS_RECORDED
from livetape.events.tape_retention import TapeRetention
from livetape.events.typed import EventBus
from servers import RedisServer, running

T = TypeVar("T")

CLIENT_CORE, SERVER_CORE = 0, 1
CALLERS = 256
TEXT = "x" * 150


class Step(BaseModel):
    """An event of the usual size: about 370 bytes on the wire."""

    event_type: str = "node_execution_update"
    user_id: str = "user-8d9f1c7e-0b42-4b7a"
    graph_id: str = "graph-5f0f9c42-90aa-4c31"
    graph_exec_id: str = "exec-1b2c3d4e-5f60-4711"
    status: str = "COMPLETED"
    number: int
    text: str = TEXT


CHANNEL = "bench/user-8d9f1c7e-0b42-4b7a/graph-5f0f9c42-90aa-4c31/exec-1b2c3d4e-5f60-4711"
KEY = CHANNEL.partition("/")[2]


# ---- the two processors ----------------------------------------------------------------------------------------------


def pin(pid: int, core: int) -> None:
    with contextlib.suppress(OSError, ValueError, AttributeError):  # one processor, or a system that cannot
        os.sched_setaffinity(pid, {core})


@contextlib.contextmanager
def pinned_server(**options: str | int) -> Iterator[RedisServer]:
    """A server on its own processor."""
    with tempfile.TemporaryDirectory() as folder, running(RedisServer("redis", Path(folder), **options)) as server:
        pin(server.pid, SERVER_CORE)
        yield server


def redis_benchmark(server: RedisServer, requests: int, *words: str | bytes, pipeline: int = 100) -> float:
    """Requests a second of one connection with so many commands on the way, on the client's processor."""
    command = ["redis-benchmark", "-p", str(server.port), "-c", "1", "-P", str(pipeline), "-n", str(requests)]
    command += ["-r", "1000000000000", "--csv"]
    output = subprocess.run([*command, *words], capture_output=True, check=True).stdout.decode("utf-8", "replace")
    return float(output.strip().splitlines()[-1].rsplit('","', 7)[1].strip('"'))


class Cost:
    """Wall time and this process's processor time for so many units."""

    def __init__(self, units: int) -> None:
        self._units = units

    def __enter__(self) -> Cost:
        self._wall, self._cpu = time.perf_counter(), time.process_time()
        return self

    def __exit__(self, *_: object) -> None:
        self.wall = time.perf_counter() - self._wall
        self.cpu = time.process_time() - self._cpu

    @property
    def per_s(self) -> float:
        return self._units / self.wall

    @property
    def cpu_us(self) -> float:
        return self.cpu / self._units * 1e6


def run(main: Coroutine[Any, Any, T]) -> T:
    return uvloop.run(main)


async def together(callers: int, units: int, call: Callable[[int], Awaitable[object]]) -> None:
    """So many callers, each awaiting one call after the other."""
    numbers = iter(range(units))

    async def caller() -> None:
        for number in numbers:
            await call(number)

    await asyncio.gather(*(caller() for _ in range(callers)))


# ---- publish ---------------------------------------------------------------------------------------------------------


def publish(units: int) -> dict[str, float]:
    """Many callers of `EventBus.publish`, against `redis-benchmark -P 100 PUBLISH` of the same bytes."""

    events = [Step(number=number) for number in range(1000)]

    async def ours(url: str) -> Cost:
        async with EventBus(Step, name="bench", url=url) as bus:

            def one(number: int) -> Awaitable[object]:
                return bus.publish(events[number % 1000], KEY)

            await together(CALLERS, units // 10, one)
            with Cost(units) as cost:
                await together(CALLERS, units, one)
        return cost

    async def without_waiting(url: str) -> Cost:
        async with EventBus(Step, name="bench", url=url) as bus:
            await bus.publish(events[0], KEY)
            with Cost(units) as cost:
                for number in range(units):
                    bus.publish_soon(events[number % 1000], KEY)
                    if number % 1000 == 999:
                        await bus.flush()
        return cost

    with pinned_server() as server:
        message = Envelope(encode_payload(Step(number=1))[0], "").encode()
        limit = redis_benchmark(server, units * 4, "PUBLISH", CHANNEL, message)
        cost = run(ours(server.url()))
        soon = run(without_waiting(server.url()))
    return {
        "ours_per_s": cost.per_s,
        "ours_cpu_us": cost.cpu_us,
        "soon_per_s": soon.per_s,
        "soon_cpu_us": soon.cpu_us,
        "limit_per_s": limit,
        "ratio_to_limit": cost.per_s / limit,
        "soon_ratio_to_limit": soon.per_s / limit,
    }


def publish_alone(units: int) -> dict[str, float]:
    """One caller that awaits each publish, against redis-py doing the same with the same event."""

    async def measure(url: str) -> tuple[float, float]:
        client = redis.asyncio.Redis.from_url(url)
        ours, theirs = [], []
        async with EventBus(Step, name="bench", url=url) as bus:
            for turn in range(20):
                with Cost(units // 20) as cost:
                    for number in range(units // 20):
                        await bus.publish(Step(number=number), KEY)
                with Cost(units // 20) as other:
                    for number in range(units // 20):
                        await client.publish(
                            CHANNEL, b'{"payload":' + Step(number=number).model_dump_json().encode() + b"}"
                        )
                if turn:
                    ours.append(cost.per_s)
                    theirs.append(other.per_s)
        await client.aclose()
        return statistics.median(ours), statistics.median(theirs)

    with pinned_server() as server:
        ours, theirs = run(measure(server.url()))
    return {"ours_per_s": ours, "redis_py_per_s": theirs, "ratio_to_redis_py": ours / theirs}


FLOOD_STEP = 5000
FLOOD = f"""
import socket, sys
port, channel = int(sys.argv[1]), sys.argv[2].encode()
message = {Envelope(encode_payload(Step(number=1))[0], "").encode()!r}
head = b"*3\\r\\n$7\\r\\nPUBLISH\\r\\n$%d\\r\\n%b\\r\\n$%d\\r\\n"
one = head % (len(channel), channel, len(message)) + message + b"\\r\\n"
link = socket.create_connection(("127.0.0.1", port))
for _ in sys.stdin:
    link.sendall(one * {FLOOD_STEP})
    answers = 0
    while answers < {FLOOD_STEP}:
        answers += link.recv(1 << 16).count(b":")
"""
"""So many messages for each line of its input, written by a process on the server's processor."""

# ---- subscribe -------------------------------------------------------------------------------------------------------


def subscribe(units: int) -> dict[str, float]:
    """A flood from redis-benchmark, read decoded by an EventBus and as bytes from the bus below it."""

    async def flooded(server: RedisServer, read: Callable[[], Awaitable[None]]) -> Cost:
        # In steps, so that the reader's bounded buffer never overflows: what counts is the cost of a message.
        source = await asyncio.create_subprocess_exec(
            sys.executable, "-c", FLOOD, str(server.port), CHANNEL, stdin=subprocess.PIPE
        )
        pin(source.pid, SERVER_CORE)
        assert source.stdin is not None
        with Cost(units) as cost:
            for _ in range(units // FLOOD_STEP):
                source.stdin.write(b"\n")
                for _ in range(FLOOD_STEP):
                    await read()
        source.stdin.close()
        await source.wait()
        return cost

    async def decoded(server: RedisServer) -> Cost:
        async with EventBus(Step, name="bench", url=server.url()) as bus, bus.listen(KEY) as listener:

            async def read() -> None:
                assert isinstance(await anext(listener), Step)

            return await flooded(server, read)

    async def as_bytes(server: RedisServer) -> Cost:
        backend = open_backend(server.url())
        async with await backend.bus.subscribe(CHANNEL) as subscription:
            messages = aiter(subscription)

            async def read() -> None:
                assert not (await anext(messages)).gap

            cost = await flooded(server, read)
        await backend.close()
        return cost

    with pinned_server() as server:
        return {
            "decoded_cpu_us": run(decoded(server)).cpu_us,
            "bytes_cpu_us": run(as_bytes(server)).cpu_us,
        }


# ---- durable ---------------------------------------------------------------------------------------------------------


def event(number: int) -> NewEvent:
    return NewEvent("task_progress", encode_payload(Step(number=number))[0])


async def record(backend: Backend, tapes: int, callers: int, units: int) -> Cost:
    recorder = backend.recorder
    assert recorder is not None

    async def one(number: int) -> None:
        tape = number % tapes
        await recorder.record(f"bench_events:{tape}", f"bench/{tape}", event(number), live=AS_RECORDED)

    await together(callers, max(units // 10, tapes), one)
    with Cost(units) as cost:
        await together(callers, units, one)
    return cost


def durable(units: int) -> dict[str, float]:
    """Append and push in one step; the limit is redis-benchmark running the very script, one event a call."""

    async def ours(url: str, tapes: int) -> Cost:
        backend = open_backend(url)
        try:
            return await record(backend, tapes, CALLERS, units)
        finally:
            await backend.close()

    async def awaited(server: RedisServer) -> float:
        words = await words_for(server.url())
        client = redis.asyncio.Redis.from_url(server.url())
        count = max(1000, units // 40)
        with Cost(count) as cost:
            for _ in range(count):
                await client.execute_command(*words)
        await client.aclose()
        return cost.per_s

    async def words_for(url: str) -> list[Word]:
        """The call of one event as the recorder makes it, its script loaded."""
        client = redis.asyncio.Redis.from_url(url)
        tape, claim = "bench_events:limit", claim_of("bench/limit")
        scripts = Scripts(ClientCommands(client))
        await scripts.load("append", tape, None)
        keep, most = retention_words(TapeRetention(), tape)
        words = call_words(
            str(scripts.digest("append", tape)),
            key_words(tape, "bench"),
            claim,
            [event_words(tape, claim, event(1))],
            sequence=1,
            repeated=False,
            epoch="bench",
            now_us=int(time.time() * 1e6),
            keep=keep,
            most=most,
        )
        await client.aclose()
        return words

    with pinned_server() as server:
        own = run(ours(server.url(), 4 * CALLERS))
        limit = redis_benchmark(
            server, units, *(word if isinstance(word, bytes) else str(word) for word in run(words_for(server.url())))
        )
        each = run(awaited(server))
    with pinned_server() as server:
        shared = run(ours(server.url(), 8))
    return {
        "own_tapes_per_s": own.per_s,
        "own_tapes_cpu_us": own.cpu_us,
        "limit_per_s": limit,
        "ratio_to_limit": own.per_s / limit,
        "awaiting_each_per_s": each,
        "ratio_to_awaiting_each": own.per_s / each,
        "shared_tapes_per_s": shared.per_s,
        "shared_tapes_cpu_us": shared.cpu_us,
    }


# ---- replay ----------------------------------------------------------------------------------------------------------


async def fill(backend: Backend, job_id: str, units: int) -> None:
    recorder = backend.recorder
    assert recorder is not None
    from livetape.events.jobs import Jobs

    jobs = Jobs(recorder)

    async def one(number: int) -> None:
        await jobs.publish("u", job_id, "task_progress", {"number": number, "text": TEXT})

    await together(CALLERS, units, one)


async def replayed(backend: Backend, units: int) -> tuple[Cost, Cost]:
    log, bus = backend.log, backend.bus
    assert log is not None
    await fill(backend, "replayed", units)
    with Cost(units) as raw:
        after = 0
        while entries := await log.read("job_events:replayed", after, limit=MAX_READ):
            after = entries[-1].offset
    assert after == units
    reader = JobReader(log, bus)
    with Cost(units) as decoded:
        count = 0
        async for record in reader.replay("replayed", speed=0):
            count += 1
            assert record.data["number"] is not None
            if count == units:
                break
    return raw, decoded


def replay(units: int) -> dict[str, float]:
    """A tape of job events from its beginning, as bytes and decoded, in pages of 1,000."""

    async def ours(url: str) -> tuple[Cost, Cost]:
        backend = open_backend(url)
        try:
            return await replayed(backend, units)
        finally:
            await backend.close()

    with pinned_server() as server:
        raw, decoded = run(ours(server.url()))
    return {"bytes_per_s": raw.per_s, "decoded_per_s": decoded.per_s, "decoded_cpu_us": decoded.cpu_us}


def embedded(units: int) -> dict[str, float]:
    """The same on SQLite: 50 producers, each answered after the commit; then the replay."""

    async def ours(url: str) -> tuple[Cost, Cost, Cost, Cost]:
        backend = open_backend(url)
        try:
            appended = await record(backend, 1, 50, units)
            apart = await record(backend, 50, 50, units)
            return (appended, apart, *await replayed(backend, units))
        finally:
            await backend.close()

    with tempfile.TemporaryDirectory() as folder:
        appended, apart, raw, decoded = run(ours(f"sqlite:///{folder}/bench.db"))
    return {
        "append_per_s": appended.per_s,
        "append_cpu_us": appended.cpu_us,
        "append_to_50_tapes_per_s": apart.per_s,
        "replay_bytes_per_s": raw.per_s,
        "replay_decoded_per_s": decoded.per_s,
    }


MEASURES: dict[str, tuple[Callable[[int], dict[str, float]], int]] = {
    "publish": (publish, 200_000),
    "publish_alone": (publish_alone, 20_000),
    "subscribe": (subscribe, 100_000),
    "durable": (durable, 100_000),
    "replay": (replay, 100_000),
    "embedded": (embedded, 100_000),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one run of a tenth each: to see that it works")
    parser.add_argument("--only", default="", help=f"some of {', '.join(MEASURES)}")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    pin(0, CLIENT_CORE)
    result: dict[str, Any] = {"at": datetime.now(UTC).isoformat(timespec="seconds"), "machine": facts()}
    for name in options.only.split(",") if options.only else MEASURES:
        measure, units = MEASURES[name]
        if options.quick:
            units //= 10
        samples = sample(lambda measure=measure, units=units: measure(units), runs=1 if options.quick else 5)
        figures = {
            figure: round(statistics.median(one[figure] for one in samples.values), 3) for figure in samples.values[0]
        }
        result[name] = {"units": units, **figures, "of": samples.facts()}
        print(f"{name}: " + ", ".join(f"{figure} {value:,.2f}" for figure, value in figures.items()), flush=True)
    if options.out:
        options.out.write_text(json.dumps(result, indent=2) + "\n")
        print(f"written to {options.out}", file=sys.stderr)


if __name__ == "__main__":
    main()
