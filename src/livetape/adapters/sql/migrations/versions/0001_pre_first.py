"""The first tables.

`pre` migrations run before the new version serves and keep the old one working; `post` migrations run when no old
process is left.
"""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    big = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
    op.create_table(
        "tape",
        sa.Column("id", big, primary_key=True),
        sa.Column("name", sa.String, nullable=False, unique=True),
        sa.Column("owner", sa.String),
        sa.Column("graph_id", sa.String),
        sa.Column("channel", sa.String, nullable=False),
        sa.Column("epoch", sa.String, nullable=False),
        sa.Column("last_number", sa.Integer, nullable=False),
        sa.Column("first_number", sa.Integer, nullable=False),
        sa.Column("final", sa.Boolean, nullable=False),
        sa.Column("fence", sa.Integer),
        sa.Column("published", sa.Integer),
        sa.Column("created_at", sa.BigInteger, nullable=False),
    )
    unpublished = sa.text("published < last_number")
    op.create_index("tape_unpublished", "tape", ["id"], sqlite_where=unpublished, postgresql_where=unpublished)
    op.create_table(
        "event",
        sa.Column("tape_id", big, nullable=False),
        sa.Column("number", sa.Integer, nullable=False),
        sa.Column("event_type", sa.String, nullable=False),
        sa.Column("payload", sa.LargeBinary, nullable=False),
        sa.Column("final", sa.Boolean, nullable=False),
        sa.Column("time", sa.BigInteger, nullable=False),
        sa.Column("idempotency_key", sa.String),
        sa.PrimaryKeyConstraint("tape_id", "number"),
        sqlite_with_rowid=False,
    )
    keyed = sa.text("idempotency_key IS NOT NULL")
    op.create_index(
        "event_idempotency",
        "event",
        ["tape_id", "idempotency_key"],
        unique=True,
        sqlite_where=keyed,
        postgresql_where=keyed,
    )
    op.create_table(
        "graph",
        sa.Column("id", sa.String, nullable=False),
        sa.Column("version", sa.Integer, nullable=False),
        sa.Column("user_id", sa.String, nullable=False),
        sa.Column("name", sa.String, nullable=False),
        sa.Column("description", sa.String, nullable=False),
        sa.Column("is_active", sa.Boolean, nullable=False),
        sa.Column("body", sa.LargeBinary, nullable=False),
        sa.Column("created_at", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("id", "version"),
    )
    op.create_index("graph_user", "graph", ["user_id", "created_at"])
    op.create_table(
        "execution",
        sa.Column("id", sa.String, primary_key=True),
        sa.Column("user_id", sa.String, nullable=False),
        sa.Column("graph_id", sa.String, nullable=False),
        sa.Column("graph_version", sa.Integer, nullable=False),
        sa.Column("status", sa.String, nullable=False),
        sa.Column("status_reason", sa.String),
        sa.Column("inputs", sa.LargeBinary, nullable=False),
        sa.Column("stats", sa.LargeBinary, nullable=False),
        sa.Column("created_at", sa.BigInteger, nullable=False),
        sa.Column("started_at", sa.BigInteger),
        sa.Column("ended_at", sa.BigInteger),
        sa.Column("cancel_requested", sa.Boolean, nullable=False),
        sa.Column("lease_owner", sa.String),
        sa.Column("lease_no", sa.Integer, nullable=False),
        sa.Column("lease_until", sa.BigInteger),
        sa.Column("recoveries", sa.Integer, nullable=False),
        sa.Column("tape_id", big, nullable=False),
        sa.Column("epoch", sa.String, nullable=False),
    )
    op.create_index("execution_user", "execution", ["user_id", "created_at"])
    op.create_index("execution_graph", "execution", ["graph_id", "created_at"])
    running = sa.text("status = 'RUNNING'")
    op.create_index("execution_leased", "execution", ["lease_until"], sqlite_where=running, postgresql_where=running)
    op.create_table(
        "node_execution",
        sa.Column("execution_id", sa.String, nullable=False),
        sa.Column("seq", sa.Integer, nullable=False),
        sa.Column("id", sa.String, nullable=False),
        sa.Column("node_id", sa.String, nullable=False),
        sa.Column("block_id", sa.String, nullable=False),
        sa.Column("status", sa.String, nullable=False),
        sa.Column("status_reason", sa.String),
        sa.Column("inputs", sa.LargeBinary, nullable=False),
        sa.Column("output_name", sa.String),
        sa.Column("add_time", sa.BigInteger, nullable=False),
        sa.Column("queue_time", sa.BigInteger),
        sa.Column("start_time", sa.BigInteger),
        sa.Column("end_time", sa.BigInteger),
        sa.PrimaryKeyConstraint("execution_id", "seq"),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "node_output",
        sa.Column("execution_id", sa.String, nullable=False),
        sa.Column("seq", sa.Integer, nullable=False),
        sa.Column("position", sa.Integer, nullable=False),
        sa.Column("name", sa.String, nullable=False),
        sa.Column("value", sa.LargeBinary, nullable=False),
        sa.PrimaryKeyConstraint("execution_id", "seq", "position"),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "doorbell",
        sa.Column("id", big, primary_key=True),
        sa.Column("graph_exec_id", sa.String, nullable=False),
        sa.Column("kind", sa.String, nullable=False),
        sa.Column("enqueue_no", sa.Integer, nullable=False),
        sa.Column("taken", sa.Boolean, nullable=False),
        sa.Column("due_at", sa.BigInteger, nullable=False),
    )
    op.create_index("doorbell_due", "doorbell", ["due_at"])
    op.create_table(
        "idempotency",
        sa.Column("user_id", sa.String, nullable=False),
        sa.Column("route", sa.String, nullable=False),
        sa.Column("key", sa.String, nullable=False),
        sa.Column("fingerprint", sa.String, nullable=False),
        sa.Column("execution_id", sa.String, nullable=False),
        sa.Column("created_at", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("user_id", "route", "key"),
    )


def downgrade() -> None:
    for table in ("idempotency", "doorbell", "node_output", "node_execution", "execution", "graph", "event", "tape"):
        op.drop_table(table)
