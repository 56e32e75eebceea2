"""Batches that can be paused, moved in the queue and deleted, and that tell of themselves."""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("batch", sa.Column("webhook", sa.Text(), nullable=True))
    op.add_column("batch", sa.Column("last_milestone", sa.SmallInteger(), server_default=sa.text("0"), nullable=False))
    op.add_column("batch", sa.Column("priority", sa.SmallInteger(), nullable=True))
    op.add_column("batch", sa.Column("paused_at", sa.DateTime(timezone=True), nullable=True))
    op.add_column("batch", sa.Column("paused_seconds", sa.Double(), server_default=sa.text("0"), nullable=False))
    op.add_column("batch", sa.Column("propagating", sa.Boolean(), server_default=sa.text("false"), nullable=False))
    op.add_column("batch", sa.Column("deleted_at", sa.DateTime(timezone=True), nullable=True))
    op.create_index(
        "batch_unfinished", "batch", ["id"], postgresql_where=sa.text("propagating OR deleted_at IS NOT NULL")
    )
    op.add_column("event", sa.Column("batch_id", sa.Uuid(), nullable=True))
    op.create_foreign_key("event_batch_id_fkey", "event", "batch", ["batch_id"], ["id"], ondelete="CASCADE")
    op.create_index(
        "event_batch",
        "event",
        ["batch_id", "type", "step"],
        unique=True,
        postgresql_where=sa.text("batch_id IS NOT NULL"),
    )
    op.create_table(
        "pending_deletion",
        sa.Column("key", sa.Text(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.PrimaryKeyConstraint("key"),
    )


def downgrade() -> None:
    op.drop_table("pending_deletion")
    op.drop_index("event_batch", "event")
    op.drop_column("event", "batch_id")
    op.drop_index("batch_unfinished", "batch")
    for name in ("deleted_at", "propagating", "paused_seconds", "paused_at", "priority", "last_milestone", "webhook"):
        op.drop_column("batch", name)
