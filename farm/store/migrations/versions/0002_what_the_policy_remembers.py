"""What the policy remembers: the tenants' virtual times, the lines' marks, pauses and deadlines."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

WAITING = sa.text("state = 'queued'")


def upgrade() -> None:
    op.add_column("tenant", sa.Column("vtime", sa.Double(), server_default=sa.text("0"), nullable=False))
    op.add_column("tenant", sa.Column("backlogged", sa.Boolean(), server_default=sa.text("false"), nullable=False))
    op.add_column("tenant", sa.Column("paused_at", sa.DateTime(timezone=True), nullable=True))
    op.add_column("job", sa.Column("deadline", sa.DateTime(timezone=True), nullable=True))
    op.add_column(
        "job", sa.Column("queued_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False)
    )
    # those that wait keep their order; the previous release ordered by id, which is the order of submission
    op.execute("UPDATE job SET queued_at = created_at WHERE state IN ('queued', 'dispatched', 'running')")
    op.create_index("job_queue", "job", ["tenant_id", "priority", "model", "queued_at", "id"], postgresql_where=WAITING)
    op.create_index(
        "job_deadline",
        "job",
        ["deadline"],
        postgresql_where=sa.text("state = 'queued' AND deadline IS NOT NULL"),
    )
    op.create_table(
        "queue_state",
        sa.Column("tenant_id", sa.Uuid(), nullable=False),
        sa.Column("priority", sa.SmallInteger(), nullable=False),
        sa.Column("model", sa.Text(), nullable=False),
        sa.Column("skips", sa.Integer(), server_default=sa.text("0"), nullable=False),
        sa.Column("served_at", sa.DateTime(timezone=True), nullable=True),
        sa.ForeignKeyConstraint(["tenant_id"], ["tenant.id"]),
        sa.PrimaryKeyConstraint("tenant_id", "priority", "model"),
    )
    op.create_table(
        "pause",
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("paused_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.PrimaryKeyConstraint("kind", "name"),
    )
