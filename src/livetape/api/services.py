"""What one REST application works with: its options, and everything that it was given. Built once, in `app.py`."""

from __future__ import annotations

import hashlib
from collections.abc import Collection
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

from pydantic_core import to_json

from livetape.api.ports import (
    Degraded,
    EventStreams,
    Executions,
    Graphs,
    Jobs,
    MetricsText,
    QueueControl,
    Readiness,
    Reviews,
    Revocations,
    Tapes,
)
from livetape.auth import Authenticator
from livetape.engine.block import BlockRegistry


@dataclass(frozen=True, slots=True, kw_only=True)
class ApiOptions:
    """How the REST interface behaves.

    `cors_origins` and `cors_origin_regex` are what `CORSMiddleware` takes. `allowed_hosts`: the names that `Host` may
    have, None for any; set it wherever being on this machine is enough to be let in. `jobs_unowned`: who may read
    jobs without an owner.
    """

    version: str
    docs_enabled: bool = False
    max_body_bytes: int = 1024 * 1024
    cors_origins: Collection[str] = ()
    cors_origin_regex: str | None = None
    allowed_hosts: Collection[str] | None = None
    jobs_unowned: Literal["admin", "any_user"] = "admin"
    gzip_min_bytes: int = 50_000
    ready_timeout: float = 2.0


class BlockList:
    """The answer to `GET /api/blocks`, made at the first request: nothing in it changes while the process runs."""

    def __init__(self, blocks: BlockRegistry) -> None:
        self._blocks = blocks

    @cached_property
    def body(self) -> bytes:
        return to_json([block.describe() for block in self._blocks if not block.disabled])

    @cached_property
    def etag(self) -> str:
        return f'W/"{hashlib.sha256(self.body).hexdigest()[:32]}"'


@dataclass(frozen=True, slots=True, kw_only=True)
class Services:
    """Everything that the routes use."""

    options: ApiOptions
    graphs: Graphs
    executions: Executions
    blocks: BlockRegistry
    block_list: BlockList
    reviews: Reviews
    queue: QueueControl
    jobs: Jobs
    tapes: Tapes
    authenticator: Authenticator
    revocations: Revocations | None
    event_streams: EventStreams
    readiness: Readiness
    degraded: Degraded
    metrics_text: MetricsText | None
