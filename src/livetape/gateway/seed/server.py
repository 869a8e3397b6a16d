"""A process that serves an application's sockets."""

from __future__ import annotations

from collections.abc import Sequence

import uvicorn
from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp

from livetape.gateway.seed.cors import build_cors_params
from livetape.observability import get_logger

logger = get_logger(__name__)


class WebsocketServer:
    """Serves an application with CORS on uvicorn. `run` blocks until the process is told to stop.

    Raises:
        CorsError: origins that cannot be allowed, before anything starts.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        host: str = "127.0.0.1",
        port: int = 8001,
        cors_allow_origins: Sequence[str] = ("http://localhost:3000",),
        app_env: str = "local",
    ) -> None:
        self.host = host
        self.port = port
        self._origins = list(cors_allow_origins)
        self.app = CORSMiddleware(
            app,
            **build_cors_params(self._origins, app_env),
            allow_credentials=True,
            allow_methods=["*"],
            allow_headers=["*"],
        )

    @property
    def service_name(self) -> str:
        """The name of this process in logs."""
        return type(self).__name__

    def run(self) -> None:
        """Listen and serve."""
        logger.info("allowed origins: %s", self._origins, extra={"action": "serve"})
        uvicorn.run(self.app, host=self.host, port=self.port, ws="websockets-sansio", log_config=None)
