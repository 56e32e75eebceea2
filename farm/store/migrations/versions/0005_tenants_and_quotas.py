"""Tenants: scopes of keys, quotas, usage by day, and how long things are kept."""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("tenant", sa.Column("device_seconds_per_day", sa.Double()))
    op.add_column("tenant", sa.Column("storage_bytes", sa.BigInteger()))
    op.add_column("tenant", sa.Column("stored_bytes", sa.BigInteger(), server_default=sa.text("0"), nullable=False))
    op.add_column("tenant", sa.Column("retention_days", sa.Integer()))
    op.add_column("tenant", sa.Column("orphans_collected_until", sa.DateTime(timezone=True)))
    op.create_table(
        "usage",
        sa.Column("tenant_id", sa.Uuid(), nullable=False),
        sa.Column("day", sa.Date(), nullable=False),
        sa.Column("model", sa.Text(), nullable=False),
        sa.Column("slot", sa.SmallInteger(), nullable=False),
        sa.Column("jobs", sa.BigInteger(), nullable=False),
        sa.Column("images", sa.BigInteger(), nullable=False),
        sa.Column("bytes", sa.BigInteger(), nullable=False),
        sa.Column("device_seconds", sa.Double(), nullable=False),
        sa.ForeignKeyConstraint(["tenant_id"], ["tenant.id"], name="usage_tenant_id_fkey", ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("tenant_id", "day", "model", "slot", name="usage_pkey"),
        postgresql_with={"fillfactor": "50"},
    )
    op.create_index(
        "job_finished",
        "job",
        ["tenant_id", "finished_at"],
        postgresql_where=sa.text("finished_at IS NOT NULL"),
    )


def downgrade() -> None:
    op.drop_index("job_finished", table_name="job")
    op.drop_table("usage")
    for name in (
        "orphans_collected_until",
        "retention_days",
        "stored_bytes",
        "storage_bytes",
        "device_seconds_per_day",
    ):
        op.drop_column("tenant", name)
