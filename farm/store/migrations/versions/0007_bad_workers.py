"""Which workers failed a job, and which workers fail jobs that others can do."""

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("worker", sa.Column("drained_reason", sa.Text(), nullable=True))
    op.create_table(
        "job_failure",
        sa.Column("job_id", sa.Uuid(), nullable=False),
        sa.Column("worker", sa.Text(), nullable=False),
        sa.Column("refuted", sa.Boolean(), server_default=sa.text("false"), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.ForeignKeyConstraint(["job_id"], ["job.id"], ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("job_id", "worker"),
    )
    op.create_index("job_failure_refuted", "job_failure", ["worker"], postgresql_where=sa.text("refuted"))


def downgrade() -> None:
    op.drop_table("job_failure")
    op.drop_column("worker", "drained_reason")
