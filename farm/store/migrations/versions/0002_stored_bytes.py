"""What is stored for a tenant has rows: error reports until their URL has expired, and files of requests.

A batch is found by its request and by the batch that it retries, and counts outputs that look wrong. A tenant has
other names for models.
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("batch", sa.Column("suspicious", sa.Integer(), server_default=sa.text("0"), nullable=False))
    op.add_column("batch", sa.Column("request_hash", sa.LargeBinary(), nullable=True))
    op.add_column("batch", sa.Column("error_bytes", sa.BigInteger(), server_default=sa.text("0"), nullable=False))
    op.add_column(
        "pending_deletion",
        sa.Column("due_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
    )
    op.add_column("pending_deletion", sa.Column("tenant_id", sa.Uuid(), nullable=True))
    op.add_column("pending_deletion", sa.Column("size", sa.BigInteger(), server_default=sa.text("0"), nullable=False))
    op.add_column(
        "tenant", sa.Column("model_aliases", postgresql.JSONB(), server_default=sa.text("'{}'"), nullable=False)
    )
    op.create_table(
        "request_file",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("tenant_id", sa.Uuid(), nullable=False),
        sa.Column("filename", sa.Text(), nullable=False),
        sa.Column("size", sa.BigInteger(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.ForeignKeyConstraint(["tenant_id"], ["tenant.id"]),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_index("ix_request_file_tenant_id", "request_file", ["tenant_id"])
    with op.get_context().autocommit_block():
        op.create_index(
            "batch_retry_of",
            "batch",
            ["retry_of"],
            postgresql_where=sa.text("retry_of IS NOT NULL"),
            postgresql_concurrently=True,
        )
        op.create_index(
            "batch_request_hash",
            "batch",
            ["tenant_id", "request_hash"],
            postgresql_where=sa.text("request_hash IS NOT NULL"),
            postgresql_concurrently=True,
        )


def downgrade() -> None:
    with op.get_context().autocommit_block():
        op.drop_index("batch_request_hash", "batch", postgresql_concurrently=True)
        op.drop_index("batch_retry_of", "batch", postgresql_concurrently=True)
    op.drop_table("request_file")
    op.drop_column("tenant", "model_aliases")
    op.drop_column("pending_deletion", "size")
    op.drop_column("pending_deletion", "tenant_id")
    op.drop_column("pending_deletion", "due_at")
    op.drop_column("batch", "error_bytes")
    op.drop_column("batch", "request_hash")
    op.drop_column("batch", "suspicious")
