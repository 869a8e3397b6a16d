"""The gateway of a process: its doors, its limits and its way to the engines, from the settings."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.metadata import version as package_version

from starlette.routing import BaseRoute

from livetape.auth import Authenticator
from livetape.clock import Clock
from livetape.events.bus import Bus
from livetape.events.log import EventLog
from livetape.gateway.app import Gateway
from livetape.gateway.asyncapi import asyncapi_route
from livetape.gateway.compat import CompatResume
from livetape.gateway.doorkeeper import Doorkeeper
from livetape.gateway.revocation_routes import revocation_route
from livetape.gateway.revocations import Revocations
from livetape.gateway.stopper import Stopper
from livetape.gateway.ticket_routes import ticket_route
from livetape.gateway.tickets import Tickets
from livetape.gateway.transports.ring_sender import RingSender, open_sender
from livetape.observability import Metrics
from livetape.runtime.access import authenticator, gateway_options
from livetape.runtime.tracing import tracer
from livetape.settings import Settings
from livetape.store.ephemeral import Ephemeral


@dataclass(frozen=True, slots=True)
class Sockets:
    """A gateway with what stands around it. `routes` are its own and those that its clients need."""

    gateway: Gateway
    authenticator: Authenticator
    revocations: Revocations
    routes: list[BaseRoute]
    sender: RingSender | None
    """What the server's protocol is to know of (`uvicorn_config`)."""

    def close(self) -> None:
        """Idempotent."""
        if self.sender is not None:
            self.sender.close()


def open_sockets(
    settings: Settings,
    key: str | None,
    *,
    bus: Bus,
    log: EventLog,
    ephemeral: Ephemeral,
    metrics: Metrics,
    clock: Clock,
) -> Sockets:
    """The gateway over these ports. `key` is what tokens are checked with, None only where auth is off."""
    options = gateway_options(settings)
    auth = authenticator(settings, key)
    tickets = Tickets(
        ephemeral,
        clock=clock,
        ttl_seconds=settings.gateway.ticket_seconds,
        max_per_user=settings.gateway.tickets_per_user if settings.enable_auth else None,
    )
    revocations = Revocations(
        ephemeral,
        bus,
        clock=clock,
        longest_token_seconds=settings.gateway.longest_token_seconds,
        metrics=metrics,
    )
    sender = open_sender(metrics) if settings.gateway.io_uring else None
    gateway = Gateway(
        options,
        bus,
        log,
        auth,
        doorkeeper=Doorkeeper(auth, tickets=tickets, revocations=revocations),
        compat=_compat(settings, ephemeral, clock),
        stopping=Stopper(bus, timeout_s=settings.gateway.stop_seconds),
        metrics=metrics,
        tracer=tracer(),
        sender=sender,
        clock=clock,
    )
    metrics.gauge("websocket_connections_total", 0)
    routes = [
        *gateway.routes(),
        ticket_route(auth, tickets, revocations),
        revocation_route(auth, revocations),
        asyncapi_route(options, version=package_version("livetape")),
    ]
    return Sockets(gateway, auth, revocations, routes, sender)


def _compat(settings: Settings, ephemeral: Ephemeral, clock: Clock) -> CompatResume | None:
    gateway = settings.gateway
    if not gateway.compat_resume:
        return None
    return CompatResume(ephemeral, keep_s=gateway.compat_resume_seconds, clock=clock)
