"""Doorbells by rank: what has begun goes before what is new, and a take reads no more than it takes."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    op.add_column("doorbell", sa.Column("rank", sa.Integer, nullable=False, server_default="0"))
    op.execute("UPDATE doorbell SET rank = 2 * priority + CASE WHEN enqueue_no > 0 THEN 1 ELSE 0 END")
    op.create_index("doorbell_next", "doorbell", ["rank", "due_at", "id"])


def downgrade() -> None:
    op.drop_index("doorbell_next", "doorbell")
    op.drop_column("doorbell", "rank")
