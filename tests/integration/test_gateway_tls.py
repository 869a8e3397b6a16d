"""The fast path over TLS, whose transports cannot half-close: everything else holds there, too."""

from __future__ import annotations

import asyncio
import datetime
import ssl
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import uvloop
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed

from livetape.gateway.messages import Push
from livetape.gateway.transports.http import http_protocol
from livetape.gateway.transports.uvicorn import EXTENSION, GatewayProtocol
from livetape.testing.transport_site import TransportSite
from serving import serving


@pytest.fixture
def certificate(tmp_path: Path) -> Path:
    """A file with key and certificate."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    now = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .sign(key, hashes.SHA256())
    )
    path = tmp_path / "both.pem"
    pem, plain = serialization.Encoding.PEM, serialization.NoEncryption()
    path.write_bytes(key.private_bytes(pem, serialization.PrivateFormat.PKCS8, plain) + made.public_bytes(pem))
    return path


@pytest.mark.parametrize("loop", [asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
def test_a_socket_over_tls(certificate: Path, loop: Callable[[], Any]) -> None:
    with asyncio.Runner(loop_factory=loop) as runner:
        runner.run(asyncio.wait_for(talk(certificate), 20))


async def talk(certificate: Path) -> None:
    site = TransportSite(lambda scope, receive, send: scope["extensions"][EXTENSION], 1000)
    trust = ssl.create_default_context(cafile=str(certificate))
    options = {"ssl_certfile": certificate, "ssl_keyfile": certificate, "ws_max_size": 1000}
    async with serving(site, ws=GatewayProtocol, http=http_protocol(), **options) as port:
        address = {"uri": f"wss://localhost:{port}", "ssl": trust, "proxy": None, "max_size": None}
        async with connect(**address) as ws:
            transport, recorder = await site.arrived.get()
            await ws.send("hello")
            await recorder.until(lambda told: told.messages == ["hello"])
            for _ in range(20):
                transport.send(Push(b"x" * 500_000))
            assert [len(await ws.recv()) for _ in range(20)] == [500_000] * 20
            transport.ping()
            await recorder.until(lambda told: bool(told.count("ponged")))
            transport.close(4000, "end", within=5)
            await ws.wait_closed()
            assert (ws.close_code, ws.close_reason) == (4000, "end")
            await recorder.until(lambda told: told.ends == [True])
        async with connect(**address) as ws:
            _, recorder = await site.arrived.get()
            await ws.send("x" * 1001)
            with pytest.raises(ConnectionClosed):
                await ws.recv()
            assert ws.close_code == 1009
            await recorder.until(lambda told: told.ends == [False])
