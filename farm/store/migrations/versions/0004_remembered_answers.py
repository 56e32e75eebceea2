"""What an idempotency key made may be more than a job or a batch: the answer itself is kept, encrypted."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("idempotency", sa.Column("answer", sa.Text(), nullable=True))


def downgrade() -> None:
    op.drop_column("idempotency", "answer")
