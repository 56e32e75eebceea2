"""Batches: many jobs submitted together, and the counters of how far they are."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "batch",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("tenant_id", sa.Uuid(), nullable=False),
        sa.Column("name", sa.Text(), nullable=True),
        sa.Column("metadata", postgresql.JSONB(astext_type=sa.Text()), server_default=sa.text("'{}'"), nullable=False),
        sa.Column("retry_of", sa.Uuid(), nullable=True),
        sa.Column("total", sa.Integer(), nullable=False),
        sa.Column("cost", sa.Double(), nullable=False),
        sa.Column("skipped", sa.Integer(), server_default=sa.text("0"), nullable=False),
        sa.Column("error_key", sa.Text(), nullable=True),
        sa.Column("succeeded", sa.Integer(), server_default=sa.text("0"), nullable=False),
        sa.Column("failed", sa.Integer(), server_default=sa.text("0"), nullable=False),
        sa.Column("canceled", sa.Integer(), server_default=sa.text("0"), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("first_finished_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("finished_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("cancel_requested_at", sa.DateTime(timezone=True), nullable=True),
        sa.ForeignKeyConstraint(["tenant_id"], ["tenant.id"]),
        sa.PrimaryKeyConstraint("id"),
        # its counters change with every job that ends: room in the page keeps the index out of it
        postgresql_with={"fillfactor": "50"},
    )
    op.create_index("batch_listing", "batch", ["tenant_id", sa.literal_column("id DESC")])
    op.add_column("job", sa.Column("batch_id", sa.Uuid(), nullable=True))
    op.add_column("job", sa.Column("batch_seq", sa.Integer(), nullable=True))
    op.create_index(
        "job_batch", "job", ["batch_id", "batch_seq"], unique=True, postgresql_where=sa.text("batch_id IS NOT NULL")
    )
    op.create_index(
        "job_batch_custom_id",
        "job",
        ["batch_id", "custom_id"],
        unique=True,
        postgresql_where=sa.text("batch_id IS NOT NULL AND custom_id IS NOT NULL"),
    )
    op.add_column("idempotency", sa.Column("batch_id", sa.Uuid(), nullable=True))
