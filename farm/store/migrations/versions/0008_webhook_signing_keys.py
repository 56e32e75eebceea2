"""Webhook endpoints that are signed for with a key pair."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None

EMPTY = sa.text("'{}'")


def upgrade() -> None:
    texts, times = postgresql.ARRAY(sa.Text()), postgresql.ARRAY(sa.DateTime(timezone=True))
    op.add_column("endpoint", sa.Column("keys", texts, server_default=EMPTY, nullable=False))
    op.add_column("endpoint", sa.Column("keys_until", times, server_default=EMPTY, nullable=False))


def downgrade() -> None:
    op.drop_column("endpoint", "keys_until")
    op.drop_column("endpoint", "keys")
