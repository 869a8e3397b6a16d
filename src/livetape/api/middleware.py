"""What every request goes through, whatever the application behind it serves."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Final

from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.middleware.gzip import DEFAULT_EXCLUDED_CONTENT_TYPES, GZipMiddleware

from livetape.api.limits import BodyLimit
from livetape.api.security import HostGuard, SecurityHeadersMiddleware
from livetape.api.tracking import REQUEST_ID_HEADER, RequestTracker
from livetape.clock import Clock, IdFactory
from livetape.observability import Metrics

EXPOSED_HEADERS: Final = (REQUEST_ID_HEADER, "X-Stream-Position", "Idempotency-Replayed", "ETag", "Retry-After")
NOT_COMPRESSED: Final = (*DEFAULT_EXCLUDED_CONTENT_TYPES, "application/x-ndjson")


@dataclass(frozen=True, slots=True, kw_only=True)
class HttpOptions:
    """`cors_origins` and `cors_origin_regex` are what `CORSMiddleware` takes. `allowed_hosts`: the names that `Host`
    may have, None for any; set it wherever being on this machine is enough to be let in."""

    max_body_bytes: int = 1024 * 1024
    cors_origins: Collection[str] = ()
    cors_origin_regex: str | None = None
    allowed_hosts: Collection[str] | None = None
    gzip_min_bytes: int = 50_000


def layers(options: HttpOptions, *, metrics: Metrics, clock: Clock, ids: IdFactory) -> list[Middleware]:
    """The first is the outermost."""
    return [
        Middleware(SecurityHeadersMiddleware),
        Middleware(
            CORSMiddleware,
            allow_origins=list(options.cors_origins),
            allow_origin_regex=options.cors_origin_regex,
            allow_credentials=True,
            allow_methods=["*"],
            allow_headers=["*"],
            expose_headers=EXPOSED_HEADERS,
        ),
        Middleware(RequestTracker, metrics=metrics, clock=clock, new_id=ids),
        Middleware(HostGuard, allowed_hosts=options.allowed_hosts),
        Middleware(GZipMiddleware, minimum_size=options.gzip_min_bytes, exclude_content_types=NOT_COMPRESSED),
        Middleware(BodyLimit, max_bytes=options.max_body_bytes),
    ]
