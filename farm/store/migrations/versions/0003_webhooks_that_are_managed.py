"""Events of no job and of progress, secrets that end, deliveries that are sent again."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.alter_column("event", "job_id", existing_type=sa.Uuid(), nullable=True)
    op.add_column("event", sa.Column("step", sa.SmallInteger(), server_default=sa.text("0"), nullable=False))
    op.create_unique_constraint("event_job_id_epoch_type_step_key", "event", ["job_id", "epoch", "type", "step"])
    op.drop_constraint("event_job_id_epoch_type_key", "event", type_="unique")
    op.add_column(
        "endpoint",
        sa.Column(
            "secrets_until", sa.ARRAY(sa.DateTime(timezone=True)), server_default=sa.text("'{}'"), nullable=False
        ),
    )
    op.add_column("endpoint", sa.Column("disabled_reason", sa.Text(), nullable=True))
    op.create_index(
        "endpoint_progress",
        "endpoint",
        ["tenant_id"],
        unique=False,
        postgresql_where=sa.text("'job.progress' = ANY (events)"),
    )
    op.add_column("delivery", sa.Column("tries_before", sa.SmallInteger(), server_default=sa.text("0"), nullable=False))
    op.create_index(
        "delivery_dead",
        "delivery",
        ["endpoint_id", "event_id"],
        unique=False,
        postgresql_where=sa.text("state = 'dead'"),
    )
