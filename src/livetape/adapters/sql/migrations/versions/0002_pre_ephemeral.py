"""The table of ephemeral values (`livetape.store.ephemeral`)."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    op.create_table(
        "ephemeral",
        sa.Column("key", sa.String, primary_key=True),
        sa.Column("value", sa.LargeBinary, nullable=False),
        sa.Column("expires_at", sa.BigInteger, nullable=False),
    )
    op.create_index("ephemeral_end", "ephemeral", ["expires_at"])


def downgrade() -> None:
    op.drop_table("ephemeral")
