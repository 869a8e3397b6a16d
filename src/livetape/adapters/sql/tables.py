"""The tables of the platform, for SQLite and PostgreSQL. Migrations make them; a test holds both alike.

Times are microseconds since 1970 (UTC). Payloads are bytes: a JSON column refuses `\\u0000` and re-orders keys.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any, Final

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Dialect,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    PrimaryKeyConstraint,
    String,
    Table,
    TypeDecorator,
    false,
    text,
)

from livetape.events.executions import ExecutionStatus

metadata = MetaData()

_UNIX_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND: Final = timedelta(microseconds=1)


class Moment(TypeDecorator[datetime]):
    """A UTC datetime as microseconds since 1970."""

    impl = BigInteger
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> int | None:
        return None if value is None else (value - _UNIX_EPOCH) // _MICROSECOND

    def process_result_value(self, value: Any | None, dialect: Dialect) -> datetime | None:
        return None if value is None else _UNIX_EPOCH + value * _MICROSECOND


class Status(TypeDecorator[ExecutionStatus]):
    """A status word as text."""

    impl = String
    cache_ok = True

    def process_bind_param(self, value: ExecutionStatus | None, dialect: Dialect) -> str | None:
        return None if value is None else value.value

    def process_result_value(self, value: Any | None, dialect: Dialect) -> ExecutionStatus | None:
        return None if value is None else ExecutionStatus(value)


# Ids that count up without end: eight bytes. SQLite's rowid is named INTEGER and always has eight.
_BigId: Final = BigInteger().with_variant(Integer(), "sqlite")

# Tables that are written at every step stand in their primary key on SQLite (no rowid): a commit then writes one page
# for each of them instead of two, and a tape is read from neighbouring pages.
# Partial indexes name SQLite alone: an option of another dialect would load that dialect, a quarter of the start.
# `migrate.py` gives them the same condition on PostgreSQL.

# `fence` is the lease number that may write to the tape of an execution: number allotment and lease check are one
# update of one row. `published` is how far the relay has come; NULL where nobody relays (jobs, graphs).
tape = Table(
    "tape",
    metadata,
    Column("id", _BigId, primary_key=True),
    Column("name", String, nullable=False, unique=True),
    Column("owner", String),
    Column("graph_id", String),
    Column("channel", String, nullable=False),
    Column("epoch", String, nullable=False),
    Column("last_number", Integer, nullable=False),
    Column("first_number", Integer, nullable=False),
    Column("final", Boolean, nullable=False),
    Column("fence", Integer),
    Column("published", Integer),
    Column("created_at", Moment, nullable=False),
)
Index(
    "tape_unpublished",
    tape.c.id,
    sqlite_where=text("published < last_number"),
)

event = Table(
    "event",
    metadata,
    Column("tape_id", _BigId, nullable=False),
    Column("number", Integer, nullable=False),
    Column("event_type", String, nullable=False),
    Column("payload", LargeBinary, nullable=False),
    Column("final", Boolean, nullable=False),
    Column("time", Moment, nullable=False),
    Column("idempotency_key", String),
    PrimaryKeyConstraint("tape_id", "number"),
    sqlite_with_rowid=False,
)
Index(
    "event_idempotency",
    event.c.tape_id,
    event.c.idempotency_key,
    unique=True,
    sqlite_where=text("idempotency_key IS NOT NULL"),
)

graph = Table(
    "graph",
    metadata,
    Column("id", String, nullable=False),
    Column("version", Integer, nullable=False),
    Column("user_id", String, nullable=False),
    Column("name", String, nullable=False),
    Column("description", String, nullable=False),
    Column("is_active", Boolean, nullable=False),
    Column("body", LargeBinary, nullable=False),
    Column("created_at", Moment, nullable=False),
    PrimaryKeyConstraint("id", "version"),
)
Index("graph_user", graph.c.user_id, graph.c.created_at)

# While an execution waits to be claimed: `due_at` is when it may be (NULL: at once), `ring_at` when its doorbell is
# taken for lost and rung again, `held` the limit that kept it back. `wakes` counts what has happened to it from outside
# (a child ended, a review was decided). `masks` are inputs by node.
execution = Table(
    "execution",
    metadata,
    Column("id", String, primary_key=True),
    Column("user_id", String, nullable=False),
    Column("graph_id", String, nullable=False),
    Column("graph_version", Integer, nullable=False),
    Column("status", Status, nullable=False),
    Column("status_reason", String),
    Column("inputs", LargeBinary, nullable=False),
    Column("stats", LargeBinary, nullable=False),
    Column("created_at", Moment, nullable=False),
    Column("started_at", Moment),
    Column("ended_at", Moment),
    Column("cancel_requested", Boolean, nullable=False),
    Column("lease_owner", String),
    Column("lease_no", Integer, nullable=False),
    Column("lease_until", Moment),
    Column("recoveries", Integer, nullable=False),
    Column("tape_id", _BigId, nullable=False),
    Column("epoch", String, nullable=False),
    Column("priority", Integer, nullable=False, server_default="0"),
    Column("forked_from", String),
    Column("parent_id", String),
    Column("parent_node_exec_id", String),
    Column("depth", Integer, nullable=False, server_default="0"),
    Column("deadline_at", Moment),
    Column("queue_deadline_at", Moment),
    Column("dry_run", Boolean, nullable=False, server_default=false()),
    Column("cost", Integer, nullable=False, server_default="0"),
    Column("due_at", Moment),
    Column("ring_at", Moment),
    Column("held", String),
    Column("wakes", Integer, nullable=False, server_default="0"),
    Column("masks", LargeBinary),
)
Index("execution_user", execution.c.user_id, execution.c.created_at)
Index("execution_graph", execution.c.graph_id, execution.c.created_at)
Index(
    "execution_leased",
    execution.c.lease_until,
    sqlite_where=text("status = 'RUNNING'"),
)
Index("execution_ring", execution.c.ring_at, sqlite_where=text("ring_at IS NOT NULL"))
Index("execution_parent", execution.c.parent_id, sqlite_where=text("parent_id IS NOT NULL"))
Index(
    "execution_held",
    execution.c.user_id,
    execution.c.priority,
    execution.c.created_at,
    sqlite_where=text("held IS NOT NULL"),
)

# `waits` (with their answers) and `effects` (with their results) are what a node execution did once and for all.
node_execution = Table(
    "node_execution",
    metadata,
    Column("execution_id", String, nullable=False),
    Column("seq", Integer, nullable=False),
    Column("id", String, nullable=False),
    Column("node_id", String, nullable=False),
    Column("block_id", String, nullable=False),
    Column("status", Status, nullable=False),
    Column("status_reason", String),
    Column("inputs", LargeBinary, nullable=False),
    Column("output_name", String),
    Column("add_time", Moment, nullable=False),
    Column("queue_time", Moment),
    Column("start_time", Moment),
    Column("end_time", Moment),
    Column("attempt", Integer, nullable=False, server_default="1"),
    Column("stats", LargeBinary),
    Column("waits", LargeBinary),
    Column("effects", LargeBinary),
    PrimaryKeyConstraint("execution_id", "seq"),
    sqlite_with_rowid=False,
)

node_output = Table(
    "node_output",
    metadata,
    Column("execution_id", String, nullable=False),
    Column("seq", Integer, nullable=False),
    Column("position", Integer, nullable=False),
    Column("name", String, nullable=False),
    Column("value", LargeBinary, nullable=False),
    PrimaryKeyConstraint("execution_id", "seq", "position"),
    sqlite_with_rowid=False,
)

# `rank` is `Doorbell.rank`. Who takes looks at the first of each rank (`doorbell_next`), who waits for the next that is
# due at all of them (`doorbell_due`).
doorbell = Table(
    "doorbell",
    metadata,
    Column("id", _BigId, primary_key=True),
    Column("graph_exec_id", String, nullable=False),
    Column("kind", String, nullable=False),
    Column("enqueue_no", Integer, nullable=False),
    Column("taken", Boolean, nullable=False),
    Column("due_at", Moment, nullable=False),
    Column("priority", Integer, nullable=False, server_default="0"),
    Column("rank", Integer, nullable=False, server_default="0"),
)
Index("doorbell_due", doorbell.c.due_at)
Index("doorbell_next", doorbell.c.rank, doorbell.c.due_at, doorbell.c.id)

idempotency = Table(
    "idempotency",
    metadata,
    Column("user_id", String, nullable=False),
    Column("route", String, nullable=False),
    Column("key", String, nullable=False),
    Column("fingerprint", String, nullable=False),
    Column("execution_id", String, nullable=False),
    Column("created_at", Moment, nullable=False),
    PrimaryKeyConstraint("user_id", "route", "key"),
)

review = Table(
    "review",
    metadata,
    Column("id", String, primary_key=True),
    Column("user_id", String, nullable=False),
    Column("graph_id", String, nullable=False),
    Column("execution_id", String, nullable=False),
    Column("node_exec_id", String, nullable=False),
    Column("seq", Integer, nullable=False),
    Column("payload", LargeBinary, nullable=False),
    Column("instructions", String, nullable=False),
    Column("editable", Boolean, nullable=False),
    Column("status", String, nullable=False),
    Column("created_at", Moment, nullable=False),
    Column("decided_by", String),
    Column("decided_at", Moment),
    Column("message", String, nullable=False),
)
Index("review_execution", review.c.execution_id)
Index("review_node", review.c.node_exec_id)
Index("review_waiting", review.c.user_id, review.c.created_at, sqlite_where=text("status = 'WAITING'"))

queue_pause = Table(
    "queue_pause",
    metadata,
    Column("name", String, primary_key=True),
    Column("since", Moment, nullable=False),
    Column("reason", String, nullable=False),
)

# What blocks keep beyond their execution.
key_value = Table(
    "key_value",
    metadata,
    Column("user_id", String, nullable=False),
    Column("key", String, nullable=False),
    Column("value", LargeBinary, nullable=False),
    Column("updated_at", Moment, nullable=False),
    PrimaryKeyConstraint("user_id", "key"),
)

# Written by `adapters/sqlite/ephemeral.py` alone.
ephemeral = Table(
    "ephemeral",
    metadata,
    Column("key", String, primary_key=True),
    Column("value", LargeBinary, nullable=False),
    Column("expires_at", Moment, nullable=False),
)
Index("ephemeral_end", ephemeral.c.expires_at)
