"""Our gateway without Redis, to look at it without its bus link: tokens, envelopes, permissions, offsets, metrics on.

python livetape_server.py PORT direct://127.0.0.1:BUS_PORT KEY    (see direct.py)
"""

from __future__ import annotations

import asyncio
import sys

import uvicorn
import uvloop
from direct import open_direct
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from livetape.adapters.prometheus.metrics import PrometheusMetrics
from livetape.auth import Authenticator, TokenOptions, TokenVerifier
from livetape.gateway.app import Gateway
from livetape.gateway.options import GatewayOptions
from livetape.gateway.transports.http import http_protocol
from livetape.gateway.transports.uvicorn import GatewayProtocol

# Limits only: with one channel for a thousand sockets they all belong to one user.
OPTIONS = GatewayOptions(max_sockets_per_user=20_000)


async def main(port: int, url: str, key: str) -> None:
    metrics = PrometheusMetrics("livetape")
    backend = await open_direct(url)
    assert backend.log is not None
    authenticator = Authenticator(TokenVerifier(TokenOptions(verify_key=key)))
    gateway = Gateway(OPTIONS, backend.bus, backend.log, authenticator, metrics=metrics)

    async def metrics_text(request: Request) -> Response:
        text, kind = metrics.render()
        return Response(text, headers={"content-type": kind})

    app = Starlette(routes=[*gateway.routes(), Route("/metrics", metrics_text)])
    config = uvicorn.Config(
        app,
        host="127.0.0.1",
        port=port,
        ws=GatewayProtocol,
        ws_max_size=64 * 1024,
        ws_ping_interval=25,
        ws_ping_timeout=60,
        ws_per_message_deflate=False,
        loop="uvloop",
        http=http_protocol(),
        lifespan="off",
        access_log=False,
        log_level="warning",
        timeout_graceful_shutdown=1,
    )
    running = asyncio.create_task(gateway.run())
    await asyncio.wait({running, asyncio.ensure_future(gateway.ready.wait())}, return_when=asyncio.FIRST_COMPLETED)
    if running.done():
        running.result()
    try:
        await uvicorn.Server(config).serve()
    finally:
        running.cancel()
        await asyncio.wait({running})
        await backend.close()


if __name__ == "__main__":
    uvloop.run(main(int(sys.argv[1]), sys.argv[2], sys.argv[3]))
