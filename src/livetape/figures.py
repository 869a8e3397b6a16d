"""Every figure that is kept: its name, its labels, what it says. The source of docs/reference/metrics.md."""

from __future__ import annotations

from typing import Final, Literal, NamedTuple, TypeAlias

Kind: TypeAlias = Literal["counter", "gauge", "histogram"]

SECONDS: Final = (0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
"""The buckets of durations that somebody waits for."""

BRIEF: Final = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5)
"""The buckets of what should be over within a turn of the event loop, or with one answer of Redis."""


class Figure(NamedTuple):
    """One of them. `buckets` are seconds, of histograms only."""

    name: str
    kind: Kind
    labels: tuple[str, ...]
    meaning: str
    buckets: tuple[float, ...] = ()


class Part(NamedTuple):
    """Those of one part of livetape."""

    title: str
    figures: tuple[Figure, ...]


def _counter(name: str, meaning: str, *labels: str) -> Figure:
    return Figure(name, "counter", labels, meaning)


def _gauge(name: str, meaning: str, *labels: str) -> Figure:
    return Figure(name, "gauge", labels, meaning)


def _seconds(name: str, meaning: str, *labels: str, buckets: tuple[float, ...] = SECONDS) -> Figure:
    return Figure(name, "histogram", labels, meaning, buckets)


PARTS: Final = (
    Part(
        "Gateway",
        (
            _gauge("websocket_connections_total", "Sockets that are open."),
            _gauge("gateway_topics", "Tapes that are watched. Looked at every 5 s, as the others without label are."),
            _gauge("gateway_subscriptions", "Subscriptions of sockets and event streams to them."),
            _gauge("gateway_event_streams", "Event streams over HTTP that are being sent."),
            _gauge("gateway_outbox_bytes", "Bytes that wait for sockets that are slow, all together."),
            _gauge("gateway_outbox_largest_bytes", "Bytes that wait for the slowest of them."),
            _counter("gateway_events_total", "Messages that came from the bus."),
            _counter("gateway_deliveries_total", "Pushes handed over, counted once for each recipient."),
            _counter("gateway_delivered_bytes_total", "Bytes of these pushes, without frames and TLS."),
            _counter("gateway_refused_total", "Pushes that a slow client had no room for; it reads them from the log."),
            _seconds(
                "gateway_fan_out_seconds",
                "From the arrival of messages until they were handed over, to the first 512 recipients where there "
                "are more. Of one batch in 10 ms at most.",
                buckets=BRIEF,
            ),
            _counter("gateway_resyncs_total", "Clients that went on from the log, by `reason`: `slow`.", "reason"),
            _counter(
                "gateway_replays_total", "Subscriptions that began with events from the log, by their kind.", "kind"
            ),
            _counter("gateway_heals_total", "Tapes read because live events did not join on, by their kind.", "kind"),
            _counter("gateway_shortened_total", "Events that were too large: `shortened`, or `impossible`.", "outcome"),
            _counter("gateway_closed_total", "Sockets that the gateway closed, by code.", "code"),
            _counter(
                "gateway_rejected_total", "Handshakes answered with an HTTP error: `origin`, `unavailable`.", "reason"
            ),
            _counter("gateway_revocation_failures_total", "Tokens taken although the revocations could not be asked."),
            _counter("gateway_bus_failures_total", "How often the subscription to the bus broke."),
            _counter("gateway_bus_gaps_total", "Places where the bus may have lost messages."),
            _counter("gateway_broken_messages_total", "Messages of the bus that were no events."),
        ),
    ),
    Part(
        "Engine",
        (
            _counter("graph_executions_total", "Executions that ended, by status.", "status"),
            _counter("block_executions_total", "Node executions that ended.", "block_type", "status"),
            _seconds("block_duration_seconds", "How long a block ran.", "block_type"),
            _counter("block_cost_cents_total", "What completed runs of blocks cost, in cents.", "block_type"),
            _seconds(
                "node_overhead_seconds",
                "What the engine took to record the end of a node, of several at once divided by their number.",
                buckets=(0.0001, 0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.05, 0.25, 1.0),
            ),
            _seconds(
                "database_query_duration_seconds",
                "What the database took for a transaction, with all waits, by what it was: `read`, `write`, `locked` "
                "(alone among all processes), `single` (of one statement, on PostgreSQL), `urgent` (renewals of "
                "leases).",
                "operation",
                buckets=BRIEF,
            ),
            _gauge("execution_manager_active_runs", "Executions that run."),
            _gauge("execution_manager_pool_size", "Executions that may run at once."),
            _gauge("execution_manager_utilization_ratio", "The first by the second."),
            _counter("executions_recovered_total", "Executions taken over from a worker that fell silent."),
            _counter("executions_rung_again_total", "Executions whose doorbell was lost, and rung again."),
            _counter("executions_timed_out_total", "Executions that the sweep ended because their time was over."),
            _counter("blobs_swept_total", "Large values that nobody needed any more and that were taken away."),
            _gauge("queue_up", "1 while doorbells go to RabbitMQ and come from it, 0 while they wait in the database."),
            _gauge("execution_queue_depth", "Executions that are due and not begun."),
            _gauge("execution_queue_oldest_seconds", "How long the oldest of them has waited."),
            _counter("engine_failures_total", "Executions that the engine itself could not carry on."),
            _counter(
                "internal_errors_total",
                "Errors that nobody foresaw and that ended nothing, by where: `rabbitmq`, `forwarder`, `hints`, "
                "`leases`, `sweep`, `commands`, `control`, `bus`, `blobs`, `ring`.",
                "part",
            ),
            _counter("engine_commands_total", "Stops that came over the bus: `accepted`, or why not.", "outcome"),
            _counter(
                "rabbitmq_messages_total",
                "Doorbells over RabbitMQ: `published`, `failed`, `delivered`, `acknowledged`, `refused`, "
                "`returned` (not acknowledged in time), `dead`.",
                "queue",
                "status",
            ),
            _counter("events_published_total", "Events that the relay has put on the bus."),
            _counter("relay_retries_total", "Tries of the relay that failed."),
            _gauge("relay_waiting_tapes", "Tapes that the relay could not bring up to date yet."),
            _counter("relay_refilled_total", "Events put again because Redis had lost them."),
            _counter("relay_refused_total", "Tapes that Redis has otherwise than the database."),
            _gauge("worker_up", "1 for each process of `serve worker` that answers, else 0.", "worker"),
        ),
    ),
    Part(
        "REST interface",
        (
            _counter("rest_api_http_requests_total", "Requests answered.", "handler", "method", "status"),
            _seconds("rest_api_http_request_duration_seconds", "Until the answer began.", "handler", "method"),
        ),
    ),
    Part(
        "Events",
        (
            _counter("events_failed_total", "Events that `publish` could not publish, by the error's code.", "reason"),
            _counter(
                "events_dropped_total",
                "Events given up: `overflow`, `expired`, `closed`, `unavailable`, or a code.",
                "reason",
            ),
            _gauge("event_circuit_open", "1 while the bus is thought to be away.", "bus"),
            _counter("events_skipped_total", "Messages that a listener could not decode.", "reason"),
            _counter("event_gaps_total", "Places where a listener may have missed events."),
            _gauge(
                "event_log_lag", "Events that a follower was behind its tape when it last looked at the log.", "kind"
            ),
            _counter("bus_published_total", "Messages given to the bus alone."),
            _counter("bus_published_bytes_total", "Their bytes."),
            _counter("bus_delivered_total", "Their receivers."),
            _seconds("bus_publish_seconds", "Of every 64th message until the answer.", buckets=BRIEF),
            _counter("bus_messages_total", "Messages that came from Redis."),
            _counter("bus_dropped_total", "Messages that a slow reader lost.", "reason"),
            _counter("bus_reconnects_total", "How often the link that listens was made again."),
            _gauge("bus_link_age_seconds", "Since the server was last heard on it; over 12 it does not work."),
            _counter("log_recorded_total", "Events put on tapes."),
            _counter("log_recorded_bytes_total", "Bytes of their payloads."),
            _counter("log_delivered_total", "Receivers of their copies on the bus."),
            _seconds("log_record_seconds", "Of every 64th event until it was durable and pushed.", buckets=BRIEF),
            _counter("log_failed_total", "Events not known to be on their tape, by the error's code.", "reason"),
            _counter("celery_events_total", "Events of tasks that are on their tapes.", "event_type"),
            _counter("celery_events_lost_total", "Events of tasks that are not known to be.", "event_type"),
        ),
    ),
)

FIGURES: Final = {figure.name: figure for part in PARTS for figure in part.figures}
