"""Control and recovery: priorities, waits, sub-graphs, reviews, time limits, pauses of the queue."""

from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"


def _execution() -> tuple["sa.Column[Any]", ...]:
    return (
        sa.Column("priority", sa.Integer, nullable=False, server_default="0"),
        sa.Column("forked_from", sa.String),
        sa.Column("parent_id", sa.String),
        sa.Column("parent_node_exec_id", sa.String),
        sa.Column("depth", sa.Integer, nullable=False, server_default="0"),
        sa.Column("deadline_at", sa.BigInteger),
        sa.Column("queue_deadline_at", sa.BigInteger),
        sa.Column("dry_run", sa.Boolean, nullable=False, server_default=sa.false()),
        sa.Column("cost", sa.Integer, nullable=False, server_default="0"),
        sa.Column("due_at", sa.BigInteger),
        sa.Column("ring_at", sa.BigInteger),
        sa.Column("held", sa.String),
        sa.Column("wakes", sa.Integer, nullable=False, server_default="0"),
        sa.Column("masks", sa.LargeBinary),
    )


def _node() -> tuple["sa.Column[Any]", ...]:
    return (
        sa.Column("attempt", sa.Integer, nullable=False, server_default="1"),
        sa.Column("stats", sa.LargeBinary),
        sa.Column("waits", sa.LargeBinary),
        sa.Column("effects", sa.LargeBinary),
    )


def upgrade() -> None:
    for column in _execution():
        op.add_column("execution", column)
    op.execute("UPDATE execution SET due_at = created_at, ring_at = created_at WHERE status = 'QUEUED'")
    ringing = sa.text("ring_at IS NOT NULL")
    op.create_index("execution_ring", "execution", ["ring_at"], sqlite_where=ringing, postgresql_where=ringing)
    child = sa.text("parent_id IS NOT NULL")
    op.create_index("execution_parent", "execution", ["parent_id"], sqlite_where=child, postgresql_where=child)
    held = sa.text("held IS NOT NULL")
    waiting_for = ["user_id", "priority", "created_at"]
    op.create_index("execution_held", "execution", waiting_for, sqlite_where=held, postgresql_where=held)
    for column in _node():
        op.add_column("node_execution", column)
    op.add_column("doorbell", sa.Column("priority", sa.Integer, nullable=False, server_default="0"))
    op.create_table(
        "review",
        sa.Column("id", sa.String, primary_key=True),
        sa.Column("user_id", sa.String, nullable=False),
        sa.Column("graph_id", sa.String, nullable=False),
        sa.Column("execution_id", sa.String, nullable=False),
        sa.Column("node_exec_id", sa.String, nullable=False),
        sa.Column("seq", sa.Integer, nullable=False),
        sa.Column("payload", sa.LargeBinary, nullable=False),
        sa.Column("instructions", sa.String, nullable=False),
        sa.Column("editable", sa.Boolean, nullable=False),
        sa.Column("status", sa.String, nullable=False),
        sa.Column("created_at", sa.BigInteger, nullable=False),
        sa.Column("decided_by", sa.String),
        sa.Column("decided_at", sa.BigInteger),
        sa.Column("message", sa.String, nullable=False),
    )
    op.create_index("review_execution", "review", ["execution_id"])
    op.create_index("review_node", "review", ["node_exec_id"])
    waiting = sa.text("status = 'WAITING'")
    who = ["user_id", "created_at"]
    op.create_index("review_waiting", "review", who, sqlite_where=waiting, postgresql_where=waiting)
    op.create_table(
        "queue_pause",
        sa.Column("name", sa.String, primary_key=True),
        sa.Column("since", sa.BigInteger, nullable=False),
        sa.Column("reason", sa.String, nullable=False),
    )
    op.create_table(
        "key_value",
        sa.Column("user_id", sa.String, nullable=False),
        sa.Column("key", sa.String, nullable=False),
        sa.Column("value", sa.LargeBinary, nullable=False),
        sa.Column("updated_at", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("user_id", "key"),
    )


def downgrade() -> None:
    op.drop_table("key_value")
    op.drop_table("queue_pause")
    op.drop_table("review")
    op.drop_column("doorbell", "priority")
    for column in _node():
        op.drop_column("node_execution", column.name)
    for index in ("execution_ring", "execution_parent", "execution_held"):
        op.drop_index(index, "execution")
    for column in _execution():
        op.drop_column("execution", column.name)
