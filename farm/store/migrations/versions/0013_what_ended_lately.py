"""What ended lately is found by an index, so that a flood of other events hides none of it."""

import sqlalchemy as sa
from alembic import op

revision = "0013"
down_revision = "0012"
branch_labels = None
depends_on = None


def upgrade() -> None:
    # while jobs go on: a farm's history may be long
    with op.get_context().autocommit_block():
        op.execute("DROP INDEX CONCURRENTLY IF EXISTS event_ended")  # half made by an upgrade that was killed
        op.create_index(
            "event_ended",
            "event",
            ["tenant_id", "type", "id"],
            postgresql_where=sa.text("type IN ('job.succeeded', 'job.failed')"),
            postgresql_concurrently=True,
        )


def downgrade() -> None:
    op.drop_index("event_ended", "event")
