"""Retrying many jobs at once; and one index less to write for each job, which another one covers."""

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_index("job_retry_of", "job", ["retry_of"], postgresql_where=sa.text("retry_of IS NOT NULL"))
    op.drop_index("job_ready", "job")


def downgrade() -> None:
    op.create_index(
        "job_ready",
        "job",
        ["tenant_id", sa.text("priority DESC"), "id"],
        postgresql_where=sa.text("state = 'queued'"),
    )
    op.drop_index("job_retry_of", "job")
