"""The queue in RabbitMQ keeps the Queue contract."""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator

import pytest

from livetape.adapters.rabbitmq.open import from_url
from livetape.adapters.rabbitmq.topology import Topology
from livetape.engine.queue import Queue
from livetape.testing.conformance.queue import QueueSuite
from rabbit import RabbitServer

pytestmark = [pytest.mark.needs("rabbitmq"), pytest.mark.slow]


class TestRabbitQueue(QueueSuite):
    @pytest.fixture
    async def queue(self, rabbit_server: RabbitServer) -> AsyncIterator[Queue]:
        ports = from_url(rabbit_server.url, topology=Topology(f"{secrets.token_hex(4)}."), hidden_s=1.0)
        yield ports.queue
        await ports.close()
