"""A job's input may be the output of another job, which it waits for in the state ``pending``."""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None

_INDEXES = {
    "job_pending": (["tenant_id"], "state = 'pending'"),
    "job_pending_deadline": (["deadline"], "state = 'pending' AND deadline IS NOT NULL"),
    "job_with_dependents": (["batch_id"], "dependents > 0"),
}


def upgrade() -> None:
    op.add_column("job", sa.Column("pending_inputs", sa.SmallInteger(), server_default=sa.text("0"), nullable=False))
    op.add_column("job", sa.Column("dependents", sa.Integer(), server_default=sa.text("0"), nullable=False))
    op.add_column("batch", sa.Column("pending", sa.Integer(), server_default=sa.text("0"), nullable=False))
    op.create_table(
        "job_dependency",
        sa.Column("parent_id", sa.Uuid(), nullable=False),
        sa.Column("job_id", sa.Uuid(), nullable=False),
        sa.Column("waits", sa.Boolean(), nullable=False),
        sa.PrimaryKeyConstraint("parent_id", "job_id"),
    )
    op.create_index("job_dependency_job", "job_dependency", ["job_id"])
    op.create_table(
        "propagation",
        sa.Column("job_id", sa.Uuid(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=True),
        sa.Column("root", sa.Text(), nullable=True),
        sa.Column("after", sa.Uuid(), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.PrimaryKeyConstraint("job_id"),
    )
    with op.get_context().autocommit_block():
        for name, (columns, where) in _INDEXES.items():
            op.create_index(name, "job", columns, postgresql_where=sa.text(where), postgresql_concurrently=True)


def downgrade() -> None:
    with op.get_context().autocommit_block():
        for name in _INDEXES:
            op.drop_index(name, "job", postgresql_concurrently=True)
    op.drop_table("propagation")
    op.drop_table("job_dependency")
    op.drop_column("batch", "pending")
    op.drop_column("job", "dependents")
    op.drop_column("job", "pending_inputs")
