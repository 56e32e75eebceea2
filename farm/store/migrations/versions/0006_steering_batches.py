"""Batches that can be paused, moved in the queue and deleted; files that hold lines of jobs."""

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    pass


def downgrade() -> None:
    pass
