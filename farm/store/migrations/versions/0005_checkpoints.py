"""The work of jobs that have not finished is stored, and a job says how much of it an attempt took."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("job", sa.Column("steps_resumed", sa.SmallInteger(), server_default=sa.text("0"), nullable=False))
    op.create_table(
        "checkpoint",
        sa.Column("job_id", sa.Uuid(), nullable=False),
        sa.Column("tenant_id", sa.Uuid(), nullable=False),
        sa.Column("parts", postgresql.JSONB(), nullable=False),
        sa.Column("steps", sa.Integer(), nullable=False),
        sa.Column("size", sa.BigInteger(), nullable=False),
        sa.Column("written_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.PrimaryKeyConstraint("job_id"),
    )


def downgrade() -> None:
    op.drop_table("checkpoint")
    op.drop_column("job", "steps_resumed")
