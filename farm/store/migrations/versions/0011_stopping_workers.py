"""An operator may end a worker's process from afar."""

import sqlalchemy as sa
from alembic import op

revision = "0011"
down_revision = "0010"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("worker", sa.Column("stop_boot_id", sa.Text))


def downgrade() -> None:
    op.drop_column("worker", "stop_boot_id")
