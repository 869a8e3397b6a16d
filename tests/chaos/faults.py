"""What is done to a site. Each fault is a coroutine that returns when it is over; publishers go on meanwhile."""

from __future__ import annotations

import asyncio
import contextlib
import random
import struct
from collections.abc import Awaitable, Callable
from typing import Final, TypeAlias

from chaos.rawsocket import HANDSHAKE, TEXT, RawSocket, connect, frame
from chaos.site import Site

Fault: TypeAlias = Callable[[Site, random.Random], Awaitable[object]]


# ---- Redis ----------------------------------------------------------------------------------------------------------


async def redis_killed(site: Site, rng: random.Random) -> None:
    """SIGKILL; it comes back with what it had on its disk."""
    await asyncio.to_thread(site.redis.kill)
    await asyncio.sleep(rng.uniform(0.2, 1.5))
    await asyncio.to_thread(site.redis.start)


async def redis_paused(site: Site, rng: random.Random) -> None:
    """SIGSTOP: connections stay, and nothing is answered."""
    site.redis.pause()
    try:
        await asyncio.sleep(rng.uniform(1, 5))
    finally:
        site.redis.resume()


async def redis_emptied(site: Site, rng: random.Random) -> None:
    """SIGKILL, and its disk is gone too."""
    await asyncio.to_thread(site.redis.kill)
    await asyncio.to_thread(site.redis.forget)
    await asyncio.sleep(rng.uniform(0, 0.5))
    await asyncio.to_thread(site.redis.start)


# ---- gateways -------------------------------------------------------------------------------------------------------


async def gateway_killed(site: Site, rng: random.Random) -> None:
    """SIGKILL; clients find another one, and it comes back."""
    gateway = rng.choice(site.gateways)
    await asyncio.to_thread(gateway.kill)
    await asyncio.sleep(rng.uniform(0.2, 1.5))
    await asyncio.to_thread(gateway.start)


async def gateway_terminated(site: Site, rng: random.Random) -> None:
    """SIGTERM, as a deployment does."""
    gateway = rng.choice(site.gateways)
    code = await asyncio.to_thread(gateway.stop)
    assert code in (0, -15), f"SIGTERM ended it with {code}"
    await asyncio.sleep(rng.uniform(0, 0.5))
    await asyncio.to_thread(gateway.start)


async def gateway_paused(site: Site, rng: random.Random) -> None:
    """SIGSTOP: its sockets stay, and nothing comes."""
    gateway = rng.choice(site.gateways)
    gateway.pause()
    try:
        await asyncio.sleep(rng.uniform(0.5, 4))
    finally:
        gateway.resume()


# ---- clients --------------------------------------------------------------------------------------------------------


async def sockets_cut(site: Site, rng: random.Random) -> None:
    """A third of the watchers lose their connections, all at once."""
    for watcher in rng.sample(site.watchers, len(site.watchers) // 3):
        if watcher.socket is not None:
            watcher.socket.cut()
    await asyncio.sleep(0.5)


async def fuzzed(site: Site, rng: random.Random, *, sockets: int = 30, frames: int = 40) -> None:
    """Clients that send rubbish: bytes that are no frames, frames that are not right, messages that are not."""

    async def one(port: int, seed: int) -> None:
        mine = random.Random(seed)
        with contextlib.suppress(OSError, TimeoutError):
            socket = await connect(port, lambda _: None)
            try:
                for _ in range(frames):
                    if socket.gone.done():
                        break
                    socket.raw(rubbish(mine))
                    await asyncio.sleep(0)
                await asyncio.sleep(0.2)
            finally:
                socket.cut()
                await socket.gone

    await asyncio.gather(*(one(rng.choice(site.ports), rng.randrange(2**32)) for _ in range(sockets)))


async def half_handshakes(site: Site, rng: random.Random, *, sockets: int = 50, seconds: float = 3.0) -> int:
    """Clients that send the beginning of a handshake, a byte now and then. How many the gateway has ended."""
    links = []
    try:
        for _ in range(sockets):
            with contextlib.suppress(OSError):
                links.append(await asyncio.open_connection("127.0.0.1", rng.choice(site.ports)))
        for at in range(int(seconds * 2)):
            for _, writer in links:
                with contextlib.suppress(OSError):
                    writer.write(HANDSHAKE.encode()[at : at + 1])
            await asyncio.sleep(0.5)
        return sum(reader.at_eof() or reader.exception() is not None for reader, _ in links)
    finally:
        for _, writer in links:
            writer.transport.abort()


async def churned(site: Site, rng: random.Random, *, sockets: int = 5, cycles: int = 40) -> None:
    """Clients that subscribe and unsubscribe all the time, to what is there and to what is not."""

    async def one(port: int, seed: int) -> None:
        mine = random.Random(seed)
        with contextlib.suppress(OSError, TimeoutError):
            socket = await connect(port, lambda _: None)
            try:
                for _ in range(cycles):
                    subject = mine.choice(site.sources).subject
                    job = subject.id if mine.random() < 0.5 else f"nobody{mine.randrange(1000)}"
                    since = mine.choice(['"earliest"', '"latest"', '{"last":3}', '{"epoch":"x","offset":1}'])
                    socket.send(f'{{"method":"subscribe_job","data":{{"job_id":"{job}","since":{since}}}}}')
                    if mine.random() < 0.8:
                        socket.send(f'{{"method":"unsubscribe","data":{{"job_id":"{job}"}}}}')
                    await asyncio.sleep(0.01)
            finally:
                socket.cut()
                await socket.gone

    await asyncio.gather(*(one(rng.choice(site.ports), rng.randrange(2**32)) for _ in range(sockets)))


async def deaf_readers(site: Site, rng: random.Random, *, sockets: int = 10, seconds: float = 3.0) -> None:
    """Clients that watch and do not read."""
    opened: list[RawSocket] = []
    try:
        for number in range(sockets):
            with contextlib.suppress(OSError, TimeoutError):
                socket = await connect(rng.choice(site.ports), lambda _: None, receive_buffer=4096)
                opened.append(socket)
                socket.transport.pause_reading()
                socket.send(site.sources[number % len(site.sources)].subject.subscribe("earliest"))
        await asyncio.sleep(seconds)
    finally:
        for socket in opened:
            socket.cut()
            await socket.gone


# ---- rubbish --------------------------------------------------------------------------------------------------------

VALID: Final = (
    b'{"method":"subscribe_job","data":{"job_id":"j0","since":"earliest"}}',
    b'{"method":"subscribe_graph_execution","data":{"graph_exec_id":"e0","outputs":"each","since":{"last":2}}}',
    b'{"method":"subscribe_graph_executions","data":{"graph_id":"g"},"id":7}',
    b'{"method":"unsubscribe","data":{"job_id":"j0"}}',
    b'{"method":"heartbeat","data":"ping","success":true}',
    b'{"method":"refresh","data":{"token":"x"}}',
    b'{"method":"stop_graph_execution","data":{"graph_exec_id":"e0"}}',
)
ODD: Final = (
    b"null", b"[]", b"{}", b'"x"', b"1e999", b"\xff\xfe", b"{" * 5000, b"[" * 50_000, b'{"method":' * 100,
    b'{"method":"subscribe_job","data":{"job_id":"' + b"j" * 5000 + b'"}}',
    b'{"method":"subscribe_job","data":{"job_id":"\\ud800"}}',
    b'{"method":"subscribe_job","data":{"job_id":"*"}}',
    b'{"method":"subscribe_job","data":{"job_id":"\\u0000\\r\\n/../x"}}',
    b'{"method":"subscribe_job","data":{"job_id":"j0","since":{"epoch":"","offset":-1}}}',
    b'{"method":"subscribe_job","data":{"job_id":"j0","since":{"epoch":"e","offset":99999999999999999999}}}',
    b'{"method":"subscribe_job","data":{"job_id":"j0","since":{"seconds":NaN}}}',
    b'{"method":"subscribe_job","data":{"job_id":"j0"},"id":{"a":[]}}',
    b'{"method":"error","error":"' + b"e" * 3000 + b'"}',
    b'{"method":"job_event","data":{}}',
)  # fmt: skip


def rubbish(rng: random.Random) -> bytes:
    """Bytes that a client may send after its handshake."""
    kind = rng.randrange(7)
    if kind == 0:
        return rng.randbytes(rng.randrange(1, 400))
    if kind == 1:
        return frame(TEXT, rng.choice(ODD))
    if kind == 2:
        return frame(rng.randrange(16), rng.randbytes(rng.randrange(200)), fin=rng.random() < 0.5)
    if kind == 3:
        return bytes([0x80 | TEXT, 0x05]) + b"hello"  # without a mask
    if kind == 4:
        return b"\x81\xff" + struct.pack(">Q", rng.choice([2**63, 2**40, 70_000])) + b"\0\0\0\0"
    text = bytearray(rng.choice(VALID))
    for _ in range(rng.randrange(4)):
        at = rng.randrange(len(text))
        action = rng.randrange(3)
        if action == 0:
            text[at] = rng.randrange(256)
        elif action == 1:
            del text[at:]
            text += b" "
        else:
            text[at:at] = rng.randbytes(3)
    return frame(TEXT, bytes(text))


DURABLE_FAULTS: Final[dict[str, Fault]] = {
    "redis killed": redis_killed,
    "redis paused": redis_paused,
    "gateway killed": gateway_killed,
    "gateway terminated": gateway_terminated,
    "gateway paused": gateway_paused,
    "sockets cut": sockets_cut,
    "rubbish sent": fuzzed,
    "half handshakes": half_handshakes,
    "subscribed and unsubscribed": churned,
    "readers that do not read": deaf_readers,
}
LOSING_FAULTS: Final[dict[str, Fault]] = {**DURABLE_FAULTS, "redis emptied": redis_emptied}
"""Nothing is kept by Redis then, so its death is a loss as well."""
