"""Outputs have stars, tags and collections, and are found by the words of their prompts."""

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "output_label",
        sa.Column("tenant_id", sa.Uuid(), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("job_id", sa.Uuid(), nullable=False),
        sa.Column("index", sa.SmallInteger(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.ForeignKeyConstraint(["job_id", "index"], ["output.job_id", "output.index"], ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("tenant_id", "kind", "name", "job_id", "index"),
    )
    op.create_index("output_label_output", "output_label", ["job_id", "index"])
    with op.get_context().autocommit_block():
        op.execute("""
            CREATE INDEX CONCURRENTLY job_prompt_words ON job USING gin (
                (to_tsvector('simple'::regconfig, coalesce(spec -> 'common' ->> 'prompt', ''))
                 || array_to_tsvector(ARRAY[tenant_id::text]))
            ) WITH (gin_pending_list_limit = 512) WHERE state = 'succeeded'
        """)


def downgrade() -> None:
    with op.get_context().autocommit_block():
        op.execute("DROP INDEX CONCURRENTLY job_prompt_words")
    op.drop_table("output_label")
