"""Both ways to carry a socket keep the contract, on both event loops, and the suite notices what does not."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any

import pytest
import uvloop

from livetape.gateway.transport import Transport
from livetape.gateway.transports.asgi import AsgiTransport
from livetape.gateway.transports.compressed_socket import CompressedSocket
from livetape.gateway.transports.uvicorn import EXTENSION, GatewayProtocol
from livetape.testing.broken_transports import BROKEN_TRANSPORTS, WrappedTransport
from livetape.testing.conformance.runner import cases, run_suite
from livetape.testing.conformance.transport import TransportSuite
from livetape.testing.transport_site import Receive, Scope, Send, TransportOf, TransportSite
from serving import serving

MAX_MESSAGE_BYTES = 20_000
CASES = cases(TransportSuite)
BELOW = {"test_pings_of_the_client_are_answered", "test_too_large_a_message_ends_with_1009"}

pytestmark = pytest.mark.slow


def fast(scope: Scope, receive: Receive, send: Send) -> Transport:
    transport = scope["extensions"][EXTENSION]
    assert isinstance(transport, Transport)
    return transport


@asynccontextmanager
async def site_of(transport_of: TransportOf, **options: Any) -> AsyncIterator[TransportSite]:
    site = TransportSite(transport_of, MAX_MESSAGE_BYTES)
    async with serving(site, ws_max_size=MAX_MESSAGE_BYTES, **options) as port:
        site.port = port
        yield site


def fast_site(**options: Any) -> Any:
    return site_of(fast, ws=GatewayProtocol, **options)


@pytest.mark.virtual_time
class TestFast(TransportSuite):
    @pytest.fixture
    async def site(self) -> AsyncIterator[TransportSite]:
        async with fast_site() as site:
            yield site


@pytest.mark.virtual_time
class TestFastCompressed(TransportSuite):
    @pytest.fixture
    async def site(self) -> AsyncIterator[TransportSite]:
        async with fast_site(ws_per_message_deflate=True) as site:
            site.client_options = {"compressed": True}
            yield site

    async def test_it_is_compressed(self, site: TransportSite) -> None:
        async with site.meet() as met:
            assert isinstance(met.transport, CompressedSocket)


@pytest.mark.virtual_time
class TestPlainAsgi(TransportSuite):
    @pytest.fixture
    async def site(self) -> AsyncIterator[TransportSite]:
        async with site_of(AsgiTransport, ws="websockets-sansio") as site:
            yield site


@pytest.mark.parametrize("case", CASES)
def test_fast_on_uvloop(case: str) -> None:
    assert on_uvloop(run_suite(TransportSuite, fast_site, only=[case], timeout_s=20)) == []


@pytest.mark.virtual_time
@pytest.mark.parametrize(
    ("broken", "case"), BROKEN_TRANSPORTS.items(), ids=lambda value: getattr(value, "__name__", "in")
)
async def test_a_broken_transport_fails(broken: type[WrappedTransport], case: str) -> None:
    def broken_site() -> Any:
        return site_of(wrapping(broken), ws=GatewayProtocol)

    failures = await run_suite(TransportSuite, broken_site, only=[case], timeout_s=2)
    assert [failure.case for failure in failures] == [case]


@pytest.mark.virtual_time
async def test_wrapping_alone_breaks_nothing() -> None:
    def wrapped_site() -> Any:
        return site_of(wrapping(WrappedTransport), ws=GatewayProtocol)

    assert await run_suite(TransportSuite, wrapped_site, timeout_s=20, brief_s=0.1) == []


def test_every_case_is_failed_by_some_broken_transport() -> None:
    assert set(CASES) - BELOW == set(BROKEN_TRANSPORTS.values())


def wrapping(wrapper: type[WrappedTransport]) -> TransportOf:
    def wrapped(scope: Scope, receive: Receive, send: Send) -> Transport:
        return wrapper(fast(scope, receive, send), scope)

    return wrapped


def on_uvloop(
    work: Coroutine[Any, Any, Any], make: Callable[[], asyncio.AbstractEventLoop] = uvloop.new_event_loop
) -> Any:
    with asyncio.Runner(loop_factory=make) as runner:
        return runner.run(work)
