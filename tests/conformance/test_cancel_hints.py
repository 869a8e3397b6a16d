"""The hints of a process and those over RabbitMQ keep the contract, and the suite notices hints that do not."""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest

from livetape.adapters.rabbitmq.open import from_url
from livetape.adapters.rabbitmq.topology import Topology
from livetape.engine.cancel_hints import CancelHints, ProcessCancelHints
from livetape.testing.broken_cancel_hints import BROKEN_CANCEL_HINTS
from livetape.testing.conformance.cancel_hints import CancelHintsSuite
from livetape.testing.conformance.runner import cases, run_suite
from rabbit import RabbitServer


class TestProcessCancelHints(CancelHintsSuite):
    @pytest.fixture
    async def hints(self) -> CancelHints:
        return ProcessCancelHints()


@pytest.mark.slow
@pytest.mark.needs("rabbitmq")
class TestRabbitCancelHints(CancelHintsSuite):
    @pytest.fixture
    async def hints(self, rabbit_server: RabbitServer) -> AsyncIterator[CancelHints]:
        ports = from_url(rabbit_server.url, topology=Topology(f"{secrets.token_hex(4)}."))
        yield ports.hints
        await ports.close()


@asynccontextmanager
async def made(make: Callable[[], CancelHints]) -> AsyncIterator[CancelHints]:
    yield make()


@pytest.mark.parametrize(
    ("make", "case"), BROKEN_CANCEL_HINTS.items(), ids=lambda value: getattr(value, "__name__", "in")
)
async def test_broken_hints_fail(make: Callable[[], CancelHints], case: str) -> None:
    failures = await run_suite(CancelHintsSuite, lambda: made(make), only=[case], patience_s=0.3, silence_s=0.05)
    assert [failure.case for failure in failures] == [case]


def test_every_case_is_failed_by_some_broken_hints() -> None:
    assert set(cases(CancelHintsSuite)) == set(BROKEN_CANCEL_HINTS.values())
