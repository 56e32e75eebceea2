"""Whether anybody wants to hear of an event is asked when it is written."""

import sqlalchemy as sa
from alembic import op

revision = "0012"
down_revision = "0011"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_index(
        "endpoint_subscribed",
        "endpoint",
        ["tenant_id"],
        postgresql_where=sa.text("NOT one_off AND disabled_at IS NULL"),
    )


def downgrade() -> None:
    op.drop_index("endpoint_subscribed", "endpoint")
