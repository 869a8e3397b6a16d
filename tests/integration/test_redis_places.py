"""Redis behind TLS, on a Unix socket, under Sentinel and as a cluster that loses a node."""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import ipaddress
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import redis.asyncio
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

import support
from livetape.errors import BusUnavailableError
from livetape.events.bus import Bus, BusMessage, Subscription
from livetape.events.open import open_backend, open_client
from servers import RedisServer, cluster, guarded_pair, running

pytestmark = [pytest.mark.needs("redis"), pytest.mark.slow]

PATIENCE_S = 15.0


class Authority:
    """A certificate authority for one test, and what it signed: PEM files in a folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "test authority")])
        self.file = folder / "ca.pem"
        self.file.write_bytes(self._sign(self._name, self._key, ca=True))

    def issue(self, name: str) -> tuple[Path, Path]:
        """Certificate and key, for 127.0.0.1."""
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        certificate, secret = self._folder / f"{name}.pem", self._folder / f"{name}.key"
        certificate.write_bytes(self._sign(subject, key, ca=False))
        secret.write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            )
        )
        return certificate, secret

    def _sign(self, subject: x509.Name, key: ec.EllipticCurvePrivateKey, *, ca: bool) -> bytes:
        now = datetime.datetime.now(datetime.UTC)
        names = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self._name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(hours=1))
            .not_valid_after(now + datetime.timedelta(hours=1))
            .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
            .add_extension(names, critical=False)
            .sign(self._key, hashes.SHA256())
            .public_bytes(serialization.Encoding.PEM)
        )


async def following(subscription: Subscription) -> BusMessage:
    async with asyncio.timeout(PATIENCE_S):
        return await anext(aiter(subscription))


async def carries(bus: Bus) -> None:
    async with await bus.subscribe("t/a", "t/*") as subscription:
        await bus.publish("t/a", b"x" * 100_000)
        assert await following(subscription) == BusMessage("t/a", b"x" * 100_000)


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path)


@pytest.fixture
def tls_server(tmp_path: Path, authority: Authority) -> Iterator[tuple[RedisServer, int]]:
    certificate, key = authority.issue("server")
    port = support.free_port()
    server = RedisServer(
        "redis",
        tmp_path / "redis",
        tls_port=port,
        tls_cert_file=str(certificate),
        tls_key_file=str(key),
        tls_ca_cert_file=str(authority.file),
    )
    with running(server):
        yield server, port


async def test_tls_with_a_client_certificate(tls_server: tuple[RedisServer, int], authority: Authority) -> None:
    _, port = tls_server
    certificate, key = authority.issue("client")
    url = (
        f"rediss://127.0.0.1:{port}/0?ssl_ca_certs={authority.file}&ssl_certfile={certificate}&ssl_keyfile={key}"
        "&socket_timeout=2"
    )
    backend = open_backend(url)
    await carries(backend.bus)
    await backend.close()
    async with redis.asyncio.Redis.from_url(url) as client:
        backend = open_client(client)
        await carries(backend.bus)
        await backend.close()


async def test_a_certificate_that_nobody_vouches_for(tls_server: tuple[RedisServer, int], authority: Authority) -> None:
    server, port = tls_server
    server.cli("CONFIG", "SET", "tls-auth-clients", "no")
    backend = open_backend(f"rediss://127.0.0.1:{port}/0?socket_timeout=2")
    with pytest.raises(BusUnavailableError, match="certificate is not trusted"):
        await backend.bus.publish("t/a", b"x")
    await backend.close()
    backend = open_backend(f"rediss://127.0.0.1:{port}/0?ssl_cert_reqs=none")
    await carries(backend.bus)
    await backend.close()
    backend = open_backend(f"rediss://localhost:{port}/0?ssl_ca_certs={authority.file}")
    with pytest.raises(BusUnavailableError, match="certificate is not trusted"):
        await backend.bus.publish("t/a", b"x")  # it is for 127.0.0.1
    await backend.close()


async def test_tls_where_there_is_none(own_redis: RedisServer) -> None:
    backend = open_backend(own_redis.url(scheme="rediss") + "?socket_timeout=1")
    with pytest.raises(BusUnavailableError, match=f"127.0.0.1:{own_redis.port}"):
        await backend.bus.publish("t/a", b"x")
    await backend.close()


async def test_a_unix_socket(tmp_path: Path) -> None:
    path = tmp_path / "redis.sock"
    with running(RedisServer("redis", tmp_path / "redis", unixsocket=str(path))):
        backend = open_backend(f"unix://{path}?db=3")
        await carries(backend.bus)
        await backend.close()


@contextlib.asynccontextmanager
async def bus_at(url: str) -> AsyncIterator[Bus]:
    backend = open_backend(url)
    try:
        yield backend.bus
    finally:
        await backend.close()


async def published(bus: Bus, channel: str, data: bytes) -> None:
    """Once, when somebody takes it."""
    async with asyncio.timeout(PATIENCE_S):
        while True:
            with contextlib.suppress(BusUnavailableError):
                await bus.publish(channel, data)
                return
            await asyncio.sleep(0.05)


@pytest.mark.serial  # the Sentinel takes half a second without an answer for a death
async def test_sentinel_fails_over(tmp_path: Path) -> None:
    with guarded_pair(tmp_path) as (first, _, port):
        url = f"redis+sentinel://127.0.0.1:1,127.0.0.1:{port}/svc/2?sentinel_password=guard&socket_timeout=1"
        async with bus_at(url) as bus:
            subscription = await bus.subscribe("t/a", "t/*")
            await bus.publish("t/a", b"x")
            assert await following(subscription) == BusMessage("t/a", b"x")
            first.kill()
            assert (await following(subscription)).gap
            await published(bus, "t/a", b"again")
            assert await following(subscription) == BusMessage("t/a", b"again")


async def test_a_cluster_loses_the_node_that_listens(tmp_path: Path) -> None:
    with cluster("redis", tmp_path / "cluster") as nodes:
        for node in nodes:
            node.cli("CONFIG", "SET", "cluster-require-full-coverage", "no")
        hosts = ",".join(f"127.0.0.1:{node.port}" for node in nodes)
        async with bus_at(f"redis+cluster://{hosts}?socket_timeout=1") as bus:
            subscription = await bus.subscribe("t/a", "t/*")
            await bus.publish("t/a", b"x")
            assert await following(subscription) == BusMessage("t/a", b"x")
            nodes[0].kill()
            assert (await following(subscription)).gap
            for name in "abcdefgh":  # whatever node a channel was published through
                await published(bus, f"t/{name}", b"again")
            got = [(await following(subscription)).channel for _ in range(8)]
            assert sorted(got) == [f"t/{name}" for name in "abcdefgh"]
