"""No index on the leases: renewing them is most of what is written of a job, and then touches no index at all."""

import sqlalchemy as sa
from alembic import op

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.drop_index("job_leases", "job")


def downgrade() -> None:
    op.create_index(
        "job_leases", "job", ["lease_until"], postgresql_where=sa.text("state IN ('dispatched', 'running')")
    )
