"""A pause says who set it."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

TABLES = ("pause", "tenant", "batch")


def upgrade() -> None:
    for table in TABLES:
        op.add_column(table, sa.Column("paused_by", sa.Text(), nullable=True))


def downgrade() -> None:
    for table in TABLES:
        op.drop_column(table, "paused_by")
